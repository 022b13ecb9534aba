"""What has happened: counts since `enable`, and how each generation went. Decides nothing."""

import logging
import time
from dataclasses import dataclass
from typing import Final

from ..cutting.cut import CutAt
from ..schedules.context import Position
from ..schedules.plans import FULL, Plan, PlanEntry

#: One line at INFO for each `enable`, `disable` and generation, at DEBUG for each U-Net call.
LOGGER: Final = logging.getLogger("deepcache_patch")

#: The most of one generation; where nobody knows that another has begun, calls may go on.
MAX_ENTRIES: Final = 10_000


@dataclass(frozen=True)
class Stats:
    """What has happened since `DeepCacheHelper.enable`.

    Attributes:
        generations: Denoising loops that were started.
        full_calls: U-Net calls that ran everything.
        shallow_calls: U-Net calls that ran only what lies above the branch. At branch -1, above the
            output, that is nothing: the U-Net was called, and what it returns was forecast.
        cache_nbytes: The most bytes of deep features that a U-Net's cache held at once; added up
            over the U-Nets of the pipeline.
        unplaced_calls: Those of `full_calls` whose step is not known: single evaluations, what was
            refused with a warning, and the calls of a loop until it was known as one.
    """

    generations: int = 0
    full_calls: int = 0
    shallow_calls: int = 0
    cache_nbytes: int = 0
    unplaced_calls: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.generations + other.generations,
            self.full_calls + other.full_calls,
            self.shallow_calls + other.shallow_calls,
            self.cache_nbytes + other.cache_nbytes,
            self.unplaced_calls + other.unplaced_calls,
        )


@dataclass(frozen=True)
class LastGeneration:
    """How the last generation of a U-Net went, as far as it has come.

    Attributes:
        plan: For each step `FULL` if one of its calls ran in full, else the branch.
        full_calls: U-Net calls that ran everything.
        shallow_calls: U-Net calls that ran only what lies above the branch. At branch -1, above the
            output, that is nothing: the U-Net was called, and what it returns was forecast.
        seconds: From the start of the first call to the return of the last, by the wall clock. On
            an accelerator calls return before their work is done, by what fits into its queue:
            less than a step of a large U-Net.
        calibration: If it ran in full to be learned from, what for: "50 steps with DDIMScheduler".
        is_outdated: Whether the helper has gone by other settings since. Not part of the text.
        not_run: How many of its steps have not run, as far as is known: it was broken off, or is
            under way. Not part of the text.
    """

    plan: Plan
    full_calls: int
    shallow_calls: int
    seconds: float
    calibration: str | None = None
    is_outdated: bool = False
    not_run: int = 0

    def __str__(self) -> str:
        return (
            f"{len(self.plan)} steps in {self.seconds:.3g} s, {self.full_calls} full and "
            f"{self.shallow_calls} shallow calls: {self.plan}"
        )


class GenerationRecord:
    """Keeps what becomes a `LastGeneration`.

    Args:
        unet: The name of the component, for the log.

    Attributes:
        calibration: What is learned from it, if anything is.
    """

    def __init__(self, unet: str) -> None:
        self._unet = unet
        self.calibration: str | None = None
        self._entries: list[tuple[int | None, PlanEntry]] = []
        self._full_calls = self._shallow_calls = 0
        self._num_steps: int | None = None
        self._start = self._end = time.perf_counter()
        self._over = False

    def called(self, position: Position, branch: CutAt) -> None:
        """A call of a step is over; `branch` is `None` if it ran in full."""
        step, self._num_steps = position.step, position.num_steps
        self._end = time.perf_counter()
        self._full_calls += branch is None
        self._shallow_calls += branch is not None
        entry: PlanEntry = FULL if branch is None else branch
        if not self._entries or self._entries[-1][0] != step:
            self._entries.append((step, entry))
        elif entry == FULL:
            self._entries[-1] = step, FULL
        if LOGGER.isEnabledFor(logging.DEBUG):
            what = "in full" if branch is None else f"shallow, at branch {branch}"
            LOGGER.debug("%s: step %d, call %d of it: %s", self._unet, step, position.order, what)

    def called_anywhere(self) -> None:
        """A call is over that ran in full because its step is not known; it counts as a step."""
        LOGGER.debug("%s: a call of a step that is not known: in full", self._unet)
        if self._entries and not self._over and len(self._entries) < MAX_ENTRIES:
            self._end = time.perf_counter()
            self._full_calls += 1
            self._entries.append((None, FULL))

    def finish(self) -> None:
        """The generation is over, or nobody will know. Harmless when repeated."""
        over, self._over = self._over, True
        if self._entries and not over:
            LOGGER.info("%s: %s", self._unet, self.so_far())

    def so_far(self) -> LastGeneration:
        """How it went until now."""
        plan = Plan(entry for _, entry in list(self._entries))
        return LastGeneration(
            plan,
            full_calls=self._full_calls,
            shallow_calls=self._shallow_calls,
            seconds=self._end - self._start,
            calibration=self.calibration,
            not_run=max(0, (self._num_steps or 0) - len(plan)),
        )
