"""How much work a generation does, exactly: calls of the U-Net, and what a shallow one costs.

A full call counts 1, a shallow one its share of the multiply-adds at its branch, one that is
answered without the U-Net 0. Shares are those of the network at hand, or of the real ones that were
counted in ``benchmarks/results/macs.json``. Budgets are by the work of SD 1.5.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.provenance import RESULTS
from deepcache_patch import DeepCacheHelper

#: Of a budget, how many times as fast a generation is to be by the work of SD 1.5.
SPEEDS = (1.8, 2.2)

#: For each branch, the multiply-adds of a shallow call as a part of those of a full one.
Shares = Mapping[int, float]


@dataclass(frozen=True)
class Calls:
    """The U-Net calls of one generation.

    Attributes:
        full: Those that ran whole.
        shallow: How many ran at each branch.
        skipped: Those that were answered without the U-Net.
    """

    full: int
    shallow: Mapping[int, int]
    skipped: int = 0

    def work(self, shares: Shares) -> float | None:
        """In full calls; `None` if the share of a branch is not known."""
        if not self.shallow.keys() <= shares.keys():
            return None
        return self.full + sum(count * shares[branch] for branch, count in self.shallow.items())


@cache
def counted_shares(network: str) -> Shares:
    """Those of a network of `benchmarks.speed.macs`: `sd15` (branch 0: 0.079), `sdxl` (0.0145)."""
    counts = json.loads((RESULTS / "macs.json").read_text(encoding="utf-8"))["networks"][network]
    full = counts["full"]["operations"]
    return {int(k): each["operations"] / full for k, each in counts["shallow"].items()}


def own_shares(pipe: Any) -> Shares:
    """Those of the pipeline's own U-Net."""
    return {each.number: each.share for each in DeepCacheHelper(pipe).branches}


def calls_of(pipe: Any, steps: int) -> int:
    """U-Net calls of a plain generation; PNDM makes one more than it is asked for."""
    pipe.scheduler.set_timesteps(steps)
    return len(pipe.scheduler.timesteps)


def full_steps_within(calls: int, speed: float, share: float) -> int:
    """The most full calls of so many with which the work is no more than `calls / speed`.

    Args:
        calls: Of the generation.
        speed: More than 1.
        share: Of a call that is not full, 0 to 1.
    """
    # A budget that is a whole number shall not be missed by rounding.
    return max(1, int((calls / speed - calls * share) / (1 - share) + 1e-9))


class Deep:
    """Counts the calls that reach the middle of a U-Net: those that run whole, whoever decides."""

    def __init__(self) -> None:
        self.calls = 0

    def count(self, *_: Any) -> None:
        """A forward hook."""
        self.calls += 1


@contextmanager
def counting(unet: Any) -> Iterator[Deep]:
    """Counts while the block lasts."""
    # The block itself will not do: DeepCache 0.1.1 calls it, and answers in its place.
    middle = getattr(unet, "mid_block", None)
    deep = Deep()
    handle = (unet if middle is None else middle.resnets[0]).register_forward_hook(deep.count)
    try:
        yield deep
    finally:
        handle.remove()


def calls_made(entered: Any, calls: int, full: int, branch: int | None) -> Calls:
    """What the calls of a generation were.

    Args:
        entered: A helper that knows its last generation; or anything else.
        calls: All of them.
        full: Those that ran whole.
        branch: Of the others, where there is no such helper; `None` if the U-Net was not asked.
    """
    for last in getattr(entered, "last_generations", {}).values():
        return Calls(full, Counter(entry for entry in last.plan if entry != "full"))
    if branch is None:
        return Calls(full, {}, calls - full)
    return Calls(full, {branch: calls - full})
