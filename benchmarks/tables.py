"""Writes the tables of README and docs from what measured them: results files and the tests.

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is between is replaced.
``make tables`` rewrites them, a test compares them. Run from the project's root:
``python -m benchmarks.tables``.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/compatibility.md")


def fidelity() -> str:
    """Speed and fidelity on `shapes`, with fewer steps beside."""
    results = _results("fidelity")
    rows = []
    for row in results["rows"]:
        interval = row.get("interval")
        name = f"interval {interval}, branch {row['branch']}" if interval else row["name"]
        if not interval and row["steps"] != results["steps"]:
            name = f"no helper, {row['steps']} steps"
        exact = row["psnr"] is None
        rows.append(
            (
                name,
                f"{row['speedup']:.2f}×",
                "–" if exact else f"{row['psnr']:.1f} dB",
                "–" if exact else f"{row['ssim']:.3f}",
                f"{row['read_back']:.0%}",
            )
        )
    header = (
        f"{results['scheduler'].removesuffix('Scheduler')}, {results['steps']} steps",
        "speed of the loop",
        "PSNR",
        "SSIM",
        "prompts read back",
    )
    return _table(header, rows)


def measured_on() -> str:
    """Where the table of `fidelity` comes from."""
    results = _results("fidelity")
    versions = results["versions"]
    return (
        f"{results['images']} pictures of 64×64 pixels from the model in `benchmarks/models/"
        f"{results['model']}`, guidance {results['guidance_scale']:g}, {results['device']} with "
        f"{results['threads']} threads, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}; `{results['command']}`"
    )


def speed() -> str:
    """How much of the bound the loop reaches."""
    results = _results("loop_speed")
    return (
        f"At interval {results['interval']} and branch {results['branch']} the denoising loop runs "
        f"{results['speedup']:.2f} times as fast; the bound, if nothing but the U-Net's own work "
        f"counted, is {results['bound']:.2f}."
    )


def pipelines() -> str:
    """The pipelines that the tests run, and with how many of the schedulers."""
    cases, schedulers = _tested()
    rows: dict[str, set[str]] = {}
    for case in cases.values():
        rows.setdefault(case.pipeline.__name__, set()).update(case.schedulers)
    header = ("pipeline", "schedulers tested")
    return _table(header, [(f"`{name}`", _listed(rows[name], schedulers)) for name in rows])


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
    return f"{total} pairs.\n\n{_table(header, rows)}"


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table for table in (fidelity, measured_on, speed, pipelines, pairs)
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
        import tiny
    finally:
        sys.path.pop(0)
    return tiny.CASES, tiny.SCHEDULERS


def _listed(names: set[str], everything: Sequence[str]) -> str:
    if names == set(everything):
        return f"all {len(names)}"
    return ", ".join(name for name in everything if name in names)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
