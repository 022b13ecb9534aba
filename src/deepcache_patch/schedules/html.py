"""Tables for a notebook: plain HTML, in which whatever is told is text and never markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_LEFT: Final = "text-align:left"
_TEXT: Final = f"{_LEFT};font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere"


def html_table(caption: str, rows: Iterable[tuple[str, ...]], *, header: Sequence[str] = ()) -> str:
    """Returns a table.

    Args:
        caption: What stands above it.
        rows: Cells; the first of each row is its name, unless there is a header.
        header: Names of the columns; none by default.
    """
    lines = [f"<caption>{escape(caption)}</caption>"]
    if header:
        lines.append("".join(_cell("th", name, _LEFT) for name in header))
    for first, *rest in rows:
        cells = [_cell("td", first, _TEXT) if header else _cell("th", first, _LEFT)]
        lines.append("".join([*cells, *(_cell("td", text, _TEXT) for text in rest)]))
    caption, *body = lines
    return f"<table>{caption}{''.join(f'<tr>{line}</tr>' for line in body)}</table>"


def _cell(kind: str, text: str, style: str) -> str:
    return f'<{kind} style="{style}">{escape(text)}</{kind}>'
