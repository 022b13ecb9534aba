"""Samplers by the names that papers use, and Karras' noise levels."""

from inspect import signature
from types import SimpleNamespace
from typing import Any

from diffusers import DDIMScheduler

from deepcache_patch.cli.loading import use_scheduler

#: Name in papers and UIs -> name for `use_scheduler`, and what is changed in the config.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm": ("dpm-solver++", {}),
    "dpm++": ("dpm-solver++", {}),
    "dpmpp-2m": ("dpm-solver++", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp-3m": ("dpm-solver++", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpmpp-2m-sde": ("dpm-solver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpmpp-2s": ("dpm-solver++-single", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler-a": ("euler-ancestral", {}),
    "plms": ("pndm", {"skip_prk_steps": True}),
    "dpm2": ("kdpm2", {}),
    "dpm2-a": ("kdpm2-ancestral", {}),
}


def use_sampler(pipe: Any, name: str, *, karras: bool = False) -> None:
    """Gives the pipeline another scheduler, built from the settings of its own.

    Args:
        pipe: A pipeline.
        name: A key of `ALIASES` (underscores are hyphens), a name that the commands of
            deepcache-patch know, or a scheduler class of diffusers.
        karras: Whether it goes by Karras' noise levels.

    Raises:
        ValueError: If the name is unknown, the scheduler cannot be built or has no such levels.
    """
    friendly, changes = ALIASES.get(name.lower().replace("_", "-"), (name, {}))
    try:
        use_scheduler(pipe, friendly)
    except ValueError as error:
        raise ValueError(f"{error}; and here {', '.join(ALIASES)}") from error
    made = type(pipe.scheduler)
    if karras:
        if "use_karras_sigmas" not in signature(made.__init__).parameters:
            raise ValueError(f"--karras: {made.__name__} does not go by Karras' noise levels")
        changes = {**changes, "use_karras_sigmas": True}
    pipe.scheduler = made.from_config(pipe.scheduler.config, **changes)


def require_sampler(name: str, *, karras: bool) -> None:
    """Refuses a name before a model is loaded, as `use_sampler` would afterwards.

    Raises:
        ValueError: As `use_sampler`.
    """
    use_sampler(SimpleNamespace(scheduler=DDIMScheduler()), name, karras=karras)
