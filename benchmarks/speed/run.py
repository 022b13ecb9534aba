"""How much faster the denoising loop of each network is, beside the most that is possible.

The networks are those of the catalogue, with random weights. For each interval and branch the plain
loop, the hand-cut one, this package and DeepCache 0.1.1 run in turns, in one process; so do tomesd
and T-GATE, once for each network. The bound is N·T_full / (T_full + (N-1)·T_shallow), where T_full
is a step of the plain loop, and T_shallow one of the same loop with the network cut by hand and no
helper anywhere near: what a step does besides the network is in both. "By hand" is a loop that runs
the same network at each step as this package, a whole one or one that is cut, and records nothing.
Run from the project's root: ``python -m benchmarks.speed``.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from benchmarks.networks.catalogue import NETWORKS, build
from benchmarks.networks.loop_pipeline import LoopPipeline
from benchmarks.provenance import command, file_of, options, prepare, write
from benchmarks.speed import macs
from benchmarks.speed.contestants import FORMS, Field, rivals
from benchmarks.speed.race import Loop, Outcome, race
from deepcache_patch import FULL, Uniform

#: What `--throughput` adds: pictures per second at branch 0.
THROUGHPUT_NETWORKS = ("sd15", "sdxl")
THROUGHPUT_BATCHES = (1, 4, 8)
THROUGHPUT_INTERVALS = (3, 5)


def main() -> None:
    """Time, print and write JSON."""
    parser = options("speed", __doc__, repeats=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--intervals", nargs="+", type=int, default=[2, 3, 5, 10])
    parser.add_argument("--branches", nargs="+", type=int, help="default: each network's own")
    parser.add_argument("--steps", type=int, default=10, help="at least; a multiple of N is taken")
    parser.add_argument("--batch", type=int, default=1, help="pictures; with guidance, calls of 2")
    parser.add_argument("--size", type=int, help="of what is denoised; default: the true one")
    parser.add_argument("--width", type=float, default=1.0, help="part of the true channels")
    parser.add_argument("--turn", type=int, help="steps in a turn; default: 1, all on cuda")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), help="default: all on cuda")
    parser.add_argument("--alone", action="store_true", help="without tomesd and T-GATE")
    parser.add_argument("--throughput", action="store_true", help="also larger batches")
    parser.add_argument("--update", action="store_true", help="keep the file's other rows")
    parser.add_argument("--quick", action="store_true", help="all networks in small, in minutes")
    arguments = parser.parse_args()
    if arguments.quick:
        small = {"width": 0.1, "size": 8, "intervals": [3, 5], "steps": 5, "repeats": 1}
        vars(arguments).update(small, branches=[0])
    device, dtype = prepare(arguments)
    if arguments.forms is None:
        arguments.forms = list(FORMS) if device.type == "cuda" else ["eager"]
    rows = _kept(arguments, device) if arguments.update else {}
    for name in arguments.networks:
        for row in _rows(name, arguments, device, dtype):
            print(_line(row), file=sys.stderr, flush=True)
            rows[_key(row)] = row
            # What was measured in hours is not lost if a later row is cut off.
            write("speed", arguments, device, _figures(rows.values()), printed=False)
    write("speed", arguments, device, _figures(rows.values()))


def _rows(
    name: str, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Everything about one network, which is gone before the next one is made."""
    pipe = build(name, width=arguments.width, device=device, dtype=dtype, seed=arguments.seed)
    settings = [
        (form, arguments.batch, interval, branch)
        for form in arguments.forms
        for branch in arguments.branches or NETWORKS[name].branches
        for interval in arguments.intervals
    ]
    if arguments.throughput and name in THROUGHPUT_NETWORKS:
        settings += [
            (form, batch, interval, 0)
            for form in arguments.forms
            for batch in THROUGHPUT_BATCHES
            for interval in THROUGHPUT_INTERVALS
        ]
    for form, batch, interval, branch in dict.fromkeys(settings):
        loop = _loop(pipe, arguments, batch, multiple=interval)
        yield _about(name, loop, arguments) | cached(
            pipe,
            Field(loop, form, interval, branch),
            repeats=arguments.repeats,
            multiply_adds=_multiply_adds(name, arguments.width, loop.size, branch),
        )
    if not arguments.alone:
        loop = _loop(pipe, arguments, arguments.batch)
        outcome = race(pipe, loop, rivals(loop), repeats=arguments.repeats, warm_up=2)
        row = {"form": "eager", "interval": None, "branch": None, **_shown(outcome, loop)}
        yield _about(name, loop, arguments) | row


def cached(
    pipe: LoopPipeline, field: Field, *, repeats: int, multiply_adds: tuple[int, int]
) -> dict[str, Any]:
    """Race at one interval and branch, and set the results beside the bound."""
    torch.compiler.reset()  # no row meets the graphs of another
    loop, interval = field.loop, field.interval
    # Until everybody has run both kinds of steps, and the one that extrapolates all of its kinds.
    warm_up = math.ceil((2 * interval + 2) / loop.turn)
    outcome = race(pipe, loop, field.contestants(pipe), repeats=repeats, warm_up=warm_up)
    full_steps = Uniform(interval).plan(loop.steps).count(FULL)
    row: dict[str, Any] = {
        "form": field.form,
        "interval": interval,
        "branch": field.branch,
        "multiply_adds": dict(zip(("full", "shallow"), multiply_adds, strict=True)),
        "bound_by_multiply_adds": _bound(interval, 1, *multiply_adds),
        **_shown(outcome, loop),
    }
    if {"plain", "cut"} <= outcome.seconds.keys():
        times = outcome.seconds["plain"], outcome.seconds["cut"]
        row["bound"] = _bound(interval, 1, *times)
        row["bound_of_these_steps"] = _bound(loop.steps, full_steps, *times)
    return row


def _bound(steps: int, full_steps: int, full: float, shallow: float) -> float:
    """The speedup of `steps` steps if `full_steps` of them run in full, and nothing else counts."""
    return steps * full / (full_steps * full + (steps - full_steps) * shallow)


def _shown(outcome: Outcome, loop: Loop) -> dict[str, Any]:
    """What a race has shown; "cut" and "by hand" are no way to make a picture."""
    seconds = outcome.seconds
    plain = seconds.get("plain", math.nan)
    others = {name: each for name, each in seconds.items() if name != "plain"}
    return {
        "seconds": seconds,
        "spread": outcome.spread,
        "speedup": {name: plain / each for name, each in others.items()} if plain > 0 else {},
        "pictures_per_second": {
            name: loop.batch / each
            for name, each in seconds.items()
            if name not in ("cut", "by hand")
        },
        "failed": outcome.failed,
    }


def _loop(
    pipe: LoopPipeline, arguments: argparse.Namespace, batch: int, *, multiple: int = 1
) -> Loop:
    """The loop that the arguments mean, with a multiple of `multiple` as steps."""
    steps = math.ceil(arguments.steps / multiple) * multiple
    turn = arguments.turn or (steps if pipe.device.type == "cuda" else 1)
    side = max(arguments.size or 0, pipe.network.smallest)
    size = (side, side) if arguments.size else pipe.network.size
    return Loop(steps, turn if steps % turn == 0 else steps, batch, size, arguments.seed)


def _figures(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All rows; and the commands that made them, if they are several."""
    rows = list(rows)
    return {"command": " && ".join(dict.fromkeys(row["command"] for row in rows)), "rows": rows}


@functools.cache
def _multiply_adds(name: str, width: float, size: tuple[int, int], branch: int) -> tuple[int, int]:
    """Those of one call for one picture, in full and cut."""
    pipe = build(name, width=width, device="meta")
    full, shallow = (macs.work(pipe, each, size=size).operations for each in (None, branch))
    return full, shallow


def _about(name: str, loop: Loop, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row is about; with the command, because rows of several may share a file."""
    return {
        "network": name,
        "title": NETWORKS[name].title,
        "width": arguments.width,
        "size": list(loop.size),
        "batch": loop.batch,
        "steps": loop.steps,
        "steps_in_a_turn": loop.turn,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "command": command("speed", *sys.argv[1:]),
    }


def _kept(arguments: argparse.Namespace, device: torch.device) -> dict[Any, dict[str, Any]]:
    """The rows of the file that is there, if one is."""
    path = file_of("speed", arguments, device)
    found = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return {_key(row): row for row in found}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """By what rows are told apart."""
    return tuple(row[name] for name in ("network", "form", "batch", "interval", "branch"))


def _line(row: dict[str, Any]) -> str:
    told = [f"{row[name]}" for name in ("network", "form", "batch", "interval", "branch")]
    told += [f"bound {row['bound']:.3f}"] if "bound" in row else []
    told += [f"{name} {speedup:.3f}" for name, speedup in row["speedup"].items()]
    return " | ".join([*told, *(f"{name}: {error}" for name, error in row["failed"].items())])
