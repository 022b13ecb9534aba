"""The page of a sweep: one HTML file that fetches nothing. The template, its style and its script
stand beside this file; here is what goes into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from ..compare.contestant import speed_text
from ..compare.grid import SMALLEST_CELL
from ..compare.measures import RULE as LOOKS_RULE
from ..compare.pages import picture_uri, rendered
from ..measuring.media import small, still
from . import figures
from .curve import Curve, Share, curve_of
from .knee import rule_of

if TYPE_CHECKING:
    from .outcome import Row, Sweep

#: Pixels on the longer side of a picture in the table.
_THUMB: Final = 72

#: Pixels on the longer side of the others: a video's frame and an SDXL picture are there in small.
_LARGEST: Final = 512


def page(sweep: Sweep) -> str:
    """Returns the whole page; see `Sweep.to_html`."""
    curve, about = curve_of(sweep), sweep.about
    shown = [sweep.plain, *sweep.rows]
    ids, thumbs = [_id(sweep, row) for row in shown], map(_thumb, shown)
    return rendered(
        __package__,
        "sweep",
        about,
        title=f"{sweep.title}: which setting",
        notes=figures.cautions_of(sweep),
        sweep=sweep,
        setting=f"Against {sweep.plain.steps or 'its own'} steps of the plain pipeline",
        prompts=_prompts(about["call"].get("prompt")),
        curve=curve,
        lines=list(_lines(curve)),
        knee=figures.knee_text(sweep),
        rule=rule_of(sweep.speed_name),
        columns=figures.columns_of(sweep),
        reading=[*figures.reading_of(sweep), *([LOOKS_RULE] if sweep.plain.looks else [])],
        table=list(zip(ids, shown, figures.rows_of(sweep), thumbs, strict=True)),
        plain=[picture_uri(small(each, _LARGEST)) for each in sweep.plain.results],
        cards={id: _card(sweep, row) for id, row in zip(ids[1:], shown[1:], strict=True)},
        id_of=lambda row: _id(sweep, row),
        first=_id(sweep, sweep.knee or sweep.fastest_unbeaten or sweep.settings[0]),
        sharp=min(still(sweep.plain.results[0]).size) < SMALLEST_CELL,
    )


def _id(sweep: Sweep, row: Row) -> str:
    mark = figures.mark_of(sweep, row)
    return f"setting-{mark}" if mark else f"plain-{row.steps}"


def _lines(curve: Curve) -> Iterator[tuple[str, Share, Share]]:
    for kind, places in (("fewer", curve.fewer), ("front", curve.front)):
        for start, end in pairwise(places):
            yield kind, start, end


def _card(sweep: Sweep, row: Row) -> dict[str, Any]:
    measure, fewer = row.measures[0], figures.fewer_text(sweep, row)
    facts = [speed_text(row.speeds, row.work_speedup), f"{measure.name} {measure.text()}"]
    return {
        "row": row,
        "mark": figures.mark_of(sweep, row) or str(row.steps),
        "facts": " · ".join([*facts, *([row.looks] if row.looks else [])]),
        "fewer": f"Fewer steps at equal work: {fewer}" if fewer else "",
        "is_beaten": sweep.beaten_by(row) is not None,
        "results": [
            (number, picture_uri(small(result, _LARGEST)), f"{measure.text(value)}")
            for number, (result, value) in enumerate(zip(row.results, measure.values, strict=True))
        ],
        "python": sweep.python(row),
        "command": sweep.command(row),
    }


def _thumb(row: Row) -> str:
    return picture_uri(small(row.results[row.measures[0].worst], _THUMB), lossless=False)


def _prompts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [str(each) for each in prompt or ()]
