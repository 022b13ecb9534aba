"""`enable(pipe)` and `disable(pipe)`: nobody has to keep a helper, and nothing is left behind."""

import copy
import gc
import io
import pickle
import weakref

import diffusers
import pytest
import torch
from builders.cases import PROMPT
from builders.loops import kinds_of_steps, loop
from builders.unets import unet2d_condition
from conftest import trace
from zoo import CASES

import deepcache_patch
from deepcache_patch import (
    AlreadyEnabledError,
    DeepCacheHelper,
    InvalidSettingError,
    NoiseAware,
    Uniform,
    UnsupportedModelError,
)

SD, CONTROLNET = CASES["sd"], CASES["sd-controlnet"]


def state(pipe):
    return sorted(vars(pipe)), trace(pipe.unet)


def test_a_pipeline_is_accelerated_and_plain_again_though_nobody_keeps_the_helper():
    pipe = SD.load()
    plain = SD.run(pipe, steps=8)
    before = state(pipe)
    with DeepCacheHelper(pipe, schedule="uniform", interval=2, replay="reuse"):
        expected = SD.run(pipe, steps=8)
    deepcache_patch.enable(pipe, schedule="uniform", interval=2, replay="reuse")
    gc.collect()
    assert torch.equal(SD.run(pipe, steps=8), expected)
    assert not torch.equal(expected, plain)
    deepcache_patch.disable(pipe)
    assert state(pipe) == before
    assert torch.equal(SD.run(pipe, steps=8), plain)


def test_enabling_again_changes_what_is_given_of_the_same_helper():
    unet = unet2d_condition()
    before = trace(unet)
    helper = deepcache_patch.enable(unet, schedule="uniform", interval=2)
    assert deepcache_patch.enable(unet) is helper
    assert helper.schedule == Uniform(2)
    del helper
    gc.collect()
    assert deepcache_patch.enable(unet, branch=1).schedule == Uniform(2, 1)
    assert kinds_of_steps(unet) == "FsFsFsF"
    with pytest.raises(InvalidSettingError):
        deepcache_patch.enable(unet, interval=0, branch=2)
    assert deepcache_patch.enable(unet).schedule == Uniform(2, 1)
    deepcache_patch.disable(unet)
    assert deepcache_patch.enable(unet).schedule == NoiseAware()
    deepcache_patch.disable(unet)
    assert trace(unet) == before


def test_a_helper_that_somebody_has_enabled_is_the_one_that_is_changed_and_disabled():
    unet = unet2d_condition()
    before = trace(unet)
    helper = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    assert deepcache_patch.enable(unet, interval=3) is helper
    assert helper.schedule == Uniform(3)
    deepcache_patch.disable(unet)
    assert not helper.enabled
    assert trace(unet) == before
    helper = deepcache_patch.enable(unet)
    helper.disable()  # leaves no more behind than `disable`
    assert trace(unet) == before


def test_a_second_helper_is_refused_by_words_that_help_whoever_keeps_no_helper():
    # "call its disable() first": there was nobody to ask, and a cell of a notebook that ran again
    # could not go on.
    unet = unet2d_condition()
    first = deepcache_patch.enable(unet, schedule="uniform")
    second = DeepCacheHelper(unet, schedule=Uniform(2))
    with pytest.raises(AlreadyEnabledError) as caught:
        second.enable()
    for call in ("deepcache_patch.disable(pipe)", "deepcache_patch.enable(pipe, ...)"):
        assert call in str(caught.value)
    assert deepcache_patch.enable(unet, interval=2) is first
    deepcache_patch.disable(unet)
    assert second.enable().enabled
    assert deepcache_patch.enable(unet) is second
    deepcache_patch.disable(unet)


def test_settings_are_remembered_though_the_helper_was_off_and_on_meanwhile():
    # The helper let go of its pipeline when it was disabled, and nobody kept it afterwards: so it
    # was with `compare`, too.
    unet = unet2d_condition()
    before = trace(unet)
    helper = deepcache_patch.enable(unet, schedule="uniform", interval=2, branch=1)
    helper.disable()
    helper.disable()
    assert trace(unet) == before
    helper.enable()
    del helper
    gc.collect()
    helper = deepcache_patch.enable(unet)
    assert helper.schedule == Uniform(2, 1)
    deepcache_patch.disable(unet)
    assert trace(unet) == before
    gone = weakref.ref(helper)
    del helper
    assert gone() is None


def test_settings_are_remembered_though_they_were_compared_meanwhile():
    pipe = SD.load()
    before = trace(pipe.unet)
    helper = deepcache_patch.enable(pipe, schedule="uniform", interval=2)
    helper.compare(num_inference_steps=3, fewer_steps=False, **PROMPT)
    del helper
    gc.collect()
    helper = deepcache_patch.enable(pipe)
    assert (helper.schedule, helper.enabled) == (Uniform(2), True)
    deepcache_patch.disable(pipe)
    assert trace(pipe.unet) == before


def test_a_helper_that_is_not_the_kept_one_leaves_it_alone():
    unet = unet2d_condition()
    deepcache_patch.enable(unet, schedule="uniform")
    DeepCacheHelper(unet).disable()
    gc.collect()
    assert kinds_of_steps(unet) == "FssFssF"
    assert deepcache_patch.enable(unet).schedule == Uniform()
    deepcache_patch.disable(unet)


def test_a_with_block_leaves_an_enabled_pipeline_enabled():
    unet = unet2d_condition()
    with deepcache_patch.enable(unet, schedule="uniform") as helper:
        assert helper.enabled
    assert helper.enabled
    deepcache_patch.disable(unet)


def test_disabling_what_is_not_enabled_is_harmless():
    pipe = SD.load()
    before = state(pipe)
    deepcache_patch.disable(pipe)
    deepcache_patch.disable(pipe)
    deepcache_patch.disable(torch.nn.Linear(1, 1))
    assert state(pipe) == before
    for switch in (deepcache_patch.enable, deepcache_patch.disable):
        with pytest.raises(UnsupportedModelError, match="not str"):
            switch("pipe")


def test_a_refusal_enables_nothing():
    unet = unet2d_condition()
    before = trace(unet)
    with pytest.raises(InvalidSettingError):
        deepcache_patch.enable(unet, branch=9)
    with pytest.raises(InvalidSettingError, match="intervall"):
        deepcache_patch.enable(unet, intervall=3)
    with pytest.raises(UnsupportedModelError):
        deepcache_patch.enable(torch.nn.Linear(1, 1))
    assert trace(unet) == before


@pytest.mark.parametrize(
    ("name", "meant"),
    [("intervall", "did you mean 'interval'? There are"), ("cache_depth", "there are")],
)
def test_a_setting_that_there_is_not_is_named(name, meant):
    pipe = SD.load()
    for _ in range(2):  # before it is enabled, and after
        with pytest.raises(InvalidSettingError) as refused:
            deepcache_patch.enable(pipe, **{name: 3})
        assert f"there is no setting {name!r}" in str(refused.value)
        known = "interval, branch, speedup, schedule, first, last, replay"
        assert f"{meant} {known}" in str(refused.value)
        deepcache_patch.enable(pipe)
    deepcache_patch.disable(pipe)


def test_a_helper_that_was_dropped_while_enabled_is_removed_too():
    unet = unet2d_condition()
    before, plain = trace(unet), loop(unet)
    DeepCacheHelper(unet, schedule=Uniform()).enable()
    gc.collect()
    assert kinds_of_steps(unet) == "FssFssF"
    deepcache_patch.disable(unet)
    assert trace(unet) == before
    assert torch.equal(loop(unet), plain)


def test_pipelines_that_share_a_unet_are_switched_one_at_a_time():
    pipe = SD.load()
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    before = state(pipe), state(other)
    deepcache_patch.enable(pipe)
    with pytest.raises(AlreadyEnabledError):
        deepcache_patch.enable(other)
    deepcache_patch.disable(other)  # so that its pictures are plain
    assert (state(pipe), state(other)) == before
    assert deepcache_patch.enable(other).pipe is other
    deepcache_patch.disable(pipe)
    assert (state(pipe), state(other)) == before


def test_pipelines_that_share_a_controlnet_alone_are_switched_each_by_itself():
    pipe, other = CONTROLNET.load(), CONTROLNET.load()
    other.controlnet = pipe.controlnet
    before = trace(other.unet), trace(pipe.controlnet)
    helper = DeepCacheHelper(pipe).enable()
    deepcache_patch.enable(other)
    assert set(helper.attached) == {"unet", "controlnet"}
    deepcache_patch.disable(other)
    assert trace(other.unet) == before[0]
    assert helper.enabled
    assert set(helper.attached) == {"unet", "controlnet"}
    pipe.unet = None
    deepcache_patch.disable(pipe)  # whose helper is found by the ControlNet
    assert trace(pipe.controlnet) == before[1]


class Slotted:
    """A pipeline that takes no attribute but its own."""

    __slots__ = ("__weakref__", "unet")

    def __init__(self, unet):
        self.unet = unet

    @property
    def components(self):
        return {"unet": self.unet}


def test_a_pipeline_that_can_keep_no_helper_is_refused_and_one_of_your_own_works():
    unet = unet2d_condition()
    pipe, before = Slotted(unet), trace(unet)
    with pytest.raises(UnsupportedModelError) as caught:
        deepcache_patch.enable(pipe)
    assert str(caught.value) == (
        "Slotted takes no further attribute, so it cannot keep its helper: keep one yourself, "
        "helper = DeepCacheHelper(pipe).enable()"
    )
    assert trace(unet) == before
    helper = DeepCacheHelper(pipe).enable()
    assert helper.enabled
    helper.disable()
    assert trace(unet) == before
    helper.enable()
    deepcache_patch.disable(pipe)
    assert trace(unet) == before


def test_after_another_unet_was_put_in_enabling_again_goes_on_with_the_settings():
    pipe, other = SD.load(), SD.load().unet
    first, before = pipe.unet, trace(pipe.unet)
    deepcache_patch.enable(pipe, schedule="uniform", interval=2)
    pipe.unet, before_other = other, trace(other)
    helper = deepcache_patch.enable(pipe)
    assert (helper.schedule, helper.enabled) == (Uniform(2), True)
    assert trace(first) == before
    deepcache_patch.disable(pipe)
    assert trace(other) == before_other
    deepcache_patch.enable(pipe)
    pipe.unet = first
    deepcache_patch.disable(pipe)  # also of the U-Net that is elsewhere now
    assert (trace(first), trace(other)) == (before, before_other)


@pytest.mark.parametrize("disabled", [True, False])
def test_pipeline_unet_and_helper_can_be_collected(disabled):
    pipe = SD.load()
    helper = deepcache_patch.enable(pipe, schedule="uniform")
    gone = [weakref.ref(each) for each in (pipe, pipe.unet, helper)]
    del helper
    SD.run(pipe, steps=3)
    if disabled:
        deepcache_patch.disable(pipe)
        assert gone[2]() is None  # at once
    del pipe
    gc.collect()
    assert [each() for each in gone] == [None] * 3


def test_a_unet_that_outlives_its_pipeline_does_not_hold_it():
    pipe = SD.load()
    gone = [weakref.ref(each) for each in (pipe, pipe.vae, deepcache_patch.enable(pipe))]
    unet = pipe.unet
    del pipe
    gc.collect()
    assert [each() for each in gone] == [None] * 3
    deepcache_patch.disable(unet)


def test_copies_and_pickles_of_an_enabled_pipeline_are_plain():
    unet = unet2d_condition()
    plain = loop(unet)
    deepcache_patch.enable(unet, schedule="uniform")
    for twin in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert torch.equal(loop(twin), plain)
        assert deepcache_patch.enable(twin).pipe is twin
        deepcache_patch.disable(twin)
        assert kinds_of_steps(unet) == "FssFssF"
    pipe = SD.load()
    deepcache_patch.enable(pipe)
    twin = copy.deepcopy(pipe)
    assert deepcache_patch.enable(twin).pipe is twin
    deepcache_patch.disable(unet)


def test_a_shallow_copy_is_not_what_its_original_keeps():
    unet = unet2d_condition()
    helper = deepcache_patch.enable(unet, schedule="uniform")
    twin = copy.copy(unet)
    deepcache_patch.disable(twin)
    assert helper.enabled
    assert deepcache_patch.enable(unet) is helper
    deepcache_patch.disable(unet)


def test_a_pickle_of_an_enabled_unet_is_read_without_this_package():
    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            assert not module.startswith("deepcache_patch"), name
            return super().find_class(module, name)

    unet = unet2d_condition()
    plain = loop(unet)
    deepcache_patch.enable(unet)
    twin = Reader(io.BytesIO(pickle.dumps(unet))).load()
    assert torch.equal(loop(twin), plain)
    deepcache_patch.disable(unet)
