"""DeepCache for any existing diffusers U-Net pipeline, as a patch that leaves no trace."""

from .attached import Stats
from .errors import (
    AlreadyEnabledError,
    DeepCacheError,
    DeepCacheWarning,
    InvalidSettingError,
    UnsupportedModelError,
)
from .helper import DeepCacheHelper
from .schedule import FULL, Centred, Explicit, Growing, Plan, Schedule, Uniform

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "AlreadyEnabledError",
    "Centred",
    "DeepCacheError",
    "DeepCacheHelper",
    "DeepCacheWarning",
    "Explicit",
    "Growing",
    "InvalidSettingError",
    "Plan",
    "Schedule",
    "Stats",
    "Uniform",
    "UnsupportedModelError",
    "__version__",
]
