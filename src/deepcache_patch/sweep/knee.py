"""Where a curve of speed against quality bends. Numbers only; what they are of is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

#: (speed, quality); more of each is better.
SpeedQuality: TypeAlias = tuple[float, float]

#: The two speeds that a curve may go by, and why it goes by the one.
BY_WORK: Final = "speed by work"
MEASURED: Final = "measured speed"
_WHY: Final = {
    BY_WORK: "The measured speed does not count here, because it varies from run to run.",
    MEASURED: "The speed by work is not known here.",
}


def rule_of(speed: str) -> str:
    """The rule of `knee_of`, as a person reads it.

    Args:
        speed: `BY_WORK` or `MEASURED`.
    """
    return (
        f"Of the settings that no other one beats in both {speed} and quality, the knee is the one "
        f"that lies highest above the straight line from the slowest of them to the fastest. "
        f"{_WHY[speed]}"
    )


def front_of(points: Sequence[SpeedQuality]) -> list[int]:
    """The points that no other one beats or equals in both, the slowest first, by their places.

    Those whose quality is NaN, or as low as can be, are left out.
    """
    known = [place for place in range(len(points)) if points[place][1] > -math.inf]
    order = sorted(known, key=lambda place: points[place], reverse=True)
    front: list[int] = []
    for place in order:  # from the fastest; of those that are as fast, the best comes first
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front[::-1]


def knee_of(points: Sequence[SpeedQuality]) -> int | None:
    """The place of the point at the knee, by `rule_of`; `None` where there is none.

    There is none where the front has fewer than three points, or none above the line.
    """
    front = front_of(points)
    if len(front) < 3:
        return None
    (left, high), (right, low) = points[front[0]], points[front[-1]]

    def above(place: int) -> float:
        speed, quality = points[place]
        line = high + (low - high) * (speed - left) / (right - left)
        return (quality - line) / (high - low)

    best = max(front[1:-1], key=above)
    return best if above(best) > 0 else None


def why_none(points: Sequence[SpeedQuality], speed: str) -> str:
    """Why `knee_of` finds none, in words; `speed` as for `rule_of`."""
    front = len(front_of(points))
    if len(points) < 3:
        count = ("no setting", "one setting", "two settings")[len(points)]
        return f"it takes three settings, and here {'are' if len(points) > 1 else 'is'} {count}"
    if front < 3:
        left = "one is" if front == 1 else "two are"
        return f"only {left} not beaten by another in both {speed} and quality; it takes three"
    return "no setting lies above the straight line from the slowest to the fastest"
