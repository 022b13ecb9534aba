"""Is a call run for its own sake, or to be written down and run later as something else?

What is traced, exported or captured must be the whole U-Net, and has no values to tell a step by.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

#: Modes of torch under which operations are written down instead of run, by name.
_MODES = frozenset({"FakeTensorMode", "ProxyTorchDispatchMode", "FunctionalTensorMode"})


def is_written_down(sample: Any) -> bool:
    """Whether the call is traced, exported, captured or transformed.

    Args:
        sample: What the U-Net is called with.
    """
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or _is_exporting()
        or isinstance(sample, FakeTensor)
        or _is_in_a_mode()
        or _is_transformed()
        or _is_captured()
    )


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # from torch 2.7 on
    return bool(exporting is not None and exporting())


def _is_in_a_mode() -> bool:
    stack = _python_dispatch._get_current_dispatch_mode_stack()
    return any(kind.__name__ in _MODES for mode in stack for kind in type(mode).__mro__)


def _is_transformed() -> bool:
    """Whether `torch.func` maps or differentiates, forward-mode derivatives included."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return (peek is not None and peek() is not None) or forward_ad._current_level >= 0


def _is_captured() -> bool:
    """Whether a CUDA graph is captured."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return bool(started and torch.cuda.is_current_stream_capturing())
