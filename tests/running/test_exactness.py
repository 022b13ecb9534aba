"""What a step gives, and which steps run in full: a helper on a bare U-Net, call by call.

What the calls of whole pipelines give is in `test_pipelines`.
"""

import warnings

import pytest
import torch
from builders.loops import Written, held_bytes, kinds_of_steps, loop
from builders.marks import mostly_slow
from builders.unets import UNETS, inputs2d_condition, unet2d_condition
from conftest import trace

from deepcache_patch import (
    FULL,
    DeepCacheHelper,
    DeepCacheWarning,
    Stats,
    Uniform,
)
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.running.decision import MAX_SLOTS

# --- exactness ----------------------------------------------------------------------------------


#: Those that differ most.
QUICK = ["condition-2-layers", "condition-odd-size", "2d-no-mid-block"]


@pytest.mark.parametrize("name", mostly_slow(UNETS, QUICK))
def test_interval_1_is_the_plain_unet(name):
    unet, inputs = UNETS[name].build(), UNETS[name].inputs
    plain = loop(unet, inputs, steps=3)
    with DeepCacheHelper(unet, schedule=Uniform(1)) as helper:
        assert torch.equal(loop(unet, inputs, steps=3), plain)
    assert helper.stats == Stats(generations=1, full_calls=3)


@pytest.mark.parametrize("name", mostly_slow(UNETS, QUICK))
def test_disable_leaves_no_trace(name):
    unet, inputs = UNETS[name].build(), UNETS[name].inputs
    plain, before = loop(unet, inputs, steps=3), trace(unet)
    helper = DeepCacheHelper(unet, schedule=Uniform())
    assert trace(unet) == before
    helper.enable()
    assert trace(unet) != before
    assert not torch.equal(loop(unet, inputs, steps=3), plain)
    helper.disable()
    assert trace(unet) == before
    assert torch.equal(loop(unet, inputs, steps=3), plain)


@pytest.mark.parametrize("name", mostly_slow(UNETS, QUICK))
def test_a_shallow_step_with_the_input_of_the_full_one_gives_its_output(name):
    unet = UNETS[name].build()
    for branch in dissect(unet).branches:
        with DeepCacheHelper(unet, schedule=Uniform(branch=branch)) as helper, torch.no_grad():
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
    second["encoder_hidden_states"] = first["encoder_hidden_states"]  # or it is another prompt
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
        with DeepCacheHelper(unet, schedule=Uniform(branch=0)):
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
    with DeepCacheHelper(unet, schedule=Uniform(interval)):
        assert kinds_of_steps(unet) == expected


def test_a_loop_that_starts_late_starts_in_full():
    unet = unet2d_condition()
    timesteps = torch.arange(7, 0, -1) * 100
    with DeepCacheHelper(unet, schedule=Uniform()):
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
    with DeepCacheHelper(unet, schedule=Uniform(), **options) as helper:
        loop(unet)  # three full steps
    assert helper.stats.cache_nbytes == kept * 2 * 8 * 8 * 8 * 4  # (2, 8, 8, 8) in fp32


def test_the_cache_is_empty_when_the_generation_has_ended():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(10)) as helper:
        loop(unet)
        assert held_bytes(helper) == 0


def test_two_calls_at_each_step_have_a_feature_each():
    # Sequential guidance: unconditional and conditional halves in turn.
    unet = unet2d_condition()
    halves = [inputs2d_condition(seed=seed) for seed in (1, 2)]
    with DeepCacheHelper(unet, schedule=Uniform()), torch.no_grad():
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
    with DeepCacheHelper(unet, schedule=Uniform(10)) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            unet(**(inputs2d_condition(batch=2 if index < 3 else 1) | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)


def test_more_calls_in_a_step_than_were_recorded_run_in_full():
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700])
    with DeepCacheHelper(unet, schedule=Uniform()) as helper, torch.no_grad():
        for index in (0, 1, 1):
            unet(**(inputs2d_condition() | {"timestep": timesteps[index]}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 1)


def test_a_full_step_makes_the_features_of_earlier_steps_invalid():
    # Two calls at step 0, one at each of the steps up to the next full one, two at the last: its
    # second call once replayed the feature of step 0.
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700, 500, 300, 100, 50])
    # New embeddings at each call, as the panorama pipeline makes them: then the order decides.
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper, torch.no_grad():
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
    with DeepCacheHelper(unet, schedule=Uniform(10)) as helper, torch.no_grad():
        for index, timestep in enumerate(timesteps):
            for half in halves[index // 2 :]:
                unet(**(half | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 2)


def test_more_calls_at_a_step_than_a_loop_has_are_not_recorded():
    unet = unet2d_condition(block_out_channels=(8, 16), layers_per_block=1)
    one_feature = 2 * 8 * 8 * 8 * 4
    with DeepCacheHelper(unet, schedule=Uniform()) as helper, torch.no_grad():
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
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
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
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        with pytest.warns(DeepCacheWarning, match="gradients are enabled"):
            unet(**(inputs2d_condition() | {"timestep": timesteps[0]}))
        for timestep in timesteps[1:]:  # without another warning: those are errors here
            unet(**(inputs2d_condition() | {"timestep": timestep}))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 0)


def test_a_batch_of_different_timesteps_runs_in_full_and_says_why():
    unet = unet2d_condition()
    arguments = inputs2d_condition() | {"timestep": torch.tensor([900, 700])}
    with (
        DeepCacheHelper(unet, schedule=Uniform()) as helper,
        torch.no_grad(),
        pytest.warns(DeepCacheWarning, match="cannot be told"),
    ):
        unet(**arguments)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (1, 0)


def test_positional_and_keyword_arguments_are_the_same():
    unet = unet2d_condition()
    timesteps = torch.tensor([500, 500, 1])[:2]
    arguments = inputs2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()), torch.no_grad():
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
    with (
        DeepCacheHelper(unet, schedule=Uniform()),
        torch.no_grad(),
        pytest.raises(TypeError, match="timestep"),
    ):
        unet(torch.zeros(1, 4, 8, 8))
