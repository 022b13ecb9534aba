"""The page of a comparison: one HTML file that fetches nothing. The template, its style and its
script stand beside this file; here is what goes into them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..measuring.media import still
from ..schedules.plans import Plan, place_of
from .contestant import HELPER, looks_lines, range_text, times_text
from .grid import DIFFERENCE_FACTOR, SMALLEST_CELL
from .measures import DETAILS, RULE, SAME, SHAPES, looks_of
from .pages import picture_uri, rendered, uri
from .script import python_of

if TYPE_CHECKING:
    from .outcome import Comparison

#: Pixels of width from which pictures get wider columns.
_LARGE = 320

#: How style and script know the contestants, in the order of `Comparison.columns`.
_KINDS = ("plain", "cached", "fewer")

#: As fast as the script of the page plays videos, too.
_FRAMES_PER_SECOND = 8

#: In this order they are sorted.
_VERDICTS = (SHAPES, DETAILS, SAME)

_UNITS = {
    "PSNR": "PSNR (dB, higher is closer) and SSIM (1 is identical) are against the plain results.",
    "LPIPS": "LPIPS is a distance as people see it: 0 is identical.",
    "SNR": "SNR (dB, higher is closer) is the plain waveform over what was changed.",
}


def page(comparison: Comparison) -> str:
    """Returns the whole page; see `Comparison.to_html`."""
    pairs = list(_pairs(comparison))
    about = comparison.about
    prompt = about["call"].get("prompt")
    width, height = still(comparison.plain[0]).size
    sounds = comparison.kind == "sounds"
    return rendered(
        __package__,
        "report",
        about,
        title=f"{comparison.title}: plain and {HELPER}",
        comparison=comparison,
        prompt=prompt if isinstance(prompt, str) else None,
        tiles=list(_tiles(comparison)),
        pairs=pairs,
        contestants=list(zip(_KINDS, comparison.columns, strict=False)),
        width=width,
        height=height,
        size="large" if width >= _LARGE else "small",
        sharp=min(width, height) < SMALLEST_CELL,
        factor=None if sounds else DIFFERENCE_FACTOR,
        looks=looks_lines(comparison.contestants),
        rule=RULE,
        worst=comparison.measures[0].worst + 1,
        notes=comparison.notes,
        each=_each(comparison),
        python=python_of(about, plan=comparison.plan, saves=comparison.kind == "pictures"),
        plans=[_plan(name, plan) for name, plan in comparison.plans.items()],
        reading=" ".join(_UNITS[each.name] for each in comparison.measures if each.name in _UNITS),
        command=comparison.command,
    )


def _tiles(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """The main figures: name, value, note."""
    rows = {row[0]: row for row in comparison.rows()}
    speeds = {"denoising loop": comparison.speeds, "whole call": comparison.call_speeds}
    for name, speed in speeds.items():
        _, plain, cached, *_ = rows[name]
        notes = [range_text(speed)]
        if comparison.work_speedup is not None:
            notes.append(f"by work at most {times_text(comparison.work_speedup)}")
        notes.append(f"{plain} → {cached}")
        yield name.capitalize(), times_text(speed.median), "; ".join(filter(None, notes))
    total = comparison.full_calls + comparison.shallow_calls
    note = f"of {total} ran in full"
    yield "U-Net calls", f"{comparison.full_calls}", note
    count = len(comparison.plain)
    for measure in comparison.measures:
        note = f"mean of {count}; worst {measure.worst_text()}" if count > 1 else ""
        if measure.name in ("PSNR", "SNR") and comparison.identical:
            note += ("; " if note else "") + f"{comparison.identical} of {count} identical"
        yield measure.name, measure.text(), note


def _pairs(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """For each result the pictures under its slider, and its own figures."""
    names, fewer = comparison.columns, comparison.fewer
    rows: list[Sequence[Any]] = [comparison.plain, comparison.cached]
    measures = [each.measures for each in comparison.contestants.values()]
    rows += [fewer.results] if fewer else []
    for number, heading in enumerate(comparison.numbered):
        results: list[Any] = [row[number] for row in rows]
        pair: dict[str, Any] = {"heading": heading, "sounds": []}
        pair["measures"] = [
            " · ".join(f"{each.name} {each.text(each.values[number])}" for each in of_one)
            for of_one in measures
        ]
        if comparison.kind == "sounds":
            pair["sounds"] = [
                (name, uri("audio/wav", sound.wav()))
                for name, sound in zip(names, results, strict=True)
            ]
            results = [(sound.waveform(),) for sound in results]
        elif comparison.kind == "pictures":
            results = [(picture,) for picture in results]
        pair["frames"] = [
            tuple(picture_uri(frame, lossless=len(results[0]) == 1) for frame in frames)
            for frames in zip(*results, strict=True)
        ]
        pair["film"] = _film(results) if comparison.kind == "videos" else None
        yield pair


def _each(comparison: Comparison) -> dict[str, Any] | None:
    """The table of all results, to be sorted: headings, and for each its cells; `None` for one."""
    count, fewer = len(comparison.plain), comparison.fewer
    if count == 1:
        return None
    others = [each.measures for each in comparison.contestants.values()]
    names = comparison.columns[1:] if fewer else ("",)
    verdict = ["verdict"] if comparison.looks else []
    heads = [
        f"{name} {head}".strip()
        for name, of in zip(names, others, strict=True)
        for head in (*(each.name for each in of), *verdict)
    ]
    rows = []
    for number, heading in enumerate(comparison.headings):
        cells: list[tuple[str, float]] = []
        for of in others:
            own = [each._replace(values=(each.values[number],)) for each in of]
            cells += [(each.text(), _sortable(each.values[0])) for each in own]
            looks = looks_of(own)
            cells += [(looks, _VERDICTS.index(looks))] if looks else []
        rows.append((heading, cells))
    return {"heads": heads, "rows": rows}


def _sortable(value: float) -> float:
    """The value as the script can sort by it: what is no number first, identical ones last."""
    return -1e9 if math.isnan(value) else min(max(value, -1e8), 1e8)


def _film(results: Sequence[Sequence[Image.Image]]) -> str:
    """All contestants side by side in one file that plays, an animated WebP."""
    width, height = results[0][0].size
    films = []
    for frames in zip(*results, strict=True):
        film = Image.new("RGB", (width * len(frames), height))
        for place, frame in enumerate(frames):
            film.paste(frame, (place * width, 0))
        films.append(film)
    file, each = BytesIO(), 1000 // _FRAMES_PER_SECOND
    more: dict[str, Any] = {"append_images": films[1:], "duration": each, "loop": 0}
    films[0].save(file, format="WEBP", save_all=True, quality=92, **more)
    return uri("image/webp", file.getvalue())


def _plan(name: str, plan: Plan) -> dict[str, Any]:
    full = len(plan.full_steps)
    summary = f"{len(plan)} steps: {full} in full"
    shallow = {branch: sum(entry == branch for entry in plan) for branch in plan.branches}
    summary += "".join(f", {count} {place_of(branch)}" for branch, count in shallow.items())
    return {
        "name": name,
        "entries": plan,
        "several": len(plan.branches) > 1,
        "summary": summary,
        "strip": str(plan),
    }
