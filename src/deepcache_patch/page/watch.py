"""Watches the calls of one U-Net: counts them while a generation runs, and ends it when that is
asked for from another thread. What is generated is the business of `trial`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from torch import nn

from ..patching.call import CALL
from ..patching.patch import Patch

#: Blocks of a U-Net are `down_blocks.0`, those of a decoder `decoder.up_blocks.0`.
_DEEPEST: Final = 2


class StoppedError(Exception):
    """`Watch.stop` was called."""


class Watch:
    """Counts the calls of a pipeline's U-Net, and ends a generation in the midst of one.

    Args:
        pipe: The pipeline.
        unet: Its U-Net.
    """

    def __init__(self, pipe: Any, unet: nn.Module) -> None:
        self._pipe, self._unet = pipe, unet
        self._stopping = threading.Event()
        self._closed = threading.Event()

    def stop(self) -> None:
        """Ends the generation that is under way, or the next one, at its next block."""
        self._stopping.set()

    def resume(self) -> None:
        """Forgets `stop`, so that the next generation runs."""
        self._stopping.clear()

    def close(self) -> None:
        """As `stop`, for good."""
        self._closed.set()

    @contextmanager
    def counting(self, seen: Callable[[int], None]) -> Iterator[None]:
        """Calls `seen` with the number of U-Net calls after each one, those without work included.

        Raises:
            StoppedError: `stop` was called; raised within the pipeline's call.
        """
        count = 0

        def call(original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            nonlocal count
            self._check()
            output = original(*args, **kwargs)
            count += 1
            seen(count)
            return output

        with ExitStack() as undoing:
            for part in self._parts():
                undoing.callback(part.register_forward_pre_hook(self._check).remove)
            # Outside of the helper, whose forecasts no hook would see.
            patch = Patch(self._unet, CALL, self._unet._call_impl)
            patch.install(call)
            undoing.callback(patch.remove)
            self._check()
            yield

    def _check(self, *_: Any) -> None:
        if self._stopping.is_set() or self._closed.is_set():
            raise StoppedError

    def _parts(self) -> list[nn.Module]:
        """The blocks of all the pipeline's networks: a step of a large one takes long."""
        networks = [each for each in vars(self._pipe).values() if isinstance(each, nn.Module)]
        named = (pair for network in networks for pair in network.named_modules())
        parts = {part for name, part in named if name and name.count(".") <= _DEEPEST}
        return list(parts)
