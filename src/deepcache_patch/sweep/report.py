"""The page of a sweep: one HTML file that fetches nothing. The template, its style and its script
stand beside this file; here is what goes into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from ..compare.figures import times_text
from ..compare.pages import picture_uri, rendered, said, uri
from ..measuring.media import still
from . import figures
from .curve import Curve, Place, curve_of
from .knee import RULE

if TYPE_CHECKING:
    from .outcome import Row, Sweep

#: Pixels on the longer side of a picture in the table.
_THUMB: Final = 72

#: Pixels on the longer side of the others: a video's frame and an SDXL picture are there in small.
_LARGEST: Final = 512


def page(sweep: Sweep, *, command: str | None = None) -> str:
    """Returns the whole page; see `Sweep.to_html`."""
    curve, about = curve_of(sweep), sweep.about
    width, height = still(sweep.plain.results[0]).size
    rows = figures.rows_of(sweep)
    shown = [sweep.plain, *sweep.rows]
    return rendered(
        __package__,
        "sweep",
        sweep=sweep,
        setting=f"Against {sweep.plain.steps or 'its own'} steps of the plain pipeline",
        prompts=_prompts(about["call"].get("prompt")),
        curve=curve,
        lines=list(_lines(curve)),
        knee=figures.knee_text(sweep),
        rule=RULE,
        columns=figures.columns_of(sweep),
        notes=figures.notes_of(sweep)[: -1 if not sweep.missing else None],
        table=list(zip([_id(sweep, row) for row in shown], rows, map(_thumb, shown), strict=True)),
        plain=[picture_uri(_bounded(still(each))) for each in sweep.plain.results],
        cards=[_card(sweep, row, command) for row in sweep.rows],
        first=_id(sweep, sweep.knee or sweep.settings[0]),
        seeds=about["seeds"],
        sharp=min(width, height) < 160,
        settings=list(_settings(sweep)),
    )


def _id(sweep: Sweep, row: Row) -> str:
    mark = figures.mark_of(sweep, row)
    return f"setting-{mark}" if mark else f"plain-{row.steps}"


def _lines(curve: Curve) -> Iterator[tuple[str, Place, Place]]:
    for kind, places in (("fewer", curve.fewer), ("front", curve.front)):
        for start, end in pairwise(places):
            yield kind, start, end


def _card(sweep: Sweep, row: Row, command: str | None) -> dict[str, Any]:
    measure = row.measures[0]
    by_work = "" if row.work_speed is None else f" ({times_text(row.work_speed)} by work)"
    facts = [f"{figures.speed_text(row)}{by_work}", f"{measure.name} {measure.text()}"]
    fewer = figures.fewer_text(sweep, row)
    return {
        "id": _id(sweep, row),
        "mark": figures.mark_of(sweep, row) or str(row.steps),
        "is_plain": row.setting is None,
        "is_knee": row is sweep.knee,
        "name": row.name if row.steps is None else f"{row.name}, {row.steps} steps",
        "facts": " · ".join(facts),
        "fewer": "" if row.setting is None or not fewer else f"Fewer steps at equal work: {fewer}",
        "plan": row.plan,
        "results": [
            (number, picture_uri(_bounded(still(result))), f"{measure.text(value)}")
            for number, (result, value) in enumerate(zip(row.results, measure.values, strict=True))
        ],
        "python": sweep.python(row),
        "command": sweep.command(row, command),
    }


def _thumb(row: Row) -> str:
    picture = still(row.results[0 if row.psnr is None else row.worst]).copy()
    picture.thumbnail((_THUMB, _THUMB))
    file = BytesIO()
    picture.save(file, format="WEBP", quality=80)
    return uri("image/webp", file.getvalue())


def _bounded(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_LARGEST, _LARGEST))
    return small


def _prompts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [str(each) for each in prompt or ()]


def _settings(sweep: Sweep) -> Iterator[tuple[str, str]]:
    about = sweep.about
    device = about["device"]
    yield "model", str(about["model"])
    yield "pipeline", about["pipeline"]
    yield "scheduler", about["scheduler"]
    yield "device", f"{device['type']} ({device['name']}), {about['dtype']}"
    yield "seeds", said(about["seeds"])
    yield "rounds", str(about["repeats"])
    for name in ("first", "last", "replay"):
        if about[name]:
            yield name, str(about[name])
    for name, value in about["call"].items():
        yield name, said(value)
