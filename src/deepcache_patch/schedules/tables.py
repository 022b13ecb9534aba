"""Tables: of text, and of plain HTML for a notebook, in which whatever is told is text and never
markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_LEFT: Final = "text-align:left"
_TEXT: Final = f"{_LEFT};font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere"
_FIGURE: Final = "text-align:right;font-family:monospace;white-space:nowrap"


def aligned(rows: Sequence[Sequence[str]], *left: int) -> list[str]:
    """Returns a line for each row: figures to the right, the columns in `left` and the last not."""
    columns = []
    for place, cells in enumerate(zip(*rows, strict=True)):
        width, is_left = max(map(len, cells)), place in (*left, len(rows[0]) - 1)
        columns.append([cell.ljust(width) if is_left else cell.rjust(width) for cell in cells])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def html_table(caption: str, rows: Iterable[tuple[str, ...]], *, header: Sequence[str] = ()) -> str:
    """Returns a table.

    Args:
        caption: What stands above it.
        rows: Cells; the first of each row is its name, unless there is a header.
        header: Names of the columns; none by default. All but the last are of figures.
    """
    lines = [f"<caption>{escape(caption)}</caption>"]
    if header:
        *figures, last = header
        heads = [_cell("th", name, "text-align:right") for name in figures]
        lines.append("".join([*heads, _cell("th", last, _LEFT)]))
    for first, *rest, last in rows:
        cells = [_cell("td", first, _FIGURE) if header else _cell("th", first, _LEFT)]
        cells += [_cell("td", text, _FIGURE) for text in rest]
        lines.append("".join([*cells, _cell("td", last, _TEXT)]))
    caption, *body = lines
    return f"<table>{caption}{''.join(f'<tr>{line}</tr>' for line in body)}</table>"


def _cell(kind: str, text: str, style: str) -> str:
    return f'<{kind} style="{style}">{escape(text)}</{kind}>'
