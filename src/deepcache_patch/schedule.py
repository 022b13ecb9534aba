"""Which steps run in full, and at which branch the others run: pure arithmetic, no torch.

A schedule is any object with `plan(num_steps)`. Its plan names for each step of a generation either
`FULL` or the branch of a shallow step.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

from .errors import InvalidSettingError

#: The entry of a plan that makes a step run in full.
FULL: Final = "full"

#: One entry of a plan: `FULL`, or the branch (an integer from 0) of a shallow step.
PlanEntry: TypeAlias = int | Literal["full"]


@runtime_checkable
class Schedule(Protocol):
    """What `DeepCacheHelper` asks of a schedule."""

    def plan(self, num_steps: int) -> Sequence[PlanEntry]:
        """Return one entry for each of the `num_steps >= 1` steps of a generation.

        Step 0 runs in full whatever the plan says: there is nothing to replay yet.
        """
        ...


def whole_number(name: str, value: Any, minimum: int) -> int:
    """Return `value` as an `int` if it is an integer not below `minimum`.

    Raises:
        InvalidSettingError: If it is not; the message names `name`, the value and the minimum.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise InvalidSettingError(f"{name} must be an integer of at least {minimum}, not {value!r}")
    return number


@dataclass(frozen=True)
class Uniform:
    """The paper's 1:N: steps 0, N, 2N, … run in full, all others at one branch.

    Args:
        interval: N, at least 1; 1 means that every step runs in full.
        branch: The branch of the shallow steps, at least 0; its upper limit depends on the U-Net.

    Raises:
        InvalidSettingError: If either is not an integer in its range.

    Example:
        >>> Uniform(interval=3).plan(7)
        ('full', 0, 0, 'full', 0, 0, 'full')
    """

    interval: int = 3
    branch: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", whole_number("interval", self.interval, 1))
        object.__setattr__(self, "branch", whole_number("branch", self.branch, 0))

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that a plan may name."""
        return (self.branch,)

    def plan(self, num_steps: int) -> tuple[PlanEntry, ...]:
        """One entry for each of `num_steps >= 1` steps."""
        count = whole_number("num_steps", num_steps, 1)
        return tuple(self.branch if step % self.interval else FULL for step in range(count))
