"""A denoising loop call by call, and the part of a call that is not the networks' own work.

Loops that are advanced in turns, call by call, all see the same noise of the machine: that is what
it takes to tell a difference of a few thousandths.
"""

import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DModel

import deepcache_patch
from benchmarks.loop_pipeline import LoopPipeline, Network, Size
from benchmarks.report import wait

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
        for module in modules:
            vars(module)["forward"] = self._clock(module.forward)
        try:
            yield
        finally:
            for module in modules:
                del vars(module)["forward"]

    def _clock(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self._inner_seconds += time.perf_counter() - start

        return clocked


def tiny(device: torch.device | str, dtype: torch.dtype) -> LoopPipeline:
    """A pipeline whose U-Net does next to nothing, to see the helper's own work beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what an adaptive schedule does depends on the weights
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
        )
    # Not the model's own `to`, which warns of any dtype.
    torch.nn.Module.to(unet.eval(), device=device, dtype=dtype)
    pipe = LoopPipeline(unet=unet, scheduler=DDIMScheduler())
    pipe.network = Network(
        title="tiny",
        parts=lambda width: {"unet": unet},
        shapes=lambda batch, height, width: {"sample": (batch, 3, height, width)},
        size=(8, 8),
        parameters=0.0,
        guided=False,
    )
    return pipe


def twin(pipe: LoopPipeline) -> LoopPipeline:
    """A pipeline of modules of its own that have the same weights, in the same memory."""
    memo: dict[int, Any] = {}
    for module in (pipe.unet, pipe.controlnet):
        if module is not None:
            memo |= {id(each): each for each in (*module.parameters(), *module.buffers())}
    twin: LoopPipeline = copy.deepcopy(pipe, memo)
    return twin


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
