"""The tables that say how near the pictures of faster pipelines come to the plain ones."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.fidelity.curves import Row, psnr_at, results
from benchmarks.tables.markdown import table


def fidelity() -> str:
    """Speed and fidelity on DDIM: ours, the published package and fewer steps."""
    report = results()["ddim-50"]
    shown = [row for row in report["rows"] if _in_readme(row)]
    rows = [
        (
            _named(row),
            f"{row['speedup']:.2f}×",
            "–" if row["family"] == "plain" else f"{row['psnr']:.1f} dB",
            "–" if row["family"] == "plain" else f"{row['ssim']:.3f}",
            f"{row['read_back']:.0%}",
        )
        for row in shown
    ]
    header = (report["title"], "speed of the loop", "PSNR", "SSIM", "prompts read back")
    return table(header, rows)


def _in_readme(row: Row) -> bool:
    interval = row["settings"].get("interval")
    if row["family"] == "deepcache 0.1.1":
        return interval in (2, 3, 5) and row["settings"]["branch"] == 0
    if row["family"] in ("uniform extrapolated", "auto"):
        return interval in (2, 3, 5)
    return row["family"] in ("plain", "fewer steps")


def _named(row: Row) -> str:
    interval = row["settings"].get("interval")
    return {
        "plain": "plain",
        "fewer steps": f"no helper, {row['steps']} steps",
        "deepcache 0.1.1": f"DeepCache 0.1.1, interval {interval}",
        "uniform extrapolated": f"`interval={interval}`",
        "auto": f'`interval={interval}, schedule="auto"`',
    }[row["family"]]


def measured_on() -> str:
    """Where the table of `fidelity` comes from."""
    report = results()["ddim-50"]
    versions = report["versions"]
    return (
        f"{report['images']} pictures of 64×64 pixels from the model in `benchmarks/models/"
        f"{report['model']}`, guidance {report['guidance_scale']:g}, {report['device']} with "
        f"{report['threads']} thread, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}; `{report['command']}`"
    )


def samplers() -> str:
    """PSNR of each family at one speedup, for every sampler."""
    shown = ("fewer steps", "deepcache 0.1.1", "uniform extrapolated", "auto")
    header = ("PSNR in dB at 2.2 times the speed", *(_FAMILIES[family] for family in shown))
    return table(header, [(r["title"], *_psnrs(r, 2.2, shown)) for r in results().values()])


def curves() -> str:
    """PSNR of each family at several speedups, for every sampler."""
    header = ("PSNR in dB", "speed", *_FAMILIES.values())
    rows = [
        (report["title"], f"{speedup:.1f}×", *_psnrs(report, speedup))
        for report in results().values()
        for speedup in (1.8, 2.2, 2.5, 3.3)
    ]
    return table(header, rows)


def quality() -> str:
    """Prompts read back, and the Fréchet distance, of each family near one speedup."""
    header = ("read back · Fréchet distance", *_FAMILIES.values())
    rows = []
    for report in results().values():
        cells = []
        for family in _FAMILIES:
            rivals = [row for row in report["rows"] if row["family"] == family]
            near = min(rivals, key=lambda row: abs(math.log(row["speedup"] / 2.4)), default=None)
            cells.append("–" if near is None else _quality_of(near))
        rows.append((report["title"], *cells))
    return table(header, rows)


_FAMILIES = {
    "fewer steps": "fewer steps",
    "deepcache 0.1.1": "DeepCache 0.1.1",
    "uniform extrapolated": "default",
    "growing": "growing",
    "adaptive": "adaptive",
    "auto": "auto",
}


def _psnrs(report: Any, speedup: float, families: Iterable[str] = _FAMILIES) -> list[str]:
    values = [psnr_at(report["rows"], family, speedup) for family in families]
    return ["–" if value is None else f"{value:.1f}" for value in values]


def _quality_of(row: Row) -> str:
    read = "–" if row["read_back"] is None else f"{row['read_back']:.0%}"
    return f"{read} · {row['frechet']:.1f} ({row['speedup']:.2f}×)"


TABLES: tuple[Callable[[], str], ...] = (fidelity, measured_on, samplers, curves, quality)
