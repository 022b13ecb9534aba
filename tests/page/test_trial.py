"""Trials for a page: the plain picture is kept, what ran is told, and nothing is left behind."""

from __future__ import annotations

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
from deepcache_patch.page import trial
from deepcache_patch.page.trial import StoppedError, Trials
from deepcache_patch.settings.by_name import PARAMETERS, named_schedule
from deepcache_patch.settings.preview import num_steps

CALL = {"prompt": "a fox", "num_inference_steps": 6, "height": 16, "width": 16}


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was generated, in order."""
    made: list[str] = []
    generate = trial.generate

    def noted(*arguments: Any, label: str) -> Any:
        made.append(label)
        return generate(*arguments, label=label)

    monkeypatch.setattr(trial, "generate", noted)
    return made


def test_both_pictures_are_the_pipelines_own_and_nothing_is_left() -> None:
    pipe = CASES["sd"].load()
    before = trace(pipe.unet)
    found = Trials(pipe).run(CALL, seed=3, schedule=Uniform(3))
    assert trace(pipe.unet) == before

    def picture() -> Any:
        return pipe(**CALL, generator=torch.Generator("cpu").manual_seed(3)).images[0]

    assert np.array_equal(found.plain, picture())
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert np.array_equal(found.cached, picture())
    assert not np.array_equal(found.plain, found.cached)
    assert (found.full_calls, found.shallow_calls, found.kept) == (2, 4, False)
    assert str(found.plan) == "F··F··"
    assert found.plain_time.calls == found.cached_time.calls == 6
    assert found.speedup == found.plain_time.loop_seconds / found.cached_time.loop_seconds


def test_the_plain_picture_is_kept_while_only_the_helper_changes(labels: list[str]) -> None:
    trials = Trials(CASES["sd"].load())
    first = trials.run(CALL, seed=0, schedule=Uniform(3))
    assert labels == ["warm-up", "plain", "cached"]
    again = trials.run(CALL, seed=0, schedule=Uniform(2), replay="reuse")
    assert labels[3:] == ["cached"]
    assert again.kept
    assert again.plain_time is first.plain_time
    for call, seed in ((CALL, 1), ({**CALL, "prompt": "a hen"}, 1)):
        assert not trials.run(call, seed=seed, schedule=Uniform(3)).kept
    assert labels[4:] == ["plain", "cached"] * 2


def test_auto_learns_once_from_another_picture(labels: list[str]) -> None:
    trials = Trials(CASES["sd"].load())
    for _ in range(2):
        schedule = trials.schedule("auto", interval=3)
        found = trials.run({**CALL, "num_inference_steps": 12}, seed=0, schedule=schedule)
        assert found.shallow_calls == 8
        assert found.plan == schedule.learned[-1].entries
    assert labels == ["warm-up", "plain", "calibration", "cached", "cached"]


def test_the_plan_of_an_adaptive_schedule_is_the_one_that_ran() -> None:
    found = Trials(CASES["sd"].load()).run(CALL, seed=0, schedule=Adaptive(1.0, (2,)))
    assert len(found.plan) == 6
    assert found.plan.branches == (2,)
    assert len(found.plan.full_steps) == found.full_calls < 6


def test_a_pipeline_of_nothing_but_numbers() -> None:
    trials = Trials(CASES["ddpm"].load())
    assert "prompt" not in trials.accepted
    found = trials.run({"num_inference_steps": 5}, seed=0, schedule=Uniform(5))
    assert str(found.plan) == "F····"
    assert found.plain.mode == "RGB"


def test_a_scheduler_that_makes_more_steps_than_asked_for() -> None:
    pipe = with_scheduler(CASES["sd"].load(), "heun")
    assert num_steps(pipe, 5) == 9
    assert str(Trials(pipe).plan(Uniform(3), 5)) == "F··F··F··"
    assert num_steps(pipe, None) is None


def test_settings_that_cannot_be_are_refused_before_a_picture(labels: list[str]) -> None:
    trials = Trials(CASES["sd"].load())
    for schedule, message in {
        Uniform(branch=99): "branch 99 is out of range",
        Centred(1, center=0): "there is no list of 6 full steps in 6 round step 0",
    }.items():
        with pytest.raises(InvalidSettingError, match=message):
            trials.run(CALL, seed=0, schedule=schedule)
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
        Trials(CASES[case].load())


def test_a_pipeline_that_makes_no_pictures_is_refused() -> None:
    class VideoPipeline:
        def __call__(self, prompt: str, num_frames: int = 8) -> None: ...

    with pytest.raises(UnsupportedModelError, match="VideoPipeline makes videos: this is for pict"):
        Trials(VideoPipeline())


def test_stop_ends_a_generation_and_leaves_nothing() -> None:
    pipe = CASES["sd"].load()
    before = trace(pipe.unet)
    trials = Trials(pipe)
    trials.stop()
    with pytest.raises(StoppedError):
        trials.run(CALL, seed=0, schedule=Uniform(3))
    assert trace(pipe.unet) == before


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
    assert named_schedule("noise-aware", interval=2.5) == NoiseAware(2.5, -1)
    assert len(PARAMETERS) == 5


def test_a_name_that_is_none() -> None:
    message = (
        "there is no schedule 'cubic'; there are noise-aware, uniform, centred, auto, adaptive"
    )
    with pytest.raises(InvalidSettingError, match=message):
        named_schedule("cubic")
