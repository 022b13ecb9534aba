"""DeepCache for any existing diffusers U-Net pipeline, as a patch that leaves no trace."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

#: Where the public names stand; those that need no torch first.
_MODULES = (
    *("errors", "schedule", "replay", "stats", "adaptive", "auto", "branches", "calibrated"),
    "helper",
)

if not TYPE_CHECKING:  # for mypy, any name would be one of this package

    def __getattr__(name: str) -> Any:
        """Finds a public name when it is first asked for: `--help` need not wait for torch."""
        if name in __all__:
            for module in (import_module(f".{each}", __name__) for each in _MODULES):
                if hasattr(module, name):
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
