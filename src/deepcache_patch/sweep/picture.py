"""The picture of a sweep: the curve, and beneath it a row of results for each row of the table.
Drawn with Pillow; the figure of the page has the page's own colours and sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

from ..compare.contestant import speed_text
from ..compare.grid import FAINT, INK, LINE, MARGIN, draw_grid, drawable, wrapped
from ..measuring.media import small
from .curve import Curve, curve_of
from .figures import mark_of, said_of

if TYPE_CHECKING:
    from .outcome import Row, Sweep

#: Pixels on the longer side of a result: there may be many of them.
_LARGEST: Final = 256

#: The plot, and what stands above it, left of it and beneath.
_SIZE: Final = (900, 420)
_ABOVE: Final = 124
_LEFT: Final = 80
_BELOW: Final = 136

#: What marks and lines are: all, the knee, and those that are not in their places.
_LEGEND: Final = (
    "Filled: the setting of that number beneath; a blue line joins those that no other setting "
    "beats. White: the plain pipeline with so many steps, on a grey line."
)
_RINGED: Final = "Ringed: the knee of this curve."
_MOVED: Final = "A mark that would cover another is moved aside; a line leads to its place."

_ACCENT: Final = (31, 95, 174)
_KNEE: Final = (180, 84, 10)
_LINE: Final = (225, 228, 232)


def sweep_picture(sweep: Sweep) -> Image.Image:
    """See `Sweep.picture`."""
    curve = curve_of(sweep)
    rows = [("plain", sweep.plain), *((_label(sweep, row), row) for row in sweep.rows)]
    pictures = [(label, [small(each, _LARGEST) for each in row.results]) for label, row in rows]
    steps = f"{sweep.plain.steps} steps" if sweep.plain.steps else "its own steps"
    grid = draw_grid(pictures, title="Results", columns=sweep.headings)
    title = f"{sweep.title}, against the plain pipeline with {steps}"
    figure = _drawn(curve, title, said_of(sweep))
    width = max(grid.width, figure.width)
    canvas = Image.new("RGB", (width, figure.height + grid.height), "white")
    canvas.paste(figure, (0, 0))
    canvas.paste(grid, (0, figure.height))
    return canvas


def _label(sweep: Sweep, row: Row) -> str:
    name = row.title if row.setting is None else f"{mark_of(sweep, row)}: {row.title}"
    return f"{name}\n{speed_text(row.speeds)}, {row.measures[0].text()}"


def _drawn(curve: Curve, title: str, said: Sequence[str]) -> Image.Image:
    width, height = _SIZE
    font = ImageFont.load_default(15)
    lines = [part for line in said for part in wrapped(drawable(line), font, width)]
    above = _ABOVE + round((len(lines) - 1) * LINE * font.size)
    whole = (width + _LEFT + 2 * MARGIN, height + above + _BELOW)
    canvas = Image.new("RGB", whole, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(20))
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 32 + number * LINE * font.size), line, _KNEE, font)

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * width, above + (1 - y) * height

    draw.text((MARGIN, above - 36), curve.y_title, FAINT, font)
    for x, text in curve.x_ticks:
        draw.line((*at(x, 0), *at(x, 1)), _LINE)
        draw.text(_moved(at(x, 0), 0, 16), drawable(text), FAINT, font, anchor="mm")
    for y, text in curve.y_ticks:
        draw.line((*at(0, y), *at(1, y)), _LINE)
        draw.text(_moved(at(0, y), -10, 0), text, FAINT, font, anchor="rm")
    draw.text(_moved(at(1, 0), 0, 42), curve.x_title, FAINT, font, anchor="rm")
    draw.line([at(*place) for place in curve.fewer], FAINT, 1)
    draw.line([at(*place) for place in curve.front], _ACCENT, 2)
    told = [_LEGEND]
    told += [_RINGED] * any(point.is_knee for point in curve.points)
    told += [_MOVED] * any(point.aside for point in curve.points)
    legend = "\n".join(wrapped(drawable(" ".join(told)), font, width))
    draw.multiline_text(_moved(at(0, 0), 0, 62), legend, FAINT, font)
    middles = [at(point.drawn_x, point.y) for point in curve.points]
    for point, middle in zip(curve.points, middles, strict=True):
        draw.line([at(point.x, point.y), middle], INK, 2)
    for point, middle in zip(curve.points, middles, strict=True):
        is_plain = point.row.setting is None
        if point.is_knee:
            draw.circle(middle, 18, outline=_KNEE, width=3)
        draw.circle(middle, 12, "white" if is_plain else _ACCENT, FAINT if is_plain else "white")
        draw.text(middle, point.mark, INK if is_plain else "white", font, anchor="mm")
    return canvas


def _moved(place: tuple[float, float], right: float, down: float) -> tuple[float, float]:
    return place[0] + right, place[1] + down
