"""What a call makes, as far as its arguments say so before it runs: how many steps, above all."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..errors import InvalidSettingError
from ..learning.calibrated_schedule import Calibrated
from ..measuring.generation import accepted_arguments
from ..schedules.plans import Uniform
from ..settings.preview import num_steps, plan_of

#: With one of these, a generation has the steps that they list, whatever `num_inference_steps` is.
LISTS: Final = ("timesteps", "sigmas")

#: With one of these, the number of steps is not `num_inference_steps` alone.
STEP_ARGUMENTS: Final = ("strength", *LISTS, "denoising_start", "denoising_end")

#: What a generation begins with whose first steps `strength` leaves out. Modular pipelines know
#: that argument where there is nothing to begin with, too.
BEGINS: Final = ("image", "video", "image_latents")


def steps_of(pipe: Any, call: Mapping[str, Any]) -> Any:
    """As many as a list in the call makes, `num_inference_steps`, or else the pipeline's own."""
    if call.get("timesteps") is not None:
        return len(call["timesteps"])
    if call.get("sigmas") is not None:  # for some schedulers, the level at the end is among them
        return num_steps(pipe, None, sigmas=call["sigmas"]) or len(call["sigmas"])
    steps = call.get("num_inference_steps", default_of(pipe, "num_inference_steps"))
    try:
        return operator.index(steps)  # an integer of numpy is none of Python's
    except TypeError:
        return steps


def pythons(value: Any) -> Any:
    """A number of numpy as one of Python's, which JSON knows; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def strength_of(pipe: Any, call: Mapping[str, Any]) -> float:
    """The share of the steps that run, 0 to 1: less than 1 where a picture is begun with."""
    strength = pythons(call.get("strength", default_of(pipe, "strength")))
    begins_later = any(call.get(name) is not None for name in BEGINS)
    is_whole = call.get("denoising_start") is not None or not begins_later
    return 1 if is_whole or not isinstance(strength, float) else strength


def timesteps_that_run(pipe: Any, call: Mapping[str, Any]) -> int | None:
    """How many of the scheduler's timesteps run; `None` where the arguments do not tell."""
    told = any(call.get(name) is not None for name in STEP_ARGUMENTS if name != "strength")
    count = call.get("num_inference_steps") or default_of(pipe, "num_inference_steps")
    if told or num_steps(pipe, count) is None:
        return None
    return len(plan_of(pipe, Uniform(1), count, strength=strength_of(pipe, call)))


def require_same_steps(
    pipe: Any, call: Mapping[str, Any], schedule: Any, name: str | None = None
) -> None:
    """Refuses a calibrated schedule that was made for another number of steps.

    Args:
        pipe: The pipeline.
        call: Arguments of its call.
        schedule: Any schedule.
        name: What the message calls the schedule.

    Raises:
        InvalidSettingError: The message names both, and the cure.
    """
    if isinstance(schedule, Calibrated):
        require_so_many(schedule, timesteps_that_run(pipe, call), name)


def require_so_many(schedule: Calibrated, steps: int | None, name: str | None = None) -> None:
    """Refuses a schedule for another number of steps; `None` is not known, and passes."""
    made = len(schedule.entries)
    if steps not in (None, made):
        raise InvalidSettingError(
            f"{name or schedule} was calibrated for {made} steps, and here are {steps}: "
            "give as many, or calibrate anew"
        )


def default_of(pipe: Any, argument: str) -> Any:
    """What the pipeline takes where a call does not give this argument; `None` if it has none."""
    parameter = accepted_arguments(pipe).get(argument)
    return None if parameter is None else parameter.default
