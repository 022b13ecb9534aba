"""Which steps run in full, and at which branch the others run: pure arithmetic, no torch.

A schedule is any object with `plan(num_steps)`. Its plan names for each step of a generation either
`FULL` or the branch of a shallow step. Schedules that measure something first are elsewhere.
"""

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from ..errors import InvalidSettingError
from .tables import html_table

#: The entry of a plan that makes a step run in full.
FULL: Final = "full"

#: The branch above the output: nothing of the U-Net runs there, and its output is forecast.
OUTPUT: Final = -1

#: Signs of a strip, in a `repr`.
_LONGEST_STRIP: Final = 240

#: One entry of a plan: `FULL`, or the branch (0, 1, … or `OUTPUT`) of a shallow step.
PlanEntry: TypeAlias = int | Literal["full"]


class Plan(tuple[PlanEntry, ...]):
    """One entry for each step of a generation; printed as a strip.

    A full step is `F`. A shallow one is `·` if all run at the same branch, else its branch in
    brackets where that has two digits.

    Example:
        >>> print(Plan(["full", 0, 0, "full", 0]), Plan(["full", 0, 3, 11]))
        F··F· F03[11]
        >>> Plan(["full", 0, 0, "full", 0])
        Plan(F··F·, branch 0)
    """

    __slots__ = ()

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The steps that run in full, rising."""
        return tuple(step for step, entry in enumerate(self) if entry == FULL)

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches of the shallow steps, each once, rising."""
        return tuple(sorted({entry for entry in self if entry != FULL}))

    @property
    def counted(self) -> str:
        """In words: "5 of 12 steps in full, the others forecast"."""
        text = f"{len(self.full_steps)} of {len(self)} steps in full"
        if not self.branches:
            return text
        if len(self.branches) == 1:
            return f"{text}, the others {place_of(self.branches[0])}"
        return f"{text}, the others at branches {', '.join(map(str, self.branches))}"

    def __repr__(self) -> str:
        strip = str(self)
        if len(strip) > _LONGEST_STRIP:
            strip = f"{strip[:_LONGEST_STRIP]}…"
        branch = f", branch {self.branches[0]}" if len(self.branches) == 1 else ""
        return f"Plan({strip}{branch})"

    def _repr_html_(self) -> str:
        return html_table("Plan", [("steps", str(self)), ("", self.counted)])

    def __str__(self) -> str:
        if len(self.branches) <= 1:
            return "".join("F" if entry == FULL else "·" for entry in self)
        signs = ("F" if entry == FULL else str(entry) for entry in self)
        return "".join(sign if len(sign) == 1 else f"[{sign}]" for sign in signs)


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
    try:  # an old numpy takes its bool for an index
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise InvalidSettingError(f"{name} must be an integer of at least {minimum}, not {value!r}")
    return number


def schedule_text(schedule: Any) -> str:
    """A schedule as a person reads it: an interval that follows from a speedup has many digits."""

    def shorter(found: re.Match[str]) -> str:
        return f"interval={float(found[1]):g}"

    return re.sub(r"\binterval=(\d+\.\d+)", shorter, str(schedule))


def place_of(branch: int) -> str:
    """How a shallow step is made, as a sentence says it."""
    return "forecast" if branch == OUTPUT else f"at branch {branch}"


def number_between(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a `float` if it is a real number in `[low, high]`.

    Raises:
        InvalidSettingError: If it is not; the message names `name`, the value and the range.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    # Compared as it is: an integer may be too large for a float.
    if not real or not low <= value <= high:
        raise InvalidSettingError(f"{name} must be a number from {low} to {high}, not {value!r}")
    return float(value)


class OneBranch:
    """What schedules share whose shallow steps all run at the same branch."""

    branch: int

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that a plan may name."""
        return (self.branch,)


@dataclass(frozen=True)
class Uniform(OneBranch):
    """The paper's 1:N: steps 0, N, 2N, … run in full, all others at one branch.

    Args:
        interval: N, at least 1; 1 means that every step runs in full.
        branch: The branch of the shallow steps, at least -1; its upper limit depends on the U-Net.

    Raises:
        InvalidSettingError: If either is not an integer in its range.

    Example:
        >>> Uniform(interval=3).plan(7)
        Plan(F··F··F, branch 0)
        >>> print(Uniform(interval=3).plan(7))
        F··F··F
    """

    interval: int = 3
    branch: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", whole_number("interval", self.interval, 1))
        object.__setattr__(self, "branch", whole_number("branch", self.branch, OUTPUT))

    def plan(self, num_steps: int) -> Plan:
        """One entry for each of `num_steps >= 1` steps."""
        count = whole_number("num_steps", num_steps, 1)
        return plan_with(range(0, count, self.interval), count, self.branch)


@dataclass(frozen=True)
class Centred(OneBranch):
    """The paper's non-uniform 1:N: as many full steps as `Uniform` has, densest round one step.

    With T steps and k = ⌈T / interval⌉ full ones, l runs over k + 1 evenly spaced points from
    (-center)^(1/power) to (T - center)^(1/power), and the full steps are l^power + center, rounded
    towards zero (equation 7 of arXiv 2312.00858). The root of a negative number is taken as the
    published step lists have it: complex, and the real part of l^power is what counts.

    Args:
        interval: N, at least 1.
        center: The step round which features change most, at least 0.
        power: How much denser the full steps are there, in (1, 10]. Where it gives fewer full steps
            than k, it is lowered by 0.02 until it gives k, as for the published lists.
        branch: The branch of the shallow steps, at least -1.

    Raises:
        InvalidSettingError: If an argument is out of range.

    Example:
        >>> Centred(interval=5, center=15, power=1.4).plan(50).full_steps
        (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)
    """

    interval: int = 3
    center: int = 15
    power: float = 1.4
    branch: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", whole_number("interval", self.interval, 1))
        object.__setattr__(self, "center", whole_number("center", self.center, 0))
        object.__setattr__(self, "branch", whole_number("branch", self.branch, OUTPUT))
        object.__setattr__(self, "power", number_between("power", self.power, 1, 10))

    def plan(self, num_steps: int) -> Plan:
        """One entry for each of `num_steps >= 1` steps.

        Raises:
            InvalidSettingError: If no power down to 1 gives the number of full steps.
        """
        count = whole_number("num_steps", num_steps, 1)
        wanted = -(-count // self.interval)
        power = self.power
        while power > 1:
            steps = self._full_steps(count, wanted, power)
            if len(steps) == wanted and steps[-1] < count:
                return plan_with(steps, count, self.branch)
            power -= 0.02
        raise InvalidSettingError(
            f"there is no list of {wanted} full steps in {count} round step {self.center} for "
            f"power {self.power}: lower center or power, or raise interval"
        )

    def _full_steps(self, count: int, wanted: int, power: float) -> list[int]:
        first = complex(-self.center) ** (1 / power)
        last = complex(count - self.center) ** (1 / power)
        reals = (np.linspace(first, last, wanted + 1) ** power).real
        inner = np.unique(reals.astype(int))[1:-1] + self.center  # rounded towards zero
        return [0, *inner.tolist()]


@dataclass(frozen=True, init=False)
class Explicit:
    """A plan that is written down: for generations of just as many steps as it has entries.

    Args:
        entries: `FULL` or a branch for each step.

    Raises:
        InvalidSettingError: If there are no entries, or one is neither `FULL` nor a branch.

    Example:
        >>> print(Explicit(["full", 0, 3, "full", 0]).plan(5))
        F03F0
    """

    entries: Plan

    def __init__(self, entries: Sequence[PlanEntry]) -> None:
        checked = (
            entry if entry == FULL else whole_number(f"entry {step}", entry, OUTPUT)
            for step, entry in enumerate(entries)
        )
        object.__setattr__(self, "entries", Plan(checked))
        if not self.entries:
            raise InvalidSettingError("a plan needs at least one entry, such as 'full'")

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that the plan names."""
        return self.entries.branches

    def plan(self, num_steps: int) -> Plan:
        """The entries.

        Raises:
            InvalidSettingError: If `num_steps` is not the number of entries.
        """
        if num_steps != len(self.entries):
            raise InvalidSettingError(
                f"this plan is written for {len(self.entries)} steps, the generation has "
                f"{num_steps}: write one with {num_steps} entries"
            )
        return self.entries

    def __repr__(self) -> str:
        return f"Explicit({list(self.entries)})"


def plan_with(full_steps: Iterable[int], count: int, branch: int) -> Plan:
    """A plan of so many steps: these in full, the others at the branch."""
    full = frozenset(full_steps)
    return Plan(FULL if step in full else branch for step in range(count))
