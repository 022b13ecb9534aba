"""What the tables of README and docs are written with."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.provenance import RESULTS


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; an empty text without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_device(name: str, told: Callable[[Any], str]) -> str:
    """What is told of a benchmark's report, for each device that it was run on.

    Args:
        name: Of the benchmark.
        told: Makes Markdown of one report; an empty text if nothing in it is to be shown.
    """
    found = [(told(each), _made_by(each)) for each in reports(name)]
    return "\n\n".join(f"{text}\n\n{by}" for text, by in found if text) or "Not yet run."


def reports(name: str) -> list[Any]:
    """Those of a benchmark, one for each device that it was run on."""
    paths = sorted(RESULTS.glob(f"*/{name}.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _made_by(report: Any) -> str:
    versions, threads = report["versions"], report["options"]["threads"]
    command = f"`{report['command']}`"
    if " && " in command:
        command = "the commands stand with the rows in `benchmarks/results`"
    return (
        f"{report['device']}, {threads} thread{'s' * (threads != 1)} of the CPU, "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}; {command}"
    )
