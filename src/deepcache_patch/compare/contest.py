"""`Contest`: what a comparison and a sweep are made of. It runs a pipeline without the helper, with
it, and with another number of steps, always from the same seeds; it times each run and measures how
alike the results are. Which runs there are, and in which order, is decided in `run` and in the
room `sweep`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, TypeAlias

import numpy as np
import torch

from ..inspection.branches import Branches
from ..learning.auto import Auto
from ..measuring.generation import Timing, calls_of, num_sources, timed_call
from ..measuring.media import Made, made_by
from ..measuring.similarity import (
    SMALLEST_FOR_LPIPS,
    lpips,
    mean_of,
    psnr,
    require_metrics,
    snr,
    ssim,
)
from ..running.pipeline.components import is_pipeline, unets_of
from ..running.protocol import Helper
from ..running.stats import Stats
from ..schedules.guide import AnySchedule, plans_ahead
from ..schedules.plans import Plan, Uniform, whole_number
from ..schedules.window import Window
from ..settings.preview import num_steps, plan_of
from .call_steps import LISTS, STEP_ARGUMENTS, steps_of, strength_of
from .contestant import HELPER
from .fewer import full_calls_worth

#: Enough for a full and a shallow step, whatever the interval, and for multistep solvers.
_WARM_UP_STEPS = 4
#: Arguments of one call of a pipeline, and its seeds.
_Call: TypeAlias = tuple[dict[str, Any], Sequence[int]]
_Distance: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
#: What a calibration's seeds are apart from those of the comparison.
CALIBRATION_SEEDS = 1_000_000


@dataclass(frozen=True)
class Run:
    """What all calls of one contestant made, and what that took.

    Attributes:
        made: The results.
        time: How long they took.
        device: Where the U-Net ran.
        work: The U-Net's work, in full calls; `None` where it is not known.
        stats: The counts of this run alone.
        plans: With the helper, what ran in the last generation, for each U-Net by its name in the
            pipeline.
    """

    made: Made
    time: Timing
    device: torch.device
    work: float | None
    stats: Stats
    plans: Mapping[str, Plan] = field(default_factory=dict)


class Contest:
    """One request, to be run by several contestants.

    Args:
        helper: A helper of a pipeline that makes pictures, videos or sounds.
        call: Arguments of the pipeline's `__call__`.
        seeds: One for each result; by default 0, or 0, 1, 2, … for as many prompts or pictures.
        repeats: Timed runs of each contestant.
        watch: Each run is within what this makes of its label, and outside of the helper.
        with_lpips: Whether LPIPS is among the measures where its package is installed. Its network
            is built here.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: As `DeepCacheHelper.compare` says.
        ValueError: As `DeepCacheHelper.compare` says.
    """

    def __init__(
        self,
        helper: Helper,
        call: Mapping[str, Any],
        *,
        seeds: Sequence[int] | None,
        repeats: int,
        watch: Callable[[str], AbstractContextManager[Any]] = nullcontext,
        with_lpips: bool = True,
    ) -> None:
        require_metrics()
        if seeds is None:
            seeds = range(num_sources(call))
        try:
            seeds = tuple(operator.index(seed) for seed in seeds)
        except TypeError as error:
            raise TypeError(f"seeds must be a list of integers, not {seeds!r}") from error
        if not seeds:
            raise ValueError("seeds is empty: give one seed for each picture")
        repeats = whole_number("repeats", repeats, 1)
        pipe: Any = helper.pipe
        if not is_pipeline(pipe):
            raise TypeError(f"a comparison calls a pipeline; {type(pipe).__name__} is none")
        self.pipe, self.helper, self.call, self.seeds = pipe, helper, dict(call), seeds
        self.repeats = repeats
        self._calls, self._unets = calls_of(pipe, call, seeds), unets_of(pipe)
        self._perceptual, self._watch = lpips() if with_lpips else None, watch
        self._branches: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Runs a fresh helper with the same settings.

        Afterwards the given one is enabled or disabled as before; if it was enabled, its counts
        start anew.
        """
        given: Any = self.helper
        was_enabled = given.enabled
        given.disable()
        try:
            window = {"first": given.first, "last": given.last}
            self.helper = type(given)(self.pipe, **window, replay=given.replay)
            self.helper.follow(given.schedule)
            yield
        finally:
            self.helper.disable()
            self.helper = given
            if was_enabled:
                given.enable()

    def warm_up(self, schedules: Iterable[AnySchedule]) -> None:
        """A few steps, full ones and shallow ones, at each branch that a schedule may name."""
        helper, before = self.helper, self.helper.schedule
        helper.enable()
        for branch in branches_to_warm(schedules):
            helper.follow(Uniform(2, branch))  # one that does not mind how few steps there are
            calls = [(shortened(arguments), some) for arguments, some in self._calls[:1]]
            self._generate(calls, "warm-up")
        helper.follow(before)

    def plan_ahead(self, schedule: Any, steps: int | None) -> Plan | None:
        """The plan by a schedule, or `None` where it is not known before the generation."""
        pipe, call = self.pipe, self.call
        lists = any(call.get(name) is not None for name in LISTS)
        if lists or num_steps(pipe, steps) is None or not plans_ahead(schedule):
            return None
        window = Window(self.helper.first, self.helper.last)
        return plan_of(pipe, schedule, steps, window=window, strength=strength_of(pipe, call))

    def learns(self, schedule: Any, steps: int | None = None) -> bool:
        """Whether the first generation by a schedule runs in full, to learn."""
        if not isinstance(schedule, Auto):
            return False
        plan = self.plan_ahead(schedule, self.steps if steps is None else steps)
        return plan is None or schedule.is_worth_it(plan)

    def learn(self, steps: int | None = None, label: str = "calibration") -> None:
        """The generation by which a schedule learns: one of other seeds."""
        self.helper.enable()
        others = [
            (arguments, [seed + CALIBRATION_SEEDS for seed in some])
            for arguments, some in self._with(steps)[:1]
        ]
        self._generate(others, label)

    def plain(self, steps: int | None = None, label: str = "plain") -> Run:
        """A run without the helper; `steps` in the place of those of the call."""
        self.helper.disable()
        made, time, device = self._generate(self._with(steps), label)
        return Run(made, time, device, time.calls, Stats(full_calls=time.calls))

    def cached(self, steps: int | None = None, label: str = HELPER) -> Run:
        """A run with the helper, by its schedule."""
        helper = self.helper
        helper.disable()
        helper.enable()  # counts from here: its stats are those of this run alone
        made, time, device = self._generate(self._with(steps), label)
        stats = helper.stats
        plans = {name: each.plan for name, each in helper.last_generations.items()}
        self._branches = self._branches or helper.branches
        work = None
        if isinstance(self._branches, Branches) and len(plans) == 1:
            work = full_calls_worth(stats, next(iter(plans.values())), self._branches)
        return Run(made, time, device, work, stats, plans)

    def measured(self, plain: Made, other: Made) -> dict[str, tuple[float, ...]]:
        """How alike the results are, by the measures of their kind: what `Measured` holds."""
        pairs = list(zip(plain.arrays, other.arrays, strict=True))
        if plain.kind == "sounds":
            return {"snr": tuple(snr(*pair) for pair in pairs)}
        measures: dict[str, _Distance] = {"psnr": psnr, "ssim": ssim}
        if self._perceptual and min(plain.arrays[0].shape[-3:-1]) >= SMALLEST_FOR_LPIPS:
            measures["lpips"] = self._perceptual
        if plain.kind == "videos":
            measures = {name: partial(_by_frame, measure) for name, measure in measures.items()}
        return {name: tuple(of(*pair) for pair in pairs) for name, of in measures.items()}

    @property
    def steps(self) -> Any:
        """As many as the call asks for, or else the pipeline's own number."""
        return steps_of(self.pipe, self.call)

    def _with(self, steps: int | None) -> Sequence[_Call]:
        if steps is None:
            return self._calls
        other = {"num_inference_steps": steps}
        return [({**arguments, **other}, seeds) for arguments, seeds in self._calls]

    def _generate(self, calls: Sequence[_Call], label: str) -> tuple[Made, Timing, torch.device]:
        """Makes the results of all calls, one call after the other."""
        made, timings, device = [], [], torch.device("cpu")
        for number, (arguments, seeds) in enumerate(calls, 1):
            which = label if len(calls) == 1 else f"{label} {number}/{len(calls)}"
            unets = self._unets.values()
            with self._watch(which):
                output, timing, device = timed_call(self.pipe, unets, arguments, seeds, label=which)
            made.append(made_by(self.pipe, output, len(seeds)))
            timings.append(timing)
        return reduce(operator.add, made), reduce(operator.add, timings), device


def _by_frame(measure: _Distance, plain: np.ndarray, cached: np.ndarray) -> float:
    """The mean over the frames."""
    return mean_of([measure(*frames) for frames in zip(plain, cached, strict=True)])


def branches_to_warm(schedules: Iterable[AnySchedule]) -> tuple[int, ...]:
    """Those at which a warm-up runs, each once, rising: which the schedules may name."""
    named = {each for one in schedules for each in getattr(one, "branches", (0,))}
    return tuple(sorted(named))


def shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the warm-up: few steps, where their number is told plainly."""
    short = dict(arguments)
    if "num_inference_steps" in short and not any(name in short for name in STEP_ARGUMENTS):
        short["num_inference_steps"] = min(short["num_inference_steps"], _WARM_UP_STEPS)
    return short
