"""The tables of docs/speed.md that say what the helper costs: memory, its own work, its growth,
and what it leaves behind.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.tables.markdown import by_device, table


def memory() -> str:
    """Bytes kept, and the peak over the plain pipeline's."""
    return by_device("memory", _memory)


def overhead() -> str:
    """Calls that save nothing, switching, and the helper's own work in each kind of call."""
    return by_device("overhead", _overhead)


def scaling() -> str:
    """What grows with steps, slots, resolution and batch."""
    return by_device("scaling", _scaling)


def lifetime() -> str:
    """What many generations, and switching on and off many times, leave behind."""
    return by_device("lifetime", _lifetime)


_CONTESTANTS = {
    "default": "default",
    "reuse": "branch 0, reuse",
    "extrapolate": "branch 0, extrapolate",
    "deepcache": "DeepCache 0.1.1",
}


def _memory(report: Any) -> str:
    header = ["kept, and added to the peak", "batch", "latents", *_CONTESTANTS.values()]
    rows = []
    for row in report["rows"]:
        found = row["contestants"]
        cells = [row["title"], str(row["batch"]), "×".join(map(str, row["latents"]))]
        rows.append([*cells, *(_bytes(found[name], found["deepcache"]) for name in _CONTESTANTS)])
    told = f"MiB in {report['options']['dtype']}"
    if report["measured_on"] == "meta":
        agree = "agrees" if report["check"]["agree"] else "does **not** agree"
        told += f", counted on the device “meta”; a small network that was run {agree} to the byte"
    return f"{told}.\n\n{table(header, rows)}"


def _bytes(found: Mapping[str, Any], deepcache: Mapping[str, Any]) -> str:
    if "failed" in found:
        return "does not run"
    said = f"{_mib(found['kept'])}, +{_mib(found['peak'])}"
    if found is deepcache or "failed" in deepcache:
        return said
    return f"{said} (1/{deepcache['kept'] / found['kept']:.1f})"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f}"


_CALLS = {
    "plain again": "a second plain U-Net (the noise)",
    "disabled": "disabled after it was enabled",
    "paused": "paused",
    "interval 1": "enabled at interval 1",
    "recording": "full calls that record",
}


def _overhead(report: Any) -> str:
    given, measured = report["options"], report["call_ratios"]
    calls = table(
        (f"a call of {measured['plain_ms']:.0f} ms", "to the plain call", "95 % of resampled"),
        [
            (said, f"{its['ratio']:.4f}", f"{its['low']:.4f} to {its['high']:.4f}")
            for name, said in _CALLS.items()
            for its in [measured["ratios"][name]]
        ],
    )
    networks = {"sd15": "SD 1.5", "sd15-controlnet": "with its ControlNet"}
    header = ["a helper's own work in a call", *networks.values()]
    kinds = report["own"]["sd15"]["calls"]
    rows = [
        (kind, *(_own(report["own"][network]["calls"][kind]) for network in networks))
        for kind in kinds
    ]
    switching = ", ".join(
        f"`{name}` {its['median_ms']:.1f} ms (the first time {its['first_ms']:.1f})"
        for name, its in report["switching"].items()
    )
    return (
        f"SD 1.5 with {given['width']:g} of its channels, latents of {given['size']}×"
        f"{given['size']}, {measured['turns']} turns:\n\n{calls}\n\n"
        f"With {given['own_width']:g} of the channels and {given['own_size']}×{given['own_size']}:"
        f"\n\n{table(header, rows)}\n\nA U-Net of SDXL's structure: {switching}."
    )


def _own(row: Mapping[str, float]) -> str:
    if row["own_us"] < 0:
        return f"less than the noise, {row['functions']} functions"
    return f"{row['own_us']:.0f} µs, {row['share']:.2%}, {row['functions']} functions"


_OF_STEPS = {"call": "", "late": ", the last fifth", "first_call": ", the first call"}


def _scaling(report: Any) -> str:
    steps = [row["steps"] for row in report["steps"]["plan"]]
    by_steps = table(
        ("µs of the helper in a call, by steps", *map(str, steps)),
        [
            (kind + said, *_figures(rows, f"{figure}_us", ".0f"))
            for kind, rows in report["steps"].items()
            for figure, said in _OF_STEPS.items()
        ],
    )
    by_slots = table(
        ("by slots", *(str(row["slots"]) for row in report["slots"])),
        [
            (f"{said} in a {kind} call", *_figures(report["slots"], f"{kind}_{figure}", ".0f"))
            for kind in ("full", "shallow")
            for figure, said in (("us", "µs"), ("functions", "functions"))
        ],
    )
    by_size = table(
        ("latents", "batch", "full call", "shallow call", "the helper's part of them"),
        [
            (
                f"{row['size']}×{row['size']}",
                str(row["batch"]),
                f"{row['full_ms']:.1f} ms",
                f"{row['shallow_ms']:.1f} ms",
                f"{row['full_own_us']:.0f} and {row['shallow_own_us']:.0f} µs",
            )
            for row in report["sizes"]
        ],
    )
    plans = [
        (f"`{name.title()}`, µs", *_figures(report["plans"], f"{name}_us", ".0f"))
        for name in ("uniform", "centred")
    ]
    of_plans = table(("by steps", *map(str, steps)), [*plans, *_learning(report["learning"])])
    return "\n\n".join([by_steps, by_slots, by_size, _cache(report["cache"]), of_plans])


def _learning(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Nothing of results that are of another way to learn."""
    if "fit_ms" not in rows[0]:
        return []
    return [
        ("`Auto`: ms of the fit", *_figures(rows, "fit_ms", ".0f")),
        ("µs to record a step", *_figures(rows, "record_us", ".0f")),
        ("MiB of the record", *(_mib(row["record_nbytes"]) for row in rows)),
        ("MiB during the fit", *(_mib(row["fit_nbytes"]) for row in rows)),
    ]


def _cache(cache: Mapping[str, Sequence[Mapping[str, int]]]) -> str:
    named: dict[str, Callable[[int], str]] = {
        "size": lambda side: f"latents {side}×{side}",
        "batch": lambda batch: f"batch {batch}",
        "slots": lambda slots: f"{slots} slot{'s' * (slots != 1)}",
    }
    cells = [
        (name(row[kind]), _mib(row["nbytes"]))
        for kind, name in named.items()
        for row in cache[kind]
    ]
    header, row = zip(*cells, strict=True)
    return table(("SD 1.5", *header), [("MiB of the cache", *row)])


def _lifetime(report: Any) -> str:
    ways = {f"generations, `{name}`": its for name, its in report["generations"].items()}
    ways |= {f"times on and off: {name}": its for name, its in report["cycles"].items()}
    ways["times on, off and paused, compiled"] = report["compiled"]
    header = ("after the tenth and the last", "tensors", "their bytes", "objects", "graphs")
    rows = [
        (
            f"{its['places'][-1]:,} {said}",
            *(_constant(its[name]) for name in ("tensors", "nbytes", "objects", "graphs")),
            f"+{max(its['resident_mib']) - its['resident_mib'][0]:.2f}",
        )
        for said, its in ways.items()
    ]
    return table((*header, "most MiB resident"), rows)


def _constant(values: Sequence[int]) -> str:
    """One number where it never changes, else the first and the extremes."""
    if min(values) == max(values):
        return str(values[0])
    later = sorted({min(values[1:]), max(values[1:])})
    return f"{values[0]}, then {' to '.join(map(str, later))}"


def _figures(rows: Sequence[Mapping[str, float]], figure: str, spec: str) -> list[str]:
    return [format(row[figure], spec) for row in rows]


TABLES: tuple[Callable[[], str], ...] = (memory, overhead, scaling, lifetime)
