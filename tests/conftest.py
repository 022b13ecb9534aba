"""What several test files look at: which modules of a U-Net run, and what its modules hold."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from deepcache_patch.anatomy import dissect
from deepcache_patch.features import Recorder, StandIn

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


def assert_exact_at_every_branch(unet: nn.Module, inputs: Callable[[], dict[str, Any]]) -> None:
    """A shallow call straight after a full one has the full one's output, and uses the feature."""
    anatomy = dissect(unet)
    plain, before = _output(unet(**inputs())), trace(unet)
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            full = _output(unet(**inputs()))
        feature = recorder.take()
        outputs = []
        for stand_in.feature in (feature, feature.flip(0, 1)):
            arguments = inputs()
            arguments = anatomy.trimmed(branch, arguments) or arguments
            with anatomy.cut(branch, stand_in, {}).applied():
                outputs.append(_output(unet(**arguments)))
        assert torch.equal(full, plain), f"branch {branch}"
        assert torch.equal(outputs[0], plain), f"branch {branch}"
        assert not torch.equal(outputs[1], plain), f"branch {branch}"
    assert trace(unet) == before


def _output(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield
