"""The tables that say how fast the loops of the networks are, and how much work their calls."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.networks.catalogue import NETWORKS
from benchmarks.provenance import RESULTS
from benchmarks.speed.contestants import FORMS
from benchmarks.speed.macs import mean
from benchmarks.tables.markdown import by_device, reports, table

_Row = Mapping[str, Any]

#: One full step in so many, in the sentence of `measured`.
_INTERVAL = 3

#: The networks of that sentence.
_KNOWN = ("sd15", "sdxl")


def speed() -> str:
    """SD 1.5 at two intervals: for the README."""
    return by_device("speed", _summary)


def measured() -> str:
    """How fast the default was with networks of true size, in a sentence: for the README."""
    return "\n".join(filter(None, map(_measured, reports("speed"))))


def controlnet() -> str:
    """SD 1.5 with a ControlNet that is cut, whole, and with DeepCache 0.1.1."""
    return by_device("speed", _controlnet)


def speeds() -> str:
    """Every network, interval and branch."""
    return by_device("speed", _speeds)


def rivals() -> str:
    """T-GATE and tomesd on every network."""
    return by_device("speed", _rivals)


def throughput() -> str:
    """Pictures per second by batch, where several batches were run."""
    return by_device("speed", _throughput)


def macs() -> str:
    """The work of a call of every network."""
    networks = _counted()["networks"]
    rows = []
    for name, counted in networks.items():
        full, published = counted["full"], counted.get("published")
        for branch, shallow in counted["shallow"].items():
            first = branch == "0"
            rows.append(
                (
                    f"`{name}`" if first else "",
                    _giga(full["operations"]) if first else "",
                    _giga(full["layers"]) if first else "",
                    branch,
                    _giga(shallow["operations"]),
                    _giga(shallow["layers"]),
                    _giga(counted["mean_at_5"][branch]),
                    f"{_giga(published['full'])} → {_giga(published['mean_at_5'])}"
                    if first and published
                    else "",
                )
            )
    header = ("10⁹", "full", "full, the paper's way", "branch", "cut", "cut, its way")
    return table((*header, "mean at 1:5, its way", "published"), rows)


def macs_of_the_paper() -> str:
    """What gives the published counts, and what does not."""
    report = _counted()
    sd, ldm = report["networks"]["sd15"], report["networks"]["ldm4-imagenet"]
    issue = report["issue_37"]
    full, cuts = sd["full"]["layers"], {b: c["layers"] for b, c in sd["shallow"].items()}
    return "\n".join(
        (
            f"- SD 1.5 in full, {_giga(sd['published']['full'], 1)}: that is convolutions and "
            "linear layers with their biases, and two for every element that goes through a norm: "
            f"{_giga(full)}. The two matrix products of attention, "
            f"{_giga(sd['full']['attention'])}, are not in it. What is counted elsewhere in this "
            "project is convolutions, linear layers and those two products: "
            f"{_giga(sd['full']['operations'])}.",
            f"- LDM-4-G, {_giga(ldm['published']['full'])} and at 1:5 "
            f"{_giga(ldm['published']['mean_at_5'])}: branch 0, {_giga(ldm['full']['layers'])} and "
            f"{_giga(ldm['mean_at_5']['0'])}.",
            f"- SD 1.5 at 1:5, {_giga(sd['published']['mean_at_5'])}: nothing tried gives it. "
            "The paper names its second branch, here branch 1, with "
            f"{_giga(sd['mean_at_5']['1'])}; branch 2 has {_giga(sd['mean_at_5']['2'])}. A shallow "
            f"call would have to be {_giga(sd['published']['shallow'])}, but is {_giga(cuts['1'])} "
            f"or {_giga(cuts['2'])}. 50 steps with 13 in full, which is 1:4, come near it at "
            f"branch 1: {_giga(mean(13, 50, full, cuts['1']))}.",
            "- Users of the paper's tool found 484.3895, 76.0022 and a mean of 156.0782 "
            "(horseee/DeepCache#37): that is branch 1 with both halves of guidance counted, the "
            "counts of large linear layers wrapped round at 32 bits, and the mean over the 51 "
            f"calls of PNDM: {_giga(issue['full'], 4)}, {_giga(issue['shallow'], 4)} and "
            f"{_giga(issue['mean_at_5'], 4)}.",
        )
    )


def _counted() -> Any:
    return json.loads((RESULTS / "macs.json").read_text(encoding="utf-8"))


def _summary(report: Any) -> str:
    rows = [
        (_form(row), str(row["interval"]), *_cells(row, ("ours", "bound", "DeepCache 0.1.1")))
        for row in _cached(_main(report), network="sd15", branch=0)
        if row["interval"] in (3, 5)
    ]
    header = ("SD 1.5, branch 0", "interval", "this package", "at most", "DeepCache 0.1.1")
    return _raced(report, "sd15", header, rows)


def _measured(report: Any) -> str:
    told: dict[str, str] = {}  # by network, the first form that was measured
    for row in _cached(_main(report), interval=_INTERVAL, width=1):
        if row["network"] in _KNOWN and "default" in row["speedup"]:
            made = f"{row['speedup']['default']:.2f}× ({_form(row)}, {row['steps']} steps)"
            told.setdefault(row["title"], f"{row['title']} {made}")
    how = f"on {report['device']}, one full step in {_INTERVAL}, random weights"
    return f"Measured speed of the loop ({how}): {', '.join(told.values())}." if told else ""


def _controlnet(report: Any) -> str:
    shown = ("ours", "ours, ControlNet whole", "DeepCache 0.1.1", "bound")
    rows = [
        (_form(row), str(row["interval"]), *_cells(row, shown))
        for row in _cached(_main(report), network="sd15-controlnet", branch=0)
    ]
    header = ("", "interval", "this package", "without cutting the ControlNet", shown[2], "at most")
    return _raced(report, "sd15-controlnet", header, rows)


def _speeds(report: Any) -> str:
    rows = []
    for row in _cached(_main(report)):
        found, theirs = row["speedup"], "DeepCache 0.1.1"
        ours, by_hand = found.get("ours"), found.get("by hand")
        rows.append(
            (
                f"{row['title']}, {_size(row)}",
                _form(row),
                str(row["branch"]),
                str(row["interval"]),
                *_cells(row, ("bound", "by hand", "ours")),
                f"{ours / by_hand:.3f}" if ours and by_hand else "–",
                *_cells(row, ("ours, extrapolating", theirs)),
                f"{ours / found[theirs]:.2f}" if ours and theirs in found else "–",
                *_cells(row, ("default",)),
            )
        )
    header = ("", "form", "branch", "interval", "bound", "by hand", "reuse", "reuse / by hand")
    more = ("extrapolate", "DeepCache 0.1.1", "reuse / DeepCache", "default")
    return table((*header, *more), rows)


def _rivals(report: Any) -> str:
    names = ("tomesd 0.1.3", "T-GATE 1.0.0")
    rows = [
        (f"{row['title']}, {_size(row)}", *_cells(row, names))
        for row in report["rows"]
        if row["interval"] is None
    ]
    return table(("", "tomesd 0.1.3, half the tokens", "T-GATE 1.0.0"), rows)


def _throughput(report: Any) -> str:
    batches = {row["network"]: set[int]() for row in report["rows"]}
    for row in report["rows"]:
        batches[row["network"]].add(row["batch"])
    names = ("plain", "ours", "DeepCache 0.1.1", "default")
    rows = [
        (
            row["title"],
            _form(row),
            str(row["batch"]),
            str(row["interval"]),
            *(_said(row["pictures_per_second"].get(name), ".2f") for name in names),
        )
        for row in _cached(report["rows"], branch=0)
        if len(batches[row["network"]]) > 1
    ]
    header = ("pictures per second", "form", "batch", "interval", "plain", "reuse", *names[2:])
    return table(header, rows)


def _cached(rows: Iterable[_Row], **wanted: Any) -> list[_Row]:
    """Those with an interval and with these values, in order."""
    found = [
        row
        for row in rows
        if row["interval"] is not None and all(row[name] == wanted[name] for name in wanted)
    ]
    networks = list(NETWORKS)
    return sorted(
        found,
        key=lambda row: (
            networks.index(row["network"]),
            list(FORMS).index(row["form"]),
            row["branch"],
            row["batch"],
            row["interval"],
        ),
    )


def _main(report: Any) -> list[_Row]:
    """The rows at the batch of each network's first row; others are for `throughput`."""
    batches: dict[str, int] = {}
    return [
        row
        for row in report["rows"]
        if row["batch"] == batches.setdefault(row["network"], row["batch"])
    ]


def _form(row: _Row) -> str:
    return "CUDA graphs" if row["form"] == "cudagraphs" else str(row["form"])


def _size(row: _Row) -> str:
    height, width = row["size"]
    narrowed = f", {row['width']:g} of the channels" if row["width"] != 1 else ""
    several = f", batch {row['batch']}" if row["batch"] != 1 else ""
    return f"{height}×{width}{narrowed}{several}"


def _raced(report: Any, network: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of one network's rows, and the loop that they are of; an empty text without rows."""
    row = next((row for row in report["rows"] if row["network"] == network), None)
    if row is None or not rows:
        return ""
    loop = f"{row['steps']} steps, latents of {_size(row)}, {report['options']['dtype']}"
    return f"{table(header, rows)}\n\nThe denoising loop of {loop}."


def _cells(row: _Row, names: Iterable[str]) -> list[str]:
    """Speedups by name, or why there is none; "bound" is that of the row."""
    found = {"bound": row["bound"], **row["speedup"]} if "bound" in row else row["speedup"]
    return [_cell(found.get(name), row["failed"].get(name, "–")) for name in names]


def _cell(speedup: float | None, failed: str) -> str:
    return failed.replace("NotImplementedError: ", "") if speedup is None else f"{speedup:.2f}×"


def _said(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _giga(count: float, digits: int = 2) -> str:
    return f"{count / 1e9:.{digits}f}"


TABLES: tuple[Callable[[], str], ...] = (
    speed,
    measured,
    controlnet,
    speeds,
    rivals,
    throughput,
    macs,
    macs_of_the_paper,
)
