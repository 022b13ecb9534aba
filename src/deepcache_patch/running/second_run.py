"""A second run of a U-Net that nobody notices, and whether it gave what the first one gave.

Such a run shows that a cut U-Net gives what it gives whole; see `proof`. It must not draw from
anybody's random numbers, move counters, or write to what the call was given or gave.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..cutting.origin import LIBRARIES
from .watching.offloading import accelerate_hooks
from .watching.stateful import may_be_stateful

# Those whose random state can be read and set for all devices at once.
_ACCELERATORS = ("cuda", "xpu")


def obstacle_to_a_second_run(unet: nn.Module) -> str | None:
    """Say which hook would notice a second run, or which device's random numbers could change.

    Forward hooks of modules are no obstacle: those that may keep something are left out of it.
    """
    for name, module in unet.named_modules():
        registry = vars(module).get("_diffusers_hook")
        for hook in (*accelerate_hooks(module), *getattr(registry, "hooks", {}).values()):
            is_own = type(hook).__module__.partition(".")[0] not in LIBRARIES
            if is_own or getattr(hook, "_is_stateful", False):
                return f"the hook {type(hook).__name__} at {name or type(unet).__name__}"
    everywhere = (torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks)
    if any(may_be_stateful(hook) for hooks in everywhere for hook in hooks.values()):
        return "a hook on all modules"
    kinds = {each.device.type for each in unet.parameters()}
    kinds -= {"cpu", "meta", "mps", *_ACCELERATORS}
    return f"the random state of the device {min(kinds)}" if kinds else None


@contextmanager
def unnoticed(unet: nn.Module) -> Iterator[None]:
    """Leave random states, buffers and counting forward hooks as if nothing had been run."""
    with ExitStack() as stack:
        for get, put in _random_states():
            stack.callback(put, get())
        for buffer in unet.buffers():
            stack.callback(_restore, buffer, buffer.detach().clone())
        for module in unet.modules():
            for name in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = vars(module)[name]
                kept = {key: hook for key, hook in hooks.items() if not may_be_stateful(hook)}
                if len(kept) < len(hooks):
                    stack.callback(vars(module).__setitem__, name, hooks)
                    vars(module)[name] = type(hooks)(kept)
        yield


def copied(value: Any, *, tensors: bool) -> Any:
    """An equal value with containers of its own, and tensors of its own if asked for."""
    if isinstance(value, torch.Tensor):
        return value.clone() if tensors else value
    if isinstance(value, list):
        return [copied(each, tensors=tensors) for each in value]
    if type(value) is tuple:
        return tuple(copied(each, tensors=tensors) for each in value)
    if type(value) is dict:
        return {key: copied(each, tensors=tensors) for key, each in value.items()}
    return value


def same(first: Any, second: Any) -> bool:
    """Whether two outputs agree: their structure, and each tensor to the last bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        kinds = [(each.shape, each.dtype, each.device) for each in (first, second)]
        return kinds[0] == kinds[1] and torch.equal(first, second)
    if isinstance(first, Mapping):
        return list(first) == list(second) and _all_same(first.values(), second.values())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and _all_same(first, second)
    if isinstance(first, bool | int | float | str | type(None)):
        return bool(first == second)
    if hasattr(first, "__dict__"):
        return same(vars(first), vars(second))
    return False


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors in an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for each in value.values() for tensor in tensors_of(each)]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors_of(each)]
    return tensors_of(vars(value)) if hasattr(value, "__dict__") else []


def put_back(tensors: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> bool:
    """Give tensors their values again; returns whether one had others."""
    changed = [pair for pair in zip(tensors, values, strict=True) if not torch.equal(*pair)]
    for tensor, value in changed:
        tensor.copy_(value)
    return bool(changed)


def _all_same(first: Iterable[Any], second: Iterable[Any]) -> bool:
    return all(same(a, b) for a, b in zip(first, second, strict=True))


def _restore(buffer: torch.Tensor, value: torch.Tensor) -> None:
    with torch.no_grad():
        if buffer.shape == value.shape and buffer.device.type != "meta":
            buffer.copy_(value)


def _random_states() -> Iterator[tuple[Any, Any]]:
    """What reads and what sets each random state of the process."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.random.get_rng_state, torch.random.set_rng_state
    for name in _ACCELERATORS:
        backend = getattr(torch, name, None)
        if backend is not None and backend.is_available() and backend.is_initialized():
            yield backend.get_rng_state_all, backend.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state
