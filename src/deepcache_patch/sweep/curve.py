"""The curve of a sweep: where its points, lines and ticks stand, as shares of the plot's width and
height. Drawn from it are the figure of the page and that of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from .figures import mark_of
from .knee import front_of

if TYPE_CHECKING:
    from .outcome import Row, Sweep

#: From the left and from the bottom, 0 to 1.
Share: TypeAlias = tuple[float, float]

#: Points that lie nearer than this in both directions would cover each other's number. On a narrow
#: page, the plot has 280 pixels and smaller marks.
_NEAR: Final = (0.053, 0.058)

#: The stride by which one of them is moved then: wider, or the line to its place would be a pixel
#: long there.
_ASIDE: Final = 0.075

#: A mark that is moved stays between these: further left are the texts of the ticks, further right
#: the picture ends.
_EDGES: Final = (0.0, 1.025)

#: By how many strides one may be moved, the nearest first.
_STEPS: Final = sorted(range(-20, 21), key=abs)


@dataclass(frozen=True)
class Point:
    """One row in the figure.

    Attributes:
        row: What it is of.
        mark: Its number, or the steps of the plain pipeline.
        x: From the left, 0 to 1.
        y: From the bottom, 0 to 1; identical results stand at the top, those with NaN at the
            bottom.
        is_knee: Whether it is the knee.
        aside: By how many strides it is drawn to the right of its place, or to the left where that
            is negative, so that it covers no other.
    """

    row: Row
    mark: str
    x: float
    y: float
    is_knee: bool
    aside: int

    @property
    def drawn_x(self) -> float:
        """Where the mark is drawn, from the left."""
        return beside(self.x, self.aside)


@dataclass(frozen=True)
class Curve:
    """All that is drawn.

    Attributes:
        points: Fewer steps first, so that settings are drawn over them.
        front: Where the settings stand that no other one beats, from left to right.
        fewer: Where the plain pipeline with fewer steps stands, from left to right.
        x_ticks: Places and texts of the ticks, from left to right.
        y_ticks: Places and texts of the ticks, upwards.
        x_title: What is drawn to the right.
        y_title: What is drawn upwards.
    """

    points: tuple[Point, ...]
    front: tuple[Share, ...]
    fewer: tuple[Share, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_title: str
    y_title: str


def curve_of(sweep: Sweep) -> Curve:
    """Places the rows of a sweep: speed to the right, quality upwards."""
    rows = sweep.fewer + sweep.settings
    speeds, qualities = [sweep.speed_of(row) for row in rows], [row.quality for row in rows]
    finite = [value for value in qualities if math.isfinite(value)] or [0.0]
    x_ticks, y_ticks = ticks(min(1.0, *speeds), max(speeds)), ticks(min(finite), max(finite))

    def place(row: Row) -> Share:
        is_finite = math.isfinite(row.quality)
        y = share(row.quality, y_ticks) if is_finite else float(row.quality == math.inf)
        return share(sweep.speed_of(row), x_ticks), y

    knee = sweep.knee
    in_turn = sweep.settings + sweep.fewer  # settings keep their places, fewer steps make way
    moved = dict(zip(map(id, in_turn), asides([place(row) for row in in_turn]), strict=True))
    points = tuple(
        Point(row, mark_of(sweep, row) or str(row.steps), *place(row), row is knee, moved[id(row)])
        for row in rows
    )
    measure = rows[0].measures[0]
    front = front_of([(sweep.speed_of(row), row.quality) for row in sweep.settings])
    return Curve(
        points,
        tuple(place(sweep.settings[number]) for number in front),
        tuple(sorted(place(row) for row in sweep.fewer)),
        tuple((share(tick, x_ticks), f"{tick:g}×") for tick in x_ticks),
        tuple((share(tick, y_ticks), f"{tick:g}") for tick in y_ticks),
        sweep.speed_name,
        f"{measure.name}, {measure.unit}" if measure.unit else measure.name,
    )


def beside(x: float, strides: int) -> float:
    """Where a mark is drawn, from the left, that is moved so far; see `asides`."""
    return x + strides * _ASIDE


def asides(places: Sequence[Share], near: Share = _NEAR) -> list[int]:
    """By how many strides each is to be moved to the right, so that none covers one before it.

    Where there is no room left beside it, it stays.

    Args:
        places: In turn.
        near: Marks that lie nearer than this in both directions cover each other.
    """
    found: list[int] = []
    taken: list[Share] = []
    for x, y in places:
        moved = {steps: (beside(x, steps), y) for steps in _STEPS}
        within = (s for s in _STEPS if not s or _EDGES[0] <= moved[s][0] <= _EDGES[1])
        free = (s for s in within if not any(_is_near(moved[s], other, near) for other in taken))
        aside = next(free, 0)
        found.append(aside)
        taken.append(moved[aside])
    return found


def _is_near(one: Share, other: Share, near: Share) -> bool:
    across, upwards = abs(one[0] - other[0]), abs(one[1] - other[1])
    return across < near[0] - 1e-9 and upwards < near[1]  # neighbours are not, but for rounding


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers, the first not above `low`, the last not below `high`."""
    span = (high - low) or max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if span / (power * digit) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def share(value: float, among: list[float]) -> float:
    """Where a value stands between the first and the last of these ticks, 0 to 1."""
    return (value - among[0]) / (among[-1] - among[0])
