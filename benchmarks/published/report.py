"""Figures of each contestant, from what a run left in its folder, and the table that shows them."""

import math
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from benchmarks.published.contestants import folder_of
from benchmarks.published.gallery import Figures, Gallery
from benchmarks.published.metrics import Distance, Metrics, summary
from deepcache_patch.measuring.similarity import psnr
from deepcache_patch.measuring.speed import Speed

#: Title of a column -> what a row shows there.
_COLUMNS = {
    "speed": "{speed:.2f}× ({speed_quartiles[0]:.2f} to {speed_quartiles[1]:.2f})",
    "by work": "{speed_by_work:.2f}×",
    "PSNR": "{psnr:.2f} dB",
    "its worst tenth": "{psnr_worst_tenth:.2f} dB",
    "LPIPS": "{lpips:.4f}",
    "its worst tenth ": "{lpips_worst_tenth:.4f}",
    "FID": "{fid:.2f}",
}


def measured(gallery: Gallery, metrics: Metrics) -> dict[str, Any]:
    """The rows, the plain pipeline's first, and who failed, with the error."""
    batches = gallery.figures()
    errors = {
        name: figures["error"]
        for batch in batches
        for name, figures in batch.items()
        if "error" in figures
    }
    lpips = metrics.lpips(min(next(gallery.look("plain")).shape[:2]))
    rows = []
    for name in tqdm([name for name in batches[0] if name not in errors], desc="measuring"):
        plain, own = ([batch[each] for batch in batches] for each in ("plain", name))
        row = {"name": name, **speed(plain, own)}
        if name != "plain":
            folder = folder_of(name)
            row |= fidelity(gallery, folder, lpips)
            fid = metrics.fid(gallery.pictures_of("plain"), gallery.pictures_of(folder))
            row |= {} if fid is None else {"fid": fid}
        rows.append(row)
    failed = [{"name": name, "error": error} for name, error in errors.items()]
    return {"rows": rows, "failed": failed}


def speed(plain: Sequence[Figures], own: Sequence[Figures]) -> dict[str, Any]:
    """How many times as fast as the plain pipeline, by the clock and by what was computed.

    Args:
        plain: Of each batch.
        own: Of the same batches.
    """
    pairs = list(zip(plain, own, strict=True))
    ratios = [before["loop_seconds"] / after["loop_seconds"] for before, after in pairs]
    found = Speed(tuple(ratios))
    works = [figures["work"] for figures in own]
    known = None not in works
    return {
        "speed": found.median,
        "speed_quartiles": list(found.quartiles),
        "speeds": ratios,
        "speed_by_work": sum(each["work"] for each in plain) / sum(works) if known else None,
        "full_calls": sum(figures["full_calls"] for figures in own) / len(own),
        "shallow_calls": sum(figures["shallow_calls"] for figures in own) / len(own),
    }


def fidelity(gallery: Gallery, contestant: str, lpips: Distance | None) -> dict[str, Any]:
    """How near its pictures come to the plain ones.

    Args:
        gallery: Of the pictures.
        contestant: Its folder there.
        lpips: Left out where it cannot be had.
    """
    decibels, distances = [], []
    for pair in zip(gallery.look("plain"), gallery.look(contestant), strict=True):
        decibels.append(psnr(*pair))
        distances += [] if lpips is None else [lpips(*pair)]
    mean, worst = summary(decibels, higher_is_better=True)
    found = {"psnr": mean, "psnr_worst_tenth": worst, "identical": decibels.count(math.inf)}
    if distances:
        mean, worst = summary(distances, higher_is_better=False)
        found |= {"lpips": mean, "lpips_worst_tenth": worst}
    return found


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown; a column that nobody has a figure for is left out."""
    rows, given = report["rows"], report["options"]
    cells = {title: [_cell(row, text) for row in rows] for title, text in _COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if set(column) != {"–"}}
    sampler = f"{report['scheduler']}{', Karras' if given['karras'] else ''}"
    lines = [
        f"{given['model']}, {sampler}, {given['steps']} steps, {given['count']} pictures, "
        f"{report['device']}",
        "",
        f"| {' | '.join(['method', *cells])} |",
        f"|{' --- |' * (len(cells) + 1)}",
    ]
    for number, row in enumerate(rows):
        shown = [row["name"], *(column[number] for column in cells.values())]
        lines.append(f"| {' | '.join(shown)} |")
    notes = [*(f"{each['name']} failed: {each['error']}" for each in report["failed"])]
    notes += report["notes"]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def _cell(row: dict[str, Any], text: str) -> str:
    try:
        return text.format(**row)
    except (KeyError, TypeError):  # not measured, or of pictures that are all the same
        return "∞" if "psnr" in text and "psnr" in row else "–"
