"""Names that a person types or sees. No torch here: a shell asks for them to complete a word."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..errors import no_such

PROGRAM: Final = "deepcache-patch"

#: The shell sets it when it wants a word completed; click derives the same name.
COMPLETION_VARIABLE: Final = "_DEEPCACHE_PATCH_COMPLETE"

#: Of torch.
DTYPES: Final = ("float32", "float16", "bfloat16")

#: Schedules, the default first.
SCHEDULES: Final = ("default", "noise-aware", "uniform", "centred", "auto", "adaptive")

#: Friendly names; every scheduler class of diffusers is also known by its own name.
SCHEDULERS: Final = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "dpm-solver++-karras": "DPMSolverMultistepScheduler",
    "dpm-solver++-sde": "DPMSolverMultistepScheduler",
    "dpm-solver++-sde-karras": "DPMSolverMultistepScheduler",
    "dpm-solver++-single": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "tcd": "TCDScheduler",
    "unipc": "UniPCMultistepScheduler",
}

_KARRAS: Final = {"use_karras_sigmas": True}
_SDE: Final = {"algorithm_type": "sde-dpmsolver++"}

#: The settings that a friendly name stands for; the others leave those of the pipeline as they are.
SCHEDULER_OPTIONS: Final[dict[str, dict[str, object]]] = {
    "dpm-solver++-karras": {**_KARRAS},
    "dpm-solver++-sde": {**_SDE},
    "dpm-solver++-sde-karras": {**_KARRAS, **_SDE},
}


def no_such_scheduler(name: str, theirs: Collection[str] = ()) -> str:
    """What to say of a scheduler that there is not.

    Args:
        name: What was typed.
        theirs: Classes of diffusers that may be meant, too.
    """
    return f"{no_such('scheduler', name, SCHEDULERS, theirs)}, and the classes of diffusers"


def may_be_scheduler(name: str) -> bool:
    """Whether it is a friendly name, or looks like a class of diffusers."""
    return name.lower() in SCHEDULERS or name.endswith("Scheduler")
