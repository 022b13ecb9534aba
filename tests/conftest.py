"""What several test files look at: which modules of a U-Net run, and what its modules hold."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn

# The suite runs in several processes, so each takes one core.
torch.set_num_threads(1)


@contextmanager
def counted_calls(model: nn.Module):
    """Counts the calls of each of the model's modules, by name."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module) -> list[tuple]:
    """Everything that a patch could leave behind: each module's attributes and children."""
    return [
        (
            name,
            type(module),
            len(vars(module)),
            [(key, _state(value)) for key, value in vars(module).items()],
        )
        for name, module in model.named_modules()
    ]


def _state(value):
    # Dictionaries (children, hooks) by their keys and the identity of their values, in order.
    return (
        [(key, id(item)) for key, item in value.items()] if isinstance(value, dict) else id(value)
    )


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield
