"""The command `calibrate`: what it prints, and which file it writes over."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from builders.cases import CASES
from builders.plan_files import REACHED, SCHEDULE, VALID

from deepcache_patch import Calibrated, DeepCacheHelper
from deepcache_patch.cli.main import main
from deepcache_patch.cli.request import PipelineRequest

pytestmark = pytest.mark.usefixtures("phases")


@cache
def pipeline() -> Any:
    return CASES["sd"].load()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a calibration comes to; as many as were made are in `"goals"`."""
    given: dict[str, Any] = {"schedule": {**SCHEDULE, "reached": REACHED}, "goals": []}

    def calibrate(_helper: Any, _run: Any, **goals: Any) -> Calibrated:
        given["goals"].append(goals)
        return Calibrated.from_dict(given["schedule"])

    monkeypatch.setattr("deepcache_patch.cli.request.model_folder", lambda *_: None)
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pipeline())
    monkeypatch.setattr(DeepCacheHelper, "calibrate", calibrate)
    return given


def command(output: Path) -> list[str]:
    words = ["calibrate", "m", "--prompt", "a fox", "--steps", "5", "--speedup", "2"]
    return [*words, "--output", str(output)]


SAVED = Calibrated.from_dict(SCHEDULE)
PLAN = str(SAVED.plan(5))


def test_it_prints_plan_count_and_what_was_reached(
    found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "s.json"
    assert main(command(output)) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"{PLAN}\n"
        "3 of 5 steps in full: 2.05× measured (1.98–2.11, 5 timings), 2.12× by work, 38.2 dB "
        "(worst 33.1), 35.4 dB with the default's plan, over 8 pictures\n"
        f"written to {output}\n"
    )
    assert err == ""
    assert found["goals"] == [{"speedup": 2.0, "full_steps": None, "psnr": None, "branch": -1}]
    assert Calibrated.load(output).to_dict() == found["schedule"]


@pytest.mark.parametrize(
    ("given", "made"),
    [([], 8), (["--prompt", "b", "--prompt", "c"], 9), (["--images", "2"], 2)],
    ids=["one prompt", "three prompts", "as many as asked for"],
)
def test_enough_pictures_are_made_to_be_sure(
    given: list[str],
    made: int,
    found: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeded = []
    monkeypatch.setattr(
        "deepcache_patch.measuring.generation.seeded_call", lambda *given: seeded.append(given[-1])
    )
    monkeypatch.setattr(DeepCacheHelper, "calibrate", lambda _helper, run, **_: run() or SAVED)
    assert main([*command(tmp_path / "s.json"), *given]) == 0
    assert [len(seeds) for seeds in seeded] == [made]


def test_what_was_not_measured_is_left_out(
    found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found["schedule"] = SCHEDULE
    assert main(command(tmp_path / "s.json")) == 0
    out = capsys.readouterr().out
    assert out == f"{PLAN}\n3 of 5 steps in full\nwritten to {tmp_path / 's.json'}\n"


@pytest.mark.parametrize("content", [VALID, b""], ids=["schedule", "empty"])
def test_a_schedule_and_an_empty_file_are_written_over(
    content: bytes, found: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "s.json"
    output.write_bytes(content)
    assert main(command(output)) == 0
    assert Calibrated.load(output).to_dict() == found["schedule"]


OTHERS = {
    "text": b"my only copy",
    "json": b'{"model": "mine"}',
    "picture": b"\x89PNG\r\n\x1a\n",
    "newer": b'{"version": 2, "schedules": []}',
    "several": json.dumps({"version": 1, "schedules": [SCHEDULE, SCHEDULE]}).encode(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_file_is_left_alone(
    name: str, found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "s.json"
    output.write_bytes(OTHERS[name])
    assert main(command(output)) == 2
    assert capsys.readouterr() == (
        "",
        f"deepcache-patch calibrate: error: --output {output} is there already, and is no file "
        "with one calibrated schedule: give another name, or remove it\n",
    )
    assert output.read_bytes() == OTHERS[name]
    assert found["goals"] == []
