"""What to know of a plan, in sentences, whatever schedule it is of."""

from typing import Any, Final

from .placing import FEW_STEPS, count_of_full_steps
from .plans import Plan

#: Up to here what is left out shows, with this plan and with fewer steps.
SHORT: Final = 15


def remarks_on(schedule: Any, plan: Plan, *, is_past: bool = False) -> list[str]:
    """What to know of a plan, in sentences: what its schedule says of it, and if it is short.

    Args:
        schedule: As for `own_remarks_on`.
        plan: The plan of generations with it.
        is_past: Whether it has run.
    """
    short = if_short(len(plan), len(plan.full_steps))
    return [*own_remarks_on(schedule, plan, is_past=is_past), *([short] if short else [])]


def own_remarks_on(schedule: Any, plan: Plan, *, is_past: bool = False) -> list[str]:
    """What a schedule says of a plan: any schedule; it is asked by a method `remark_on`."""
    remark_on = getattr(schedule, "remark_on", None)
    own = None if remark_on is None else remark_on(plan, is_past=is_past)
    return [own] if own else []


def if_short(steps: int, full_steps: int) -> str | None:
    """A remark on plans of 9 to 15 steps; `None` with as many full steps as interval=1.5 leaves."""
    few = FEW_STEPS < steps <= SHORT
    if not few or full_steps >= count_of_full_steps(1.5, steps, frozenset()):
        return None
    far = f"with {SHORT} steps or fewer pictures move far from the plain ones"
    return f"{far}: try the default with interval=1.5"
