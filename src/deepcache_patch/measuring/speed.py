"""How many times as fast one thing runs as another: both timed in turn, several times, because a
single timing on a machine that is shared says little. What a speedup is, and when it is too
unsteady to go by, is said here alone. What is run is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from .generation import Timing

#: Timings, if they agree and reach the goal; and otherwise.
FEWEST: Final = 3
MOST: Final = 9

#: Half of the timings lie in a range of at most this share of their median, or they vary too much.
WIDEST: Final = 0.2


@dataclass(frozen=True)
class Speed:
    """What several timings say: median over i of slow[i] / fast[i].

    The two of each ratio ran one after the other, so what slows the machine for a while slows both.

    Attributes:
        ratios: For each pair, the seconds of the slow one over those of the fast one that ran next.
    """

    ratios: tuple[float, ...]

    @classmethod
    def of(
        cls,
        slow: Sequence[Timing],
        fast: Sequence[Timing],
        seconds: Literal["loop_seconds", "call_seconds"] = "loop_seconds",
    ) -> Speed:
        """The speed of generations, round by round: of the denoising loop, or of the whole call."""
        pairs = zip(slow, fast, strict=True)
        return cls(tuple(getattr(one, seconds) / getattr(other, seconds) for one, other in pairs))

    @property
    def median(self) -> float:
        """The median of the ratios."""
        return float(np.median(self.ratios))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The least and the greatest ratio of the middle half; both were measured.

        Of up to four ratios the half is all of them, of nine the middle five.
        """
        low = np.quantile(self.ratios, 0.25, method="lower")
        high = np.quantile(self.ratios, 0.75, method="higher")
        return float(low), float(high)

    @property
    def is_steady(self) -> bool:
        """Whether the timings agree enough to go by: see `WIDEST`."""
        low, high = self.quartiles
        return high - low <= WIDEST * self.median

    def is_beyond(self, most: float | None) -> bool:
        """Whether the median is more than can be, if `most` is what the saved work allows.

        Both are rounded to two digits, as a person reads them.
        """
        return most is not None and round(self.median, 2) > round(most, 2)


def measured_speed(
    slow: Callable[[], float], fast: Callable[[], float], *, goal: float = 0.0
) -> Speed:
    """Times both in turn: `FEWEST` times if that is steady and reaches the goal, else `MOST` times.

    Args:
        slow: Runs once and returns its seconds.
        fast: Runs once and returns its seconds.
        goal: How many times as fast it is to be.
    """
    ratios: list[float] = []
    while True:
        ratios.append(slow() / fast())
        speed = Speed(tuple(ratios))
        enough = len(ratios) >= FEWEST and speed.is_steady and speed.median >= goal
        if enough or len(ratios) == MOST:
            return speed
