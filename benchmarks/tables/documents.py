"""Writes the tables of README and docs from what measured them: results files and the tests.

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is between is replaced.
``make tables`` rewrites them, a test compares them. Run from the project's root:
``python -m benchmarks.tables``.
"""

import argparse
import re
from collections.abc import Callable

from benchmarks.provenance import ROOT, command
from benchmarks.tables import cost, coverage, fidelity, speed

DOCUMENTS = (
    "README.md",
    "docs/compatibility.md",
    "docs/experiments.md",
    "docs/for-diffusers.md",
    "docs/limits.md",
    "docs/plans-and-forecasts.md",
    "docs/results.md",
    "docs/schedules.md",
    "docs/speed.md",
)

TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (*fidelity.TABLES, *coverage.TABLES, *cost.TABLES, *speed.TABLES)
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
    description = __doc__.splitlines()[0]
    argparse.ArgumentParser(command("tables"), description=description).parse_args()
    for name in DOCUMENTS:
        document = ROOT / name
        document.write_text(rewritten(document.read_text(encoding="utf-8")), encoding="utf-8")
