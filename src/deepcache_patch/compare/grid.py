"""The picture of a comparison: a row of plain pictures, a row of cached ones, and their amplified
difference, with labels. Drawing only; figures and files are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..measuring.media import Sound

MARGIN = 20
GAP = 4
#: Smaller pictures are enlarged by a whole factor, so that each pixel stays a sharp square.
SMALLEST_CELL = 160
INK = (28, 32, 38)
FAINT = (112, 118, 128)


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels from the upper left corner."""

    scale: int
    cell_width: int
    cell_height: int
    left: int
    top: int
    width: int
    height: int

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left corner (x, y) of a picture."""
        return (
            self.left + column * (self.cell_width + GAP),
            self.top + row * (self.cell_height + GAP),
        )


def difference_factor(differences: Sequence[np.ndarray]) -> int:
    """The power of two, at most 64, by which 99 of 100 differences still fit into 0..255."""
    every = np.concatenate([difference.ravel() for difference in differences])
    typical = max(1.0, float(np.percentile(every, 99)))
    factor = 1
    while factor < 64 and 2 * factor * typical <= 255:
        factor *= 2
    return factor


def waveform_differences(
    plain: Sequence[Any], cached: Sequence[Any]
) -> tuple[int, list[Image.Image]]:
    """The waveforms of what sounds differ by, and the factor by which all of them are amplified."""
    differences = [Sound(b.samples - a.samples, a.rate) for a, b in zip(plain, cached, strict=True)]
    factor = difference_factor([np.abs(each.samples).ravel() * 255 for each in differences])
    return factor, [each.waveform(factor=factor) for each in differences]


def draw_grid(
    plain: Sequence[Image.Image],
    cached: Sequence[Image.Image],
    *,
    title: str,
    subtitle: str = "",
    columns: Sequence[str] = (),
    differences: tuple[str, Sequence[Image.Image]] | None = None,
) -> Image.Image:
    """Draws three rows: plain, DeepCache, and how far they are apart.

    Args:
        plain: Pictures of the plain pipeline, RGB, all of one size.
        cached: The same ones made with the helper.
        title: First line.
        subtitle: Second line, fainter.
        columns: A heading for each picture.
        differences: Label and pictures of the third row; by default the pixels' differences.
    """
    label, amplified = differences or _amplified(plain, cached)
    labels = ("plain", "DeepCache", label)
    place, font, large = _layout(plain[0].size, len(plain), labels, title, subtitle, columns)

    canvas = Image.new("RGB", (place.width, place.height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, large)
    draw.text((MARGIN, MARGIN + large.size * 1.5), subtitle, FAINT, font)
    for row, (label, pictures) in enumerate(zip(labels, (plain, cached, amplified), strict=True)):
        x, y = place.corner(row, 0)
        draw.text((x - MARGIN * 0.6, y + place.cell_height / 2), label, INK, font, anchor="rm")
        for column, picture in enumerate(pictures):
            size = (place.cell_width, place.cell_height)
            canvas.paste(picture.resize(size, Image.Resampling.NEAREST), place.corner(row, column))
    for column, heading in enumerate(columns):
        x, y = place.corner(0, column)
        wrapped = "\n".join(_wrapped(heading, font, place.cell_width))
        middle = (x + place.cell_width / 2, y - 6)
        draw.multiline_text(middle, wrapped, FAINT, font, anchor="md", align="center")
    return canvas


def pixel_factor(plain: Sequence[Image.Image], cached: Sequence[Image.Image]) -> int:
    """The `difference_factor` of pictures."""
    return difference_factor(_pixel_differences(plain, cached))


def _pixel_differences(
    plain: Sequence[Image.Image], cached: Sequence[Image.Image]
) -> list[np.ndarray]:
    return [
        np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16))
        for a, b in zip(plain, cached, strict=True)
    ]


def _amplified(
    plain: Sequence[Image.Image], cached: Sequence[Image.Image]
) -> tuple[str, list[Image.Image]]:
    """Label and pictures of the differences."""
    differences = _pixel_differences(plain, cached)
    factor = difference_factor(differences)
    pictures = [Image.fromarray((d * factor).clip(0, 255).astype(np.uint8)) for d in differences]
    # Pillow's own font has no multiplication sign.
    return f"difference x{factor}", pictures


def _layout(
    size: tuple[int, int],
    count: int,
    labels: Sequence[str],
    title: str,
    subtitle: str,
    columns: Sequence[str],
) -> tuple[Layout, ImageFont.FreeTypeFont, ImageFont.FreeTypeFont]:
    """Places `count` pictures of `size`, and chooses fonts that suit them."""
    scale = max(1, ceil(SMALLEST_CELL / min(size)))
    cell_width, cell_height = size[0] * scale, size[1] * scale
    font, large = _font(max(14, cell_height // 26)), _font(max(18, cell_height // 20))
    left = round(MARGIN * 1.6 + max(font.getlength(label) for label in labels))
    lines = max((len(_wrapped(each, font, cell_width)) for each in columns), default=0)
    top = round(MARGIN + large.size * 1.5 + font.size * (2.4 + 1.3 * lines))
    # A single small picture is narrower than its title.
    content = left + count * cell_width + (count - 1) * GAP
    width = max(content, MARGIN + large.getlength(title), MARGIN + font.getlength(subtitle))
    height = top + 3 * cell_height + 2 * GAP
    place = Layout(scale, cell_width, cell_height, left, top, ceil(width) + MARGIN, height + MARGIN)
    return place, font, large


def _wrapped(heading: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a heading that is no wider than its picture, as far as its words allow."""
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
