"""Traps of what else looks at, or changes, the parts of a pipeline; and of layouts that differ.

Each was met by running a real pipeline.
"""

import inspect

import pytest
import torch
from builders.kinds_of_calls import TWICE, assert_exact, counted, kinds_of, told
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from builders.unets import UNETS, inputs2d_condition
from builders.versions_needed import require_group_offloading
from conftest import counted_calls, trace
from diffusers import UNet2DConditionModel
from zoo import CASES

from deepcache_patch import (
    DeepCacheHelper,
    Uniform,
)
from deepcache_patch.cutting.anatomy import dissect

# --- other layouts ------------------------------------------------------------------------------


def test_trap_k_blocks():
    # The latent upscaler's blocks have one skip each, however many layers.
    case = CASES["sd-latent-upscale"]
    pipe = case.load()
    assert dissect(pipe.unet).num_skips == 3  # of four levels of two layers: the deepest has none
    assert_exact(case, pipe, steps=1)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert kinds_of(case, pipe, pipe.unet.down_blocks[-1]) == "FssFs"


def test_trap_second_stream():
    # Beside the hidden state a picture runs through score-SDE's blocks, and is made in the deep
    # ones too.
    case = CASES["score-sde-ve"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert kinds_of(case, pipe) == "FFssssFFss"


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["kandinsky3", "stable-cascade-decoder", "dance-diffusion", "sd-controlnet-xs"],
        ["stable-cascade-decoder", "dance-diffusion"],
    ),
)
def test_trap_other_layouts(name):
    # Their blocks are others, so what is right for Stable Diffusion's cuts them in wrong places.
    case = CASES[name]
    pipe = case.load()
    before = trace(case.unet(pipe))
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe)
    assert counted(helper) == (2, 3)
    assert trace(case.unet(pipe)) == before
    assert_exact(case, pipe, steps=2)


# --- offloading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", mostly_slow(["before", "after"], ["after"]))
def test_trap_model_offload(enabled):
    # accelerate puts a `forward` on the instance, and takes it away after each generation. With
    # DeepCache, pictures after the first came out distorted.
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = [case.run(pipe, seed=seed) for seed in (0, 1)]
    pipe = case.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    if enabled == "before":
        helper.enable()
    pipe.enable_model_cpu_offload(device="cpu")
    helper.enable()
    assert "forward" in vars(pipe.unet)
    for seed in (0, 1):
        assert torch.equal(case.run(pipe, seed=seed), expected[seed])
    assert counted(helper) == (4, 6)
    helper.disable()
    pipe.remove_all_hooks()
    assert torch.equal(case.run(pipe), case.run(case.load()))


def test_trap_block_level_group_offloading():
    # Its hooks sit on the blocks, so blocks of a cut U-Net must be the same objects.
    require_group_offloading()
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform(branch=2)):
        expected = [case.run(pipe, seed=seed) for seed in (0, 1)]
    pipe = case.load()
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    with DeepCacheHelper(pipe, schedule=Uniform(branch=2)) as helper:
        assert [torch.equal(case.run(pipe, seed=seed), expected[seed]) for seed in (0, 1)] == [
            True,
            True,
        ]
    assert counted(helper) == (4, 6)


def test_trap_children_that_are_none():
    # A child that was None from the start lies in the module's own dictionary, not among its
    # children, and has to be found and put back there.
    unet = UNETS["condition-no-mid-block"].build()
    upscaler = CASES["sd-latent-upscale"].load().unet
    assert vars(unet)["mid_block"] is None
    assert vars(upscaler)["mid_block"] is None
    assert vars(unet.down_blocks[-1])["downsamplers"] is None
    assert vars(unet.up_blocks[-1])["upsamplers"] is None
    before = trace(unet)
    for branch in dissect(unet).branches:
        with DeepCacheHelper(unet, schedule=Uniform(branch=branch)) as helper, torch.no_grad():
            for timestep in TWICE:
                unet(**inputs2d_condition() | {"timestep": timestep})
                assert vars(unet)["mid_block"] is None
                assert "mid_block" not in unet._modules
        assert counted(helper) == (1, 1)
        assert trace(unet) == before
    case = CASES["sd-latent-upscale"]
    pipe = case.load()
    before = trace(pipe.unet)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        case.run(pipe)
    assert trace(pipe.unet) == before


# --- what else looks at, or changes, the parts of a pipeline ------------------------------------


def test_trap_maybe_free_model_hooks():
    # At the end of each call it installs accelerate's hooks anew, and what had been put round the
    # U-Net's `forward` since is gone: the second generation would be plain.
    case = CASES["sd"]
    pipe = case.load()
    pipe.enable_model_cpu_offload(device="cpu")
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        for _ in range(3):
            forward = vars(pipe.unet)["forward"]
            assert kinds_of(case, pipe) == "FssFs"
            assert vars(pipe.unet)["forward"] is not forward
            assert helper.enabled


def test_trap_signatures():
    # Pipelines look which of `eta`, `generator` and `sigmas` a method takes.
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), "euler")

    def seen():
        called = (
            *(pipe.scheduler.step, pipe.scheduler.set_timesteps, pipe.scheduler.scale_model_input),
            *(pipe.unet, pipe.unet.forward, pipe.unet._call_impl, pipe.__call__),
        )
        extra = pipe.prepare_extra_step_kwargs(None, 0.5)
        return [inspect.signature(each) for each in called], extra

    before = seen()
    compiled_call = inspect.signature(pipe.unet._call_impl)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert seen() == before
        assert inspect.signature(pipe.unet._compiled_call_impl) == compiled_call
        case.run(pipe, steps=None, sigmas=[10.0, 5.0, 2.0, 1.0, 0.5, 0.0])
    assert counted(helper) == (2, 3)
    pipe = case.load()  # DDIM, which takes `eta`
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert pipe.prepare_extra_step_kwargs(None, 0.5) == {"eta": 0.5, "generator": None}


def test_trap_stand_in_for_the_unet():
    # Pipelines ask whether their U-Net is an instance of a class, and save its class's name.
    case = CASES["sd"]
    pipe = case.load()
    unet, forward = pipe.unet, UNet2DConditionModel.forward
    seen = []

    def look(pipe, _step, _timestep, kwargs):
        seen.append((pipe.unet, type(pipe.unet), pipe.components["unet"]))
        return kwargs

    with DeepCacheHelper(pipe, schedule=Uniform()):
        case.run(pipe, callback_on_step_end=look)
        assert type(pipe.unet).__call__ is torch.nn.Module.__call__
    assert all(a is unet and b is UNet2DConditionModel and c is unet for a, b, c in seen)
    assert len(seen) == 5
    assert UNet2DConditionModel.forward is forward


def layers_run(case, pipe, branch, kind):
    """The parts of that kind that run in a shallow step, by name."""
    unet = case.unet(pipe)
    deep = unet.mid_block
    with DeepCacheHelper(pipe, schedule=Uniform(branch=branch)), counted_calls(unet) as calls:
        last = {}

        def ended(_module, _args, _output):
            last.clear()
            last.update(calls)
            calls.clear()

        handle = unet.register_forward_hook(ended)
        case.run(pipe, steps=2)
        handle.remove()
    assert not any(module is deep and name in last for name, module in unet.named_modules())
    return {
        name: count
        for name, count in last.items()
        if name.split(".")[-2:-1] == [kind] and name.count(".") == 3
    }


def test_trap_motion_model():
    # Its blocks call the resnets by keyword; and if its temporal layers went on running, most of
    # the work would remain.
    case = CASES["animatediff"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    assert layers_run(case, pipe, 0, "motion_modules") == {"up_blocks.2.motion_modules.1": 1}
    assert layers_run(case, pipe, 0, "resnets") == {"up_blocks.2.resnets.1": 1}
    assert layers_run(case, pipe, 2, "motion_modules") == {
        "down_blocks.0.motion_modules.0": 1,
        "up_blocks.1.motion_modules.1": 1,
        "up_blocks.2.motion_modules.0": 1,
        "up_blocks.2.motion_modules.1": 1,
    }


def test_trap_temporal_layers():
    # As above: with DeepCache 0.90 of I2VGenXL's work remains.
    case = CASES["i2vgen-xl"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    for kind in ("resnets", "temp_convs", "attentions", "temp_attentions"):
        assert layers_run(case, pipe, 0, kind) == {f"up_blocks.1.{kind}.2": 1}


def test_trap_audioldm2():
    # It has several attentions for each resnet.
    case = CASES["audioldm2"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    block = pipe.unet.up_blocks[0]
    each = len(block.attentions) // len(block.resnets)
    assert (each, len(block.resnets)) == (3, 2)
    # Two resnets of the upper level, and one of the lower with all its attentions.
    assert layers_run(case, pipe, 2, "resnets") == {
        "down_blocks.0.resnets.0": 1,
        "up_blocks.0.resnets.1": 1,
        "up_blocks.1.resnets.0": 1,
        "up_blocks.1.resnets.1": 1,
    }
    assert layers_run(case, pipe, 2, "attentions") == {
        f"up_blocks.0.attentions.{number}": 1 for number in range(3, 6)
    }


def test_trap_repeated_blocks():
    # Stable Cascade runs some blocks several times in one call: what counts is the last run.
    case = CASES["stable-cascade-decoder"]
    pipe = case.load()
    unet = pipe.decoder
    assert_exact(case, pipe, steps=1)
    with counted_calls(unet) as plain:
        case.run(pipe, steps=1)
    repeated = {level: plain[f"up_blocks.{level}.0"] for level in range(4)}
    assert repeated == {0: 3, 1: 3, 2: 2, 3: 2}
    with DeepCacheHelper(pipe, schedule=Uniform(10)), counted_calls(unet) as calls:
        case.run(pipe, steps=4)
    # Four calls, one of them in full.
    assert {level: calls[f"up_blocks.{level}.0"] for level in range(4)} == {0: 3, 1: 3, 2: 2, 3: 8}


@pytest.mark.parametrize("name", mostly_slow(["sag", "attend-and-excite", "ledits"], ["sag"]))
def test_trap_attention_maps(name):
    # They read attention maps of middle and deep blocks at each step; a shallow one would leave
    # them the maps of an earlier step.
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe) if name != "ledits" else None
    pipe = case.load()
    with told() as said, DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        made = case.run(pipe)
    assert any("the attention processor" in each for each in said)
    if name == "ledits":  # its inversion, where nobody reads maps yet, is shallow
        assert counted(helper) == (7, 3)
    else:
        assert torch.equal(made, plain)
        assert helper.stats.shallow_calls == 0
