"""Names that a person types or sees. No torch here: a shell asks for them to complete a word."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

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

#: Of which a step may have more than one timestep, or a generation one more than steps.
_MORE_TIMESTEPS: Final = ("dpm-solver++-single", "heun", "kdpm2", "kdpm2-ancestral", "pndm")

#: Classes of which each step has one timestep.
ONE_TIMESTEP: Final = {SCHEDULERS[name] for name in SCHEDULERS if name not in _MORE_TIMESTEPS}

_KARRAS: Final = {"use_karras_sigmas": True}
_SDE: Final = {"algorithm_type": "sde-dpmsolver++"}

#: The settings that a friendly name stands for; the others leave those of the pipeline as they are.
SCHEDULER_OPTIONS: Final[dict[str, dict[str, object]]] = {
    "dpm-solver++-karras": {**_KARRAS},
    "dpm-solver++-sde": {**_SDE},
    "dpm-solver++-sde-karras": {**_KARRAS, **_SDE},
}


def _letters(name: str) -> str:
    """What two spellings of a name have in common: "DPM++ 2M" and "dpmpp_2m"."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


#: By these letters other programs know some of them, and reports know classes without their suffix;
#: the known names have letters of their own.
_BY_LETTERS: Final = {
    **{_letters(kind.removesuffix("Scheduler")): kind for kind in SCHEDULERS.values()},
    **{_letters(name): name for name in SCHEDULERS},
    "dpmpp": "dpm-solver++",
    "dpmpp2m": "dpm-solver++",
    "dpmpp2mkarras": "dpm-solver++-karras",
    "dpmpp2msde": "dpm-solver++-sde",
    "dpmpp2msdekarras": "dpm-solver++-sde-karras",
}


def friendly_name(text: str) -> str:
    """The known name or class that is spelt so elsewhere, or the text itself."""
    return _BY_LETTERS.get(_letters(text), text)


def name_of_scheduler(described: Mapping[str, Any]) -> str:
    """What to type for a scheduler, by its class and config: its friendly name, or its class.

    Args:
        described: The config, and the name of the class as "class".
    """
    kind = str(described.get("class"))
    fitting = {
        name: options
        for name in SCHEDULERS
        if SCHEDULERS[name] == kind
        for options in [SCHEDULER_OPTIONS.get(name, {})]
        if all(described.get(key) == value for key, value in options.items())
    }
    return max(fitting, key=lambda name: len(fitting[name]), default=kind)


def no_such_scheduler(name: str, theirs: Collection[str] = ()) -> str:
    """What to say of a scheduler that there is not.

    Args:
        name: What was typed.
        theirs: Classes of diffusers that may be meant, too.
    """
    said = no_such("scheduler", name, SCHEDULERS, theirs)
    if _letters(name).startswith("dpmpp"):  # to which "ddpm" is nearest, by letters
        family = ", ".join(each for each in SCHEDULERS if each.startswith("dpm-solver++"))
        said = (
            f"there is no scheduler {name!r}: did you mean one of {family}? "
            f"There are {', '.join(SCHEDULERS)}"
        )
    return f"{said}, and the classes of diffusers"


def may_be_scheduler(name: str) -> bool:
    """Whether it is a friendly name, or looks like a class of diffusers."""
    return name.lower() in SCHEDULERS or name.endswith("Scheduler")
