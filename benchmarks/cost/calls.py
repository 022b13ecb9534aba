"""A denoising loop call by call, and the part of a call that is not the networks' own work.

Loops that are advanced in turns, call by call, all see the same noise of the machine: that is what
it takes to tell a difference of a few thousandths.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import deepcache_patch
from benchmarks.networks.loop_pipeline import LoopPipeline, Size
from benchmarks.timing import wait

_PACKAGE = str(Path(deepcache_patch.__file__).parent)


class Split(NamedTuple):
    """One call: all its seconds, and those that the host spent outside the networks' `forward`."""

    seconds: float
    own_seconds: float


class SteppedLoop:
    """The denoising loop of a pipeline, one call at a time; after its last it begins again.

    The samples are not changed from step to step: what a call costs does not depend on values.

    Args:
        pipe: The pipeline.
        steps: Of a generation.
        batch: Of a call.
        size: Of what is denoised; the network's own by default.
        slots: How many calls each step has.
        by_value: Whether the timestep is a number, and no view into the scheduler's list.
    """

    def __init__(
        self,
        pipe: LoopPipeline,
        steps: int,
        *,
        batch: int = 2,
        size: Size | None = None,
        slots: int = 1,
        by_value: bool = False,
    ) -> None:
        self._pipe = pipe
        self._arguments = pipe.call_arguments(batch=batch, size=size)
        self._arguments.pop("timestep")
        self._timesteps = self._endless(steps, slots, by_value)
        self._inner_seconds = 0.0

    def _endless(self, steps: int, slots: int, by_value: bool) -> Iterator[Any]:
        device = self._pipe.device
        where = "cpu" if device.type == "meta" else device  # timesteps need values
        while True:
            self._pipe.scheduler.set_timesteps(steps, device=where)
            listed = self._pipe.scheduler.timesteps
            for timestep in listed.tolist() if by_value else listed:
                yield from itertools.repeat(timestep, slots)

    def seconds(self) -> float:
        """Make the next call, and say how long it took."""
        return self.split().seconds

    @torch.no_grad()
    def split(self) -> Split:
        """Make the next call; its time outside `forward` is only known within `clocked`."""
        timestep = next(self._timesteps)
        self._inner_seconds = 0.0
        wait(self._pipe.device)
        start = time.perf_counter()
        self._pipe.predict(timestep=timestep, **self._arguments)
        returned = time.perf_counter() - start
        wait(self._pipe.device)
        return Split(time.perf_counter() - start, returned - self._inner_seconds)

    @contextmanager
    def clocked(self) -> Iterator[None]:
        """Note how long `forward` of U-Net and ControlNet takes, for the length of a block."""
        modules = [each for each in (self._pipe.unet, self._pipe.controlnet) if each is not None]
        starts: list[float] = []

        def begin(*_: Any) -> None:
            starts.append(time.perf_counter())

        def end(*_: Any) -> None:
            self._inner_seconds += time.perf_counter() - starts.pop()

        # No function in the place of `forward`: who counts there is heeded, and all runs in full.
        handles = [each.register_forward_pre_hook(begin) for each in modules]
        handles += [each.register_forward_hook(end) for each in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def function_calls(run: Callable[[], Any]) -> int:
    """How many functions of the package are called, as CPython's profiler counts.

    A generator counts each time it goes on.
    """
    count = 0

    def see(frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(_PACKAGE)

    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count
