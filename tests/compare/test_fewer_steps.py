"""Fewer steps at equal work, the third contestant of a comparison: how many steps there are, what
they make, where they are left out, and how they are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders.cases import CASES, PROMPT, picture
from builders.kinds_of_calls import kinds_of_calls
from builders.marks import mostly_slow
from builders.outcomes import ABOUT, fewer, flat, outcome
from builders.schedulers import with_scheduler
from diffusers import DDIMScheduler, DDPMPipeline, ImagePipelineOutput
from diffusers.schedulers import AysSchedules

from deepcache_patch import DeepCacheHelper, Explicit, Plan, Uniform
from deepcache_patch.compare import contest
from deepcache_patch.compare import fewer as fewer_steps
from deepcache_patch.compare.call_steps import timesteps_that_run
from deepcache_patch.compare.fewer import LeftOutError, full_calls_worth, steps_of_equal_work
from deepcache_patch.compare.grid import GAP, MARGIN
from deepcache_patch.inspection.branches import Branch, Branches
from deepcache_patch.measuring.similarity import psnr, ssim
from deepcache_patch.running.stats import Stats

pytestmark = pytest.mark.usefixtures("kept_tables")

# --- how many steps -----------------------------------------------------------------------------


class TwoCallsPipeline(DDPMPipeline):
    """Calls its U-Net twice in each step, as guidance without a batch does."""

    @torch.no_grad()
    def __call__(
        self, batch_size: int = 1, generator: Any = None, num_inference_steps: int = 50
    ) -> ImagePipelineOutput:
        sample = torch.randn(batch_size, 3, 16, 16, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            first, second = (self.unet(sample, timestep).sample for _ in range(2))
            output = 2 * first - second
            sample = self.scheduler.step(output, timestep, sample).prev_sample
        return ImagePipelineOutput((sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())


def two_calls() -> TwoCallsPipeline:
    pipe = CASES["ddpm"].load()
    return TwoCallsPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config))


def image_to_image() -> dict[str, Any]:
    return {**PROMPT, "image": picture(), "strength": 0.5}


@pytest.mark.parametrize(
    ("name", "scheduler", "call", "plain_calls", "steps", "calls", "a_step"),
    mostly_slow(
        [
            ("sd", "pndm", {"num_inference_steps": 12}, 13, 5, 6, 1),  # n + 1
            ("sd-img2img", "heun", {"num_inference_steps": 12}, 11, 6, 5, 2),
            ("sd", "ddim", {"num_inference_steps": 12}, 12, 5, 5, 1),
            ("sd", "heun", {"num_inference_steps": 12}, 23, 6, 11, 2),  # 2n - 1
            ("sd-img2img", "ddim", {"num_inference_steps": 20}, 10, 10, 5, 1),  # half of them run
            ("two-calls", None, {"num_inference_steps": 12}, 24, 6, 12, 2),
        ]
    ),
)
def test_the_third_run_makes_the_calls_that_cost_no_less(
    name: str,
    scheduler: str | None,
    call: Any,
    plain_calls: int,
    steps: int,
    calls: int,
    a_step: int,
) -> None:
    pipe = two_calls() if name == "two-calls" else CASES[name].load()
    if scheduler is not None:
        with_scheduler(pipe, scheduler)
        call = {**call, **(image_to_image() if name == "sd-img2img" else PROMPT)}
    helper = DeepCacheHelper(pipe, schedule=Uniform(3))
    with kinds_of_calls(pipe.unet) as kinds:
        made = helper.compare(seeds=[3], **call)
    each = 2 if name == "two-calls" else 1
    cached = "".join(("F" if entry == "full" else "s") * each for entry in made.plan)
    assert "".join(kinds).endswith("F" * plain_calls + cached + "F" * calls)
    assert made.plain_times[0].calls == plain_calls
    assert (made.fewer.steps, [time.calls for time in made.fewer.times]) == (steps, [calls])
    # One step less would cost less than the helper's generation.
    share = helper.branches[0].share
    assert made.work == (cached.count("F") + cached.count("s") * share) / plain_calls
    assert made.work_speedup == 1 / made.work
    assert made.fewer.work == calls / plain_calls
    assert made.fewer.work >= made.work > (calls - a_step) / plain_calls
    assert not helper.enabled


def test_the_level_at_the_end_is_no_step() -> None:
    # A list of 11 for 10 steps was called 11 steps.
    pipe = with_scheduler(CASES["sd"].load(), "euler")
    sigmas = AysSchedules["StableDiffusionSigmas"]
    outcome = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(sigmas=sigmas, **PROMPT)
    assert len(sigmas) == 11
    assert outcome.about["steps"] == len(outcome.plan) == outcome.plain_times[0].calls == 10


def test_it_makes_what_the_plain_pipeline_makes_with_so_many_steps() -> None:
    pipe = CASES["sd"].load()
    made = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(
        seeds=[3, 4], num_inference_steps=12, guidance_scale=3.0, **PROMPT
    )

    def by_hand(steps: int) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        arguments = {"num_images_per_prompt": 2, "guidance_scale": 3.0, "output_type": "np"}
        return pipe(num_inference_steps=steps, generator=generators, **arguments, **PROMPT).images

    plain, expected = by_hand(12), by_hand(5)
    assert made.fewer.steps == 5
    for result, array in zip(made.fewer.results, expected, strict=True):
        assert np.array_equal(np.asarray(result), (array * 255).round().astype(np.uint8))
    pairs = list(zip(plain, expected, strict=True))
    assert made.fewer.psnr == tuple(psnr(*pair) for pair in pairs)
    assert made.fewer.ssim == tuple(ssim(*pair) for pair in pairs)


def test_the_branches_of_a_plan_are_weighed_by_their_shares() -> None:
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, schedule=Explicit(["full", 2, 0, "full", 1, 1, 0]))
    made = helper.compare(num_inference_steps=7, **PROMPT)
    zero, one, two = (helper.branches[number].share for number in range(3))
    assert made.work == pytest.approx((2 + 2 * zero + 2 * one + two) / 7, rel=1e-12)
    assert made.fewer.steps == math.ceil(7 * made.work)


def branches(*shares: float | None) -> Branches:
    return Branches(
        "", [Branch(number, "", share, None, None) for number, share in enumerate(shares)]
    )


@pytest.mark.parametrize(
    ("stats", "plan", "shares", "worth"),
    [
        (Stats(1, 2, 4), ["full", 0, 0] * 2, [0.25], 3.0),
        (Stats(2, 4, 8), ["full", 0, 0] * 2, [0.25], 6.0),  # of two generations, the last is known
        (Stats(1, 1, 2), ["full", 0, 1], [0.25, 0.75], 2.0),
        (Stats(1, 3, 0), ["full"] * 3, [None], 3.0),
        (Stats(1, 2, 4), ["full", -1, -1] * 2, [0.25, 0.75], 2.0),  # above the output
        (Stats(1, 2, 4), ["full", -1, -1] * 2, [None], 2.0),
        (Stats(1, 2, 4), ["full", -1, 0] * 2, [0.25], 2.5),
        (Stats(1, 1, 2), ["full", 0, 1], [0.25, None], None),
        (Stats(1, 1, 1), ["full"], [0.25], None),  # a step of a full and a shallow call
    ],
)
def test_work_is_counted_in_full_calls(
    stats: Stats, plan: Any, shares: Sequence[float | None], worth: float | None
) -> None:
    assert full_calls_worth(stats, Plan(plan), branches(*shares)) == worth


def test_runs_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, timed_call = [], contest.timed_call

    def noted(*arguments: Any, label: str) -> Any:
        labels.append(label)
        return timed_call(*arguments, label=label)

    monkeypatch.setattr(contest, "timed_call", noted)
    helper = DeepCacheHelper(CASES["ddpm"].load(), schedule=Uniform())
    made = helper.compare(num_inference_steps=6, repeats=2)
    assert labels == ["warm-up", *["plain", "helper", "fewer steps"] * 2]
    assert len(made.plain_times) == len(made.times) == len(made.fewer.times) == 2


@pytest.mark.parametrize("too_few", mostly_slow([4, 2], quick=1))
def test_steps_that_make_too_few_calls_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, too_few: int
) -> None:
    # A pipeline may round `strength` in a way of its own, so the calls are counted.
    monkeypatch.setattr(fewer_steps, "steps_of_equal_work", lambda *_, **__: too_few)
    made = DeepCacheHelper(CASES["sd"].load(), schedule=Uniform()).compare(
        num_inference_steps=12, repeats=2, **PROMPT
    )
    assert made.fewer.steps == 5
    assert [time.calls for time in made.fewer.times] == [5, 5]


# --- left out -----------------------------------------------------------------------------------


def test_an_integer_of_numpy_is_a_number_of_steps() -> None:
    # The pipeline was said not to be told a number of steps.
    helper = DeepCacheHelper(CASES["sd"].load(), schedule=Uniform(3))
    made = helper.compare(num_inference_steps=np.int64(12), **PROMPT)
    assert made.fewer.steps == helper.compare(num_inference_steps=12, **PROMPT).fewer.steps
    assert type(made.about["steps"]) is int


def test_numbers_of_numpy_are_those_of_python_in_page_and_figures() -> None:
    """Regression: the page said "float32 of ", and JSON had a text."""
    helper = DeepCacheHelper(CASES["sd"].load(), schedule=Uniform(3))
    call = {"num_inference_steps": np.int64(9), "guidance_scale": np.float32(4)}
    made = helper.compare(**call, fewer_steps=False, **PROMPT)
    told = json.loads(made.to_json())
    assert (told["guidance_scale"], told["call"]["num_inference_steps"]) == (4.0, 9)
    assert "<dt>guidance_scale</dt><dd>4.0</dd>" in made.to_html()


def test_a_strength_of_numpy_leaves_out_steps_as_well() -> None:
    """Regression: all steps were counted, and a schedule for those that run was refused."""
    pipe = CASES["sd-img2img"].load()
    call = {"image": picture(), "num_inference_steps": 20}
    assert timesteps_that_run(pipe, {**call, "strength": np.float32(0.5)}) == 10
    assert timesteps_that_run(pipe, {**call, "strength": np.float64(0.5)}) == 10


@pytest.mark.parametrize(
    ("scheduler", "interval", "call", "reason"),
    [
        ("ddpm", 3, {"timesteps": [900, 600, 300]}, "timesteps= says which steps there are"),
        ("euler", 3, {"sigmas": [9.0, 3.0, 1.0]}, "sigmas= says which steps there are"),
        (
            "ddim",
            1,
            {"num_inference_steps": 3},
            "it would take all 3, since so little work is saved",
        ),
        (
            "ddim",
            3,
            {"num_inference_steps": 1},
            "it would take all 1, since so little work is saved",
        ),
    ],
)
def test_a_line_says_why_there_are_no_fewer_steps(
    scheduler: str, interval: int, call: Any, reason: str
) -> None:
    pipe = with_scheduler(CASES["sd"].load(), scheduler)
    made = DeepCacheHelper(pipe, schedule=Uniform(interval)).compare(**call, **PROMPT)
    assert (made.fewer, made.fewer_left_out) == (None, reason)
    assert made.columns == ("plain", "helper")
    assert f"\nfewer steps at equal work: left out, {reason}\n" in made.table()
    figures = made.to_dict()["figures"]
    assert (figures["fewer_steps"], figures["fewer_steps_left_out"]) == (None, reason)
    assert f">fewer steps at equal work: left out, {reason}</p>" in made.to_html()


def test_a_share_that_is_not_known_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeepCacheHelper, "branches", property(lambda _: branches(None)))
    made = DeepCacheHelper(CASES["ddpm"].load(), schedule=Uniform()).compare(num_inference_steps=4)
    assert (made.work, made.fewer) == (None, None)
    assert made.fewer_left_out == "the work of a shallow call is not known"
    assert "U-Net work" not in made.table()


def test_a_count_that_never_suffices_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "full_calls_worth", lambda *_: 3.5)
    monkeypatch.setattr(fewer_steps, "steps_of_equal_work", lambda *_, **__: 2)
    made = DeepCacheHelper(CASES["ddpm"].load(), schedule=Uniform()).compare(
        num_inference_steps=4, repeats=2
    )
    assert (made.fewer, made.work) == (None, 3.5 / 4)
    assert made.fewer_left_out == "it would take all 4, since so little work is saved"


@pytest.mark.parametrize("good_runs", [0, 1])
def test_a_failure_of_the_third_run_costs_nothing_else(good_runs: int) -> None:
    ran = []

    class PickyPipeline(TwoCallsPipeline):
        def __call__(self, num_inference_steps: int = 50, **call: Any) -> ImagePipelineOutput:
            ran.append(num_inference_steps)
            if num_inference_steps == 6 and ran.count(6) > good_runs:
                raise ValueError("six is too few\nand more lines")
            return super().__call__(num_inference_steps=num_inference_steps, **call)

    pipe = two_calls()
    picky = PickyPipeline(pipe.unet, pipe.scheduler)
    made = DeepCacheHelper(picky, schedule=Uniform()).compare(num_inference_steps=12, repeats=2)
    assert ran == [4, *[12, 12, 6] * (good_runs + 1), *[12] * 2 * (1 - good_runs)]
    assert (made.fewer, made.fewer_left_out) == (None, "6 steps failed: six is too few")


def test_a_pipeline_that_is_not_told_its_steps_has_none() -> None:
    class StepsPipeline(DDPMPipeline):
        def __call__(self, generator: Any = None) -> None: ...

    pipe = CASES["ddpm"].load()
    helper = DeepCacheHelper(StepsPipeline(pipe.unet, pipe.scheduler))
    found = contest.Contest(helper, {}, seeds=None, repeats=1)
    with pytest.raises(LeftOutError, match="StepsPipeline is not told a number of steps"):
        steps_of_equal_work(found, calls=4, work=2.0)


def test_they_are_not_made_where_nobody_wants_them() -> None:
    pipe = CASES["sd"].load()
    with kinds_of_calls(pipe.unet) as kinds:
        made = DeepCacheHelper(pipe, schedule=Uniform()).compare(
            num_inference_steps=6, fewer_steps=False, **PROMPT
        )
    assert "".join(kinds) == "FsFs" + "FFFFFF" + "FssFss"
    assert (made.fewer, made.fewer_left_out, made.verdict) == (None, None, None)
    assert made.columns == ("plain", "helper")
    assert "fewer" not in made.table()
    assert made.work is not None


# --- how they are shown -------------------------------------------------------------------------


def test_the_table_has_a_third_column_and_a_verdict() -> None:
    made = outcome(fewer=fewer(), work=0.4, plans={"unet": Plan(["full", 0, 0] * 2)})
    assert made.table().splitlines() == [
        "                     plain        helper       3 steps",
        "denoising loop     5.000 s       2.000 s       2.500 s",
        "loop speedup                       2.00×         1.60×",
        "loop range                    0.67–2.50×    1.50–5.00×",
        "by work at most                    2.50×         2.00×",
        "whole call         6.000 s       4.000 s       3.000 s",
        "call speedup                       1.25×         1.80×",
        "call range                    1.00–2.00×    1.67–3.00×",
        "U-Net work          100.0%         40.0%         50.0%",
        "full calls               6             2             3",
        "shallow calls            0             4             0",
        "PSNR                            20.00 dB      18.00 dB",
        "worst PSNR                  20.00 dB, #1  17.00 dB, #1",
        "SSIM                              0.7500        0.5000",
        "feature cache                   3.00 MiB",
        "",
        "helper: shapes differ (worst PSNR 20.00 dB, #1; SSIM 0.5000, #1)",
        "3 steps: shapes differ (worst PSNR 17.00 dB, #1; SSIM 0.2500, #1)",
        "fewer steps at equal work (3 of 6): 18.00 dB, helper: 20.00 dB, 2.0 dB closer",
        "half of the speeds differ by more than 20% of their median: helper 0.67–2.50×; "
        "3 steps 1.50–5.00×; they are rough",
        "",
        "plan            F··F··",
    ]
    assert made.columns == ("plain", "helper", "3 steps")
    assert fewer(steps=1).name == "1 step"


def test_json_holds_the_third_contestant() -> None:
    figures = json.loads(outcome(fewer=fewer(), work=0.4).to_json())["figures"]
    assert (figures["work"], figures["work_speedup"]) == (0.4, 2.5)
    assert figures["fewer_steps_left_out"] is None
    assert figures["fewer_steps"] == {
        "steps": 3,
        "loop_speedup": 1.6,
        "call_speedup": 1.8,
        "loop_speedup_each": [1.6, 1.5, 5.0],
        "call_speedup_each": [5 / 3, 1.8, 3.0],
        "work": 0.5,
        "work_speedup": 2.0,
        "loop_seconds": 2.5,
        "call_seconds": 3.0,
        "loop_seconds_each": [2.5, 4.0, 1.0],
        "call_seconds_each": [3.0, 5.0, 2.0],
        "calls": 3,
        "psnr": 18.0,
        "ssim": 0.5,
        "lpips": None,
        "snr": None,
        "psnr_each": [17.0, 19.0],
        "ssim_each": [0.25, 0.75],
        "worst": 1,
        "looks": "shapes differ",
    }


def test_the_grid_has_five_rows_and_one_factor() -> None:
    pixels = np.asarray(outcome(fewer=fewer()).grid())
    height, width, _ = pixels.shape
    cell = 3 * 64
    left, top = width - MARGIN - 2 * cell - GAP, height - MARGIN - 5 * cell - 4 * GAP
    # Both rows of differences are amplified 8 times.
    rows = [
        [(102, 51, 0), (9, 9, 9)],
        [(100, 50, 0), (9, 9, 9)],
        [(16, 8, 0), (0, 0, 0)],
        [(98, 49, 0), (5, 7, 9)],
        [(32, 16, 0), (32, 16, 0)],
    ]
    for row, colours in enumerate(rows):
        for column, colour in enumerate(colours):
            x, y = left + column * (cell + GAP), top + row * (cell + GAP)
            assert (pixels[y : y + cell, x : x + cell] == colour).all(), (row, column)


def test_what_is_identical_is_called_so_in_the_verdict() -> None:
    same = outcome(psnr=(math.inf, math.inf), fewer=fewer())
    assert same.verdict == "fewer steps at equal work (3 of 6): 18.00 dB, helper: identical"


def test_the_verdict_says_what_to_do_where_the_helper_lost() -> None:
    lost = outcome(psnr=(16.5, 17.5), fewer=fewer())
    assert lost.verdict == (
        "fewer steps at equal work (3 of 6): 18.00 dB, helper: 17.00 dB: "
        "let `deepcache-patch calibrate` find a plan (in Python `helper.calibrate(run, "
        "speedup=2)`), try another interval, or take fewer steps; the mean of 2 tells little, "
        "make 16"
    )
    many = replace(lost, plain=lost.plain * 8)
    assert many.verdict == lost.verdict.partition(";")[0]


@pytest.mark.parametrize("psnr", [(17.0, 17.02), (17.74, 17.74), (18.99, 18.99)])
def test_a_difference_that_is_noise_is_called_none(psnr: tuple[float, float]) -> None:
    # "take fewer steps here" was said at 0.26 dB, of two pictures.
    near = outcome(psnr=psnr, fewer=fewer()).verdict
    helper = f"helper: {sum(psnr) / 2:.2f} dB"
    assert near == (
        f"fewer steps at equal work (3 of 6): 18.00 dB, {helper}: equally close, as they differ by "
        "less than 1 dB"
    )


@pytest.mark.parametrize(
    ("ours", "theirs"), [(30.0, math.nan), (math.nan, 30.0), (math.nan, math.nan)]
)
def test_nobody_is_closer_where_pictures_have_nan(ours: float, theirs: float) -> None:
    """Regression: the helper had lost then, to pictures with NaN, too."""
    made = outcome(psnr=(50.0, ours), fewer=fewer(psnr=(50.0, theirs)))
    assert made.verdict is not None
    assert made.verdict.endswith(" dB: pictures with NaN cannot be compared; try float32")


def test_a_single_picture_with_a_long_verdict_is_not_cut_off() -> None:
    one = {"psnr": (20.0,), "ssim": (0.5,), "about": {**ABOUT, "seeds": [0], "model": "m"}}
    small = {"plain": (flat((1, 2, 3)),), "cached": (flat((1, 2, 3)),), **one}
    without = outcome(**small).grid()
    reason = "a reason that is much longer than the title and than all other lines of the picture"
    grid = outcome(**small, fewer_left_out=reason).grid()
    assert (grid.width, grid.height > without.height + 2 * 14) == (without.width, True)
    # The white margin is free of letters.
    assert (np.asarray(grid)[:, -MARGIN:] == 255).all()
