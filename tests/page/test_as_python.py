"""The script that the page shows makes the picture that the page made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.cases import CASES
from builders.schedulers import with_scheduler
from diffusers import StableDiffusionPipeline
from PIL import Image

from deepcache_patch import Adaptive, Auto, Calibrated, Centred, NoiseAware, Uniform
from deepcache_patch.page.as_python import as_python
from deepcache_patch.page.trial import Trials

CALL = {"prompt": 'a "fox"', "num_inference_steps": 12, "height": 16, "width": 16}


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    CASES["sd"].load().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return StableDiffusionPipeline.from_pretrained(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("schedule", "replay"),
    [
        (NoiseAware(2.5), "extrapolate"),
        (Uniform(3), "reuse"),
        (Centred(3, center=4), None),
        (Adaptive(0.5, (1,)), None),
        (Auto(3.0), None),
    ],
    ids=lambda each: type(each).__name__ if each is not None else "",
)
def test_the_script_makes_the_same_picture(pipe: Any, schedule: Any, replay: str | None) -> None:
    pipe = with_scheduler(pipe, "ddim")
    found = Trials(pipe).run(CALL, seed=5, schedule=schedule, replay=replay)
    script = as_python(pipe, CALL, seed=5, schedule=schedule, replay=replay)
    exec(compile(script, "script", "exec"), {})
    assert np.array_equal(Image.open("picture.png"), found.cached)


def test_the_script_is_short_and_says_what_is_not_the_default(pipe: Any) -> None:
    pipe.scheduler = CASES["sd"].load().scheduler
    script = as_python(pipe, {"prompt": "a fox"}, seed=5, schedule=Uniform(3), replay="reuse")
    name = type(pipe.scheduler).__name__
    assert script.splitlines() == [
        "import torch",
        f"from diffusers import {', '.join(sorted((name, 'StableDiffusionPipeline')))}",
        "",
        "from deepcache_patch import DeepCacheHelper, Uniform",
        "",
        f"pipe = StableDiffusionPipeline.from_pretrained({pipe.name_or_path!r}, "
        "dtype=torch.float32).to('cpu')",
        f"pipe.scheduler = {name}.from_config(pipe.scheduler.config)",
        "",
        "with DeepCacheHelper(pipe, schedule=Uniform(interval=3, branch=0), replay='reuse'):",
        "    picture = pipe(",
        "        prompt='a fox',",
        '        generator=torch.Generator("cpu").manual_seed(5),',
        "    ).images[0]",
        'picture.save("picture.png")',
    ]


def test_settings_of_a_scheduler_that_the_class_would_not_choose_are_said(pipe: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    config = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)
    script = as_python(pipe, CALL, seed=5, schedule=Uniform(3), replay=None)
    assert "from_config(pipe.scheduler.config, use_karras_sigmas=True)" in script


def test_a_schedule_of_a_file_is_read_from_one(pipe: Any) -> None:
    auto = Auto(3.0)
    Trials(pipe).run(CALL, seed=0, schedule=auto)
    learned: Calibrated = auto.learned[0]
    script = as_python(pipe, CALL, seed=5, schedule=learned, replay=None)
    assert "from deepcache_patch import Calibrated, DeepCacheHelper\n" in script
    assert 'DeepCacheHelper(pipe, schedule=Calibrated.load("schedule.json")):' in script
