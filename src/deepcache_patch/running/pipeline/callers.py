"""Who calls the U-Net: the code of a pipeline, or a person's own?

What a pipeline runs is a denoising loop, however its timesteps go. Of a call from elsewhere that is
not known.
"""

import inspect
import sys
import weakref
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any, Final

from torch import nn

#: Packages whose frames stand between a caller and a patch. The dot keeps "torchvision" out.
_BETWEEN: Final = (
    "torch.",
    "wrapt.",
    "accelerate.",
    "contextlib.",
    f"{__name__.partition('.')[0]}.",
)

#: Where pipelines, and what they call their networks through, are defined. With a dot, too.
_PIPELINES: Final = (
    "diffusers.pipelines.",
    "diffusers.modular_pipelines.",
    "diffusers.experimental.",
    "diffusers.models.",
    "diffusers_modules.",
)


class Callers:
    """Who may call the U-Net of a pipeline; does not keep the pipeline alive.

    Args:
        pipe: The pipeline, or a bare U-Net.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = None if isinstance(pipe, nn.Module) else weakref.ref(pipe)
        self._own = _code_of_calls(pipe)

    @property
    def gone(self) -> bool:
        """Whether there was a pipeline, and it has been freed."""
        return self._pipe is not None and self._pipe() is None

    def are_pipelines(self) -> bool:
        """Whether what calls the U-Net just now is a pipeline: this one, or one of diffusers."""
        frame: Any = sys._getframe()
        while frame is not None:
            module = f"{frame.f_globals.get('__name__')}."
            if not module.startswith(_BETWEEN):
                return frame.f_code in self._own or module.startswith(_PIPELINES)
            frame = frame.f_back
        return False


def _code_of_calls(pipe: Any) -> frozenset[CodeType]:
    """The code by which a pipeline is called, whoever has written its class or its blocks."""
    if isinstance(pipe, nn.Module):
        return frozenset()
    kinds = {kind for each in _with_blocks(pipe) for kind in type(each).__mro__}
    calls = (vars(kind).get("__call__") for kind in kinds)
    found = (getattr(inspect.unwrap(call), "__code__", None) for call in calls if callable(call))
    return frozenset(code for each in found if each is not None for code in _with_inner(each))


def _with_blocks(pipe: Any) -> list[Any]:
    """A pipeline, and the blocks that a modular one is made of, those inside others among them."""
    # Its `blocks` would be a copy of them; their code is what is looked at.
    found = [pipe, getattr(pipe, "_blocks", None)]
    for each in found:  # grows
        inner = getattr(each, "sub_blocks", None)
        found += inner.values() if isinstance(inner, Mapping) else ()
    return found


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of those that are defined within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
