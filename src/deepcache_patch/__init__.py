"""DeepCache for any existing diffusers U-Net pipeline, as a patch that leaves no trace.

Example:
    >>> import diffusers, deepcache_patch
    >>> pipe = diffusers.DiffusionPipeline.from_pretrained("…")  # doctest: +SKIP
    >>> deepcache_patch.enable(pipe, interval=3)  # doctest: +SKIP
    >>> image = pipe("a lighthouse in a storm").images[0]  # doctest: +SKIP
    >>> deepcache_patch.disable(pipe)  # doctest: +SKIP

What it costs and what it gains with your model: `DeepCacheHelper(pipe).compare(prompt="…")`, or
`deepcache-patch compare MODEL --prompt "…"` in a shell. `help(DeepCacheHelper)` has all settings.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .versions import __version__

if TYPE_CHECKING:
    from .dropin import DeepCacheSDHelper
    from .errors import (
        AlreadyEnabledError,
        DeepCacheError,
        DeepCacheWarning,
        InvalidSettingError,
        UnsupportedModelError,
    )
    from .helper import DeepCacheHelper
    from .inspection.branches import Branch
    from .learning.auto import Auto
    from .learning.calibrated_schedule import Calibrated
    from .running.stats import LastGeneration, Stats
    from .schedules.adaptive import Adaptive
    from .schedules.noise_aware import NoiseAware
    from .schedules.plans import FULL, OUTPUT, Centred, Explicit, Plan, Schedule, Uniform
    from .schedules.replay import Extrapolate, Replay, Reuse
    from .switches import disable, enable

__all__ = [
    "FULL",
    "OUTPUT",
    "Adaptive",
    "AlreadyEnabledError",
    "Auto",
    "Branch",
    "Calibrated",
    "Centred",
    "DeepCacheError",
    "DeepCacheHelper",
    "DeepCacheSDHelper",
    "DeepCacheWarning",
    "Explicit",
    "Extrapolate",
    "InvalidSettingError",
    "LastGeneration",
    "NoiseAware",
    "Plan",
    "Replay",
    "Reuse",
    "Schedule",
    "Stats",
    "Uniform",
    "UnsupportedModelError",
    "__version__",
    "disable",
    "enable",
]

#: Where the public names stand; those that need no torch first.
_MODULES = (
    "errors",
    "schedules.plans",
    "running.stats",
    "schedules.replay",
    "schedules.adaptive",
    "schedules.noise_aware",
    "inspection.branches",
    "learning.calibrated_schedule",
    "learning.auto",
    "helper",
    "switches",
    "dropin",
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
