"""A run of the fidelity benchmark: its batches and turns, its figures, and one that fails."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.fidelity import run as fidelity
from benchmarks.fidelity.contestants import Contestant
from benchmarks.fidelity.work import Calls
from benchmarks.generating import Generation
from benchmarks.train.evaluate import fresh_scenes
from benchmarks.train.shapes import caption
from deepcache_patch.measuring.generation import Timing


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
    assert record.calls == [Calls(3, {})]
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


def test_what_is_fitted_is_not_measured():
    pipe, ran = Pipe(), []
    record = fidelity.Record(Contestant("auto", "auto", 3, fit=lambda run: ran.append(run())))
    record.fit(pipe, BATCH)
    assert [made.timing.calls for made in ran] == [3]
    assert (record.generations, record.calls) == ([], [])


def test_who_cannot_be_fitted_is_out():
    record = fidelity.Record(Contestant("auto", "auto", 3, fit=lambda run: 1 / 0))
    record.fit(Pipe(), BATCH)
    record.draw(Pipe(), BATCH)
    assert record.error == "ZeroDivisionError: division by zero"
    assert record.generations == []


def test_work_is_a_part_of_that_of_the_plain_pipeline():
    plain = fidelity.Record(Contestant("plain", "plain", 8), calls=[Calls(8, {})] * 2)
    made = [Calls(4, {0: 4}), Calls(2, {0: 4, 5: 2})]
    faster = fidelity.Record(Contestant("auto", "auto", 8), calls=made)
    shares = {"work": {0: 0.5, 5: 0.75}, "work_sd15": {0: 0.25}}
    assert fidelity.figures_of_work(faster, plain, shares) == {
        "full_steps": 3.0,
        "full_steps_least": 2,
        "full_steps_most": 4,
        "work": (6 + 5.5) / 2 / 8,
        "work_sd15": None,  # of branch 5 it is not known
    }
    assert fidelity.figures_of_work(plain, plain, shares)["work_sd15"] == 1.0


@pytest.mark.parametrize(
    ("decibels", "worst"),
    [
        ([30.0, 20.0, 40.0], 20.0),
        ([float(value) for value in range(20, 40)], 20.5),
        ([float("inf"), 25.0], 25.0),
        ([float("inf")], None),
    ],
)
def test_the_worst_tenth_is_at_least_one_picture(decibels, worst):
    assert fidelity.worst_tenth(decibels) == worst


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
        return fidelity.Record(Contestant(name, name, 3), made)

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
    # The first picture is the same: infinite. The others: 0.1 is 20 dB below 1, 0.01 is 40 dB.
    assert row["psnr"] == pytest.approx(30, abs=1e-6)
    assert row["psnr_worst_tenth"] == pytest.approx(20, abs=1e-6)
    assert row["read_back"] is None
    assert figures(plain)["psnr"] is None
    assert figures(plain)["ssim"] == 1.0
