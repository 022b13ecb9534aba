"""Several pipelines with one U-Net, and U-Nets with one ControlNet: helpers take turns."""

import functools

import pytest
import torch
from builders.cases import EDIT, PAINT, PROMPT, run_pipeline
from builders.changes import FULL, SD, SDXL, SHALLOW, STEPS
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from builders.unets import unet2d_condition
from conftest import counted_calls, trace
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from zoo import CASES
from zoo.control import HINT, controlnet

from deepcache_patch import AlreadyEnabledError, DeepCacheHelper, Extrapolate, Uniform

# What peft says when a second adapter is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


def shared(case, other, **parts):
    pipe = case.load()
    sharing = other.from_pipe(pipe, **parts)
    sharing.set_progress_bar_config(disable=True)
    assert sharing.unet is pipe.unet
    return pipe, sharing


def runs(defaults):
    return functools.partial(run_pipeline, defaults=defaults, steps=STEPS)


#: What else can be made of a pipeline, and how it is run.
SHARING = {
    "img2img": (SD, StableDiffusionImg2ImgPipeline, runs(EDIT)),
    "img2img-strength": (SD, StableDiffusionImg2ImgPipeline, runs(EDIT | {"strength": 0.6})),
    "inpaint": (SD, StableDiffusionInpaintPipeline, runs(PAINT)),
    "pag": (SD, StableDiffusionPAGPipeline, runs(PROMPT | {"pag_scale": 30.0})),
    "sdxl-img2img": (SDXL, StableDiffusionXLImg2ImgPipeline, runs(EDIT | {"strength": 0.8})),
}


@pytest.mark.parametrize(
    ("name", "scheduler"),
    mostly_slow(
        [
            *(pytest.param(name, "same", id=name) for name in SHARING),
            ("img2img-strength", "heun"),
            ("inpaint", "dpm-multistep"),
        ],
        [("inpaint", "dpm-multistep")],
    ),
)
def test_pipelines_on_one_unet_take_turns_under_one_helper(name, scheduler):
    case, kind, run = SHARING[name]
    # How far a line is followed depends on the noise at each step, and so on the scheduler.
    replay = "extrapolate" if scheduler == "same" else "reuse"

    def both():
        pipe, other = shared(case, kind)
        if scheduler != "same":
            with_scheduler(other, scheduler)
        return pipe, other

    pipe, other = both()
    plain = case.run(pipe, steps=STEPS)
    plain_other = run(other)
    with DeepCacheHelper(pipe, schedule=Uniform(), replay=replay):
        expected = case.run(pipe, steps=STEPS)
    with DeepCacheHelper(other, schedule=Uniform(), replay=replay) as its:
        expected_other = run(other)
    assert not torch.equal(expected_other, plain_other)
    assert its.stats.shallow_calls > 0

    pipe, other = both()
    before = trace(pipe.unet)
    helper = DeepCacheHelper(pipe, schedule=Uniform(), replay=replay).enable()
    for _ in range(2):
        assert torch.equal(case.run(pipe, steps=STEPS), expected)
        assert torch.equal(run(other), expected_other)
    assert helper.stats.generations == 4
    assert helper.stats.shallow_calls == 2 * (SHALLOW + its.stats.shallow_calls)
    helper.disable()
    assert torch.equal(case.run(pipe, steps=STEPS), plain)
    assert torch.equal(run(other), plain_other)
    if name != "pag":  # puts its processors in place and the others back
        assert trace(pipe.unet) == before


class Levels(Extrapolate):
    """Keeps the noise levels that it is told."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "told", [])

    def feature(self, step, recorded, levels):
        self.told.append(levels)
        return super().feature(step, recorded, levels)


def test_the_noise_levels_of_another_pipelines_scheduler_are_known():
    # Without them an extrapolation is not damped: with few steps it goes too far.
    pipe, other = shared(SD, StableDiffusionInpaintPipeline)
    with_scheduler(other, "dpm-multistep")
    replays = Levels(), Levels()
    for replay, owner in zip(replays, (other, pipe), strict=True):
        with DeepCacheHelper(owner, schedule=Uniform(), replay=replay):
            runs(PAINT)(other)
    assert len(replays[0].told) == SHALLOW
    assert None not in replays[0].told
    for expected, told in zip(replays[0].told, replays[1].told, strict=True):
        # One scheduler interpolates its sigmas, the other looks them up.
        assert told is not None
        assert told == pytest.approx(expected, abs=1e-3)


def test_a_second_helper_on_a_shared_unet_is_refused_until_the_first_is_disabled():
    pipe, other = shared(SD, StableDiffusionImg2ImgPipeline)
    run = runs(EDIT)
    before = trace(pipe.unet)
    first, second = (
        DeepCacheHelper(pipe, schedule=Uniform()),
        DeepCacheHelper(other, schedule=Uniform(2)),
    )
    with first:
        expected = SD.run(pipe, steps=STEPS)
        with pytest.raises(AlreadyEnabledError):
            second.enable()
        assert not second.enabled
        second.disable()  # takes nothing away from the first
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)
    assert trace(pipe.unet) == before
    with second:
        run(other)
        assert (second.stats.full_calls, second.stats.shallow_calls) == (2, 2)  # 4 of 5 steps
    assert trace(pipe.unet) == before


@pytest.mark.parametrize("enabled", mostly_slow(["text-to-image", "controlnet"], 1))
def test_a_controlnet_pipeline_on_a_shared_unet(enabled):
    def both():
        pipe, other = shared(
            SD, StableDiffusionControlNetPipeline, controlnet=controlnet(unet2d_condition())
        )
        return pipe, other

    run = runs(PROMPT | {"image": HINT})
    pipe, other = both()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = SD.run(pipe, steps=STEPS)
    with DeepCacheHelper(other, schedule=Uniform()):
        expected_other = run(other)

    pipe, other = both()
    traces = trace(other.unet), trace(other.controlnet)
    with DeepCacheHelper(
        pipe if enabled == "text-to-image" else other, schedule=Uniform()
    ) as helper:
        for _ in range(2):
            with counted_calls(other.controlnet) as calls:
                assert torch.equal(run(other), expected_other)
            # Only a helper of the pipeline that has it cuts the ControlNet.
            assert calls["mid_block"] == (FULL if enabled == "controlnet" else STEPS)
            assert torch.equal(SD.run(pipe, steps=STEPS), expected)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4 * FULL, 4 * SHALLOW)
    assert (trace(other.unet), trace(other.controlnet)) == traces


def test_two_unets_with_helpers_may_share_a_controlnet():
    # The second helper's patch went round the first one's, whose call came inside the cut.
    case = CASES["sd-controlnet"]
    fresh = case.load()
    with DeepCacheHelper(fresh, schedule=Uniform()):
        expected = [case.run(fresh, steps=STEPS, seed=seed) for seed in (0, 1)]
    first, second = case.load(), case.load()
    second.controlnet = first.controlnet
    before = trace(first.controlnet)
    with DeepCacheHelper(first, schedule=Uniform()) as helper:
        other = DeepCacheHelper(second, schedule=Uniform()).enable()
        for _ in range(2):
            assert torch.equal(case.run(first, steps=STEPS, seed=0), expected[0])
            assert torch.equal(case.run(second, steps=STEPS, seed=1), expected[1])
        assert helper.stats.shallow_calls == other.stats.shallow_calls == 2 * SHALLOW
    other.disable()
    assert trace(first.controlnet) == before
