"""The command `plan`: which steps of a generation would run in full. Loads no model."""

from __future__ import annotations

import argparse
from typing import Any

from ..schedules.plans import Plan
from ..settings.by_name import PLANNED, named_schedule
from .input import BadInputError, finite, positive, whole
from .pipeline import add_steps, bad_input
from .terminal import say

_EXAMPLE = """\
examples:
  %(prog)s --steps 50 --interval 3 --branch 0
  %(prog)s --steps 50 --schedule centred --interval 5 --center 15 --power 1.4
  %(prog)s --steps 50 --schedule growing --full-steps 10

F is a step in full, · a shallow one.
"""

#: Steps of a generation unless they are given.
_STEPS = 50


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "plan",
        help="which steps a schedule runs in full, as a strip",
        description="Prints which steps of a generation run in full. Loads no model.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_steps(parser, default=f"{_STEPS}, or the file's")
    add(
        "--schedule",
        default="uniform",
        metavar="NAME|FILE",
        help="uniform (default), centred, growing, or a file that `calibrate` wrote",
    )
    add("--interval", type=positive, metavar="N", help="one full step in N (default: 3)")
    add("--branch", type=whole, metavar="K", help="of the shallow steps (default: 0)")
    add("--center", type=whole, metavar="STEP", help="of centred: where full steps are densest")
    add("--power", type=finite, metavar="X", help="of centred and growing: how uneven, 1 to 10")
    add("--full-steps", type=positive, metavar="N", help="of growing: steps that run in full")
    parser.set_defaults(run=_plan, command="plan")


def _plan(options: argparse.Namespace, command: str) -> int:
    names = ("interval", "branch", "center", "power", "full_steps")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    with bad_input():
        if options.schedule in PLANNED:
            schedule = named_schedule(options.schedule, **given)
            plans = [schedule.plan(options.steps or _STEPS)]
        else:
            plans = _plans_in(options.schedule, options.steps, given)
    for plan in plans:
        say(f"{plan}\n{_counted(plan)}")
    return 0


def _plans_in(file: str, steps: int | None, given: dict[str, Any]) -> list[Plan]:
    if file in ("auto", "adaptive"):
        raise BadInputError(
            f"{file} has no plan before a generation runs: `compare` shows what it does"
        )
    from ..learning.learned import load_all  # which needs torch

    try:
        plans = [each.solution.plan for each in load_all(file)]
    except OSError as error:
        known = ", ".join(PLANNED)
        reason = error.strerror or str(error)
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
