"""A run of the fidelity benchmark: its batches and turns, its figures, and one that fails."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.fidelity import run as fidelity
from benchmarks.fidelity.contestants import Contestant
from benchmarks.train.evaluate import fresh_scenes
from benchmarks.train.shapes import caption
from deepcache_patch.measuring.generation import Generation, Timing


def test_calibration_prompts_are_not_those_of_the_evaluation():
    scenes = fresh_scenes(64)
    others = {caption(scene) for scene in fidelity.calibration_scenes(scenes)}
    assert len(others) == 4
    assert others.isdisjoint(caption(scene) for scene in scenes)
    # Not by chance: whatever is taken is passed over.
    again = fidelity.calibration_scenes([*scenes, *fidelity.calibration_scenes(scenes)])
    assert others.isdisjoint(caption(scene) for scene in again)


class Module(torch.nn.Module):
    def forward(self, sample):
        return sample


class Pipe:
    """Three calls for each generation; pictures of the value that `picture` has."""

    def __init__(self, picture=0.5):
        self.unet = Module()
        self.picture = picture

    def set_progress_bar_config(self, **settings):
        self._progress_bar_config = settings

    def __call__(self, num_inference_steps, generator):
        for _ in range(num_inference_steps):
            self.unet(torch.zeros(1))
        return SimpleNamespace(images=[np.full((8, 8, 3), self.picture)] * len(generator))


BATCH = fidelity.Batch({}, range(2))


def test_a_generation_counts_the_calls():
    record = fidelity.Record(Contestant("plain", "plain", 3))
    record.draw(Pipe(), BATCH)
    assert record.full_steps == [3]
    assert record.pictures.shape == (2, 8, 8, 3)
    assert record.error is None


def test_whoever_fails_once_is_out():
    entered = []

    @contextmanager
    def failing():
        entered.append("once")
        raise KeyError("block 0")
        yield

    record = fidelity.Record(Contestant("broken", "auto", 3, around=failing))
    record.draw(Pipe(), BATCH)
    record.draw(Pipe(), BATCH)
    assert entered == ["once"]
    assert record.error == "KeyError: 'block 0'"
    assert record.generations == []


def test_pictures_that_are_not_finite_are_a_failure():
    record = fidelity.Record(Contestant("wild", "auto", 3))
    record.draw(Pipe(picture=float("nan")), BATCH)
    assert record.error == "ArithmeticError: the pictures are not finite"


def test_the_plain_pipeline_may_not_fail():
    record = fidelity.Record(Contestant("plain", "plain", 3))
    with pytest.raises(ArithmeticError):
        record.draw(Pipe(picture=float("nan")), BATCH)


def test_a_calibration_is_not_measured():
    record = fidelity.Record(Contestant("auto", "auto", 3))
    record.calibrate(Pipe(), BATCH)
    assert (record.generations, record.full_steps) == ([], [])


def test_batches_begin_with_different_contestants():
    order = []

    def noted(name):
        @contextmanager
        def around():
            order.append(name)
            yield

        return around

    records = [fidelity.Record(Contestant(name, "auto", 1, around=noted(name))) for name in "abcd"]
    fidelity.take_turns(Pipe(), records, BATCH, [BATCH, BATCH], "sampler")
    assert "".join(order) == "abcdcdab"
    assert [len(record.generations) for record in records] == [2, 2, 2, 2]


def test_figures_are_medians_and_means():
    def record(name, values, seconds):
        made = [
            Generation(np.full((1, 8, 8, 3), value), Timing(loop, loop, 3), torch.device("cpu"))
            for value, loop in zip(values, seconds, strict=True)
        ]
        return fidelity.Record(Contestant(name, name, 3), made, [1, 2, 3])

    plain = record("plain", [0.5, 0.5, 0.5], [8.0, 8.0, 8.0])
    faster = record("auto", [0.5, 0.6, 0.51], [4.0, 2.0, 1.0])
    space = SimpleNamespace(describe=lambda pictures: pictures[:, 0, 0])
    reader = SimpleNamespace(read=lambda batch: [])

    def figures(of):
        drawings = np.zeros((2, 3))
        return fidelity.figures(of, plain, None, reader, space, drawings)

    row = figures(faster)
    assert row["loop_seconds"] == [4.0, 2.0, 1.0]
    assert (row["speedup"], row["relative_time"]) == (4.0, 0.25)
    assert row["full_steps"] == 2.0
    # The first picture is the same: infinite. The others: 0.1 is 20 dB below 1, 0.01 is 40 dB.
    assert row["psnr"] == pytest.approx(30, abs=1e-6)
    assert row["read_back"] is None
    assert figures(plain)["psnr"] is None
    assert figures(plain)["ssim"] == 1.0
