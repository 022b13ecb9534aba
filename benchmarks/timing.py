"""Seconds that can be compared: the device has finished, and what is compared takes turns."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


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
