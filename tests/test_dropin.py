"""`DeepCacheSDHelper` in the place of DeepCache 0.1.1's, which is installed beside it here."""

import copy
import gc
import weakref

import DeepCache
import diffusers
import pytest
import torch
from builders.loops import kinds_of_steps
from builders.schedulers import SCHEDULERS, with_scheduler
from builders.unets import unet2d_condition
from conftest import trace
from zoo import CASES

from benchmarks.deepcache import deepcache
from deepcache_patch import (
    AlreadyEnabledError,
    DeepCacheHelper,
    DeepCacheSDHelper,
    InvalidSettingError,
    UnsupportedModelError,
)

SD = CASES["sd"]

#: How single layers are wrapped there; here none is.
LEFT_OUT = {
    "is_enter_position",
    "is_skip_step",
    "unwrap_modules",
    "wrap_block_forward",
    "wrap_modules",
    "wrap_unet_forward",
}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def enabled(pipe, interval, branch=0):
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return helper


# --- the same calls and attributes --------------------------------------------------------------


def test_the_public_attributes_are_those_of_deepcache_but_for_how_it_wraps_layers():
    assert public(DeepCache.DeepCacheSDHelper) == public(DeepCacheSDHelper) | LEFT_OUT
    pipes = SD.load(), SD.load()
    theirs, ours = DeepCache.DeepCacheSDHelper(pipe=pipes[0]), DeepCacheSDHelper(pipe=pipes[1])
    assert public(theirs) <= public(ours) | LEFT_OUT
    for helper in (theirs, ours):
        helper.set_params(cache_interval=3, cache_branch_id=4)
    assert ours.params == theirs.params
    assert ours.function_dict == {}
    for call in ("enable", "disable"):
        for helper in (theirs, ours):
            getattr(helper, call)()
        assert public(theirs) == public(ours) | LEFT_OUT
        assert ours.params == theirs.params
        for name in ("cached_output", "cur_timestep", "start_timestep"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert set(ours.function_dict) == set(theirs.function_dict) & {"unet_forward"}


def test_what_wraps_layers_there_is_named_as_missing():
    for name in LEFT_OUT:
        helper = DeepCacheSDHelper()
        assert not hasattr(helper, name)
        with pytest.raises(AttributeError) as caught:
            getattr(helper, name)
        assert str(caught.value) == (
            f"{name} is how DeepCache 0.1.1 wraps layers, and no layer is wrapped here: to say "
            "which steps are full, take DeepCacheHelper(pipe, schedule=...)"
        )
    with pytest.raises(AttributeError) as caught:
        _ = DeepCacheSDHelper().other
    assert str(caught.value) == "'DeepCacheSDHelper' object has no attribute 'other'"


def test_the_defaults_are_those_of_deepcache():
    theirs = DeepCache.DeepCacheSDHelper()
    theirs.set_params()
    ours = DeepCacheSDHelper()
    assert ours.params == theirs.params
    ours.set_params(cache_interval=5, cache_branch_id=7)
    theirs.set_params(5, 7)
    assert ours.params == theirs.params
    ours.set_params()  # what is not given is not what it was
    assert ours.params["cache_interval"] == 1
    assert not hasattr(theirs, "pipe")
    assert not hasattr(ours, "pipe")


def test_any_attribute_can_be_set():
    helper = DeepCacheSDHelper()
    helper.anything = 3
    assert helper.anything == 3


def test_the_original_forward_is_found_where_it_was():
    pipe = SD.load()
    helper = enabled(pipe, 3)
    assert helper.function_dict == {"unet_forward": pipe.unet.forward}
    helper.disable()
    assert helper.function_dict == {}


def test_it_says_what_is_set_and_what_ran():
    assert (
        repr(DeepCacheSDHelper())
        == str(DeepCacheSDHelper())
        == ("DeepCacheSDHelper(no pipeline, cache_interval=1, cache_branch_id=0, disabled)")
    )
    pipe = SD.load()
    helper = enabled(pipe, 3, branch=4)
    SD.run(pipe, steps=9)
    said = (
        "DeepCacheSDHelper(StableDiffusionPipeline, cache_interval=3, cache_branch_id=4, enabled)"
    )
    assert repr(helper) == said
    lines = str(helper).split("\n")
    assert lines[:7] == [
        said,
        "  pipeline  StableDiffusionPipeline, enabled",
        "  unet      UNet2DConditionModel, patched",
        "  schedule  Uniform(interval=3, branch=4)",
        "  replay    Reuse()",
        "  ran       F··F··F··",
        "  calls     3 in full, 6 shallow, in 1 generation",
    ]
    helper.disable()  # as hosts do after each picture
    assert repr(helper) == said.replace("enabled", "disabled")
    assert str(helper).split("\n")[4:6] == lines[5:7]
    helper.enable()
    assert "0 in full, 0 shallow, in 0 generations" in str(helper)
    helper.disable()


def test_a_pipeline_that_was_replaced_is_not_kept_for_what_it_ran():
    helper, other = enabled(SD.load(), 2), SD.load()
    helper.disable()
    gone = weakref.ref(helper.pipe)
    helper.enable(other)
    helper.disable()
    gc.collect()
    assert gone() is None


# --- the same pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "interval", "branch"),
    [
        ("ddim", 3, 0),
        ("pndm", 2, 0),  # lists a timestep twice
        slow("ddim", 2, 8),  # the deepest
        slow("euler", 4, 4),
        slow("heun", 3, 1),
        slow("dpm-multistep", 5, 2),
        *(
            slow(name, interval, branch)
            for name in SCHEDULERS
            for interval, branch in ((2, 0), (3, 4), (5, 7))
            if name != "heun" or interval % 2
        ),
    ],
)
def test_the_pictures_are_those_of_deepcache_bit_by_bit(scheduler, interval, branch):
    pipe = with_scheduler(SD.load(), scheduler)
    plain = SD.run(pipe, steps=9)
    with deepcache(pipe, interval, branch):
        theirs = SD.run(pipe, steps=9)
    before = trace(pipe.unet)
    helper = enabled(pipe, interval, branch)
    assert torch.equal(SD.run(pipe, steps=9), theirs)
    assert torch.equal(SD.run(pipe, steps=9), theirs)
    assert not torch.equal(theirs, plain)
    helper.disable()
    assert trace(pipe.unet) == before
    assert torch.equal(SD.run(pipe, steps=9), plain)


@pytest.mark.parametrize("name", ["sdxl", slow("sd-img2img"), slow("sd-controlnet")])
def test_so_they_are_in_other_pipelines(name):
    case = CASES[name]
    pipe = case.load()
    with deepcache(pipe, 3, 0):
        theirs = case.run(pipe, steps=8)
    helper = enabled(pipe, 3)
    assert torch.equal(case.run(pipe, steps=8), theirs)
    helper.disable()


def test_where_deepcache_would_never_refresh_its_features_steps_are_counted():
    # Heun lists each timestep but the first twice, first at an odd place: none is a multiple of 2.
    pipe = with_scheduler(SD.load(), "heun")
    helper = enabled(pipe, 2)
    SD.run(pipe, steps=4)
    (last,) = helper._helper.last_generations.values()
    assert str(last.plan) == "F·F·F·F"
    helper.disable()


def test_an_interval_of_1_is_the_plain_pipeline():
    pipe = SD.load()
    plain = SD.run(pipe, steps=5)
    helper = DeepCacheSDHelper(pipe)
    helper.enable()
    assert torch.equal(SD.run(pipe, steps=5), plain)
    helper.disable()


# --- in any order -------------------------------------------------------------------------------


def test_calls_may_come_in_any_order_and_twice():
    pipe = SD.load()
    plain, before = SD.run(pipe, steps=7), trace(pipe.unet)
    with DeepCacheHelper(pipe, schedule="uniform", interval=2, replay="reuse"):
        expected = SD.run(pipe, steps=7)
    helper = DeepCacheSDHelper(pipe)
    helper.disable()
    helper.enable()
    helper.set_params(cache_interval=2)
    assert torch.equal(SD.run(pipe, steps=7), expected)
    helper.enable()
    assert torch.equal(SD.run(pipe, steps=7), expected)
    helper.disable()
    helper.disable()
    assert trace(pipe.unet) == before
    assert torch.equal(SD.run(pipe, steps=7), plain)
    helper.enable()  # with what was set
    assert torch.equal(SD.run(pipe, steps=7), expected)
    helper.disable()


def test_the_pipeline_may_come_late_and_change():
    pipe = SD.load()
    sharing = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other = SD.load()
    before = trace(pipe.unet), trace(other.unet)
    helper = DeepCacheSDHelper()
    helper.set_params(cache_interval=2)
    helper.enable(pipe)
    assert helper.pipe is pipe
    helper.enable(sharing)
    assert helper.pipe is sharing
    assert trace(pipe.unet) != before[0]
    helper.pipe = other
    helper.enable()
    assert trace(pipe.unet) == before[0]
    assert trace(other.unet) != before[1]
    helper.disable()
    assert trace(other.unet) == before[1]


class Pipe:
    """Has U-Nets by name, and nothing else."""

    def __init__(self, **unets):
        self.components = unets
        vars(self).update(unets)


@pytest.mark.parametrize("shares", [False, True])
def test_a_pipeline_that_is_refused_leaves_the_one_before_enabled(shares):
    unet, taken = unet2d_condition(), unet2d_condition()
    other = Pipe(unet=taken, prior=unet) if shares else Pipe(unet=taken)
    before = trace(unet), trace(taken)
    others = DeepCacheHelper(taken).enable()
    helper = enabled(unet, 2)
    forward = helper.function_dict["unet_forward"]
    assert kinds_of_steps(unet) == "FsFsFsF"
    with pytest.raises(AlreadyEnabledError):
        helper.enable(other)
    assert helper.pipe is unet
    assert helper.function_dict == {"unet_forward": forward}
    assert kinds_of_steps(unet) == "FsFsFsF"
    others.disable()
    helper.enable(other)
    assert helper.pipe is other
    assert kinds_of_steps(unet) == ("FsFsFsF" if shares else "FFFFFFF")
    assert kinds_of_steps(taken) == "FsFsFsF"
    helper.disable()
    assert (trace(unet), trace(taken)) == before


def test_a_mistake_is_one_of_this_package_and_changes_nothing():
    unet = unet2d_condition()
    before = trace(unet)
    helper = enabled(unet, 2)
    params, patched = helper.params, trace(unet)
    for given, message in (
        ({"cache_interval": 0}, "cache_interval must be an integer of at least 1, not 0"),
        ({"cache_branch_id": -1}, "cache_branch_id must be an integer of at least 0, not -1"),
        ({"cache_branch_id": 9}, "branch 9 is out of range: this UNet2DConditionModel has 9"),
        ({"skip_mode": "non-uniform"}, "skip_mode must be 'uniform', not 'non-uniform'"),
    ):
        with pytest.raises(InvalidSettingError) as caught:
            helper.set_params(**given)
        assert str(caught.value).startswith(message)
        assert helper.params is params
        assert trace(unet) == patched
    with pytest.raises(AlreadyEnabledError):
        DeepCacheSDHelper(unet).enable()
    helper.disable()
    helper.set_params(cache_branch_id=9)  # the U-Net may be another one later
    with pytest.raises(InvalidSettingError, match="branch 9 is out of range"):
        helper.enable()
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheSDHelper().enable()
    assert str(caught.value) == (
        "there is no pipeline to enable: give one, DeepCacheSDHelper(pipe=pipe)"
    )
    with pytest.raises(UnsupportedModelError):
        DeepCacheSDHelper("a name").enable()
    assert trace(unet) == before


def test_a_pipeline_that_carries_its_helper_can_be_copied_and_collected():
    pipe = SD.load()
    plain = SD.run(pipe, steps=5)
    pipe.its_helper = enabled(pipe, 2)
    twin = copy.deepcopy(pipe)
    assert torch.equal(SD.run(twin, steps=5), plain)
    assert twin.its_helper.pipe is twin
    twin.its_helper.enable()
    assert torch.equal(SD.run(twin, steps=5), SD.run(pipe, steps=5))
    gone = [weakref.ref(each) for each in (pipe, pipe.unet, twin, twin.unet)]
    del pipe, twin
    gc.collect()
    assert [each() for each in gone] == [None] * 4
