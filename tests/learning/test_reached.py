"""What a calibration reached, as a person reads it, and in the file."""

import json
from dataclasses import replace
from html import escape

import pytest
from builders.plan_files import REACHED, SCHEDULE

from deepcache_patch import Calibrated
from deepcache_patch.learning.reached import Reached
from deepcache_patch.measuring.speed import Speed

ALL = Reached(2.1234567, 2.05, (1.98, 2.11), 5, 38.2, 33.1, 35.4, 8)
TIMED = Reached(2.1234567, 2.05, (1.98, 2.11), 5)
CLOSE = Reached(psnr=38.2, worst_psnr=33.1)
SAME = Reached(psnr=float("inf"), worst_psnr=float("inf"))

SAID = [
    (
        ALL,
        "2.05× measured (1.98–2.11, 5 timings), 2.12× by work, 38.2 dB (worst 33.1), "
        "35.4 dB with the default's plan, over 8 pictures",
        "2.05× measured, 38.2 dB",
    ),
    (
        replace(CLOSE, default_psnr=38.2, pictures=7),  # the default was the nearest
        "38.2 dB (worst 33.1), over 7 pictures, too few to be sure: give 8 or more",
        "38.2 dB",
    ),
    (
        replace(SAME, default_psnr=38.2, pictures=1),
        "identical pictures, 38.2 dB with the default's plan, over 1 picture, too few to be sure: "
        "give 8 or more",
        "identical pictures",
    ),
    (TIMED, "2.05× measured (1.98–2.11, 5 timings), 2.12× by work", "2.05× measured"),
    (replace(CLOSE, work=3.0), "3.00× by work, 38.2 dB (worst 33.1)", "3.00× by work, 38.2 dB"),
    (CLOSE, "38.2 dB (worst 33.1)", "38.2 dB"),
    (SAME, "identical pictures", "identical pictures"),
    (Reached(), "", ""),
    # What lacks its fellow, in a file that somebody has written.
    (Reached(None, None, (1.98, 2.11), 5, None, 33.1, 35.4, 8), "", ""),
    (Reached(speed=2.05, psnr=38.2), "", "2.05× measured"),
]


@pytest.mark.parametrize(("reached", "whole", "short"), SAID)
def test_it_is_said_in_a_line_and_shorter_in_the_name_of_the_schedule(reached, whole, short):
    assert str(reached) == whole
    assert reached.short == short
    schedule = Calibrated.from_dict({**SCHEDULE, "reached": reached.to_dict(5)})
    assert repr(schedule) == str(schedule)
    assert repr(schedule) == f"Calibrated({schedule.plan(5)}{': ' if short else ''}{short})"


@pytest.mark.parametrize("reached", [each for each, *_ in SAID])
def test_a_file_keeps_it_but_for_digits(reached, tmp_path):
    file = tmp_path / "schedule.json"
    replace(Calibrated.from_dict(SCHEDULE), reached=reached).save(file)
    loaded = Calibrated.load(file)
    work = None if reached.work is None else float(f"{reached.work:.5g}")
    assert loaded.reached == replace(reached, work=work)
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == file.read_bytes()


def test_a_file_from_before_it_was_kept_loads(tmp_path):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps({"version": 2, "schedules": [SCHEDULE]}))
    loaded = Calibrated.load(file)
    assert loaded.reached is None
    assert repr(loaded) == f"Calibrated({loaded.plan(5)})"
    assert "reached" not in loaded.to_dict()


def test_a_file_from_before_the_default_was_compared_loads():
    older = {name: REACHED[name] for name in ("work", "speed", "quartiles", "psnr", "worst_psnr")}
    loaded = Calibrated.from_dict({**SCHEDULE, "reached": {**older, "timings": 5}})
    assert loaded.reached == Reached(2.12, 2.05, (1.98, 2.11), 5, 38.2, 33.1)


def test_it_is_made_of_timings_and_pictures():
    speed = Speed((1.0, 2.0, 3.0, 4.0, 5.0))
    close = [30.0, 20.0, 25.0]
    assert Reached.of(2.5, speed, close) == Reached(2.5, 3.0, (2.0, 4.0), 5, 25.0, 20.0, None, 3)
    assert Reached.of(None, None, close, [21.0, 23.0, 22.0]).default_psnr == 22.0
    assert Reached.of(None) == Reached()
    nan = float("nan")
    assert Reached.of(2.5, None, [nan, 20.0], close) == Reached(2.5)
    assert Reached.of(2.5, None, close, [nan, 20.0, 1.0]) == Reached.of(2.5, None, close)


def test_a_notebook_gets_what_was_reached_and_how_it_was_measured():
    schedule = Calibrated.from_dict({**SCHEDULE, "reached": ALL.to_dict(5)})
    html = schedule._repr_html_()
    assert html.startswith("<table><caption>Calibrated</caption>")
    for text in (str(schedule.entries), *(text for _, text in ALL.rows)):
        assert f">{escape(text)}</td>" in html
    assert [name for name, _ in ALL.rows] == ["speed", "", "PSNR", "", ""]
    assert f">{schedule.setting.unet['class']}</td>" in html
    assert f">{schedule.setting.scheduler['class']}</td>" in html


def test_a_notebook_gets_no_markup_from_a_file():
    nasty = {**SCHEDULE, "unet": {"class": "<script>"}}
    html = Calibrated.from_dict(nasty)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
