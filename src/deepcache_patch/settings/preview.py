"""What a generation will be like, before it runs: how many steps it has, and their plan."""

from __future__ import annotations

import copy
from typing import Any

from ..schedules.plans import Plan, Schedule


def num_steps(pipe: Any, num_inference_steps: int | None) -> int | None:
    """Returns how many steps the pipeline's scheduler makes of `num_inference_steps`.

    As many, for most; those of second order make 2n - 1 of n. `None` where it cannot be told.
    """
    if num_inference_steps is None:
        return None
    try:
        scheduler = copy.deepcopy(pipe.scheduler)  # the pipeline's own stays as it is
        scheduler.set_timesteps(num_inference_steps)
        return len(scheduler.timesteps)
    except Exception:  # no scheduler, or one that needs to know more; the pipeline will tell
        return None


def plan_of(schedule: Any, steps: int) -> Plan | None:
    """Returns the plan of a schedule, or `None` where it is made while the generation runs.

    Raises:
        InvalidSettingError: If the schedule has no plan for so many steps.
    """
    return Plan(schedule.plan(steps)) if isinstance(schedule, Schedule) else None
