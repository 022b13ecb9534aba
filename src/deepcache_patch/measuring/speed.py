"""How many times as fast one thing runs as another: both timed in turn, several times, because a
single timing on a machine that is shared says little. What is run is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

#: Timings, if they agree and reach the goal; and otherwise.
FEWEST: Final = 3
MOST: Final = 9

#: Half of the timings lie in a range of at most this share of their median, or they vary too much.
WIDEST: Final = 0.2


@dataclass(frozen=True)
class Speed:
    """What several timings say.

    Attributes:
        ratios: Of each, the seconds of the slow one over those of the fast one that ran next.
    """

    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the ratios."""
        return float(np.median(self.ratios))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one of the ratios."""
        low, high = np.quantile(self.ratios, [0.25, 0.75])
        return float(low), float(high)

    @property
    def is_steady(self) -> bool:
        """Whether the timings agree enough to go by: see `WIDEST`."""
        low, high = self.quartiles
        return high - low <= WIDEST * self.median


def measured_speed(
    slow: Callable[[], float], fast: Callable[[], float], *, goal: float = 0.0
) -> Speed:
    """Times both in turn: `FEWEST` times if that is steady and reaches the goal, else `MOST` times.

    Args:
        slow: Runs once and returns its seconds.
        fast: Likewise.
        goal: How many times as fast it is to be.
    """
    ratios: list[float] = []
    while True:
        ratios.append(slow() / fast())
        speed = Speed(tuple(ratios))
        enough = len(ratios) >= FEWEST and speed.is_steady and speed.median >= goal
        if enough or len(ratios) == MOST:
            return speed
