"""Tries for a page: the plain picture is kept, what ran is told, and nothing is left behind."""

from __future__ import annotations

from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from builders.cases import CASES
from builders.schedulers import with_scheduler
from conftest import trace

from deepcache_patch import (
    Adaptive,
    Auto,
    Centred,
    DeepCacheHelper,
    InvalidSettingError,
    NoiseAware,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.compare import contest
from deepcache_patch.page.runner import Runner
from deepcache_patch.page.watch import StoppedError
from deepcache_patch.settings.by_name import PARAMETERS, named_schedule
from deepcache_patch.settings.preview import num_steps

pytestmark = pytest.mark.usefixtures("kept_tables")

CALL = {"prompt": "a fox", "num_inference_steps": 6, "height": 16, "width": 16}


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was generated, in order."""
    made: list[str] = []
    timed_call = contest.timed_call

    def noted(*arguments: Any, label: str) -> Any:
        made.append(label)
        return timed_call(*arguments, label=label)

    monkeypatch.setattr(contest, "timed_call", noted)
    return made


def test_both_pictures_are_the_pipelines_own_and_nothing_is_left() -> None:
    pipe = CASES["sd"].load()
    before = trace(pipe.unet)
    outcome, kept = Runner(pipe).run(CALL, seed=3, schedule=Uniform(3))
    assert trace(pipe.unet) == before

    def picture() -> Any:
        return pipe(**CALL, generator=torch.Generator("cpu").manual_seed(3)).images[0]

    assert np.array_equal(outcome.plain[0], picture())
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert np.array_equal(outcome.cached[0], picture())
    assert not np.array_equal(outcome.plain[0], outcome.cached[0])
    assert (outcome.full_calls, outcome.shallow_calls, kept) == (2, 4, False)
    assert str(outcome.plan) == "F··F··"
    assert outcome.plain_times[0].calls == outcome.times[0].calls == 6


def test_the_comparison_of_a_try_is_that_of_the_helper() -> None:
    pipe = CASES["sd"].load()
    ours, _ = Runner(pipe).run(CALL, seed=3, schedule=Uniform(3))
    theirs = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(
        seeds=[3], fewer_steps=False, **CALL
    )
    assert ours.about == theirs.about
    assert (ours.setting, ours.headings) == (theirs.setting, theirs.headings)
    assert (ours.psnr, ours.ssim, ours.work) == (theirs.psnr, theirs.ssim, theirs.work)
    assert ours.plans == theirs.plans
    assert ours.cache_nbytes == theirs.cache_nbytes
    assert np.array_equal(ours.plain[0], theirs.plain[0])
    assert np.array_equal(ours.cached[0], theirs.cached[0])


def test_no_network_is_built_to_measure_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each try built the network of LPIPS anew, or warned that its weights are out of reach.
    made: list[str] = []

    def lpips() -> Any:
        made.append("network")
        return lambda *_: 0.5

    monkeypatch.setattr(contest, "lpips", lpips)
    pipe, call = CASES["sd"].load(), {**CALL, "height": 32, "width": 32}
    found = Runner(pipe).run(call, seed=0, schedule=Uniform(3))[0]
    assert (found.lpips, made) == (None, [])
    theirs = DeepCacheHelper(pipe, schedule=Uniform(3)).compare(
        seeds=[0], fewer_steps=False, **call
    )
    assert (theirs.lpips, made) == ((0.5,), ["network"])
    assert (found.psnr, found.ssim) == (theirs.psnr, theirs.ssim)


def test_the_plain_picture_is_kept_while_only_the_helper_changes(labels: list[str]) -> None:
    runner = Runner(CASES["sd"].load())
    first, _ = runner.run(CALL, seed=0, schedule=Uniform(3))
    assert labels == ["warm-up", "plain", "helper"]
    again, kept = runner.run(CALL, seed=0, schedule=Uniform(2), replay="reuse")
    assert labels[3:] == ["helper"]
    assert kept
    assert again.plain_times == first.plain_times
    for call, seed in ((CALL, 1), ({**CALL, "prompt": "a hen"}, 1)):
        assert not runner.run(call, seed=seed, schedule=Uniform(3))[1]
    assert labels[4:] == ["plain", "helper"] * 2
    assert runner.run(CALL, seed=0, schedule=Uniform(3))[1]  # one of before, brought back


def test_each_size_is_warmed_up_once_at_the_branches_of_the_schedule(labels: list[str]) -> None:
    # By size alone, a try at the output followed by one at branch 0 timed a cold cut.
    runner = Runner(CASES["sd"].load())
    larger = {**CALL, "height": 32, "width": 32}

    def warmed(call: dict[str, Any], schedule: Any) -> int:
        labels.clear()
        runner.run(call, seed=0, schedule=schedule)
        return labels.count("warm-up")

    assert [warmed(CALL, Uniform(3, branch)) for branch in (-1, 0, -1, 0)] == [1, 1, 0, 0]
    assert [warmed(CALL, Adaptive(1.0, (0,))), warmed(larger, Uniform(3))] == [0, 1]
    assert [warmed(CALL, Adaptive(1.0, each)) for each in ((0, 2), (2, 0))] == [2, 0]


def test_only_the_last_plain_pictures_are_kept(labels: list[str]) -> None:
    runner = Runner(CASES["sd"].load())
    call = {**CALL, "num_inference_steps": 1}
    for seed in range(9):
        runner.run(call, seed=seed, schedule=Uniform(3))
    assert runner.run(call, seed=1, schedule=Uniform(3))[1]
    assert not runner.run(call, seed=0, schedule=Uniform(3))[1]


def test_auto_learns_once_from_another_picture(labels: list[str]) -> None:
    runner = Runner(CASES["sd"].load())
    for _ in range(2):
        schedule = runner.schedule("auto", interval=3)
        found, _ = runner.run({**CALL, "num_inference_steps": 12}, seed=0, schedule=schedule)
        assert found.shallow_calls == 8
        assert found.plan == schedule.learned[-1].entries
    assert labels == ["warm-up", "plain", "calibration", "helper", "helper"]


def test_auto_learns_nothing_below_the_output(labels: list[str]) -> None:
    runner = Runner(CASES["sd"].load())
    schedule = runner.schedule("auto", interval=3, branch=0)
    found, _ = runner.run({**CALL, "num_inference_steps": 12}, seed=0, schedule=schedule)
    assert found.shallow_calls == 8
    assert labels == ["warm-up", "plain", "helper"]


def test_the_plan_of_an_adaptive_schedule_is_the_one_that_ran() -> None:
    runner = Runner(CASES["sd"].load())
    found = runner.run(CALL, seed=0, schedule=Adaptive(1.0, (2,)))[0]
    assert len(found.plan) == 6
    assert found.plan.branches == (2,)
    assert len(found.plan.full_steps) == found.full_calls < 6


def test_a_pipeline_of_nothing_but_numbers() -> None:
    runner = Runner(CASES["ddpm"].load())
    assert "prompt" not in runner.accepted
    found, _ = runner.run({"num_inference_steps": 5}, seed=0, schedule=Uniform(5))
    assert str(found.plan) == "F····"
    assert found.plain[0].mode == "RGB"


def test_a_scheduler_that_makes_more_steps_than_asked_for() -> None:
    pipe = with_scheduler(CASES["sd"].load(), "heun")
    assert num_steps(pipe, 5) == 9
    assert str(Runner(pipe).plan(Uniform(3), 5)) == "F··F··F··"
    assert num_steps(pipe, None) is None


def test_settings_that_cannot_be_are_refused_before_a_picture(labels: list[str]) -> None:
    runner = Runner(CASES["sd"].load())
    for schedule, message in {
        Uniform(branch=99): "branch 99 is out of range",
        Centred(1, center=0): "there is no list of 6 full steps in 6 round step 0",
    }.items():
        with pytest.raises(InvalidSettingError, match=message):
            runner.run(CALL, seed=0, schedule=schedule)
    assert labels == []


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("sd-img2img", "StableDiffusionImg2ImgPipeline needs image=…: a prompt and numbers are "),
        ("ldm-superresolution", "LDMSuperResolutionPipeline needs image=…"),
    ],
)
def test_a_pipeline_that_needs_more_is_refused_by_the_name_of_that(case: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Runner(CASES[case].load())


def test_a_pipeline_that_makes_no_pictures_is_refused() -> None:
    class VideoPipeline:
        def __call__(self, prompt: str, num_frames: int = 8) -> None: ...

    with pytest.raises(UnsupportedModelError, match="VideoPipeline makes videos: this is for pict"):
        Runner(VideoPipeline())


@pytest.mark.parametrize(
    ("case", "steps", "heard"), [("sd", 3, [1, 2, 3]), ("ddpm", 4, [1, 2, 3, 4])]
)
def test_each_step_of_each_half_is_told(case: str, steps: int, heard: list[int]) -> None:
    told: list[tuple[str, int, int | None]] = []
    call = {**CALL, "num_inference_steps": steps}
    call = call if case == "sd" else {"num_inference_steps": steps}
    runner = Runner(CASES[case].load())
    # Forecasts call nothing of the U-Net, and are steps all the same.
    runner.run(call, seed=0, schedule=Uniform(3, -1), told=lambda *step: told.append(step))
    assert told == [
        (label, step, steps) for label in ("warm-up", "plain", "helper") for step in heard
    ]


def test_a_step_of_two_calls_is_one_step() -> None:
    told: list[tuple[str, int, int | None]] = []
    pipe = with_scheduler(CASES["sd"].load(), "heun")
    call = {**CALL, "num_inference_steps": 5}
    Runner(pipe).run(call, seed=0, schedule=Uniform(3), told=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "plain"] == [
        ("plain", step, 9) for step in range(1, 10)
    ]


@pytest.mark.parametrize("half", ["warm-up", "plain", "helper"])
def test_stop_ends_a_try_at_the_next_block_and_the_next_one_runs(half: str) -> None:
    pipe = CASES["sd"].load()
    before = trace(pipe.unet)
    hooks = [len(module._forward_pre_hooks) for module in pipe.unet.modules()]
    untouched, _ = Runner(CASES["sd"].load()).run(CALL, seed=0, schedule=Uniform(3))
    runner, stop, told, entered = Runner(pipe), Event(), [], []

    def stop_after_two(label: str, step: int, steps: int | None) -> None:
        told.append((label, step))
        if (label, step) == (half, 2):
            stop.set()

    with (
        pipe.unet.conv_in.register_forward_pre_hook(lambda *_: entered.append(len(told))),
        pytest.raises(StoppedError),
    ):
        runner.run(CALL, seed=0, schedule=Uniform(3), told=stop_after_two, stop=stop)
    assert told[-1] == (half, 2)
    assert len(told) not in entered  # no call was begun after it
    assert trace(pipe.unet) == before
    assert [len(module._forward_pre_hooks) for module in pipe.unet.modules()] == hooks
    with pytest.raises(StoppedError):
        runner.run(CALL, seed=0, schedule=Uniform(3), stop=stop)
    again, kept = runner.run(CALL, seed=0, schedule=Uniform(3))
    assert again.plain == untouched.plain
    assert again.cached == untouched.cached
    assert kept == (half == "helper")


def test_stop_ends_a_try_within_a_step() -> None:
    pipe = CASES["sd"].load()
    before, stop, left = trace(pipe.unet), Event(), []
    with (
        pipe.unet.down_blocks[0].register_forward_hook(lambda *_: stop.set()),
        pipe.unet.mid_block.register_forward_hook(lambda *_: left.append(1)),
        pytest.raises(StoppedError),
    ):
        Runner(pipe).run(CALL, seed=0, schedule=Uniform(3), stop=stop)
    assert left == []
    assert trace(pipe.unet) == before


def test_stop_ends_a_try_while_the_picture_is_decoded() -> None:
    pipe, stop = CASES["sd"].load(), Event()
    with (
        pipe.vae.decoder.conv_in.register_forward_hook(lambda *_: stop.set()),
        pipe.vae.decoder.conv_out.register_forward_hook(lambda *_: pytest.fail("was decoded")),
        pytest.raises(StoppedError),
    ):
        Runner(pipe).run(CALL, seed=0, schedule=Uniform(3), stop=stop)


def test_after_close_nothing_runs() -> None:
    runner = Runner(CASES["sd"].load())
    runner.close()
    with pytest.raises(StoppedError):
        runner.run(CALL, seed=0, schedule=Uniform(3), stop=Event())


# --- schedules by name ----------------------------------------------------------------------------


def test_every_name_is_a_schedule() -> None:
    assert named_schedule("uniform") == Uniform()
    assert named_schedule("centred", interval=5, center=None) == Centred(5)
    assert named_schedule("centred", power=2.0, branch=1) == Centred(power=2.0, branch=1)
    auto, adaptive = named_schedule("auto", interval=4), named_schedule("adaptive", branch=3)
    assert isinstance(auto, Auto)
    assert (auto.interval, auto.branch) == (4, -1)
    assert isinstance(adaptive, Adaptive)
    assert (adaptive.tolerance, adaptive.branches) == (0.03, (3,))
    for name in ("default", "noise-aware"):
        assert named_schedule(name, interval=2.5) == NoiseAware(2.5, -1)
    assert len(PARAMETERS) == 6


def test_a_name_that_is_none() -> None:
    message = (
        "there is no schedule 'cubic'; there are default, noise-aware, uniform, centred, auto, "
        "adaptive"
    )
    with pytest.raises(InvalidSettingError, match=message):
        named_schedule("cubic")
