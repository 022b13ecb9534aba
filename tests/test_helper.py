"""The helper's life: enable, disable, pause, change, fail, copy; and what runs at each step."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import diffusers
import pytest
import torch
import wrapt
from builders.cases import CASES
from builders.unets import UNETS, inputs2d_condition, unet2d, unet2d_condition
from conftest import counted_calls, trace
from zoo import CASES as ZOO

import deepcache_patch
from deepcache_patch import (
    FULL,
    Adaptive,
    AlreadyEnabledError,
    Calibrated,
    DeepCacheError,
    DeepCacheHelper,
    DeepCacheWarning,
    InvalidSettingError,
    Reuse,
    Stats,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.patching.call import CALL
from deepcache_patch.running.controlnet import AttachedCompanion
from deepcache_patch.running.unet import MAX_SLOTS, AttachedUNet
from deepcache_patch.schedules.guide import PlannedGuide

SD = CASES["sd"]


class Written:
    """A schedule of somebody else's: any object with `plan`."""

    def __init__(self, *entries):
        self.entries = entries

    def plan(self, num_steps):
        return list(self.entries)


def loop(unet, inputs=inputs2d_condition, steps=7, timesteps=None, **options):
    """A hand-written denoising loop: the sample is moved along the output at every step."""
    arguments = inputs(**options)
    timesteps = torch.arange(steps, 0, -1) * 100 if timesteps is None else timesteps
    with torch.no_grad():
        for timestep in timesteps:
            output = unet(**(arguments | {"timestep": timestep})).sample
            arguments["sample"] = (
                arguments["sample"] - 0.1 * output[:, : arguments["sample"].shape[1]]
            )
    return arguments["sample"]


def kinds_of_steps(unet, steps=7, timesteps=None):
    """Which steps of a loop ran the middle block, e.g. "FssFssF"."""
    timesteps = torch.arange(steps, 0, -1) * 100 if timesteps is None else timesteps
    kinds = ""
    with torch.no_grad():
        for timestep in timesteps:
            with counted_calls(unet) as calls:
                unet(**(inputs2d_condition() | {"timestep": timestep}))
            kinds += "F" if calls["mid_block"] else "s"
    return kinds


def held_bytes(helper):
    """The bytes that a helper of one U-Net holds now."""
    return sum(session.cache.nbytes for session in helper._attached[0]._sessions)


def test_the_public_names():
    assert sorted(deepcache_patch.__all__) == [
        "Adaptive", "AlreadyEnabledError", "Auto", "Branch", "Calibrated", "Centred",
        "DeepCacheError", "DeepCacheHelper", "DeepCacheWarning", "Explicit", "Extrapolate", "FULL",
        "Growing", "InvalidSettingError", "LastGeneration", "Plan", "Replay", "Reuse", "Schedule",
        "Stats", "Uniform", "UnsupportedModelError", "__version__",
    ]  # fmt: skip


# --- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_interval_1_is_the_plain_unet(name):
    unet, inputs = UNETS[name].build(), UNETS[name].inputs
    plain = loop(unet, inputs, steps=3)
    with DeepCacheHelper(unet, interval=1) as helper:
        assert torch.equal(loop(unet, inputs, steps=3), plain)
    assert helper.stats == Stats(generations=1, full_calls=3)


@pytest.mark.parametrize("name", UNETS)
def test_disable_leaves_no_trace(name):
    unet, inputs = UNETS[name].build(), UNETS[name].inputs
    plain, before = loop(unet, inputs, steps=3), trace(unet)
    helper = DeepCacheHelper(unet)
    assert trace(unet) == before
    helper.enable()
    assert trace(unet) != before
    assert not torch.equal(loop(unet, inputs, steps=3), plain)
    helper.disable()
    assert trace(unet) == before
    assert torch.equal(loop(unet, inputs, steps=3), plain)


@pytest.mark.parametrize("name", UNETS)
def test_a_shallow_step_with_the_input_of_the_full_one_gives_its_output(name):
    unet = UNETS[name].build()
    for branch in dissect(unet).branches:
        with DeepCacheHelper(unet, branch=branch) as helper, torch.no_grad():
            arguments = UNETS[name].inputs()
            outputs = []
            for timestep in torch.tensor([500, 500, 1])[:2]:
                outputs.append(unet(**(arguments | {"timestep": timestep})).sample)
        assert torch.equal(*outputs), f"branch {branch}"
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (1, 1)


def test_a_shallow_step_is_the_top_of_the_unet_on_the_recorded_feature():
    # The method written out by hand for branch 0 of SD's layout: conv_in, then the last layer of
    # the up path on the feature of the last full step, with this step's timestep.
    unet = unet2d_condition()
    first, second = inputs2d_condition(seed=1), inputs2d_condition(seed=2)
    layer = unet.up_blocks[-1]
    features = []
    handle = layer.attentions[1].register_forward_hook(
        lambda _module, _args, output: features.append(output[0].clone())
    )
    with torch.no_grad():
        unet(**first)
        handle.remove()
        embedding = unet.time_embedding(unet.time_proj(torch.tensor([300, 300])))
        hidden = torch.cat([features[0], unet.conv_in(second["sample"])], dim=1)
        hidden = layer.resnets[2](hidden, embedding)
        hidden = layer.attentions[2](hidden, second["encoder_hidden_states"], return_dict=False)[0]
        expected = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

        timesteps = torch.tensor([500, 300])
        with DeepCacheHelper(unet, branch=0):
            unet(**(first | {"timestep": timesteps[0]}))
            shallow = unet(**(second | {"timestep": timesteps[1]})).sample
    assert torch.equal(shallow, expected)


# --- which steps run in full --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(1, "FFFFFFF"), (2, "FsFsFsF"), (3, "FssFssF"), (5, "FssssFs"), (10, "Fssssss")],
)
def test_one_step_in_every_interval_is_full(interval, expected):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, interval=interval):
        assert kinds_of_steps(unet) == expected


def test_a_loop_that_starts_late_starts_in_full():
    unet = unet2d_condition()
    timesteps = torch.arange(7, 0, -1) * 100
    with DeepCacheHelper(unet):
        kinds = kinds_of_steps(unet, timesteps=timesteps[2:])
    assert kinds == "FssFs"


@pytest.mark.parametrize(("replay", "kept"), [("reuse", 1), ("extrapolate", 2)])
def test_a_plan_may_name_another_branch_at_each_step(replay, kept):
    # Step 2 runs at branch 3 and so refreshes branch 0, which step 3 replays.
    unet = unet2d_condition()
    schedule = Written(FULL, 0, 3, 0, FULL, 3, 0)
    with DeepCacheHelper(unet, schedule=schedule, replay=replay) as helper:
        kinds = kinds_of_steps(unet)
        one_feature = 2 * 8 * 8 * 8 * 4  # (batch, channels, height, width) in fp32, branch 0
        deeper = 2 * 16 * 4 * 4 * 4  # what enters the second level's last layer
    assert kinds == "FsssFss"
    assert helper.stats == Stats(1, 2, 5, kept * (one_feature + deeper))


def test_a_plan_that_starts_shallow_starts_in_full_all_the_same():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Written(0, 0, 0)):
        assert kinds_of_steps(unet, steps=3) == "Fss"


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"replay": "reuse"}, 1), ({"replay": "extrapolate"}, 2), ({}, 2)],
    ids=["reuse", "extrapolate", "default"],
)
def test_as_many_features_are_kept_as_the_replay_wants(options, kept):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, **options) as helper:
        loop(unet)  # three full steps
    assert helper.stats.cache_nbytes == kept * 2 * 8 * 8 * 8 * 4  # (2, 8, 8, 8) in fp32


def test_the_cache_is_empty_when_the_generation_has_ended():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, interval=10) as helper:
        loop(unet)
        assert held_bytes(helper) == 0


def test_two_calls_at_each_step_have_a_feature_each():
    # Sequential guidance: unconditional and conditional halves in turn.
    unet = unet2d_condition()
    halves = [inputs2d_condition(seed=seed) for seed in (1, 2)]
    with DeepCacheHelper(unet), torch.no_grad():
        outputs = [
            [unet(**(half | {"timestep": timestep})).sample for half in halves]
            for timestep in torch.tensor([500, 500, 1])[:2]
        ]
    for half in range(2):
        assert torch.equal(outputs[0][half], outputs[1][half])


def test_a_changed_batch_runs_in_full():
    # Guidance switched off midway: the recorded feature has twice the batch.
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300, 100])
    with DeepCacheHelper(unet, interval=10) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            unet(**(inputs2d_condition(batch=2 if index < 3 else 1) | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)


def test_more_calls_in_a_step_than_were_recorded_run_in_full():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700])
    with DeepCacheHelper(unet) as helper, torch.no_grad():
        for index in (0, 1, 1):
            unet(**(inputs2d_condition() | {"timestep": timesteps[index]}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 1)


def test_a_full_step_makes_the_features_of_earlier_steps_invalid():
    # Two calls at step 0, one at each of the steps up to the next full one, two at the last: its
    # second call once replayed the feature of step 0.
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300, 100, 50])
    # New embeddings at each call, as the panorama pipeline makes them: then the order decides.
    with DeepCacheHelper(unet, interval=3) as helper, torch.no_grad():
        for index in (0, 0, 1, 2, 3, 4, 4, 5):
            unet(**(inputs2d_condition() | {"timestep": timesteps[index]}))
    # Full: both calls of step 0, step 3, and the second call of step 4.
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 4)


def test_a_call_that_is_left_out_does_not_hand_its_feature_to_the_next():
    # Guidance in two calls, the unconditional one first and dropped midway: the conditional call
    # is then the first of its step, but the first slot's feature is the unconditional one.
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500])
    halves = [inputs2d_condition(seed=seed) for seed in (1, 2)]
    with DeepCacheHelper(unet, interval=10) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            for half in halves[index // 2 :]:
                unet(**(half | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 2)


def test_more_calls_at_a_step_than_a_loop_has_are_not_recorded():
    unet = unet2d_condition(block_out_channels=(8, 16), layers_per_block=1)
    one_feature = 2 * 8 * 8 * 8 * 4
    with DeepCacheHelper(unet) as helper, torch.no_grad():
        for _ in range(MAX_SLOTS):
            unet(**inputs2d_condition())
        with pytest.warns(DeepCacheWarning, match=r"call the helper's reset\(\)"):
            unet(**inputs2d_condition())
        assert held_bytes(helper) == MAX_SLOTS * one_feature


def test_a_call_with_gradients_takes_no_slot():
    # Attend-and-Excite: calls with gradients between those of the loop.
    unet = unet2d_condition()
    timesteps = torch.tensor([500, 500, 1])[:2]
    halves = [inputs2d_condition(seed=seed) for seed in (1, 2)]
    outputs = []
    with DeepCacheHelper(unet) as helper:
        for step, timestep in enumerate(timesteps):
            for half in halves:
                if step == 0:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", DeepCacheWarning)
                        unet(**(half | {"timestep": timestep}))
                with torch.no_grad():
                    outputs.append(unet(**(half | {"timestep": timestep})).sample)
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 2)


def test_with_gradients_every_call_is_plain_and_says_why():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500])
    with DeepCacheHelper(unet) as helper:
        with pytest.warns(DeepCacheWarning, match="gradients are enabled"):
            unet(**(inputs2d_condition() | {"timestep": timesteps[0]}))
        for timestep in timesteps[1:]:  # without another warning: those are errors here
            unet(**(inputs2d_condition() | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 0)


def test_a_batch_of_different_timesteps_runs_in_full_and_says_why():
    unet = unet2d_condition()
    arguments = inputs2d_condition() | {"timestep": torch.tensor([900, 700])}
    with (
        DeepCacheHelper(unet) as helper,
        torch.no_grad(),
        pytest.warns(DeepCacheWarning, match="cannot be told"),
    ):
        unet(**arguments)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (1, 0)


def test_positional_and_keyword_arguments_are_the_same():
    unet = unet2d_condition()
    timesteps = torch.tensor([500, 500, 1])[:2]
    arguments = inputs2d_condition()
    with DeepCacheHelper(unet), torch.no_grad():
        full = unet(arguments["sample"], timesteps[0], arguments["encoder_hidden_states"])
        shallow = unet(
            encoder_hidden_states=arguments["encoder_hidden_states"],
            timestep=timesteps[1],
            sample=arguments["sample"],
            return_dict=False,
        )
    assert torch.equal(full.sample, shallow[0])


def test_a_wrong_call_gets_the_unets_own_error():
    unet = unet2d_condition()
    with DeepCacheHelper(unet), torch.no_grad(), pytest.raises(TypeError, match="timestep"):
        unet(torch.zeros(1, 4, 8, 8))


# --- lifecycle ----------------------------------------------------------------------------------


def test_enable_and_disable_are_idempotent():
    unet = unet2d_condition()
    before = trace(unet)
    helper = DeepCacheHelper(unet)
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
    first = DeepCacheHelper(unet, interval=2).enable()
    second = DeepCacheHelper(unet)
    with pytest.raises(AlreadyEnabledError) as caught:
        second.enable()
    assert str(caught.value) == (
        "another DeepCacheHelper is enabled on this UNet2DConditionModel: call its disable() "
        "first, or change it with its set_params()"
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
    with DeepCacheHelper(unet), pytest.raises(AlreadyEnabledError):
        DeepCacheHelper(compiled).enable()


def test_a_wrapper_of_somebody_else_does_not_hide_the_first_helper():
    unet = unet2d_condition()
    before = trace(unet)
    first = DeepCacheHelper(unet).enable()
    vars(unet)[CALL] = wrapt.FunctionWrapper(
        vars(unet)[CALL], lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs)
    )
    assert first.enabled
    with pytest.raises(AlreadyEnabledError):
        DeepCacheHelper(unet).enable()
    first.disable()
    assert not first.enabled
    del vars(unet)[CALL]
    assert trace(unet) == before


def test_a_helper_deleted_while_enabled_stays_in_force_until_the_next_one():
    unet = unet2d_condition()
    before = trace(unet)
    helper = DeepCacheHelper(unet, interval=2).enable()
    del helper
    gc.collect()
    assert kinds_of_steps(unet, steps=3) == "FsF"
    with DeepCacheHelper(unet, interval=3):
        assert kinds_of_steps(unet, steps=3) == "Fss"
    assert trace(unet) == before
    DeepCacheHelper(unet).enable()
    gc.collect()
    DeepCacheHelper(unet).disable()
    assert trace(unet) == before


def test_a_setting_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError):
        DeepCacheHelper(unet2d_condition()).interval = 5


def test_after_disable_the_unet_is_freed_by_reference_count():
    # A cycle would keep a model's gigabytes until the garbage collector runs.
    pipe = SD.load()
    helper = DeepCacheHelper(pipe).enable()
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
    helper = DeepCacheHelper(pipe).enable()
    del pipe, helper
    gc.collect()
    assert alive() is None
    assert kinds_of_steps(unet, steps=3) == "Fss"


def test_a_replaced_unet_is_attached_by_enable():
    pipe = SD.load()
    first, second = pipe.unet, SD.load().unet
    before = trace(first)
    helper = DeepCacheHelper(pipe).enable()
    pipe.unet = second
    assert not helper.enabled
    helper.enable()
    assert helper.enabled
    assert trace(first) == before
    assert kinds_of_steps(second, steps=3) == "Fss"
    helper.disable()


def test_a_branch_that_a_replaced_unet_lacks_is_refused_by_enable():
    pipe = SD.load()
    helper = DeepCacheHelper(pipe, branch=8)
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
    with DeepCacheHelper(pipe) as helper:
        for unet in (pipe.first, pipe.second):
            assert kinds_of_steps(unet, steps=3) == "Fss"
    assert helper.stats == Stats(2, 2, 4, 2 * 2 * 8 * 8 * 8 * 4)
    assert [trace(pipe.first), trace(pipe.second)] == before


@pytest.mark.parametrize("taken", ["first", "second"])
def test_all_unets_are_patched_or_none(taken):
    pipe = TwoUNets(unet2d_condition(), unet2d_condition(seed=1))
    with DeepCacheHelper(getattr(pipe, taken)):
        before = [trace(pipe.first), trace(pipe.second)]
        helper = DeepCacheHelper(pipe)
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
    helper = DeepCacheHelper(pipe)
    with pytest.raises(KeyboardInterrupt):
        helper.enable()
    assert [trace(pipe.first), trace(pipe.second)] == before
    assert not helper.enabled


def test_a_loop_in_each_of_two_threads_is_that_of_one():
    # One U-Net, one list of timesteps, steps in turn: each thread has a generation of its own.
    unet = unet2d_condition()
    timesteps = torch.arange(6, 0, -1) * 100
    with DeepCacheHelper(unet):
        expected = [loop(unet, timesteps=timesteps, seed=seed) for seed in (1, 2)]
    results = {}
    barrier = threading.Barrier(2)

    def run(seed):
        def in_turn():
            for timestep in timesteps:
                barrier.wait(timeout=60)
                yield timestep

        results[seed] = loop(unet, timesteps=in_turn(), seed=seed)

    with DeepCacheHelper(unet) as helper:
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
    helper = DeepCacheHelper(unet).enable()
    lock = helper._attached[0]._lock
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
    with pytest.raises(KeyboardInterrupt), DeepCacheHelper(unet):
        raise KeyboardInterrupt
    assert trace(unet) == before


def test_paused_is_the_plain_pipeline():
    unet = unet2d_condition()
    plain = loop(unet)
    with DeepCacheHelper(unet) as helper:
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
    helper = DeepCacheHelper(unet)
    with helper.paused():
        helper.enable()
        assert torch.equal(loop(unet), plain)
    assert not torch.equal(loop(unet), plain)
    helper.disable()


def test_paused_without_enable_does_nothing():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet)
    plain = loop(unet)
    with helper.paused():
        assert torch.equal(loop(unet), plain)
    assert not helper.enabled


def test_a_pause_in_a_generation_makes_the_next_step_full():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300])
    with DeepCacheHelper(unet, interval=10) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            arguments = inputs2d_condition() | {"timestep": timestep}
            if index == 1:
                with helper.paused():
                    unet(**arguments)
            else:
                unet(**arguments)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 1)


def test_set_params_is_the_call_of_the_deepcache_package():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet)
    helper.set_params(cache_interval=2, cache_branch_id=1)
    assert helper.schedule == Uniform(interval=2, branch=1)
    helper.set_params(cache_interval=5)
    assert helper.schedule == Uniform(interval=5, branch=1)
    with helper:
        assert kinds_of_steps(unet, steps=3) == "Fss"
        helper.set_params(2, 0, "uniform")
        assert kinds_of_steps(unet, steps=3) == "FsF"


def test_settings_changed_in_a_generation_make_the_next_step_full():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300])
    with DeepCacheHelper(unet, interval=10) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            if index == 2:
                helper.set_params(cache_branch_id=2)
            unet(**(inputs2d_condition() | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)


def test_reset_forgets_the_generation():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500])
    with DeepCacheHelper(unet) as helper, torch.no_grad():
        for timestep in timesteps:
            unet(**(inputs2d_condition() | {"timestep": timestep}))
            helper.reset()
    assert helper.stats == Stats(3, 3, 0, helper.stats.cache_nbytes)


def test_stats_count_from_enable_and_outlive_disable():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet)
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
    helper = DeepCacheHelper(unet2d(), interval=4)
    assert repr(helper) == "DeepCacheHelper(UNet2DModel, Uniform(interval=4, branch=0), disabled)"


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1], ids=["full", "shallow"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_failed_step_the_unet_is_whole_and_the_next_generation_right(step, error):
    unet = unet2d_condition()
    with DeepCacheHelper(unet):
        fresh = loop(unet)
        before = trace(unet)
        calls = []

        def fail(_module, _args, _output):
            calls.append(1)
            if len(calls) == step + 1:
                raise error("in a layer that runs on every step")

        handle = unet.up_blocks[-1].resnets[-1].register_forward_hook(fail)
        with pytest.raises(error):
            loop(unet)
        handle.remove()
        assert trace(unet) == before
        assert torch.equal(loop(unet), fresh)


def test_a_failed_full_step_leaves_nothing_to_replay():
    # The tap has seen the new feature when a later layer fails: half a step must not be kept.
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700])

    def fail(_module, _args, _output):
        raise RuntimeError("after the tap")

    with DeepCacheHelper(unet) as helper, torch.no_grad():
        handle = unet.conv_out.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="after the tap"):
            unet(**(inputs2d_condition() | {"timestep": timesteps[0]}))
        handle.remove()
        unet(**(inputs2d_condition() | {"timestep": timesteps[1]}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 0)


def test_a_step_that_is_tried_again_replays_nobody_elses_feature():
    # Two calls a step; the first fails at step 1 and is tried again. Taken for the second call, it
    # would replay the other half's feature.
    unet = unet2d_condition()
    timesteps = torch.tensor([500, 500, 1])[:2]
    halves = [inputs2d_condition(seed=seed) for seed in (1, 2)]

    def fail(_module, _args, _output):
        raise MemoryError

    with DeepCacheHelper(unet), torch.no_grad():
        first = [unet(**(half | {"timestep": timesteps[0]})).sample for half in halves]
        handle = unet.conv_out.register_forward_hook(fail)
        with pytest.raises(MemoryError):
            unet(**(halves[0] | {"timestep": timesteps[1]}))
        handle.remove()
        again = [unet(**(half | {"timestep": timesteps[1]})).sample for half in halves]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


# --- other people's changes ---------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_replaced_forward_is_called_inside(order):
    # accelerate replaces `forward` on the instance, and at model offload after every generation.
    unet = unet2d_condition()
    before, calls = trace(unet), []

    def replace():
        original = unet.forward
        unet.forward = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]

    if order == "before":
        replace()
    helper = DeepCacheHelper(unet).enable()
    if order == "after":
        replace()
    assert kinds_of_steps(unet, steps=3) == "Fss"
    assert len(calls) == 3
    helper.disable()
    assert "forward" in vars(unet)
    loop(unet, steps=1)
    assert len(calls) == 4
    del unet.forward
    assert trace(unet) == before


@pytest.mark.parametrize("step", [1, 2, 3], ids=["shallow", "shallow-again", "full"])
@pytest.mark.parametrize(
    ("owner", "name", "index"),
    [
        ("", "up_blocks", 2),
        ("", "down_blocks", 0),
        ("", "mid_block", None),
        ("up_blocks.2", "attentions", 2),
        ("up_blocks.2", "attentions", 1),
        ("up_blocks.2", "resnets", 2),
    ],
)
def test_parts_replaced_while_enabled_are_used_from_the_next_call_on(owner, name, index, step):
    # The cut is made once; one that went stale would run the old part, on full steps, too.
    unet, other = unet2d_condition(), unet2d_condition(seed=5)
    timesteps = torch.tensor([900, 700, 500, 300])
    with DeepCacheHelper(unet, interval=3) as helper, torch.no_grad():
        for timestep in timesteps[:step]:
            unet(**(inputs2d_condition() | {"timestep": timestep}))
        before = helper.stats
        parent, replacement = unet.get_submodule(owner), getattr(other.get_submodule(owner), name)
        if index is None:
            unet.mid_block = replacement
        else:
            getattr(parent, name)[index] = replacement[index]
        output = unet(**(inputs2d_condition() | {"timestep": timesteps[step]})).sample
        assert helper.stats.full_calls == before.full_calls + 1
        with helper.paused():
            plain = unet(**(inputs2d_condition() | {"timestep": timesteps[step]})).sample
    assert torch.equal(output, plain)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_of_an_enabled_unet_is_a_plain_one(duplicate):
    unet = unet2d_condition()
    plain = loop(unet)
    with DeepCacheHelper(unet):
        loop(unet)
        duplicated = duplicate(unet)
        assert "_compiled_call_impl" not in vars(duplicated)
        assert torch.equal(loop(duplicated), plain)
        assert not torch.equal(loop(unet), plain)


# --- bad input ----------------------------------------------------------------------------------


NO_BRANCH_9 = (
    "branch 9 is out of range: this UNet2DConditionModel has 9 skip connections, so branches 0 to "
    "8; print(DeepCacheHelper(pipe).branches) shows them"
)
NO_SCHEDULE = (
    "schedule must be 'auto', what Calibrated.load(file) gives, or an object with a method "
    "plan(num_steps), not "
)
NO_REPLAY = (
    "replay must be 'reuse' or 'extrapolate' or an object with a method "
    "feature(step, recorded, levels), not "
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval must be an integer of at least 1, not 0"),
        ({"interval": 2.5}, "interval must be an integer of at least 1, not 2.5"),
        ({"branch": -1}, "branch must be an integer of at least 0, not -1"),
        ({"branch": 9}, NO_BRANCH_9),
        ({"schedule": [FULL, 0]}, NO_SCHEDULE + "['full', 0]"),
        ({"schedule": Uniform}, NO_SCHEDULE + repr(Uniform)),
        ({"schedule": "automatic"}, NO_SCHEDULE + "'automatic'"),
        (
            {"schedule": Uniform(), "interval": 3},
            "give either schedule or interval and branch, not both",
        ),
        ({"schedule": Uniform(branch=9)}, NO_BRANCH_9),
        ({"schedule": "auto", "branch": 9}, NO_BRANCH_9),
        ({"schedule": "auto", "interval": 0}, "interval must be an integer of at least 1, not 0"),
        ({"schedule": Adaptive(branches=(0, 9))}, NO_BRANCH_9),
        (
            {"schedule": "auto", "replay": "reuse"},
            "Auto brings its own replay: leave replay='reuse' out",
        ),
        ({"replay": "repeat"}, NO_REPLAY + "'repeat'"),
        ({"replay": Reuse}, NO_REPLAY + repr(Reuse)),
        ({"replay": 2}, NO_REPLAY + "2"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_patched(settings, message):
    unet = unet2d_condition()
    before = trace(unet)
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheHelper(unet, **settings)
    assert str(caught.value) == message
    assert trace(unet) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cache_interval": 0}, "interval must be an integer of at least 1, not 0"),
        ({"cache_branch_id": 9}, NO_BRANCH_9),
        (
            {"skip_mode": "non-uniform"},
            "skip_mode must be 'uniform', not 'non-uniform': for another strategy give "
            "DeepCacheHelper(pipe, schedule=...) a schedule",
        ),
    ],
)
def test_bad_params_change_nothing(params, message):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, interval=4) as helper:
        with pytest.raises(InvalidSettingError) as caught:
            helper.set_params(**params)
        assert str(caught.value) == message
        assert helper.schedule == Uniform(interval=4)
        assert kinds_of_steps(unet) == "FsssFss"


def test_params_that_are_not_given_stay_as_they_are():
    helper = DeepCacheHelper(unet2d_condition(), interval=4, branch=2)
    helper.set_params(cache_interval=2)
    assert helper.schedule == Uniform(2, 2)
    helper.set_params(cache_branch_id=1)
    assert helper.schedule == Uniform(2, 1)


def test_set_params_does_not_guess_at_half_of_another_schedule():
    schedule = Written(FULL)
    helper = DeepCacheHelper(unet2d_condition(), schedule=schedule)
    for half in ({"cache_interval": 2}, {"cache_branch_id": 1}, {}):
        with pytest.raises(InvalidSettingError) as caught:
            helper.set_params(**half)
        assert str(caught.value) == (
            f"the schedule is {schedule!r}: to replace it by a uniform one, give both "
            "cache_interval and cache_branch_id"
        )
    helper.set_params(2, 1)
    assert helper.schedule == Uniform(2, 1)


def test_a_schedule_that_guides_gets_the_replay_and_every_generations_context():
    class Guiding:
        def begin(self, context, replay):
            begun.append((context.num_steps, replay))
            return PlannedGuide(Uniform(2), replay, context)

    begun, unet, replay = [], unet2d_condition(), Reuse()
    with DeepCacheHelper(unet, schedule=Guiding(), replay=replay):
        assert kinds_of_steps(unet) == "FsFsFsF"
        assert kinds_of_steps(unet, steps=3) == "FsF"
    assert begun == [(7, replay), (3, replay)]


def test_calibrate_hands_over_what_it_is_given(monkeypatch):
    handed, helper = [], DeepCacheHelper(unet2d_condition())

    def calibrate(*args, **options):
        handed.append((args, options))
        return "a schedule"

    monkeypatch.setattr("deepcache_patch.learning.calibrate.calibrate", calibrate)
    nothing = {"speedup": None, "full_steps": None, "psnr": None, "branch": 0}
    for options in ({"speedup": 2.0}, {"full_steps": 5, "branch": 1}, {"psnr": 30.0}, {}):
        assert helper.calibrate(loop, **options) == "a schedule"
        assert handed.pop() == ((helper, loop), nothing | options)


def test_compile_compiles_the_unet_and_the_controlnet_in_place(monkeypatch):
    compiled, pipe = [], ZOO["sd-controlnet"].load()
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options))
    )
    helper = DeepCacheHelper(pipe)
    assert helper.compile(mode="max-autotune") is helper
    options = {"fullgraph": True, "mode": "max-autotune"}
    assert compiled == [(pipe.unet, options), (pipe.controlnet, options)]
    compiled.clear()
    unet = unet2d_condition()
    DeepCacheHelper(unet).compile(fullgraph=False)
    assert compiled == [(unet, {"fullgraph": False})]


def test_enable_attaches_anew_to_what_was_compiled_since_and_to_nothing_else():
    pipe = ZOO["sd-controlnet"].load()
    for whole in (pipe, pipe.unet):
        with DeepCacheHelper(whole) as helper:
            attached = helper._attached
            helper.enable()
            assert helper._attached is attached
    with DeepCacheHelper(pipe) as helper:
        for name in ("unet", "controlnet"):
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
            helper.enable()
            assert helper._attached[0].unet is pipe.unet
            assert helper._companions[0].controlnet is pipe.controlnet


def test_two_unets_have_a_table_each():
    pipe = ZOO["stable-cascade-combined"].load()
    tables = DeepCacheHelper(pipe).branches
    assert set(tables) == {"prior_prior", "decoder"}


def test_compile_refuses_what_is_compiled_already():
    unet = unet2d_condition()
    helper = DeepCacheHelper(torch.compile(unet, backend="eager"))
    with pytest.raises(InvalidSettingError) as caught:
        helper.compile()
    assert str(caught.value) == (
        "UNet2DConditionModel is wrapped by torch.compile already: leave out one of the two"
    )


def test_a_helper_is_printed_with_its_schedule_and_state():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, interval=4)
    assert helper.pipe is unet
    said = "DeepCacheHelper(UNet2DConditionModel, Uniform(interval=4, branch=0), "
    assert repr(helper) == said + "disabled)"
    with helper:
        assert repr(helper) == said + "enabled)"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Written(FULL), "has 1 entries for 3 steps"),
        (Written(FULL, 9, 0), "branch 9 is out of range"),
        (Written(FULL, "shallow", 0), "entry 1 must be an integer of at least 0, not 'shallow'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_when_the_generation_starts(plan, message):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=plan), pytest.raises(InvalidSettingError, match=message):
        loop(unet, steps=3)


def test_a_transformer_pipeline_is_told_of_its_own_caches():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    transformer = diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=4, num_attention_heads=1,
        joint_attention_dim=4, pooled_projection_dim=4, axes_dims_rope=(2, 1, 1), in_channels=4,
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    with pytest.raises(
        UnsupportedModelError,
        match=r"FluxPipeline has no U-Net .*FluxTransformer2DModel.*transformer\.enable_cache",
    ):
        DeepCacheHelper(pipe)
    with pytest.raises(UnsupportedModelError, match=r"transformer\.enable_cache"):
        DeepCacheHelper(transformer)


@pytest.mark.parametrize("thing", [None, "stabilityai/stable-diffusion-2-1", 3])
def test_what_is_no_pipeline_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match=f"not {type(thing).__name__}"):
        DeepCacheHelper(thing)


def test_errors_have_the_builtin_kinds_and_one_base():
    for error, builtin in (
        (InvalidSettingError, ValueError),
        (UnsupportedModelError, TypeError),
        (AlreadyEnabledError, RuntimeError),
    ):
        assert issubclass(error, DeepCacheError)
        assert issubclass(error, builtin)


class FSDPModule:
    """What `fully_shard` makes of a module, as far as its name goes."""


def test_a_schedule_that_each_process_decides_for_itself_is_refused_for_a_sharded_unet():
    unet = unet2d()
    unet.__class__ = type("Sharded", (FSDPModule, type(unet)), {})
    assert DeepCacheHelper(unet).schedule == Uniform()
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheHelper(unet, schedule=Adaptive())
    assert str(caught.value) == (
        "Adaptive may decide otherwise in each process, but the U-Net is sharded, and all "
        "processes must call the same layers: take Uniform, or a schedule that was calibrated "
        "before"
    )


def test_a_pause_that_is_left_elsewhere_says_where_it_belongs():
    pause = DeepCacheHelper(unet2d()).paused()
    thread = threading.Thread(target=pause.__enter__)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError) as caught:
        pause.__exit__(None, None, None)
    assert str(caught.value) == (
        "paused() was entered in another thread or asyncio task: leave it there, too"
    )


def test_enable_that_is_interrupted_at_the_controlnet_leaves_no_trace(monkeypatch):
    pipe = ZOO["sd-controlnet"].load()
    parts = (pipe.unet, pipe.controlnet)
    before = [trace(each) for each in parts]
    attach = AttachedCompanion.attach

    def interrupted(companion):
        attach(companion)
        raise KeyboardInterrupt  # while it waits for calls that are under way

    monkeypatch.setattr(AttachedCompanion, "attach", interrupted)
    helper = DeepCacheHelper(pipe)
    with pytest.raises(KeyboardInterrupt):
        helper.enable()
    assert [trace(each) for each in parts] == before
    assert not helper.enabled


def test_a_calibrated_schedule_is_compared_with_each_unet_and_its_own_scheduler():
    checked = []

    class Checked(Calibrated):
        branches = ()

        def __init__(self):
            """Nothing was calibrated."""

        def check(self, unet, scheduler):
            checked.append((unet, scheduler))

    pipe = ZOO["stable-cascade-combined"].load()
    assert pipe.scheduler is not pipe.prior_scheduler
    DeepCacheHelper(pipe, schedule=Checked())
    assert checked == [
        (pipe.decoder, pipe.scheduler),
        (pipe.prior_prior, pipe.prior_scheduler),
    ]
    checked.clear()
    unet = unet2d()
    DeepCacheHelper(unet, schedule=Checked())
    assert checked == [(unet, None)]
