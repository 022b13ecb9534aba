"""Modules that stand round another one and call it: `torch.compile`'s, and one for training."""

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The module, what it wraps, what that wraps, and so on."""
    while True:
        yield module
        if is_compiled_wrapper(module):
            module = cast(nn.Module, module._orig_mod)
        elif isinstance(module, DistributedDataParallel):
            module = module.module
        else:
            return


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all wrappers, or the module itself."""
    *_, innermost = layers_of(module)
    return innermost


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether the module is what `torch.compile` has made of another one."""
    return "_orig_mod" in module._modules
