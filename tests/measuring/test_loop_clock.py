"""After its block the clock is gone, whatever was switched on or off while it lasted.

How it measures is in `compare/test_comparison`.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from builders.unets import inputs2d_condition, unet2d_condition

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.measuring.loop_clock import LoopClock
from deepcache_patch.patching.call import CALL
from deepcache_patch.patching.patch import Patch

SWITCHES = ("enable", "disable", "compile")
INSIDE = [order for length in range(4) for order in itertools.product(SWITCHES, repeat=length)]


class Layer(torch.nn.Module):
    """A module that a patch can stand round, and whose compiled call is any other function."""

    def forward(self, value: int) -> list[Any]:
        return [value]

    def compile(self, *_: Any, **__: Any) -> None:
        vars(self)[CALL] = lambda value: ["compiled", *self._call_impl(value)]


class Switch:
    """What `CallPatch` does to the attribute: a patch that stays outside of what is compiled."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.patch = Patch(layer, CALL, layer._call_impl, tag="a helper's")

    def enable(self) -> None:
        self.patch.install(lambda original, args, kwargs: ["helped", *original(*args, **kwargs)])

    def disable(self) -> None:
        self.patch.remove()

    def compile(self) -> None:
        was = self.patch.installed
        self.patch.remove()
        self.layer.compile()
        if was:
            self.enable()


def left(clocked: bool, before: tuple[str, ...], inside: tuple[str, ...]) -> list[Any]:
    """What a call gives after the block, whether the patch stands, and both once it is gone."""
    layer = Layer()
    switch = Switch(layer)
    for each in before:
        getattr(switch, each)()
    with LoopClock(layer) if clocked else nullcontext():
        for each in inside:
            getattr(switch, each)()
    found = [layer(1), switch.patch.installed, switch.patch.covers_another, depth(layer)]
    switch.disable()
    return [*found, layer(1), switch.patch.installed, depth(layer), CALL in vars(layer)]


def depth(layer: Layer) -> int:
    """How many wrappers a call goes through."""
    count, found = 0, vars(layer).get(CALL)
    while found is not None:
        count, found = count + 1, getattr(found, "__wrapped__", None)
    return count


@pytest.mark.parametrize(
    "before", [(), ("enable",), ("compile",), ("compile", "enable")], ids="-".join
)
def test_a_module_is_as_without_the_clock_whatever_was_switched_in_its_block(
    before: tuple[str, ...],
) -> None:
    """A helper that was toggled in the block left the clock behind, and went on being timed."""
    for inside in INSIDE:
        assert left(True, before, inside) == left(False, before, inside), inside


def test_clocks_may_end_in_any_order() -> None:
    for order in itertools.permutations(range(3)):
        layer = Layer()
        clocks = [LoopClock(layer) for _ in order]
        for clock in clocks:
            clock.__enter__()
        for count, number in enumerate(order, 1):
            assert layer(1) == [1]
            clocks[number].__exit__(None, None, None)
            assert clocks[number].calls == count
        assert CALL not in vars(layer)


@pytest.mark.parametrize("toggles", [1, 2, 3])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_helper_that_is_toggled_within_leaves_nothing(enabled: bool, toggles: int) -> None:
    unet = unet2d_condition()
    usual = set(vars(unet))
    helper = DeepCacheHelper(unet, schedule=Uniform())
    if enabled:
        helper.enable()
    with LoopClock(unet) as clock:
        for _ in range(toggles):
            if helper.enabled:
                helper.disable()
            else:
                helper.enable()
        with torch.no_grad():
            unet(**inputs2d_condition())
    assert clock.calls == 1
    assert helper.enabled == (enabled != (toggles % 2 == 1))
    helper.disable()
    assert set(vars(unet)) == usual


def test_a_helper_in_the_block_of_a_clock_is_seen_as_it_is() -> None:
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()) as helper, LoopClock(unet):
        assert helper.enabled
        assert helper.attached == {"unet": "UNet2DConditionModel"}
        helper.enable()
    with LoopClock(unet):
        assert not helper.enabled
        with DeepCacheHelper(unet, schedule=Uniform()) as other:
            assert other.enabled
        assert CALL in vars(unet)
    assert CALL not in vars(unet)
