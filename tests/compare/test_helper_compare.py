"""`helper.compare`: every kind of pipeline, what ran, what the bars say, and LPIPS."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from builders.cases import CASES, PROMPT, picture
from builders.kinds_of_calls import kinds_of_calls
from builders.unets import UNETS
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

from deepcache_patch import (
    DeepCacheHelper,
    DeepCacheWarning,
    Explicit,
    InvalidSettingError,
    Uniform,
)
from deepcache_patch.compare.run import compare
from deepcache_patch.measuring.generation import calls_of, labelled_progress
from deepcache_patch.measuring.media import Sound
from deepcache_patch.measuring.similarity import lpips, snr

pytestmark = pytest.mark.usefixtures("kept_tables")


@pytest.fixture
def deprecated_pipelines() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of themselves
        yield


# --- what ran -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "strip"),
    [
        (Uniform(3), "F··F··F"),
        (Uniform(1), "FFFFFFF"),
        (Explicit(["full", 2, 0, "full", 1, 1, 0]), "F20F110"),
        # Step 0 runs in full whatever the plan says.
        (Explicit([0, 0, "full", 0, 0, 0, 0]), "F·F····"),
    ],
    ids=["uniform", "in-full", "branches", "not-as-planned"],
)
def test_the_plan_is_the_one_that_ran(schedule: Any, strip: str) -> None:
    helper = DeepCacheHelper(CASES["sd"].load(), schedule=schedule)
    outcome = helper.compare(num_inference_steps=7, **PROMPT)
    assert (list(outcome.plans), str(outcome.plan)) == (["unet"], strip)
    assert outcome.full_calls == strip.count("F")
    assert outcome.to_dict()["figures"]["plans"] == {"unet": strip}
    assert outcome.table().splitlines()[-1] == f"plan            {strip}"


def test_as_many_pictures_are_made_as_there_are_embeddings() -> None:
    # One picture for two prompts was refused, though nobody had given seeds.
    pipe = CASES["sd"].load()
    embeds, _ = pipe.encode_prompt(["a hen", "a cat"], "cpu", 1, False)
    call = {"num_inference_steps": 4, "guidance_scale": 1.0, "fewer_steps": False}
    helper = DeepCacheHelper(pipe, schedule=Uniform(2))
    outcome = helper.compare(prompt_embeds=embeds, **call)
    assert outcome.about["seeds"] == [0, 1]
    by_text = helper.compare(prompt=["a hen", "a cat"], **call)
    for one, other in zip(outcome.plain, by_text.plain, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("repeats", [0, 1.5])
def test_repeats_that_cannot_be_are_refused_before_anything_runs(repeats: Any) -> None:
    helper = DeepCacheHelper(CASES["sd"].load())
    with kinds_of_calls(helper.pipe.unet) as kinds:
        said = f"repeats must be an integer of at least 1, not {repeats}"
        with pytest.raises(InvalidSettingError, match=said):
            helper.compare(num_inference_steps=4, repeats=repeats, **PROMPT)
    assert kinds == []


def test_nothing_is_left_on_the_denoiser() -> None:
    pipe = CASES["sd"].load()
    before = {name: repr(value) for name, value in vars(pipe.unet).items()}
    DeepCacheHelper(pipe, schedule=Uniform()).compare(num_inference_steps=4, **PROMPT)
    assert {name: repr(value) for name, value in vars(pipe.unet).items()} == before


@pytest.mark.slow
def test_importing_the_package_needs_none_of_what_a_comparison_needs() -> None:
    absent = (
        "PIL.ImageDraw",
        "skimage",
        "deepcache_patch.compare.run",
        "deepcache_patch.compare.outcome",
    )
    program = f"""
import sys, torch, diffusers
before = set(sys.modules)
import deepcache_patch
print([name for name in {absent} if name in set(sys.modules) - before])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr


# --- other kinds of pipelines -------------------------------------------------------------------


def check_kind(name: str, kind: str, **call: Any) -> Any:
    """Both seeds one by one, and in full everything is identical."""
    pipe = zoo.CASES[name].load()
    outcome = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(
        seeds=[3, 4], num_inference_steps=5, **call
    )
    assert (outcome.kind, len(outcome.plain), outcome.identical) == (kind, 2, 0)
    assert str(outcome.plan) == "F··F·"
    assert (outcome.full_calls, outcome.shallow_calls) == (4, 6)
    assert [time.calls for time in outcome.plain_times] == [10]
    # Three steps of five are the least that cost no less; each of the two seeds makes them.
    assert (outcome.fewer.steps, [time.calls for time in outcome.fewer.times]) == (3, [6])
    assert [as_array(each).shape for each in outcome.fewer.results] == [
        as_array(each).shape for each in outcome.plain
    ]
    by_hand = compared(pipe, num_inference_steps=3, **call)
    assert as_array(outcome.fewer.results[1]).tobytes() == as_array(by_hand).tobytes()
    helper = DeepCacheHelper(pipe, schedule=Uniform(1))
    again = helper.compare(seeds=[4], num_inference_steps=5, **call)
    assert (again.identical, again.fewer) == (1, None)
    # Each seed makes what it makes alone.
    assert as_array(again.plain[0]).tobytes() == as_array(outcome.plain[1]).tobytes()
    return outcome


def compared(pipe: Any, **call: Any) -> Any:
    """What the plain pipeline makes of seed 4."""
    helper = DeepCacheHelper(pipe, schedule=Uniform(1))
    return helper.compare(seeds=[4], fewer_steps=False, **call).plain[0]


def as_array(result: Any) -> np.ndarray:
    return result.samples if isinstance(result, Sound) else np.asarray([*map(np.asarray, result)])


@pytest.mark.usefixtures("deprecated_pipelines")
def test_a_pipeline_for_videos() -> None:
    outcome = check_kind("animatediff", "videos", num_frames=4, **PROMPT)
    assert [len(video) for video in outcome.plain + outcome.cached] == [4] * 4
    pairs = zip(outcome.plain[0], outcome.cached[0], strict=True)
    errors = [np.square(np.subtract(*map(np.float64, pair))).mean() for pair in pairs]
    by_hand = np.mean([10 * math.log10(255**2 / error) for error in errors])
    # Measured before the pictures are rounded to 8 bits.
    assert outcome.psnr[0] == pytest.approx(by_hand, abs=0.5)
    assert 0.9 < outcome.ssim[0] < 1
    assert outcome.snr is None
    grid = outcome.grid()
    assert grid.width > 6 * 160  # three frames of each of two videos
    assert grid.height > 5 * 160
    assert len(outcome.fewer.psnr) == len(outcome.fewer.ssim) == 2


@pytest.mark.usefixtures("deprecated_pipelines")
def test_a_pipeline_for_sounds() -> None:
    outcome = check_kind("audioldm", "sounds", **PROMPT)
    assert [sound.rate for sound in outcome.plain] == [16000, 16000]
    assert outcome.psnr is outcome.ssim is outcome.lpips is None
    plain, cached = (row[0].samples.astype(np.float64) for row in (outcome.plain, outcome.cached))
    by_hand = 10 * math.log10((plain**2).sum() / ((plain - cached) ** 2).sum())
    assert outcome.snr[0] == pytest.approx(by_hand)
    assert "SNR" in outcome.table()
    figures = outcome.to_dict()["figures"]
    assert (figures["kind"], figures["psnr"]) == ("sounds", None)
    assert figures["snr_each"] == list(outcome.snr)
    grid = outcome.grid()
    assert grid.width > 2 * 640
    height = outcome.plain[0].waveform().height
    assert 3 * height < grid.height < 5 * height  # plain, helper, fewer steps: no differences
    assert (outcome.fewer.psnr, len(outcome.fewer.snr)) == (None, 2)


@pytest.mark.usefixtures("deprecated_pipelines")
def test_a_pipeline_that_is_made_of_others_and_has_its_u_net_by_another_name() -> None:
    pipe = zoo.CASES["wuerstchen-combined"].load()
    outcome = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(
        num_inference_steps=5, prior_num_inference_steps=2, height=128, width=128, **PROMPT
    )
    assert {name: str(plan) for name, plan in outcome.plans.items()} == {"decoder": "F··F·"}
    assert outcome.about["scheduler"]


@pytest.mark.usefixtures("deprecated_pipelines")
def test_two_u_nets_have_a_plan_each() -> None:
    pipe = zoo.CASES["stable-cascade-combined"].load()
    steps = {"num_inference_steps": 4, "prior_num_inference_steps": 5}
    outcome = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(
        height=128, width=128, **steps, **PROMPT
    )
    plans = {name: str(plan) for name, plan in outcome.plans.items()}
    assert plans == {"prior_prior": "F··F·", "decoder": "F··F"}
    assert outcome.table().splitlines()[-1] == "plan of prior_prior F··F·"
    assert outcome.plain_times[0].calls == 9
    assert (outcome.work, outcome.work_speedup, outcome.fewer) == (None, None, None)
    assert outcome.fewer_left_out == "StableCascadeCombinedPipeline has several U-Nets"


def test_a_bare_u_net_is_refused() -> None:
    with pytest.raises(TypeError, match="a comparison calls a pipeline; UNet2DConditionModel is"):
        DeepCacheHelper(UNETS["condition-2-layers"].build(), schedule=Uniform()).compare()


class VideoPipeline:
    """Makes one video in a call."""

    def __call__(
        self,
        prompt: Any,
        negative_prompt: Any = None,
        num_frames: int = 4,
        output_type: str = "pil",
        generator: Any = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a", "a", "a", "a"]),
        (["a", "c"], ["a", "a", "c", "c"]),
        ({0: "a", 2: "c"}, [{0: "a", 2: "c"}] * 4),
    ],
    ids=["one", "two", "of-frames"],
)
def test_videos_are_made_one_by_one(prompt: Any, prompts: list[Any]) -> None:
    call = {"prompt": prompt, "negative_prompt": "b"}
    assert calls_of(VideoPipeline(), call, range(5, 9)) == [
        ({"prompt": each, "negative_prompt": "b", "output_type": "np"}, (seed,))
        for each, seed in zip(prompts, range(5, 9), strict=True)
    ]


class AnimationPipeline:
    """Makes one video from a picture."""

    def __call__(self, image: Any, num_frames: int = 4, generator: Any = None) -> None: ...


def test_each_video_is_made_with_what_was_given_for_its_prompt() -> None:
    # Only prompts were shared out: diffusers refused a text with a list of negative prompts.
    call = {"prompt": ["a", "c"], "negative_prompt": ["b", "d"]}
    first, second = (
        {"prompt": text, "negative_prompt": other, "output_type": "np"}
        for text, other in (("a", "b"), ("c", "d"))
    )
    assert calls_of(VideoPipeline(), call, range(4)) == [
        (first, (0,)),
        (first, (1,)),
        (second, (2,)),
        (second, (3,)),
    ]


def test_without_a_prompt_videos_share_the_images() -> None:
    calls = calls_of(AnimationPipeline(), {"image": ["a", "b"]}, range(4))
    assert calls == [({"image": each}, (seed,)) for seed, each in enumerate("aabb")]
    with pytest.raises(ValueError, match="4 pictures cannot be shared out evenly to 3 images"):
        calls_of(AnimationPipeline(), {"image": ["a", "b", "c"]}, range(4))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("animatediff", {"prompt": ["a", "b"], "negative_prompt": ["c", "d"], "num_frames": 4}),
        ("stable-video-diffusion", {"image": [picture(), picture(seed=1)], "num_frames": 2}),
        ("sd-image-variation", {"image": [picture(), picture(seed=1)]}),
    ],
)
def test_each_prompt_or_without_any_each_image_has_a_seed(name: str, call: Any) -> None:
    # Both images were in each of two calls: "made 2 videos for 1 seeds".
    pipe = {**CASES, **zoo.CASES}[name].load()
    outcome = DeepCacheHelper(pipe, schedule=Uniform()).compare(
        num_inference_steps=2, fewer_steps=False, height=32, width=32, **call
    )
    assert outcome.about["seeds"] == [0, 1]
    assert len(outcome.plain) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"prompt": ["a"] * 3}, ValueError, "4 pictures cannot be shared out evenly to 3 prompts"),
        ({"prompt": "a", "steps": 1}, TypeError, "VideoPipeline does not take steps"),
        ({}, TypeError, "VideoPipeline needs prompt="),
    ],
)
def test_arguments_for_videos_that_do_not_fit_are_named(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calls_of(VideoPipeline(), call, range(4))


def test_who_gives_steps_is_told_of_num_inference_steps() -> None:
    # "Did you mean timesteps?": by its letters that is nearer.
    said = r"StableDiffusionPipeline does not take steps \(did you mean num_inference_steps\?\)"
    with pytest.raises(TypeError, match=said):
        calls_of(CASES["sd"].load(), {"prompt": "a", "steps": 1}, range(2))


# --- progress -----------------------------------------------------------------------------------


def test_the_bars_say_which_generation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = CASES["ddpm"].load()
    pipe.set_progress_bar_config()
    helper = DeepCacheHelper(pipe, schedule="auto")
    assert compare(helper, num_inference_steps=9).about["replay"] is None
    err = capsys.readouterr().err
    labels = ("warm-up", "calibration", "plain", "helper")
    found = [err.find(f"{label}: 100%") for label in labels]
    assert -1 not in found
    assert found == sorted(found)


def test_nothing_runs_to_learn_where_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    # A generation in full was made for `auto` also where it goes by the default's plan.
    pipe = CASES["ddpm"].load()
    pipe.set_progress_bar_config()
    DeepCacheHelper(pipe, schedule="auto", branch=0).compare(num_inference_steps=9)
    assert "calibration" not in capsys.readouterr().err


@pytest.mark.usefixtures("deprecated_pipelines")
def test_the_bars_number_what_is_made_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = zoo.CASES["dance-diffusion"].load()
    pipe.set_progress_bar_config()
    DeepCacheHelper(pipe, schedule=Uniform()).compare(seeds=range(2), num_inference_steps=2)
    err = capsys.readouterr().err
    for label in ("warm-up", "plain 1/2", "plain 2/2", "helper 1/2", "helper 2/2"):
        assert f"{label}: 100%" in err


def test_the_label_reaches_the_pipelines_that_one_is_made_of() -> None:
    outer, inner = (CASES["ddpm"].load() for _ in range(2))
    inner.set_progress_bar_config(disable=True)
    del outer._progress_bar_config
    outer.inner_pipe = inner
    # Such a pipeline hands the settings on, and keeps none.
    outer.set_progress_bar_config = inner.set_progress_bar_config
    assert isinstance(outer, DiffusionPipeline)
    with labelled_progress(outer, "plain"):
        assert inner._progress_bar_config == {"disable": True, "desc": "plain"}
    assert inner._progress_bar_config == {"disable": True}
    assert "_progress_bar_config" not in vars(outer)


# --- LPIPS and SNR ------------------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of the package: the mean difference of the tensors, and what it was asked."""
    seen = SimpleNamespace(made=[], shapes=[])

    class LPIPS(torch.nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            seen.made.append(options)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            seen.shapes.append(tuple(first.shape))
            assert first.min() >= -1
            assert first.max() <= 1
            return (first - second).abs().mean().reshape(1, 1, 1, 1)

    module = ModuleType("lpips")
    module.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    return seen


def test_lpips_gets_batches_from_minus_one_to_one(stub: SimpleNamespace) -> None:
    distance = lpips()
    assert stub.made == [{"net": "alex", "verbose": False}]
    black, grey = np.zeros((40, 50, 1), np.float32), np.full((40, 50, 1), 0.5, np.float32)
    assert distance(black, grey) == 1.0  # 0..1 is half as far as -1..1
    assert stub.shapes == [(1, 3, 40, 50)]


def test_a_comparison_has_lpips_where_the_package_is_there(stub: SimpleNamespace) -> None:
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    outcome = helper.compare(seeds=[0, 1], num_inference_steps=4, height=32, width=40, **PROMPT)
    assert (len(outcome.lpips), len(outcome.fewer.lpips)) == (2, 2)
    assert stub.shapes == [(1, 3, 32, 40)] * 4
    plain, cached = (
        np.asarray(row[0], np.float64) / 255 for row in (outcome.plain, outcome.cached)
    )
    # Two pictures that were rounded to 8 bits.
    assert outcome.lpips[0] == pytest.approx(2 * np.abs(plain - cached).mean(), abs=2 / 255)
    assert outcome.to_dict()["figures"]["lpips_each"] == list(outcome.lpips)
    mean = f"{np.mean(outcome.lpips):.4f}"
    assert {row[0]: row[2] for row in outcome.rows()}["LPIPS"] == mean
    small = helper.compare(num_inference_steps=2, height=16, width=40, **PROMPT)
    assert (small.lpips, len(stub.shapes)) == (None, 4)


def test_there_is_no_lpips_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert lpips() is None


def test_a_package_that_fails_is_left_out_with_a_warning(
    stub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise OSError("cannot fetch alexnet.pth")

    monkeypatch.setattr(sys.modules["lpips"], "LPIPS", fail)
    with pytest.warns(DeepCacheWarning, match="LPIPS is left out.*cannot fetch alexnet.pth"):
        assert lpips() is None


def test_snr_follows_from_the_sums_of_squares() -> None:
    signal = np.ones((2, 50), np.float32)
    assert snr(signal, signal * np.float32(1.1)) == pytest.approx(20.0, abs=1e-5)
    assert snr(signal, signal.copy()) == math.inf
    assert snr(np.zeros(4), np.ones(4)) == -math.inf


def test_the_spacing_of_the_noise_levels_stands_in_the_title() -> None:
    pipe = CASES["sd"].load()
    config = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)
    helper = DeepCacheHelper(pipe, schedule=Uniform(2))
    outcome = helper.compare(num_inference_steps=2, fewer_steps=False, **PROMPT)
    assert outcome.about["scheduler"] == "DPMSolverMultistep"
    assert " · DPMSolverMultistep Karras · " in outcome.title
