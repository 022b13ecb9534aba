"""A run of the fidelity benchmark: its batches and turns, its figures, and one that fails."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.fidelity import curves
from benchmarks.fidelity import run as fidelity
from benchmarks.fidelity.contestants import SAMPLERS, Contestant
from benchmarks.fidelity.subjects import CALIBRATION_PICTURES, emoji_prompts
from benchmarks.fidelity.work import Calls
from benchmarks.generating import Generation
from deepcache_patch.measuring.generation import Timing


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
    assert [pictures.shape[0] for pictures in ran] == [len(BATCH.seeds)]
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
    subject = SimpleNamespace(
        # Red, green and blue of the first pixel.
        space=SimpleNamespace(describe=lambda pictures: pictures[:, :, 0, 0].numpy()),
        read_back=lambda pictures: float(pictures[1, 0, 0, 0]),
        drawings=lambda size: {8: np.full((2, 3), 0.5)}[size],
    )

    def figures(of):
        return fidelity.figures(of, plain, subject)

    row = figures(faster)
    assert row["loop_seconds"] == [4.0, 2.0, 1.0]
    assert (row["speedup"], row["relative_time"]) == (4.0, 0.25)
    # The first picture is the same: infinite. The others: 0.1 is 20 dB below 1, 0.01 is 40 dB.
    assert row["psnr"] == pytest.approx(30, abs=1e-6)
    assert row["psnr_worst_tenth"] == pytest.approx(20, abs=1e-6)
    assert row["psnr_each"] == [None, 20.0, 40.0]
    assert row["read_back"] == 0.6
    assert row["frechet_drawings"] == pytest.approx(row["frechet"])  # the plain ones are drawings
    assert row["frechet"] > 0.003
    assert figures(plain)["psnr"] is None
    assert figures(plain)["ssim"] == 1.0
    subject.drawings = lambda size: None
    assert figures(faster)["frechet_drawings"] is None


TF32 = ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32"))


@pytest.fixture
def _flags_are_put_back():
    flags = (*TF32, (torch.backends.cudnn, "deterministic"))
    before = [getattr(backend, flag) for backend, flag in flags]
    yield
    for (backend, flag), value in zip(flags, before, strict=True):
        setattr(backend, flag, value)


@pytest.fixture
def started(monkeypatch, tmp_path, _flags_are_put_back):
    """Runs the command; the results lie in a folder of the test."""
    monkeypatch.setattr(curves, "RESULTS", tmp_path)

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["fidelity", *arguments])
        fidelity.main()
        return {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*.json")}

    return start


def test_a_sampler_is_measured_on_the_model_emoji(started, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "euler-20", replace(SAMPLERS["euler-20"], steps=2))
    for backend, flag in TF32:
        setattr(backend, flag, True)
    files = started(
        *("--model", "emoji", "--sampler", "euler-20", "--images", "2", "--batch-size", "2"),
        *("--only", "plain", "output reuse"),
    )
    assert list(files) == ["emoji/euler-20.json"]
    report = json.loads(files["emoji/euler-20.json"].read_text(encoding="utf-8"))
    assert (report["model"], report["sampler"], report["images"]) == ("emoji", "euler-20", 2)
    assert report["calibration"] == {
        "seeds": [2, 1 + CALIBRATION_PICTURES],
        "prompts": emoji_prompts(2)[1],
    }
    assert report["feature_dimensions"] == 1
    assert report["failed"] == []
    plain, *faster = report["rows"]
    assert [row["full_steps"] for row in (plain, *faster)] == [2, 1, 1]
    assert plain["frechet"] == 0 < faster[0]["frechet"]
    assert plain["psnr"] is None
    assert faster[0]["psnr"] == faster[1]["psnr"] > 0
    assert {row["frechet_drawings"] for row in report["rows"]} == {None}
    assert {row["read_back"] for row in report["rows"]} <= {0.0, 0.5, 1.0}
    # What is compared are differences of pictures: on CUDA they are computed in full.
    assert [getattr(backend, flag) for backend, flag in TF32] == [False, False]
    assert torch.backends.cudnn.deterministic


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--model", "emoji", "--sampler", "dpm-25", "ddpm-100"],
            "--sampler ddpm-100 --model emoji: that sampler is of the model shapes-ddpm, and one "
            "of the two models takes no prompt; emoji goes with ddim-50, ",
        ),
        (
            ["--model", "shapes-ddpm", "--sampler", "dpm-25"],
            "--sampler dpm-25 --model shapes-ddpm: that sampler is of the model shapes, and one "
            "of the two models takes no prompt; shapes-ddpm goes with ddpm-100\n",
        ),
        (
            ["--model", "emoji", "--images", "1714"],
            "--images 1714: the model emoji has no more than 1706 prompts\n",
        ),
        (["--device", "nowhere"], "device 'nowhere' cannot be used here; this machine has "),
    ],
    ids=["ddpm", "on-ddpm", "prompts", "device"],
)
def test_what_makes_no_sense_is_refused_before_anything_is_drawn(
    started, monkeypatch, capsys, arguments, said
):
    monkeypatch.setattr(fidelity, "load_pipeline", pytest.fail)
    with pytest.raises(SystemExit):
        started(*arguments)
    assert f"error: {said}" in capsys.readouterr().err


def test_a_later_run_takes_the_place_of_the_same_families_and_its_note_that_of_theirs():
    def report(command, *families):
        rows = [{"family": family, "by": command} for family in families]
        about = {"versions": {}, "device": "A Chip", "threads": 1, "cpu_share": 1.0}
        about["batch_size"] = 8
        about["calibration"] = {"seeds": [8, 15]}
        return {"command": command, **about, "rows": rows, "failed": []}

    first = report("first", "plain", "default", "auto", "zeus")
    second = fidelity.updated(first, report("second", "plain", "default", "auto"))
    third = fidelity.updated(second, report("third", "plain", "auto"))
    assert third["command"] == "first"
    assert [(row["family"], row["by"]) for row in third["rows"]] == [
        ("plain", "first"),
        ("default", "second"),
        ("auto", "third"),
        ("zeus", "first"),
    ]
    noted = [(each["families"], each["command"]) for each in third["updates"]]
    assert noted == [(["default"], "second"), (["auto"], "third")]
