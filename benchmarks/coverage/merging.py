"""The counts of a mutation run, beside those of modules that it did not run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_NOT_RUN = "not checked"

# What is made of the counts of a module, beside them.
_MADE = {"mutants", "killed_share"}


def merged(
    modules: Mapping[str, Mapping[str, int]],
    survivors: Sequence[dict[str, Any]],
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """The counts in all and of each module, and the mutants that survive.

    A module of which no mutant ran keeps what the report before says of it, and is left out if it
    says nothing and none were made.

    Args:
        modules: By name, how many mutants have each status.
        survivors: Of this run, each with its module.
        before: An earlier report; empty if there is none.
    """
    earlier = before.get("modules", {})
    kept = {name for name in earlier.keys() & modules.keys() if not _has_run(modules[name])}
    found = {
        name: earlier[name] if name in kept else _counted(counts)
        for name, counts in sorted(modules.items())
        if counts or name in kept
    }
    total: Counter[str] = Counter()
    for counts in found.values():
        total.update({name: counts[name] for name in counts.keys() - _MADE})
    theirs = [each for each in before.get("survivors", ()) if each["module"] in kept]
    return {"total": _counted(total), "modules": found, "survivors": [*theirs, *survivors]}


def _has_run(counts: Mapping[str, int]) -> bool:
    return any(count for status, count in counts.items() if status != _NOT_RUN)


def _counted(counts: Mapping[str, int]) -> dict[str, Any]:
    """Those that run into the limit of time count as killed; the share is of those that ran."""
    mutants = sum(counts.values())
    killed = counts.get("killed", 0) + counts.get("timeout", 0)
    ran = mutants - counts.get(_NOT_RUN, 0)
    return {"mutants": mutants, **counts, "killed_share": round(killed / ran, 4) if ran else None}
