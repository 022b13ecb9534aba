"""DeepCache for any existing diffusers U-Net pipeline, as a patch that leaves no trace."""

from .adaptive import Adaptive
from .auto import Auto
from .branches import Branch
from .calibrated import Calibrated
from .errors import (
    AlreadyEnabledError,
    DeepCacheError,
    DeepCacheWarning,
    InvalidSettingError,
    UnsupportedModelError,
)
from .helper import DeepCacheHelper
from .replay import Extrapolate, Replay, Reuse
from .schedule import FULL, Centred, Explicit, Growing, Plan, Schedule, Uniform
from .stats import LastGeneration, Stats

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "Adaptive",
    "AlreadyEnabledError",
    "Auto",
    "Branch",
    "Calibrated",
    "Centred",
    "DeepCacheError",
    "DeepCacheHelper",
    "DeepCacheWarning",
    "Explicit",
    "Extrapolate",
    "Growing",
    "InvalidSettingError",
    "LastGeneration",
    "Plan",
    "Replay",
    "Reuse",
    "Schedule",
    "Stats",
    "Uniform",
    "UnsupportedModelError",
    "__version__",
]
