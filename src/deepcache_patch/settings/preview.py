"""What a generation will be like, before it runs: how many steps it has, and their plan."""

from __future__ import annotations

import copy
from typing import Any, Final

from torch import nn

from ..errors import InvalidSettingError, first_line
from ..measuring.generation import accepted_arguments
from ..patching.wrappers import unwrapped
from ..running.pipeline.components import likeliest_scheduler, unets_of
from ..schedules.adaptive import Adaptive
from ..schedules.context import Context
from ..schedules.guide import expected, plans_ahead
from ..schedules.plans import Plan, number_between, whole_number
from ..schedules.window import NO_WINDOW, Window

#: The argument that says how many steps there are, of pipelines and schedulers.
_STEPS: Final = "num_inference_steps"


def num_steps(pipe: Any, num_inference_steps: int | None, **given: Any) -> int | None:
    """Returns how many steps the pipeline's scheduler makes of `num_inference_steps`.

    As many, for most; those of second order make 2n - 1 of n. `None` where it cannot be told.

    Args:
        pipe: The pipeline.
        num_inference_steps: `None` where `given` says it.
        given: What else the scheduler's `set_timesteps` takes, such as `sigmas`.
    """
    if num_inference_steps is None and not given:
        return None
    try:
        scheduler = copy.deepcopy(pipe.scheduler)  # the pipeline's own stays as it is
        scheduler.set_timesteps(num_inference_steps, **given)
        return len(scheduler.timesteps)
    except Exception:  # no scheduler, or one that needs to know more; the pipeline will tell
        return None


def plan_of(
    pipe: Any,
    schedule: Any,
    num_inference_steps: int | None = None,
    *,
    window: Window = NO_WINDOW,
    strength: float = 1,
    **given: Any,
) -> Plan:
    """Returns the plan of a generation that has not been, by a copy of the pipeline's scheduler.

    Args:
        pipe: The pipeline, or a bare U-Net. Of several U-Nets, the first is meant.
        schedule: Any schedule; for `Auto`, what runs once it has learned is told.
        num_inference_steps: By default, as many as the pipeline makes by itself.
        window: What always runs in full.
        strength: The `strength` of pipelines that begin with a picture, 0 to 1.
        given: What the scheduler's `set_timesteps` takes, such as `timesteps`.

    Raises:
        InvalidSettingError: If the schedule has no plan before a generation, or none for so many
            steps, or the scheduler does not take the arguments.
    """
    name, unet = next(iter(unets_of(pipe).items()))
    if num_inference_steps is None and not given:
        parameter = None if isinstance(pipe, nn.Module) else accepted_arguments(pipe).get(_STEPS)
        num_inference_steps = parameter.default if parameter else None
    return plan_by(
        likeliest_scheduler(pipe, name),
        schedule,
        num_inference_steps,
        window=window,
        strength=strength,
        unet=unwrapped(unet),
        **given,
    )


def plan_by(
    scheduler: Any,
    schedule: Any,
    num_inference_steps: int | None,
    *,
    window: Window = NO_WINDOW,
    strength: float = 1,
    unet: nn.Module | None = None,
    **given: Any,
) -> Plan:
    """Returns the plan of a generation by a copy of a scheduler, or by none; see `plan_of`."""
    if num_inference_steps is not None or not given:
        num_inference_steps = whole_number(_STEPS, num_inference_steps, 1)
        given[_STEPS] = num_inference_steps
    strength = number_between("strength", strength, 0, 1)
    count, timesteps = num_inference_steps or 0, None
    if scheduler is not None:
        scheduler = copy.deepcopy(scheduler)  # the pipeline's own stays as it is
        try:
            scheduler.set_timesteps(**given)
        except (TypeError, ValueError, AssertionError) as error:
            raise InvalidSettingError(
                f"{type(scheduler).__name__}.set_timesteps refuses this: {first_line(error)}"
            ) from error
        listed = scheduler.timesteps.tolist()
        if strength < 1:  # as the pipelines begin later
            steps = num_inference_steps or len(listed)
            skipped = steps - min(int(steps * strength), steps)
            listed = listed[skipped * getattr(scheduler, "order", 1) :]
        timesteps, count = tuple(map(float, listed)), len(listed)
    if not count:
        raise InvalidSettingError(f"with strength={strength:g}, none of the steps would run")
    context = Context(count, timesteps, scheduler, unet or nn.Identity(), window=window)
    if not plans_ahead(schedule):
        most = ""
        if isinstance(schedule, Adaptive):
            most = f", at most {schedule.most_full(context)} of {count} steps in full"
        raise InvalidSettingError(
            f"{type(schedule).__name__} decides while a generation runs{most}: there is no plan "
            "before it; `compare` and `last_generations` tell what ran"
        )
    return expected(schedule, context)
