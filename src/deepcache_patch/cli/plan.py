"""The command `plan`: which steps of a generation would run in full. Loads no model."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import click

from . import kinds, options
from .mistakes import BadInputError, bad_input
from .names import PROGRAM, SCHEDULES
from .request import interval_leaving, read_schedule, require_one_amount
from .terminal import import_word, json_of, plan_as_dict, say

if TYPE_CHECKING:
    from ..learning.calibrated_schedule import Calibrated
    from ..schedules.plans import Plan
    from ..schedules.window import Window

_EXAMPLES = """\
examples:
  deepcache-patch plan --steps 25 --scheduler dpm-solver++-karras
  deepcache-patch plan --steps 50 --interval 2.5 --first 0.2 --last 1
  deepcache-patch plan --steps 30 --speedup 2
  deepcache-patch plan --steps 50 --schedule uniform --interval 3
  deepcache-patch plan --steps 50 --schedule centred --interval 5 --center 15 --power 1.4

F is a step in full, · a shallow one.
"""

#: Where the branches of a model stand.
_TABLE: Final = f"`{PROGRAM} branches MODEL`"

#: Steps of a generation unless they are given.
_STEPS: Final = 50

#: The settings of Stable Diffusion, which most schedulers are used with.
_USUAL: Final = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
    "set_alpha_to_one": False,
}


@options.command(_EXAMPLES)
@options.steps(default=f"{_STEPS}, or the file's")
@options.schedule
@options.interval
@options.speedup
@options.full_steps
@options.branch
@click.option(
    "--center", type=kinds.whole, metavar="STEP", help="of centred: where full steps are densest"
)
@click.option(
    "--power",
    type=kinds.finite,
    metavar="X",
    help="of centred: how uneven, 1 to 10",
)
@options.window
@options.scheduler(
    "whose noise levels count, with the settings of Stable Diffusion: ddim, dpm-solver++, "
    "euler, … or a class of diffusers (default: levels as of most of them)"
)
@click.option(
    "--spacing",
    type=click.Choice(["leading", "linspace", "trailing"]),
    help="of the scheduler's timesteps (default: leading)",
)
@options.strength("of a generation from a picture, 0 to 1")
@options.as_json("the plan")
def plan(
    *,
    schedule: str,
    steps: int | None,
    first: float,
    last: float,
    scheduler: str | None,
    spacing: str | None,
    strength: float | None,
    speedup: float | None,
    full_steps: int | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Prints which steps of a generation run in full. Loads no model."""
    is_arithmetic = scheduler is None and schedule in ("uniform", "centred")
    if not is_arithmetic:
        import_word()
    from ..schedules.placing import FEW_STEPS
    from ..schedules.plans import Uniform
    from ..schedules.remarks import remarks_on
    from ..schedules.window import Window
    from ..settings.by_name import TAKE_SPEEDUP, named_schedule

    require_one_amount(
        schedule, interval=parameters["interval"], speedup=speedup, full_steps=full_steps
    )
    given = {name: value for name, value in parameters.items() if value is not None}
    wanted = {"scheduler": scheduler, "spacing": spacing, "strength": strength}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if wanted and scheduler is None:
        raise BadInputError(f"--{next(iter(wanted))} goes with --scheduler")
    branch = given.get("branch", -1)
    calibrated: list[Calibrated] = []
    found: Any = None
    with bad_input():
        window = Window(first, last)
        if speedup is not None:
            given["interval"] = _interval_for(speedup, branch)
        if schedule not in SCHEDULES:
            calibrated = _in_file(schedule, steps, given | wanted)
            plans = [window.protect(each.entries) for each in calibrated]
        else:
            steps, built = steps or _STEPS, _scheduler(scheduler, spacing)
            if full_steps is not None:
                every = _planned(Uniform(1), built, steps, window, strength)
                given["interval"] = interval_leaving(full_steps, len(every), window)
            found = named_schedule(schedule, **given)
            if is_arithmetic:
                plans = [window.protect(found.plan(steps))]
            else:
                plans = [_planned(found, built, steps, window, strength)]
    if as_json:
        shown = [plan_as_dict(each) for each in plans]
        say(json_of(shown[0] if len(shown) == 1 else shown))
        return
    for each, source in zip_longest(plans, calibrated):
        say(f"{each}\n{each.counted}")
        if source is not None:
            say(f"calibrated for {source.setting.short}")
    if schedule in TAKE_SPEEDUP and len(plans[0]) > FEW_STEPS:
        own = "most schedulers; for those of yours give --scheduler NAME"
        say(f"by the noise levels of {scheduler or own}")
    for remark in remarks_on(found, plans[0]):
        say(remark)
    if branch > 0:  # all have branch 0
        say(f"no model tells here whether there is a branch {branch}: {_TABLE} does")


def _interval_for(speedup: float, branch: int) -> float:
    """The interval of so much less work, where no model tells what a shallow call costs."""
    from ..settings.by_name import schedule_of

    if branch >= 0:
        raise BadInputError(
            f"--speedup needs to know what a call at branch {branch} costs, which depends on the "
            f"model: {_TABLE} tells; give --interval here, or --branch -1, where it costs nothing"
        )
    return float(schedule_of(None, speedup=speedup, share_of=lambda _: 0.0).interval)


def _scheduler(name: str | None, spacing: str | None) -> Any:
    """The scheduler that is asked for, or `None`."""
    if name is None:
        return None
    from .loading import quiet_loading, scheduler_of

    quiet_loading()
    return scheduler_of(name, {**_USUAL, "timestep_spacing": spacing or "leading"})


def _planned(
    schedule: Any, scheduler: Any, steps: int, window: Window, strength: float | None
) -> Plan:
    """By the scheduler's noise levels; where there is none, by those of most of them."""
    from ..schedules.plans import FULL, Plan
    from ..settings.preview import plan_by

    strength = 1 if strength is None else strength
    plan = plan_by(scheduler, schedule, steps, window=window, strength=strength)
    if scheduler is None:  # without one, nothing says whether an output can be forecast
        plan = Plan(FULL if entry == FULL else schedule.branch for entry in plan)
    return plan


def _in_file(file: str, steps: int | None, given: dict[str, Any]) -> list[Calibrated]:
    """The schedules of a file, or those of them for `steps` steps."""
    found = read_schedule(file, several=True)
    if given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise BadInputError(f"{option} does not go with the file of --schedule, which has its plan")
    fitting = [each for each in found if steps in (None, len(each.entries))]
    if not fitting:
        lengths = " and ".join(str(each) for each in sorted({len(each.entries) for each in found}))
        raise BadInputError(
            f"{file} was calibrated for {lengths or 'no'} steps, not {steps}: leave --steps out"
        )
    return fitting
