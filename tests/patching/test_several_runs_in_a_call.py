"""Patches that run a U-Net more than once in a call, another DeepCache, a proxy, a hidden forward.

Where calls cannot be told apart the helper runs in full, and says so.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import wrapt
from builders.cases import CASES as TINY
from builders.marks import mostly_slow
from builders.patched import CASES, STEPS, at_step, denoisers, small
from builders.unets import inputs2d_condition
from conftest import trace
from DeepCache import DeepCacheSDHelper
from torch import nn

from deepcache_patch import (
    Adaptive,
    DeepCacheHelper,
    DeepCacheWarning,
    Uniform,
    UnsupportedModelError,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`:UserWarning",
    "ignore:Adapter .* cannot be unmerged:UserWarning",
)


# --- patches that run a U-Net more than once in a call ------------------------------------------


SETTINGS: list[dict[str, Any]] = [
    {"schedule": "auto"},
    {"schedule": Adaptive(0.9)},
    {"schedule": Uniform(branch=3)},
]


def halves(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The two halves of guidance one after the other, to save memory."""

    def split(sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        pairs = zip(sample.chunk(2), encoder_hidden_states.chunk(2), strict=True)
        return (torch.cat([forward(half, timestep, text, **kwargs)[0] for half, text in pairs]),)

    return split


def tiles(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Two overlapping views, as a patch for large pictures takes them."""

    def views(sample: Any, *args: Any, **kwargs: Any) -> Any:
        left, right = (forward(view, *args, **kwargs)[0] for view in (sample, sample.flip(-1)))
        return ((left + right.flip(-1)) / 2,)

    return views


@pytest.mark.parametrize("first", mostly_slow(["other", "ours"], ["ours"]))
@pytest.mark.parametrize(
    "settings",
    mostly_slow([{"schedule": Uniform()}, *SETTINGS], 1),
    ids=str,
)
@pytest.mark.parametrize("several", mostly_slow([halves, tiles], 1))
def test_a_forward_that_runs_the_unet_several_times_runs_in_full(several, settings, first):
    # Of the features that were recorded in one call only the last was kept, and replayed in all of
    # them: the second half's for the first one, too. The pictures were wrong, and nobody was told.
    case = TINY["sd"]
    pipe = case.load()
    bare, old = case.run(pipe), pipe.unet.forward
    pipe.unet.forward = several(old)
    plain = case.run(pipe)
    del pipe.unet.forward

    helper = DeepCacheHelper(pipe, **settings)
    if first == "ours":
        helper.enable()
    pipe.unet.forward = several(old)
    helper.enable()
    with pytest.warns(DeepCacheWarning, match="its layers were run more than once in it"):
        assert torch.equal(case.run(pipe), plain)
    assert torch.equal(case.run(pipe), plain)  # and does not say so again
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2 * STEPS, 0)

    del pipe.unet.forward
    for _ in range(2):
        picture = case.run(pipe)
    assert helper.stats.shallow_calls > 0
    assert not torch.equal(picture, bare)
    helper.disable()
    assert torch.equal(case.run(pipe), bare)


def test_a_call_that_runs_the_unet_several_times_disproves_no_cut():
    # A U-Net of somebody's own class is cut once a call has proved that it can be. The proof was
    # tried in a call of two runs, too, whose features differ: it failed, for good.
    unet, calls = small(), torch.tensor([900, 600, 300])
    unet.__class__ = type("OwnUNet", (type(unet),), {})
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()

    @torch.no_grad()
    def loop() -> None:
        for timestep in calls:
            unet(**(inputs2d_condition() | {"timestep": timestep, "return_dict": False}))

    unet.forward = halves(unet.forward)
    with pytest.warns(DeepCacheWarning, match="more than once"):
        loop()
    del unet.forward
    loop()
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 2)


@pytest.mark.xfail(
    strict=True,
    raises=(AssertionError, RuntimeError),
    reason="a shallow call whose feature was recorded when the U-Net ran once in a call replays it "
    "in every run: the stand-in does not count how often it is asked",
)
@pytest.mark.slow
@pytest.mark.parametrize("several", [halves, tiles])
def test_a_forward_that_begins_to_run_the_unet_several_times_runs_in_full_from_then_on(several):
    def picture(interval: int) -> torch.Tensor:
        pipe = TINY["sd"].load()
        change = functools.partial(setattr, pipe.unet, "forward", several(pipe.unet.forward))
        with DeepCacheHelper(pipe, schedule=Uniform(interval)):
            return TINY["sd"].run(pipe, steps=3, **at_step(0, change))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepCacheWarning)
        assert torch.equal(picture(3), picture(1))


@pytest.mark.slow
def test_a_forward_that_runs_the_unet_several_times_is_noticed_when_compiled():
    unet = small()
    unet.forward = halves(unet.forward)
    unet.compile(backend="eager", fullgraph=True)
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()

    @torch.no_grad()
    def calls() -> None:
        for timestep in torch.tensor([900, 600, 300]):
            unet(**(inputs2d_condition() | {"timestep": timestep, "return_dict": False}))

    with pytest.warns(DeepCacheWarning, match="more than once"):
        calls()
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 0)


# --- another DeepCache, and a proxy -------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    mostly_slow(
        [
            pytest.param(("theirs", "ours"), id="theirs-ours"),
            pytest.param(("ours", "theirs"), id="ours-theirs"),
        ],
        ["ours-theirs"],
    ),
)
def test_beside_the_helper_of_the_deepcache_package_ours_runs_in_full(order):
    # Each replayed what the other one had replayed: the pictures were neither's.
    case, steps = TINY["sd"], 7
    pipe = case.load()
    plain = case.run(pipe, steps=steps)
    ours, theirs = DeepCacheHelper(pipe, schedule=Uniform(3)), DeepCacheSDHelper(pipe=pipe)
    with ours:
        with_ours = case.run(pipe, steps=steps)
    theirs.set_params(cache_interval=2, cache_branch_id=0)
    theirs.enable()
    with_theirs = case.run(pipe, steps=steps)
    theirs.disable()
    assert not torch.equal(with_ours, with_theirs)

    for name in order:
        {"theirs": theirs, "ours": ours}[name].enable()
    # Theirs takes its interval up where the last picture has left it.
    theirs.start_timestep = None
    with pytest.warns(DeepCacheWarning, match="DeepCacheSDHelper of the DeepCache package") as told:
        assert torch.equal(case.run(pipe, steps=steps), with_theirs)
    assert len(told) == 1
    assert (ours.stats.full_calls, ours.stats.shallow_calls) == (steps, 0)
    theirs.disable()
    assert torch.equal(case.run(pipe, steps=steps), with_ours)
    ours.disable()
    assert torch.equal(case.run(pipe, steps=steps), plain)


@pytest.mark.parametrize("part", mostly_slow(["unet", "controlnet"], 1))
@pytest.mark.parametrize("first", mostly_slow(["other", "ours"], 1))
def test_a_proxy_in_the_place_of_a_model_is_taken_for_it(part, first):
    # `type(proxy)` has no `forward`: enable and disable raised an AttributeError.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    plain, models = case.run(pipe), denoisers(pipe)
    before = [trace(model) for model in models]
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = case.run(pipe)
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    if first == "ours":
        helper.enable()
    seen = []

    class Proxy(wrapt.CallableObjectProxy):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            return self.__wrapped__(*args, **kwargs)

    model = getattr(pipe, part)
    setattr(pipe, part, Proxy(model))
    helper.enable()
    assert helper.enabled
    assert torch.equal(case.run(pipe), expected)
    assert len(seen) == STEPS
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)
    helper.disable()
    assert [trace(each) for each in models] == before
    assert torch.equal(case.run(pipe), plain)


def test_a_proxy_that_goes_while_enabled_leaves_the_model_patched_until_disable():
    case = TINY["sd"]
    pipe = case.load()
    plain, unet = case.run(pipe), pipe.unet
    before = trace(unet)
    pipe.unet = wrapt.CallableObjectProxy(unet)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    pipe.unet = unet
    assert not torch.equal(case.run(pipe), plain)
    helper.disable()
    assert trace(unet) == before
    assert torch.equal(case.run(pipe), plain)


def test_a_patch_of_a_class_that_hides_its_arguments_for_good_is_refused(monkeypatch):
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not called")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", forward)
    with pytest.raises(UnsupportedModelError):
        DeepCacheHelper(small(), schedule=Uniform())
