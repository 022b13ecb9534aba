"""Warnings point to the line of who called, and say each thing once."""

import runpy
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from builders.cases import CASES
from builders.unets import inputs2d_condition, unet2d_condition

from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform
from deepcache_patch.errors import warn


@contextmanager
def recorded():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def line_of(marked):
    """The number of this file's line that ends so."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return 1 + next(at for at, line in enumerate(lines) if line.endswith(f"# {marked}"))


def places(caught):
    return [(each.filename, each.lineno) for each in caught if each.category is DeepCacheWarning]


def test_a_warning_of_a_generation_points_to_the_line_that_calls_the_pipeline():
    """It pointed to a line of the package, which tells a user nothing."""
    pipe = CASES["sd"].load()
    call = {"prompt": "x", "output_type": "np", "num_inference_steps": 4}
    with recorded() as caught, DeepCacheHelper(pipe):
        pipe(**call)  # the pipeline
    assert places(caught) == [(__file__, line_of("the pipeline"))]
    assert "has 4 steps and runs in full" in str(caught[-1].message)


def test_a_warning_of_a_call_points_to_the_line_that_calls_the_unet():
    unet = unet2d_condition()
    with recorded() as caught, DeepCacheHelper(unet, schedule=Uniform()):
        unet(**inputs2d_condition())  # the U-Net
    assert places(caught) == [(__file__, line_of("the U-Net"))]


def test_decorators_of_torch_are_not_the_line_that_is_meant():
    @torch.no_grad()
    def called():
        warn("something")  # decorated

    with pytest.warns(DeepCacheWarning, match="something") as caught:
        called()
    assert places(caught) == [(__file__, line_of("decorated"))]
    with pytest.warns(DeepCacheWarning, match="something") as caught:
        torch.no_grad()(warn)("something")  # outside
    assert places(caught) == [(__file__, line_of("outside"))]


def test_where_all_lines_are_between_the_outermost_is_meant(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("warn('something')\n")
    monkeypatch.setattr("deepcache_patch.errors._is_between", lambda frame: True)
    with pytest.warns(DeepCacheWarning, match="something") as caught:
        runpy.run_path(str(script), {"warn": warn})
    assert caught[0].lineno > 0


def test_few_steps_are_told_once_for_each_time_that_the_helper_is_enabled():
    pipe = CASES["sd"].load()
    call = {"prompt": "x", "output_type": "np", "num_inference_steps": 4}
    helper = DeepCacheHelper(pipe)
    for _ in range(2):
        with recorded() as caught, helper:
            pipe(**call)
            pipe(**call)
        assert len(places(caught)) == 1
    with recorded() as caught, helper:
        pipe(**call)
        pipe(**call | {"num_inference_steps": 5})
    assert len(places(caught)) == 2
