"""Modular pipelines of SDXL: found and lost U-Nets, guiders that call the U-Net several times a
step and leave layers out of some of the calls, blocks of somebody's own, offloading.

Image-to-image, inpainting and ControlNets are cases of the zoo.
"""

import functools
import weakref
from itertools import pairwise

import pytest
import torch
from builders.marks import mostly_slow
from builders.versions_needed import has

if not has("diffusers", "0.42"):
    pytest.skip("modular pipelines of given parts need diffusers 0.42", allow_module_level=True)

from builders.cases import CASES, PROMPT
from builders.copies import kept
from builders.modular import GUIDERS, modular_sdxl, run_modular
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import counted_calls, layout
from diffusers import ComponentsManager, LayerSkipConfig, StableDiffusionXLAutoBlocks
from diffusers.hooks import HookRegistry, apply_layer_skip
from diffusers.modular_pipelines.components_manager import CustomOffloadHook
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser
from diffusers.utils.torch_utils import TorchDeviceBackend

from deepcache_patch import (
    OUTPUT,
    AlreadyEnabledError,
    DeepCacheHelper,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.running.pipeline.callers import Callers

STEPS = 8
BRANCHES = pytest.mark.parametrize("branch", mostly_slow([OUTPUT, 0, 3]))

load = kept(modular_sdxl)
run = functools.partial(
    run_modular, defaults={**PROMPT, "height": 16, "width": 16}, guider=GUIDERS["cfg"], steps=STEPS
)


def unet_of_sdxl():
    return CASES["sdxl"].load().unet


#: What runs in full and what shallow, of 8 steps at interval 3; calls of the plain pipeline.
CALLS = {
    "cfg": (6, 10),
    "cfg-midway": (5, 7),
    "apg": (6, 10),
    "zero-star": (6, 10),
    "seg": (9, 14),
    "pag": (9, 14),
    "pag-midway": (8, 11),
    "slg": (9, 14),
    "slg-midway": (8, 11),
    "slg-first": (8, 11),
    "slg-longer": (8, 11),
}

#: One that guides alone, and one that leaves layers out, some of which are kept at branch 3.
QUICK = {("pag", 3)}


@pytest.mark.parametrize(
    ("name", "branch"),
    mostly_slow([(name, branch) for branch in (OUTPUT, 3) for name in GUIDERS], QUICK),
)
def test_with_a_guider_it_is_exact_at_interval_1_repeatable_and_undone(name, branch):
    pipe, its_run = load(), functools.partial(run, guider=GUIDERS[name])
    plain = its_run(pipe)
    as_it_was = layout(pipe.unet)
    with DeepCacheHelper(pipe, schedule=Uniform(1, branch)) as helper:
        assert torch.equal(its_run(pipe), plain)
    calls = helper.stats.full_calls
    with DeepCacheHelper(pipe, schedule=Uniform(3, branch)) as helper:
        first = its_run(pipe)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == CALLS[name]
        assert torch.equal(its_run(pipe), first)
        assert not torch.equal(its_run(pipe, seed=1), first)
    assert sum(CALLS[name]) == calls
    assert not torch.equal(first, plain)
    assert (first - plain).abs().mean() < 0.05
    assert torch.equal(its_run(pipe), plain)
    assert layout(pipe.unet) == as_it_was


# --- layers that are left out of some calls ---------------------------------------------------


SKIPS = LayerSkipConfig(indices=[0], fqn="mid_block.attentions.0.transformer_blocks")


def in_turn(unet, steps):
    """A loop whose steps list calls: "p" is plain, "h" has a layer left out. All outputs."""
    arguments, made = inputs2d_condition(), []
    timesteps = torch.arange(len(steps), 0, -1) * 100
    for timestep, calls in zip(timesteps, steps, strict=True):
        for kind in calls:
            if kind == "h":
                apply_layer_skip(unet, SKIPS)
            with torch.no_grad(), counted_calls(unet) as ran:
                made.append(unet(**arguments | {"timestep": timestep}).sample)
            made[-1].in_full = bool(ran["mid_block"])
            if kind == "h":
                HookRegistry.check_if_exists_or_initialize(unet).remove_hook("layer_skip_hook")
    return made


@BRANCHES
@pytest.mark.parametrize(
    "steps", [("ph", "hp"), ("ph", "h"), ("hp", "p"), ("p", "h"), ("ph", "ph", "hp", "h")]
)
def test_what_a_call_recorded_with_layers_left_out_is_never_replayed_without(steps, branch):
    # The prompt is the same, so the order said which is which.
    expected = in_turn(unet2d_condition(), steps)
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(10, branch), replay="reuse"):
        made = in_turn(unet, steps)
    latest, kinds = {}, "".join(steps)
    for kind, output, uncut in zip(kinds, made, expected, strict=True):
        if output.in_full:
            assert torch.equal(output, uncut)
            latest[kind] = uncut
        elif branch == OUTPUT:
            assert torch.equal(output, latest[kind])
    assert [each.in_full for each in made].count(True) >= len(set(kinds))
    assert not torch.equal(expected[0], expected[kinds.index("h" if kinds[0] == "p" else "p")])


# --- components that come, go, and are others -------------------------------------------------


def test_a_unet_that_is_not_there_yet_is_asked_for():
    pipe = load()
    unet = pipe.unet
    pipe.update_components(unet=None)
    with pytest.raises(UnsupportedModelError) as refused:
        DeepCacheHelper(pipe)
    assert "its unet is not there yet: call pipe.load_components('unet')" in str(refused.value)
    assert "pipe.update_components(unet=...)" in str(refused.value)
    pipe.update_components(unet=unet)
    with DeepCacheHelper(pipe, schedule=Uniform(3)) as helper:
        run(pipe)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (6, 10)


def test_an_ordinary_pipeline_without_its_unet_is_told_how_to_get_one():
    pipe = CASES["sdxl"].load()
    pipe.unet = None
    with pytest.raises(UnsupportedModelError, match=r"its unet is None: give it one, pipe\.unet ="):
        DeepCacheHelper(pipe)


def test_a_unet_that_was_replaced_or_unloaded_is_no_longer_helped_until_enabled_anew():
    pipe = load()
    old, new = pipe.unet, unet_of_sdxl()
    before = layout(old)
    plain = run(load(), steps=4)
    helper = DeepCacheHelper(pipe, schedule=Uniform(3)).enable()
    expected = run(pipe, steps=4)
    pipe.update_components(unet=new)
    assert not helper.enabled
    assert torch.equal(run(pipe, steps=4), plain)
    helper.enable()
    assert helper.enabled
    assert layout(old) == before
    assert torch.equal(run(pipe, steps=4), expected)
    pipe.unload_components("unet")
    assert not helper.enabled
    with pytest.raises(UnsupportedModelError, match="not there yet"):
        helper.enable()
    helper.disable()
    pipe.update_components(unet=old)
    assert torch.equal(run(pipe, steps=4), plain)


def test_a_scheduler_that_comes_later_drives_the_loop():
    pipe = load()
    scheduler = pipe.scheduler
    pipe.update_components(scheduler=None)
    helper = DeepCacheHelper(pipe, schedule=Uniform(3)).enable()
    pipe.update_components(scheduler=type(scheduler).from_config(scheduler.config))
    run(pipe)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (6, 10)
    assert str(helper.plan(STEPS)) == "F··F··F·"
    helper.disable()


def test_a_modular_pipeline_and_an_ordinary_one_share_a_unet_under_one_helper():
    ordinary = CASES["sdxl"].load()
    pipe = modular_sdxl(ordinary.components)
    with DeepCacheHelper(pipe, schedule=Uniform(3)) as helper:
        with pytest.raises(AlreadyEnabledError):
            DeepCacheHelper(ordinary).enable()
        expected = run(pipe)
        CASES["sdxl"].run(ordinary)
        assert torch.equal(run(pipe), expected)
    assert helper.stats.generations == 3


def test_the_helper_keeps_no_modular_pipeline_alive():
    pipe = load()
    reference = weakref.ref(pipe)
    DeepCacheHelper(pipe).enable()
    del pipe
    assert reference() is None


# --- whose code runs the loop -----------------------------------------------------------------


class OwnDenoiser(StableDiffusionXLLoopDenoiser):
    """A block of somebody's own, which calls the U-Net itself, without guidance.

    It asks those in `asked` who calls.
    """

    def __init__(self):
        super().__init__()
        self.asked, self.told = [], []

    @torch.no_grad()
    def __call__(self, components, block_state, i, t):
        self.told += [callers.are_pipelines() for callers in self.asked]
        given = {"text_embeds": "pooled_prompt_embeds", "time_ids": "add_time_ids"}
        block_state.noise_pred = components.unet(
            block_state.scaled_latents,
            t,
            encoder_hidden_states=block_state.prompt_embeds,
            added_cond_kwargs={name: block_state[its] for name, its in given.items()},
        ).sample
        return components, block_state


def with_own_denoiser():
    """A pipeline with that block, and the block."""
    blocks, own = StableDiffusionXLAutoBlocks(), OwnDenoiser()
    todo = [blocks]
    for each in todo:  # grows
        inner = getattr(each, "sub_blocks", {})
        if type(inner.get("denoiser")) is StableDiffusionXLLoopDenoiser:
            inner["denoiser"] = own
        todo += inner.values()
    return modular_sdxl(blocks=blocks), own


def test_blocks_of_somebodys_own_run_a_loop_as_those_of_diffusers_do():
    pipe, own = with_own_denoiser()
    own.asked = [Callers(pipe), Callers(load())]
    plain = run(pipe, steps=1)
    assert own.told == [True, False]
    own.asked = []
    with DeepCacheHelper(pipe, schedule=Uniform(1)):
        assert torch.equal(run(pipe, steps=1), plain)
    with DeepCacheHelper(pipe, schedule=Uniform(3)) as helper:
        run(pipe)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 5)


# --- beside the pictures ----------------------------------------------------------------------


def test_what_is_said_of_a_modular_pipeline_is_what_is_said_of_another():
    pipe, ordinary = load(), CASES["sdxl"].load()
    helper = DeepCacheHelper(pipe, interval=3)
    its = DeepCacheHelper(ordinary, interval=3)
    assert helper.plan(20) == its.plan(20)
    assert helper.plan(20, strength=0.5) == its.plan(20, strength=0.5)
    assert helper.plan() == its.plan()
    assert str(helper.branches) == str(its.branches)
    assert str(helper) == str(its).replace("XLPipeline", "XLModularPipeline")
    assert helper.enable().attached == {"unet": "UNet2DConditionModel"}
    helper.disable()


def test_a_modular_pipeline_is_compared_with_itself():
    pytest.importorskip("skimage")
    pipe = load()
    helper = DeepCacheHelper(pipe, interval=3)
    outcome = helper.compare(**PROMPT, seeds=[0, 1], num_inference_steps=12, height=16, width=16)
    assert len(outcome.plain) == len(outcome.cached) == len(outcome.psnr) == 2
    assert outcome.full_calls + outcome.shallow_calls == 24
    assert outcome.fewer.steps == outcome.full_calls // 2
    assert not helper.enabled
    with pytest.raises(TypeError, match=r"ModularPipeline does not take size.*; it takes prompt, "):
        helper.compare(**PROMPT, size=3)


# --- offloading -------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_manager_that_offloads_leaves_every_picture_as_it_is(monkeypatch):
    # It asks how much memory the device has left, which a CPU does not say.
    monkeypatch.setattr(TorchDeviceBackend, "mem_get_info", lambda _: (0, 0))
    plain_pipe = load()
    plain = run(plain_pipe, steps=4)
    with DeepCacheHelper(plain_pipe, schedule=Uniform(3, 0)):
        expected = run(plain_pipe, steps=4)
    manager = ComponentsManager()
    pipe = modular_sdxl(manager=manager)
    helper = DeepCacheHelper(pipe, schedule=Uniform(3, 0)).enable()
    for _ in range(2):
        manager.enable_auto_cpu_offload(device="cpu")
        assert isinstance(pipe.unet._hf_hook, CustomOffloadHook)
        assert torch.equal(run(pipe, steps=4), expected)
    helper.disable()
    assert torch.equal(run(pipe, steps=4), plain)
    helper.enable()
    manager.disable_auto_cpu_offload()
    assert torch.equal(run(pipe, steps=4), expected)
    helper.disable()


def test_a_manager_brings_the_whole_unet_before_a_part_of_it_is_left_out(monkeypatch):
    # The hook moves what it finds in the call, and then takes the first weight for all of them.
    monkeypatch.setattr(TorchDeviceBackend, "mem_get_info", lambda _: (0, 0))
    manager = ComponentsManager()
    pipe = modular_sdxl(manager=manager)
    manager.enable_auto_cpu_offload(device="cpu")
    moved, to = [], pipe.unet.to

    def count(*where):
        moved.append(len([*pipe.unet.modules()]))
        return to(*where)

    monkeypatch.setitem(vars(pipe.unet), "to", count)
    with DeepCacheHelper(pipe, schedule=Uniform(3, 0)):
        run(pipe)
    whole = len([*pipe.unet.modules()])
    # In each shallow call the hook itself comes after that, and finds less.
    parts = [before for before, each in pairwise(moved) if each < whole]
    assert parts == 10 * [whole]
