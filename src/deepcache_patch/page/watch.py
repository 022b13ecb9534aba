"""Watches the calls of a pipeline's U-Net: tells of each while a generation runs, and ends it in
the midst of one. What is generated is the business of `runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from torch import nn

from ..patching.call import CALL
from ..patching.patch import Patch
from ..running.pipeline.components import unets_of

#: Blocks of a U-Net are `down_blocks.0`, those of a decoder `decoder.up_blocks.0`.
_DEEPEST: Final = 2


class StoppedError(Exception):
    """Somebody has asked for the end of a generation."""


@contextmanager
def watched(pipe: Any, seen: Callable[[], None], is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Calls `seen` after each call of the U-Net, those without work included.

    Args:
        pipe: The pipeline.
        seen: Is called in the thread of the generation.
        is_stopped: Asked at each block of each network, since a step of a large one takes long.

    Raises:
        StoppedError: `is_stopped()`; raised within the pipeline's call.
    """

    def check(*_: Any) -> None:
        if is_stopped():
            raise StoppedError

    def call(original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        check()
        output = original(*args, **kwargs)
        seen()
        return output

    unet = next(iter(unets_of(pipe).values()))
    networks = [each for each in vars(pipe).values() if isinstance(each, nn.Module)]
    named = (pair for network in networks for pair in network.named_modules())
    with ExitStack() as undoing:
        for part in {part for name, part in named if name and name.count(".") <= _DEEPEST}:
            undoing.callback(part.register_forward_pre_hook(check).remove)
        # Outside of the helper, whose forecasts no hook would see.
        patch = Patch(unet, CALL, unet._call_impl)
        patch.install(call)
        undoing.callback(patch.remove)
        check()
        yield
