"""`Window`: the steps at the start and at the end of a generation that always run in full. What the
steps between do is decided by a schedule. Pure arithmetic, no torch.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import InvalidSettingError
from .plans import FULL, Plan, PlanEntry

#: What a share of the steps may be too large by: 0.07 · 100 is a little more than 7, and 0.2 in
#: float32 a little more than a fifth.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Window:
    """How many steps at either end of a generation run in full, whatever the schedule says.

    Args:
        first: How many at the start: an integer of at least 0, or a float from 0 to below 1, a
            share of the generation's steps, rounded up.
        last: How many at the end, given as `first` is.

    Raises:
        InvalidSettingError: If one is neither.

    Example:
        >>> sorted(Window(first=0.2, last=1).steps(10))
        [0, 1, 9]
    """

    first: float = 0
    last: float = 0

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            object.__setattr__(self, name, _steps_or_share(name, getattr(self, name)))

    def __bool__(self) -> bool:
        return self.first > 0 or self.last > 0

    def __str__(self) -> str:
        return f"first={self.first}, last={self.last}"

    def steps(self, num_steps: int, *, is_guess: bool = False) -> frozenset[int]:
        """The protected steps: all of them, if there are no more.

        Args:
            num_steps: How many the generation has.
            is_guess: Whether that is not known. Then it is not known either where the last steps
                are, nor what a share is of: only a whole number of first steps is protected.
        """
        first, last = self.first, self.last
        if is_guess:
            first, last = first if isinstance(first, int) else 0, 0
        start = range(_count(first, num_steps))
        end = range(num_steps - _count(last, num_steps), num_steps)
        return frozenset(start) | frozenset(end)

    def protect(self, plan: Sequence[PlanEntry], *, is_guess: bool = False) -> Plan:
        """The plan with the protected steps in full; the arguments are those of `steps`.

        Example:
            >>> print(Window(first=2, last=1).protect(Plan(["full", 0, 0, "full", 0, 0])))
            FF·F·F
        """
        protected = self.steps(len(plan), is_guess=is_guess)
        return Plan(FULL if step in protected else entry for step, entry in enumerate(plan))


def _steps_or_share(name: str, value: Any) -> float:
    """The value as an `int` or a `float`, if it is a number of steps or a share of them."""
    if not isinstance(value, bool | np.bool_):  # an old numpy takes that one for an index
        try:
            steps = operator.index(value)
        except TypeError:
            if isinstance(value, float | np.floating) and 0 <= value < 1:
                return float(value)
        else:
            if steps >= 0:
                return steps
    raise InvalidSettingError(
        f"{name} must be a number of steps, an integer of at least 0, or a share of them, a float "
        f"from 0 to below 1, not {value!r}"
    )


def _count(amount: float, num_steps: int) -> int:
    """How many of the steps are meant."""
    if isinstance(amount, int):
        return min(amount, num_steps)
    return math.ceil(amount * num_steps * (1 - _ROUNDING))


#: Nothing is protected.
NO_WINDOW: Final = Window()
