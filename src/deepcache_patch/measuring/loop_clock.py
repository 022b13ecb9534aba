"""Timing of a denoising loop from outside: from the start of a module's first call to the end of
its last. It is a patch like that of `patching.call`, outside of whatever may answer a call: hooks
would miss a call that is forecast. What is run, and how often, is the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ..patching.call import CALL
from ..patching.patch import Patch


class LoopClock:
    """Times the calls of one module while the `with` block lasts.

    On an accelerator both ends are events in the device's own queue: the loop is never
    synchronised while it runs, only when `seconds` is read.

    Args:
        module: The denoiser, called once or more for each step. A helper of it that is enabled in
            the block may answer calls that are not seen.

    Example:
        >>> with LoopClock(pipe.unet) as clock:
        ...     pipe("a fox", num_inference_steps=50)
        >>> clock.seconds, clock.calls
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls = 0
        self.device = torch.device("cpu")
        self._module = module
        self._patch = Patch(module, CALL, module._call_impl)
        self._start: Any = None
        self._end: Any = None

    def __enter__(self) -> LoopClock:
        self._patch.install(self._timed)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.remove()

    @property
    def seconds(self) -> float:
        """Seconds from the first call's start to the last call's end.

        Raises:
            RuntimeError: The module was not called, or only its `forward` was.
        """
        if self.calls == 0:
            raise RuntimeError(
                f"the denoising loop could not be timed: {type(self._module).__name__} was not "
                "called as a module"
            )
        if self.device.type == "cpu":
            return float(self._end - self._start)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000

    def _timed(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._start is None:
            # The inputs know where the work is done; the weights may still be offloaded.
            inputs = (*args, *kwargs.values())
            found = (value.device for value in inputs if isinstance(value, torch.Tensor))
            self.device = next(found, self.device)
            self._start = self._mark(None)
        output = original(*args, **kwargs)
        # Nobody knows which call is the last one, so each of them moves the end.
        self._end = self._mark(self._end)
        self.calls += 1
        return output

    def _mark(self, event: Any) -> Any:
        """Returns the time now: seconds on the CPU, else `event` (or a new one), recorded anew."""
        kind = self.device.type
        if kind == "cpu":
            return time.perf_counter()
        runtime = getattr(torch, kind)
        event = event or runtime.Event(enable_timing=True)
        if kind == "mps":  # one stream, which its events do not take as an argument
            event.record()
        else:
            event.record(runtime.current_stream(self.device))
        return event
