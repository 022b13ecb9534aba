"""The picture of a comparison: a row of plain pictures, and for each other contestant a row of its
pictures and one of their amplified difference to the plain ones, with labels; of sounds waveforms,
without differences. Figures and files are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops, ImageDraw, ImageFont

from ..measuring.media import some_frames
from .contestant import speed_text

if TYPE_CHECKING:
    from .outcome import Comparison

MARGIN = 20
GAP = 4
#: Smaller pictures are enlarged by a whole factor, so that each pixel stays a sharp square.
SMALLEST_CELL = 160
#: By which differences of pixels are amplified: the same everywhere, so that pictures of different
#: comparisons can be held against each other. At 30 dB a typical difference becomes 8 · 8 of 255.
DIFFERENCE_FACTOR = 8
#: From one line of text to the next, in sizes of its font.
LINE = 1.3
INK = (28, 32, 38)
FAINT = (112, 118, 128)


def difference(
    plain: Image.Image, other: Image.Image, factor: float = DIFFERENCE_FACTOR
) -> Image.Image:
    """The absolute difference of two pictures, times the factor, cut off at white."""
    apart = ImageChops.difference(plain.convert("RGB"), other.convert("RGB"))
    return apart.point([min(255, round(value * factor)) for value in range(256)] * 3)


def comparison_picture(comparison: Comparison) -> Image.Image:
    """See `Comparison.grid`."""
    rows: list[Sequence[Any]] = [comparison.plain, comparison.cached]
    if comparison.fewer:
        rows.append(comparison.fewer.results)
    headings = comparison.numbered
    if comparison.kind == "videos":
        headings = [
            f"{heading}, frame {place + 1}"
            for heading, video in zip(headings, rows[0], strict=True)
            for place in some_frames(video)
        ]
        rows = [[frame for video in row for frame in some_frames(video).values()] for row in rows]
    sounds = comparison.kind == "sounds"
    if sounds:
        rows = [[sound.waveform() for sound in row] for row in rows]
    labelled = [("plain", rows[0])]
    for name, row in zip(comparison.columns[1:], rows[1:], strict=True):
        labelled.append((name, row))
        if not sounds:
            apart = [difference(*pair) for pair in zip(rows[0], row, strict=True)]
            labelled.append((f"difference ×{DIFFERENCE_FACTOR}", apart))
    measures = (f"{each.name} {each.mean_text()}" for each in comparison.measures)
    fast = f"denoising loop {speed_text(comparison.speeds, comparison.work_speedup)} as fast"
    lines = [" · ".join((fast, *measures)), *comparison.said]
    return draw_grid(labelled, title=comparison.title, subtitle=lines, columns=headings)


def draw_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    *,
    title: str,
    subtitle: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Image.Image:
    """Draws rows of pictures, a label before each.

    Args:
        rows: Labels and pictures, RGB; as many in each row, all of one size.
        title: First line.
        subtitle: Further lines, fainter; broken where they are wider than title and pictures.
        columns: A heading for each picture.
    """
    labels, pictures = [drawable(label) for label, _ in rows], rows[0][1]
    title, (wide, high) = drawable(title), pictures[0].size
    scale = max(1, ceil(SMALLEST_CELL / min(wide, high)))
    wide, high = wide * scale, high * scale
    font, large = _font(max(14, high // 26)), _font(max(18, high // 20))
    left = round(MARGIN * 1.6 + max(font.getlength(label) for label in labels))
    # A single small picture is narrower than its title.
    content = left + len(pictures) * (wide + GAP) - GAP
    width = ceil(max(content, MARGIN + large.getlength(title)))
    lines = [part for line in subtitle for part in wrapped(drawable(line), font, width - MARGIN)]
    headings = [wrapped(drawable(each), font, wide) for each in columns]
    more = max(map(len, headings), default=0) + max(0, len(lines) - 1)
    top = round(MARGIN + large.size * 1.5 + font.size * (2.4 + LINE * more))
    height = top + len(rows) * (high + GAP) - GAP

    def corner(row: int, column: int) -> tuple[int, int]:
        """The upper left corner (x, y) of a picture."""
        return left + column * (wide + GAP), top + row * (high + GAP)

    canvas = Image.new("RGB", (width + MARGIN, height + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, large)
    for number, line in enumerate(lines):
        y = MARGIN + large.size * 1.5 + number * font.size * LINE
        draw.text((MARGIN, y), line, FAINT, font)
    for row, (label, (_, pictures)) in enumerate(zip(labels, rows, strict=True)):
        x, y = corner(row, 0)
        draw.text((x - MARGIN * 0.6, y + high / 2), label, INK, font, anchor="rm")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((wide, high), Image.Resampling.NEAREST)
            canvas.paste(enlarged, corner(row, column))
    for column, heading in enumerate(headings):
        x, y = corner(0, column)
        middle = (x + wide / 2, y - 6)
        draw.multiline_text(middle, "\n".join(heading), FAINT, font, anchor="md", align="center")
    return canvas


def drawable(text: str) -> str:
    """The text in letters that Pillow's own font has: neither a multiplication sign nor a dash."""
    return text.replace("×", "x").replace("–", "-")


def wrapped(heading: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a text that is no wider than `width`, as far as its words allow."""
    lines: list[str] = []
    for word in heading.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow was built without FreeType and cannot draw text of a chosen size; "
            "pip install --force-reinstall pillow"
        )
    return font
