"""A step that fails, and parts of a U-Net that others replace, leave a U-Net that is right."""

import copy
import pickle

import pytest
import torch
from builders.loops import kinds_of_steps, loop
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import trace

from deepcache_patch import (
    DeepCacheHelper,
    DeepCacheWarning,
    Uniform,
)

# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1], ids=["full", "shallow"])
@pytest.mark.parametrize(
    "error", mostly_slow([RuntimeError, KeyboardInterrupt], [KeyboardInterrupt])
)
def test_after_a_failed_step_the_unet_is_whole_and_the_next_generation_right(step, error):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()):
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


def with_gradients(unet, timestep, **given):
    with torch.enable_grad():
        unet(**inputs2d_condition() | {"timestep": timestep} | given)


def of_another_text_width(unet, timestep):
    with_gradients(unet, timestep, encoder_hidden_states=torch.zeros(2, 7, 3))


def at_two_timesteps(unet, timestep):
    unet(**inputs2d_condition() | {"timestep": torch.stack([timestep, timestep - 1])})


def with_an_argument_too_many(unet, timestep):
    unet(**inputs2d_condition() | {"timestep": timestep}, no_such=1)


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (with_gradients, DeepCacheWarning),
        (at_two_timesteps, DeepCacheWarning),
        (with_an_argument_too_many, TypeError),
        (of_another_text_width, RuntimeError),
    ],
)
def test_whatever_a_call_fails_of_ends_its_generation(failing, error):
    # Where warnings are errors, that of a call which has to run in full left the generation as it
    # was, and the next step replayed a feature across the one that was lost. So did any error of a
    # call that was full for such a reason.
    unet = unet2d_condition()
    timesteps, full = torch.arange(6, 0, -1) * 100, []
    with DeepCacheHelper(unet, schedule=Uniform(9)) as helper, torch.no_grad():
        if error is RuntimeError:
            with pytest.warns(DeepCacheWarning, match="gradients are enabled"):
                with_gradients(unet, timesteps[0])
        for step, timestep in enumerate(timesteps):
            before = helper.stats.full_calls
            if step == 2:
                with pytest.raises(error):
                    failing(unet, timestep)
            else:
                unet(**inputs2d_condition() | {"timestep": timestep})
            full.append(helper.stats.full_calls - before)
    assert (*full[:2], *full[3:]) == (1, 0, 1, 0, 0)


def test_a_failed_full_step_leaves_nothing_to_replay():
    # The tap has seen the new feature when a later layer fails: half a step must not be kept.
    unet = unet2d_condition()
    timesteps = torch.tensor([900, 700])

    def fail(_module, _args, _output):
        raise RuntimeError("after the tap")

    with DeepCacheHelper(unet, schedule=Uniform()) as helper, torch.no_grad():
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

    with DeepCacheHelper(unet, schedule=Uniform()), torch.no_grad():
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
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()
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


@pytest.mark.parametrize(
    "step", mostly_slow([1, 2, 3], [1, 3]), ids=["shallow", "shallow-again", "full"]
)
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
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper, torch.no_grad():
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
    with DeepCacheHelper(unet, schedule=Uniform()):
        loop(unet)
        duplicated = duplicate(unet)
        assert "_compiled_call_impl" not in vars(duplicated)
        assert torch.equal(loop(duplicated), plain)
        assert not torch.equal(loop(unet), plain)
