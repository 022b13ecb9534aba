"""What is checked of every layout: what a cut leaves running, and a loop written by hand."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from conftest import counted_calls, trace
from torch import nn

from deepcache_patch import DeepCacheHelper, Uniform, UnsupportedModelError
from deepcache_patch.cutting.anatomy import Anatomy, dissect
from deepcache_patch.cutting.features import Recorder, StandIn, first_tensor


def shake(model: nn.Module) -> nn.Module:
    """Random values where there are only equal ones, as in layers that start at zero; eval mode."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def refusal_of(model: nn.Module) -> str:
    """Why the model cannot be cut."""
    with pytest.raises(UnsupportedModelError) as caught:
        dissect(model)
    return str(caught.value)


def assert_fits_by(
    layout: type[Anatomy],
    build: Callable[[], nn.Module],
    *,
    parts: Iterable[str],
    arguments: Iterable[str],
) -> None:
    """The layout fits what is built, and nothing that lacks one of the parts or arguments.

    Args:
        layout: An anatomy.
        build: Makes a model.
        parts: Attributes of the model; of lists, empty ones do not do, either.
        arguments: Of its `forward`.
    """
    assert layout.fits(build())
    for part in parts:
        model = build()
        if isinstance(getattr(model, part), nn.ModuleList):
            setattr(model, part, nn.ModuleList())
            assert not layout.fits(model), f"no {part}"
        delattr(model, part)
        assert not layout.fits(model), f"without {part}"
    for missing in arguments:

        def forward(self: Any) -> None:
            raise NotImplementedError

        names = ("self", *(name for name in arguments if name != missing))
        forward.__signature__ = inspect.Signature(
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names
        )
        model = build()
        model.__class__ = type("Other", (type(model),), {"forward": forward})
        assert not layout.fits(model), f"without {missing}"


def assert_runs_only(
    model: nn.Module, inputs: Callable[[], dict[str, Any]], kept: Callable[[int], Iterable[str]]
) -> None:
    """At each branch exactly the blocks that `kept` names run, as often as in a full call.

    What `kept(-1)` names are all the blocks there are.
    """
    anatomy, blocks = dissect(model), set(kept(-1))
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with (
            counted_calls(model) as full,
            anatomy.cut(None, stand_in, {branch: recorder}).applied(),
        ):
            model(**inputs())
        stand_in.feature = recorder.take()
        arguments = inputs()
        arguments = anatomy.trimmed(branch, arguments) or arguments
        with counted_calls(model) as shallow, anatomy.cut(branch, stand_in, {}).applied():
            model(**arguments)
        assert blocks <= full.keys()
        assert {name for name in shallow if name in blocks} == set(kept(branch)), branch
        # What is inside a block, and round the blocks, runs as often as in a full call.
        assert shallow == {name: full[name] for name in shallow}
        left_out = tuple(f"{name}." for name in blocks - set(kept(branch)))
        assert not [name for name in shallow if name.startswith(left_out)]


def assert_helper_works(model: nn.Module, at: Callable[[torch.Tensor], dict[str, Any]]) -> None:
    """A helper on a bare model leads through a loop written by hand, and leaves no trace.

    Args:
        model: The U-Net.
        at: Gives the arguments of a call, new ones each time, from an entry of the timesteps.
    """
    timesteps = torch.linspace(0.9, 0.1, 7)

    def generate() -> list[torch.Tensor]:
        return [first_tensor(model(**at(timestep))) for timestep in timesteps.clone()]

    before, plain = trace(model), generate()
    with DeepCacheHelper(model, schedule=Uniform(1)) as helper:
        outputs = generate()
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (7, 0)
    assert all(map(torch.equal, outputs, plain))

    with DeepCacheHelper(model, schedule=Uniform(3)) as helper:
        outputs = generate()
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 4)
        assert helper.stats.cache_nbytes > 0
    same = [torch.equal(*pair) for pair in zip(outputs, plain, strict=True)]
    assert same == [step % 3 == 0 for step in range(7)]
    assert all(map(torch.equal, generate(), plain))
    assert trace(model) == before
