"""Denoising loops that run in turns, a few steps at a time, so that all see the same noise.

What takes part has a twin of the pipeline for itself, with the same weights in the same memory, so
that nothing has to be put on and taken off between turns. A loop's time is the sum over its turns
of the median over the repeats: a disturbance that lasts a few steps of one repeat is in no median.
On an accelerator a turn is a whole loop, because waiting for the device after every step would
hide that the host prepares the next one meanwhile.
"""

import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.networks.loop_pipeline import LoopPipeline, twin
from benchmarks.timing import seconds, spread

#: One generation: gives the seconds of each turn.
Generation = Callable[[], Iterator[float]]


@dataclass(frozen=True)
class Loop:
    """The loop that all run.

    Attributes:
        steps: Of a generation.
        turn: How many of them are run at a time; `steps` is a multiple of it.
        batch: How many pictures or videos.
        size: Height and width of what is denoised.
        seed: Of the inputs.
    """

    steps: int
    turn: int
    batch: int
    size: tuple[int, int]
    seed: int

    @property
    def turns(self) -> int:
        """How many turns a generation has."""
        return self.steps // self.turn

    def generation(
        self, pipe: LoopPipeline, before: Callable[[int], Any] = lambda step: None
    ) -> Iterator[float]:
        """Run the pipeline's own loop; preparing the inputs is not timed.

        Args:
            pipe: The pipeline.
            before: Called before each step, with its number; it is timed, too.
        """
        steps = pipe.loop(self.steps, batch=self.batch, size=self.size, seed=self.seed)
        numbers = iter(range(self.steps))

        def some() -> None:
            for number in itertools.islice(numbers, self.turn):
                before(number)
                next(steps)

        for _ in range(self.turns):
            yield seconds(some, pipe.device)

    def whole(self, pipe: LoopPipeline, run: Callable[[], Any]) -> Iterator[float]:
        """Run somebody else's loop, all of it in the first turn."""
        yield seconds(run, pipe.device)
        yield from itertools.repeat(0.0, self.turns - 1)


#: Prepares a twin for its part, with what is to be undone on the stack.
Contestant = Callable[[LoopPipeline, ExitStack], Generation]


class Outcome(NamedTuple):
    """What a race has shown.

    Attributes:
        seconds: A loop's time, of each that finished.
        spread: (largest - smallest) / median over the repeats.
        failed: The error of each that did not finish.
    """

    seconds: dict[str, float]
    spread: dict[str, float]
    failed: dict[str, str]


def race(
    pipe: LoopPipeline,
    loop: Loop,
    contestants: Mapping[str, Contestant],
    *,
    repeats: int,
    warm_up: int,
) -> Outcome:
    """Run the loop of each entrant in turns.

    Args:
        pipe: Stays as it is.
        loop: What is run.
        contestants: By name. Whoever raises is left out from there on, and named.
        repeats: Measured generations of each, 1 or more.
        warm_up: Turns of a generation before them, 1 or more.
    """
    order = random.Random(loop.seed)
    failed: dict[str, str] = {}
    times: dict[str, list[list[float]]] = {}
    with ExitStack() as stack, torch.no_grad():
        running: dict[str, Generation] = {}
        for name, enter in contestants.items():
            try:
                running[name] = enter(twin(pipe), stack)
            except Exception as error:  # whatever it is, the others go on
                failed[name] = f"{type(error).__name__}: {error}"
        _generate(running, min(warm_up, loop.turns), failed, order)
        for _ in range(repeats):
            for name, measured in _generate(running, loop.turns, failed, order).items():
                times.setdefault(name, []).append(measured)
    times = {name: each for name, each in times.items() if name not in failed}
    return Outcome(
        {name: typical(each) for name, each in times.items()},
        {name: spread([sum(repeat) for repeat in each]) for name, each in times.items()},
        failed,
    )


def typical(repeats: list[list[float]]) -> float:
    """The sum over the turns of the median over the repeats."""
    total: float = sum(statistics.median(turn) for turn in zip(*repeats, strict=True))
    return total


def _generate(
    running: dict[str, Generation], turns: int, failed: dict[str, str], order: random.Random
) -> dict[str, list[float]]:
    """One generation of each, or its beginning; whoever raises is taken out of `running`."""
    times: dict[str, list[float]] = {name: [] for name in running}
    with ExitStack() as stack:
        generations: dict[str, Iterator[float]] = {}
        for name, begin in running.items():
            generations[name] = begin()
            stack.enter_context(closing(generations[name]))  # type: ignore[type-var]
        for _ in range(turns):
            # A step takes longer after somebody's shallow one: nobody always follows the same one.
            for name in order.sample(list(running), len(running)):
                try:
                    times[name].append(next(generations[name]))
                except Exception as error:
                    failed[name] = f"{type(error).__name__}: {error}"
                    del running[name]
    return times
