"""The tables that say which pipelines the package runs on, and what the tests run."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.coverage.cases import from_tests
from benchmarks.provenance import RESULTS
from benchmarks.tables.markdown import table


def covered_in_short() -> str:
    """How many pipeline classes run faster: for the README."""
    report, classes, counts = _counted()
    ours = counts["ours"]
    return (
        f"Tests run all {len(classes)} U-Net pipelines that run in diffusers "
        f"{report['versions']['diffusers']} on tiny models: {ours['exact']} are accelerated, "
        f"{ours['in full']} run in full with a warning, {ours['refused']} are refused."
    )


def covered() -> str:
    """How many pipeline classes run faster, and how many of the generations are right."""
    report, classes, counts = _counted()
    ours, theirs = counts["ours"], counts["deepcache"]
    faster = theirs["exact"] + theirs["wrong"]
    return (
        f"Tests run all {len(classes)} U-Net pipelines that run in diffusers "
        f"{report['versions']['diffusers']}, with tiny models: {ours['exact']} run fewer layers, "
        "and each further call, with another size, batch, guidance, strength or number of steps, "
        f"makes what a fresh pipeline makes. {ours['in full']} run in full, with a warning that "
        f"says why; {ours['refused']} are refused. With DeepCache 0.1.1 {faster} run fewer "
        f"layers; in {theirs['wrong']} of these a further call comes out wrong."
    )


def _counted() -> tuple[Any, Any, dict[str, Counter[str]]]:
    """The report, its rows by class, and how many classes of each result, by contestant."""
    report = _compatibility()
    classes = _by_class(report, modular=False)
    counts = {
        contestant: Counter(
            "exact" if results == {"exact"} else min(results - {"exact"})
            for results in (
                {row[contestant]["result"] for row in rows} for rows in classes.values()
            )
        )
        for contestant in ("ours", "deepcache")
    }
    return report, classes, counts


def modular() -> str:
    """How many workflows of modular pipelines run faster; they are counted apart."""
    report = _compatibility()
    (rows,) = _by_class(report, modular=True).values()
    results = Counter(row["ours"]["result"] for row in rows)
    alike = results["exact"] == len(rows)
    said = "all are" if alike else f"{results['exact']} are"
    return (
        f"Besides these, tests run `{rows[0]['pipeline']}` in {len(rows)} of its workflows: {said} "
        "faster, and each further generation equals that of a fresh pipeline."
    )


def unets() -> str:
    """The U-Net classes, and how many pipelines have them."""
    classes = _by_class(_compatibility(), modular=False)
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
        for name, row in _compatibility()["rows"].items()
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


def _by_class(report: Any, *, modular: bool) -> dict[str, list[Any]]:
    """The rows of each class, of the modular ones or of the others."""
    classes: dict[str, list[Any]] = {}
    for row in report["rows"].values():
        if row["pipeline"].endswith("ModularPipeline") == modular:
            classes.setdefault(row["pipeline"], []).append(row)
    return classes


def pairs() -> str:
    """Every case of the tests by every scheduler that it is run with."""
    cases = from_tests("builders.cases").CASES
    schedulers = from_tests("builders.schedulers").SCHEDULERS
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


def _compatibility() -> Any:
    return json.loads((RESULTS / "compatibility.json").read_text(encoding="utf-8"))


TABLES: tuple[Callable[[], str], ...] = (
    covered,
    covered_in_short,
    modular,
    unets,
    every_pipeline,
    pairs,
)
