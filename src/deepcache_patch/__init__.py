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
from .schedule import FULL, Schedule, Uniform

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "AlreadyEnabledError",
    "DeepCacheError",
    "DeepCacheHelper",
    "DeepCacheWarning",
    "InvalidSettingError",
    "Schedule",
    "Stats",
    "Uniform",
    "UnsupportedModelError",
    "__version__",
]
