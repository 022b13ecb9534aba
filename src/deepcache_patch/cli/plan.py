"""The command `plan`: which steps of a generation would run in full. Loads no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from . import options
from .mistakes import BadInputError, bad_input, reason_of
from .terminal import say

if TYPE_CHECKING:
    from ..schedules.plans import Plan

_EXAMPLES = """\
examples:
  deepcache-patch plan --steps 50 --interval 3 --branch 0
  deepcache-patch plan --steps 50 --schedule centred --interval 5 --center 15 --power 1.4
  deepcache-patch plan --steps 50 --schedule growing --full-steps 10
  deepcache-patch plan --steps 25 --interval 3 --first 0.2 --last 1

F is a step in full, · a shallow one.
"""

#: Steps of a generation unless they are given.
_STEPS: Final = 50


@options.command(_EXAMPLES)
@options.steps(default=f"{_STEPS}, or the file's")
@options.schedule("uniform", "centred", "growing")
@options.interval
@options.branch
@click.option(
    "--center", type=options.whole, metavar="STEP", help="of centred: where full steps are densest"
)
@click.option(
    "--power",
    type=options.finite,
    metavar="X",
    help="of centred and growing: how uneven, 1 to 10",
)
@options.full_steps("of growing: steps that run in full")
@options.window
def plan(*, schedule: str, steps: int | None, first: float, last: float, **parameters: Any) -> None:
    """Prints which steps of a generation run in full. Loads no model."""
    from ..schedules.window import Window
    from ..settings.by_name import PLANNED, named_schedule

    given = {name: value for name, value in parameters.items() if value is not None}
    with bad_input():
        window = Window(first, last)
        if schedule in PLANNED:
            plans = [named_schedule(schedule, **given).plan(steps or _STEPS)]
        else:
            plans = _plans_in(schedule, steps, given)
    for each in map(window.protect, plans):
        say(f"{each}\n{_counted(each)}")


def _plans_in(file: str, steps: int | None, given: dict[str, Any]) -> list[Plan]:
    if file in ("auto", "adaptive"):
        raise BadInputError(
            f"{file} has no plan before a generation runs: `compare` shows what it does"
        )
    from ..learning.calibrated_schedule import load_all  # which needs torch
    from ..settings.by_name import PLANNED

    try:
        plans = [each.solution.plan for each in load_all(file)]
    except OSError as error:
        known = ", ".join(PLANNED)
        reason = reason_of(error)
        raise BadInputError(
            f"--schedule is {known} or a file; cannot read {file}: {reason}"
        ) from error
    if given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise BadInputError(f"{option} does not go with the file of --schedule, which has its plan")
    fitting = [plan for plan in plans if steps in (None, len(plan))]
    if not fitting:
        lengths = " and ".join(str(length) for length in sorted({len(plan) for plan in plans}))
        raise BadInputError(
            f"{file} was calibrated for {lengths or 'no'} steps, not {steps}: leave --steps out"
        )
    return fitting


def _counted(plan: Plan) -> str:
    count, branches = len(plan.full_steps), plan.branches
    text = f"{count} of {len(plan)} steps in full"
    if not branches:
        return text
    where = "branch" if len(branches) == 1 else "branches"
    return f"{text}, the others at {where} {', '.join(map(str, branches))}"
