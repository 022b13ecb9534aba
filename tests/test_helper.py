"""The helper's life: enable, disable, pause, change, share, delete; on one U-Net or more."""

import gc
import threading
import weakref

import diffusers
import pytest
import torch
import wrapt
from builders.cases import CASES
from builders.loops import kinds_of_steps, loop
from builders.unets import inputs2d_condition, unet2d, unet2d_condition
from conftest import trace

import deepcache_patch
from deepcache_patch import (
    AlreadyEnabledError,
    DeepCacheHelper,
    InvalidSettingError,
    Stats,
    Uniform,
)
from deepcache_patch.patching.call import CALL
from deepcache_patch.running.unet import AttachedUNet

SD = CASES["sd"]


def test_the_public_names():
    assert sorted(deepcache_patch.__all__) == [
        "Adaptive", "AlreadyEnabledError", "Auto", "Branch", "Calibrated", "Centred",
        "DeepCacheError", "DeepCacheHelper", "DeepCacheSDHelper", "DeepCacheWarning", "Explicit",
        "Extrapolate", "FULL", "InvalidSettingError", "LastGeneration", "NoiseAware", "OUTPUT",
        "Plan", "Replay", "Reuse", "Schedule", "Stats", "Uniform", "UnsupportedModelError",
        "__version__", "disable", "enable",
    ]  # fmt: skip


# --- lifecycle ----------------------------------------------------------------------------------


def test_enable_and_disable_are_idempotent():
    unet = unet2d_condition()
    before = trace(unet)
    helper = DeepCacheHelper(unet, schedule=Uniform())
    assert not helper.enabled
    helper.disable()
    assert helper.enable() is helper
    assert helper.enable() is helper
    assert helper.enabled
    helper.disable()
    helper.disable()
    assert not helper.enabled
    assert trace(unet) == before


def test_a_second_helper_on_the_same_unet_is_refused_and_harms_nothing():
    # DeepCache 0.1.1 loses the originals for good when it is enabled twice.
    unet = unet2d_condition()
    before = trace(unet)
    first = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    second = DeepCacheHelper(unet, schedule=Uniform())
    with pytest.raises(AlreadyEnabledError) as caught:
        second.enable()
    assert str(caught.value) == (
        "another DeepCacheHelper is enabled on this UNet2DConditionModel: call its disable() "
        "first, or deepcache_patch.disable(pipe); or change it, with its set() or "
        "deepcache_patch.enable(pipe, ...)"
    )
    assert not second.enabled
    assert kinds_of_steps(unet, steps=3) == "FsF"
    first.disable()
    assert trace(unet) == before
    with second:
        assert kinds_of_steps(unet, steps=3) == "Fss"


def test_a_helper_on_the_compiled_unet_excludes_one_on_the_unet_inside():
    unet = unet2d_condition()
    compiled = torch.compile(unet, backend="eager")
    with DeepCacheHelper(unet, schedule=Uniform()), pytest.raises(AlreadyEnabledError):
        DeepCacheHelper(compiled, schedule=Uniform()).enable()


def test_a_wrapper_of_somebody_else_does_not_hide_the_first_helper():
    unet = unet2d_condition()
    before = trace(unet)
    first = DeepCacheHelper(unet, schedule=Uniform()).enable()
    vars(unet)[CALL] = wrapt.FunctionWrapper(
        vars(unet)[CALL], lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs)
    )
    assert first.enabled
    with pytest.raises(AlreadyEnabledError):
        DeepCacheHelper(unet, schedule=Uniform()).enable()
    first.disable()
    assert not first.enabled
    del vars(unet)[CALL]
    assert trace(unet) == before


def test_a_helper_deleted_while_enabled_stays_in_force_until_the_next_one():
    unet = unet2d_condition()
    before = trace(unet)
    helper = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    del helper
    gc.collect()
    assert kinds_of_steps(unet, steps=3) == "FsF"
    with DeepCacheHelper(unet, schedule=Uniform(3)):
        assert kinds_of_steps(unet, steps=3) == "Fss"
    assert trace(unet) == before
    DeepCacheHelper(unet, schedule=Uniform()).enable()
    gc.collect()
    DeepCacheHelper(unet, schedule=Uniform()).disable()
    assert trace(unet) == before


def test_a_setting_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError):
        DeepCacheHelper(unet2d_condition(), schedule=Uniform()).interval = 5


def test_after_disable_the_unet_is_freed_by_reference_count():
    # A cycle would keep a model's gigabytes until the garbage collector runs.
    pipe = SD.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    SD.run(pipe)
    helper.disable()
    del helper
    alive = weakref.ref(pipe.unet)
    gc.disable()
    try:
        del pipe
        assert alive() is None
    finally:
        gc.enable()


def test_the_patch_keeps_no_pipeline_alive():
    pipe = SD.load()
    unet, alive = pipe.unet, weakref.ref(pipe)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    del pipe, helper
    gc.collect()
    assert alive() is None
    assert kinds_of_steps(unet, steps=3) == "FFF"  # nobody is left who wants it otherwise


def test_a_replaced_unet_is_attached_by_enable():
    pipe = SD.load()
    first, second = pipe.unet, SD.load().unet
    before = trace(first)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    pipe.unet = second
    assert not helper.enabled
    helper.enable()
    assert helper.enabled
    assert trace(first) == before
    assert kinds_of_steps(second, steps=3) == "Fss"
    helper.disable()


def test_a_branch_that_a_replaced_unet_lacks_is_refused_by_enable():
    pipe = SD.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform(branch=8))
    pipe.unet = unet2d_condition(layers_per_block=1)
    before = trace(pipe.unet)
    with pytest.raises(InvalidSettingError, match="branch 8 is out of range"):
        helper.enable()
    assert trace(pipe.unet) == before


class TwoUNets(diffusers.DiffusionPipeline):
    """A pipeline with two denoisers, as UnCLIP's has."""

    def __init__(self, first, second):
        super().__init__()
        self.register_modules(first=first, second=second)


def test_every_unet_of_a_pipeline_has_its_own_cache():
    pipe = TwoUNets(unet2d_condition(), unet2d_condition(seed=1))
    before = [trace(pipe.first), trace(pipe.second)]
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        for unet in (pipe.first, pipe.second):
            assert kinds_of_steps(unet, steps=3) == "Fss"
    assert helper.stats == Stats(2, 2, 4, 2 * 2 * 8 * 8 * 8 * 4)
    assert [trace(pipe.first), trace(pipe.second)] == before


@pytest.mark.parametrize("taken", ["first", "second"])
def test_all_unets_are_patched_or_none(taken):
    pipe = TwoUNets(unet2d_condition(), unet2d_condition(seed=1))
    with DeepCacheHelper(getattr(pipe, taken), schedule=Uniform()):
        before = [trace(pipe.first), trace(pipe.second)]
        helper = DeepCacheHelper(pipe, schedule=Uniform())
        with pytest.raises(AlreadyEnabledError):
            helper.enable()
        assert [trace(pipe.first), trace(pipe.second)] == before
        assert not helper.enabled


def test_an_attach_that_fails_undoes_those_before_it(monkeypatch):
    pipe = TwoUNets(unet2d_condition(), unet2d_condition(seed=1))
    before = [trace(pipe.first), trace(pipe.second)]
    attach = AttachedUNet.attach

    def fail_at_second(attached):
        attach(attached)
        if attached.unet is pipe.second:
            raise KeyboardInterrupt

    monkeypatch.setattr(AttachedUNet, "attach", fail_at_second)
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    with pytest.raises(KeyboardInterrupt):
        helper.enable()
    assert [trace(pipe.first), trace(pipe.second)] == before
    assert not helper.enabled


def test_a_loop_in_each_of_two_threads_is_that_of_one():
    # One U-Net, one list of timesteps, steps in turn: each thread has a generation of its own.
    unet = unet2d_condition()
    timesteps = torch.arange(6, 0, -1) * 100
    with DeepCacheHelper(unet, schedule=Uniform()):
        expected = [loop(unet, timesteps=timesteps, seed=seed) for seed in (1, 2)]
    results = {}
    barrier = threading.Barrier(2)

    def run(seed):
        def in_turn():
            for timestep in timesteps:
                barrier.wait(timeout=60)
                yield timestep

        results[seed] = loop(unet, timesteps=in_turn(), seed=seed)

    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(results[1], expected[0])
    assert torch.equal(results[2], expected[1])
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 8)


def test_a_call_that_waited_while_the_helper_was_disabled_runs_plain():
    unet = unet2d_condition()
    arguments = inputs2d_condition() | {"timestep": torch.tensor([500])[0]}
    with torch.no_grad():
        plain = unet(**arguments).sample
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()
    lock = helper._attachment.unets[0]._lock
    outputs = []

    def run():
        with torch.no_grad():
            outputs.append(unet(**arguments).sample)

    thread = threading.Thread(target=run)
    with lock:
        thread.start()
        while not thread.is_alive():
            pass
        helper.disable()
    thread.join()
    assert torch.equal(outputs[0], plain)
    assert helper.stats.generations == 0 or helper.stats.full_calls == 1


def test_the_context_manager_disables_when_the_block_fails():
    unet = unet2d_condition()
    before = trace(unet)
    with pytest.raises(KeyboardInterrupt), DeepCacheHelper(unet, schedule=Uniform()):
        raise KeyboardInterrupt
    assert trace(unet) == before


def test_paused_is_the_plain_pipeline():
    unet = unet2d_condition()
    plain = loop(unet)
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        cached = loop(unet)
        with helper.paused():
            with helper.paused():
                pass
            assert torch.equal(loop(unet), plain)
            assert helper.enabled
        assert torch.equal(loop(unet), cached)
    assert not torch.equal(cached, plain)
    assert helper.stats.generations == 2


def test_enabled_in_a_pause_it_is_paused():
    unet = unet2d_condition()
    plain = loop(unet)
    helper = DeepCacheHelper(unet, schedule=Uniform())
    with helper.paused():
        helper.enable()
        assert torch.equal(loop(unet), plain)
    assert not torch.equal(loop(unet), plain)
    helper.disable()


def test_paused_without_enable_does_nothing():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform())
    plain = loop(unet)
    with helper.paused():
        assert torch.equal(loop(unet), plain)
    assert not helper.enabled


def test_a_pause_in_a_generation_makes_the_next_step_full():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300])
    with DeepCacheHelper(unet, schedule=Uniform(10)) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            arguments = inputs2d_condition() | {"timestep": timestep}
            if index == 1:
                with helper.paused():
                    unet(**arguments)
            else:
                unet(**arguments)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 1)


def test_settings_changed_in_a_generation_make_the_next_step_full():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300])
    with DeepCacheHelper(unet, schedule=Uniform(10)) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            if index == 2:
                helper.set(branch=2)
            unet(**(inputs2d_condition() | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)


def test_reset_forgets_the_generation():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500])
    with DeepCacheHelper(unet, schedule=Uniform()) as helper, torch.no_grad():
        for timestep in timesteps:
            unet(**(inputs2d_condition() | {"timestep": timestep}))
            helper.reset()
    assert helper.stats == Stats(3, 3, 0, helper.stats.cache_nbytes)


def test_stats_count_from_enable_and_outlive_disable():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform())
    assert helper.stats == Stats()
    with helper:
        loop(unet)
        loop(unet)
        counted = helper.stats
    assert (counted.generations, counted.full_calls, counted.shallow_calls) == (2, 6, 8)
    assert helper.stats == counted
    helper.enable()
    assert helper.stats == Stats()
    helper.disable()


def test_repr_names_pipeline_schedule_and_state():
    helper = DeepCacheHelper(unet2d(), schedule=Uniform(4))
    assert repr(helper) == "DeepCacheHelper(UNet2DModel, Uniform(interval=4, branch=0), disabled)"
