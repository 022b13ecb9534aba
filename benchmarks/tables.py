"""Writes the tables of README and docs from what measured them: results files and the tests.

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is between is replaced.
``make tables`` rewrites them, a test compares them. Run from the project's root:
``python -m benchmarks.tables``.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.cost_tables import lifetime, memory, overhead, scaling
from benchmarks.curves import Row, psnr_at, results
from benchmarks.markdown import table
from benchmarks.speed_tables import TABLES as SPEED_TABLES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "README.md",
    "docs/compatibility.md",
    "docs/results.md",
    "docs/schedules.md",
    "docs/speed.md",
)


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


def covered() -> str:
    """How many pipeline classes run faster, and how many of the generations are right."""
    report = _results("compatibility")
    classes = _by_class(report)
    counts = {
        contestant: Counter(
            "exact" if results == {"exact"} else min(results - {"exact"})
            for results in (
                {row[contestant]["result"] for row in rows} for rows in classes.values()
            )
        )
        for contestant in ("ours", "deepcache")
    }
    ours, theirs = counts["ours"], counts["deepcache"]
    faster = theirs["exact"] + theirs["wrong"]
    return (
        f"All {len(classes)} U-Net pipelines that run in diffusers "
        f"{report['versions']['diffusers']} are run by the tests: {ours['exact']} are faster, and "
        "every further generation, with another size, batch, guidance, strength or number of "
        f"steps, is the one that a fresh pipeline makes; {ours['in full']} run in full, with a "
        "warning that says why; "
        f"{ours['refused']} are refused. The published DeepCache 0.1.1 makes {faster} of them "
        f"faster, {theirs['exact']} with every further generation right."
    )


def unets() -> str:
    """The U-Net classes, and how many pipelines have them."""
    classes = _by_class(_results("compatibility"))
    rows = Counter(
        unet
        for rows in classes.values()
        for unet in {unet for row in rows for unet in row["unets"].values()}
        if any(row["ours"]["result"] == "exact" for row in rows)
    )
    listed = [(f"`{unet}`", str(count)) for unet, count in rows.most_common()]
    return table(("U-Net", "pipelines"), listed)


def every_pipeline() -> str:
    """Every case of the zoo with this package and with DeepCache 0.1.1."""
    rows = [
        (
            f"`{row['pipeline']}`{' †' if row['deprecated'] else ''}",
            name,
            ", ".join(f"{part}: `{unet}`" for part, unet in row["unets"].items()),
            _said(row["ours"]),
            _said(row["deepcache"]),
        )
        for name, row in _results("compatibility")["rows"].items()
    ]
    header = ("pipeline", "case", "U-Net", "this package", "DeepCache 0.1.1")
    return table(header, rows)


def _said(outcome: Any) -> str:
    why = outcome["why"].replace("a U-Net call runs in full: ", "").replace("|", "\\|")
    if outcome["result"] in ("exact", "wrong"):
        said = f"faster ({outcome['share']:.0%})"
        said += (
            f", **wrong** after: {', '.join(outcome['wrong'])}" if outcome["wrong"] else ", exact"
        )
    else:
        said = outcome["result"]
    said += f"; {why}" if why else ""
    return said if outcome["undone"] else f"{said}; **not undone**"


def _by_class(report: Any) -> dict[str, list[Any]]:
    classes: dict[str, list[Any]] = {}
    for row in report["rows"].values():
        classes.setdefault(row["pipeline"], []).append(row)
    return classes


def pairs() -> str:
    """Every case of the tests by every scheduler that it is run with."""
    cases, schedulers = _tested()
    header = ("case", "pipeline", *schedulers)
    rows = [
        (
            name,
            f"`{case.pipeline.__name__}`",
            *("✓" if scheduler in case.schedulers else "" for scheduler in schedulers),
        )
        for name, case in cases.items()
    ]
    total = sum(len(case.schedulers) for case in cases.values())
    return f"{total} pairs.\n\n{table(header, rows)}"


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        fidelity,
        measured_on,
        samplers,
        curves,
        quality,
        covered,
        unets,
        every_pipeline,
        pairs,
        memory,
        overhead,
        scaling,
        lifetime,
        *SPEED_TABLES,
    )
}


def rewritten(text: str) -> str:
    """The document with every table in it made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- end of {name} -->"

    names = "|".join(TABLES)
    pattern = rf"<!-- (?P<name>{names}) -->\n.*?<!-- end of (?P=name) -->"
    return re.sub(pattern, replace, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the documents."""
    for name in DOCUMENTS:
        document = ROOT / name
        document.write_text(rewritten(document.read_text(encoding="utf-8")), encoding="utf-8")


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _tested() -> tuple[Any, Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from builders.cases import CASES
        from builders.schedulers import SCHEDULERS
    finally:
        sys.path.pop(0)
    return CASES, SCHEDULERS


if __name__ == "__main__":
    main()
