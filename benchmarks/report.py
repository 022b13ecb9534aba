"""What every benchmark of speed and memory has in common: turns, medians, and its file.

A file says what made it (command, versions, device, threads, seed) and lies in the folder of its
device, so that results of several machines stand side by side.
"""

import argparse
import json
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deepcache_patch.measuring.environment import device_name, versions

RESULTS = Path(__file__).resolve().parent / "results"


def options(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with what all have: device, dtype, threads, seed, repeats and the folder."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="default: float16 on cuda, else float32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--output", type=Path, default=None, help="default: results/DEVICE")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Set threads and seed; return the device and the dtype that are meant."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    name = arguments.dtype or ("float16" if device.type == "cuda" else "float32")
    arguments.dtype = name
    return device, getattr(torch, name)


def in_turns(
    runs: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """What each run returned, `repeats` of each, taken in turns so that all see the same noise.

    The order is drawn anew for each turn: what one leaves behind, in caches or in a processor that
    grew hot, meets all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    drawn = random.Random(0)
    for repeat in range(warm_up + repeats):
        for name in drawn.sample(list(runs), len(runs)):
            value = runs[name]()
            if repeat >= warm_up:
                found[name].append(value)
    return found


def seconds(run: Callable[[], Any], device: torch.device, *, calls: int = 1) -> float:
    """The mean of so many calls; the device has finished before and after."""
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - start) / calls


def wait(device: torch.device) -> None:
    """Until the device has done everything; at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def write(
    name: str,
    arguments: argparse.Namespace,
    device: torch.device,
    figures: Mapping[str, Any],
    *,
    printed: bool = True,
) -> Path:
    """Print and write what was measured, with what it was measured on.

    Args:
        name: Of the benchmark's module, and of the file.
        arguments: Of the command; all of them are written down.
        device: Where it ran.
        figures: What was measured, ready for JSON.
        printed: Whether it is printed, too; not while there is more to come.

    Returns:
        The file.
    """
    described = device_name(device)
    given = {key: value for key, value in vars(arguments).items() if key != "output"}
    report = {
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "device": described,
        "versions": versions(),
        "options": given,
        **figures,
    }
    folder = arguments.output or RESULTS / slug(described)
    folder.mkdir(parents=True, exist_ok=True)
    path: Path = folder / f"{name}.json"
    text = json.dumps(report, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    if printed:
        print(text)
        print(f"written to {path}")
    return path


def slug(name: str) -> str:
    """A device's name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
