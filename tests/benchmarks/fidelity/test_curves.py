"""What is read off the curves: powers of two as speeds, so that every work is exact."""

import json

import pytest

from benchmarks.fidelity.curves import (
    RESULTS,
    envelope,
    fitted_to,
    folder_of,
    nearest,
    points,
    psnr_at,
    results,
)


def row(family, speed, psnr):
    return {"family": family, "work_sd15": 1 / speed, "psnr": psnr, "settings": {}}


ROWS = [
    row("plain", 1.0, None),
    row("auto", 8.0, 20.0),
    row("auto", 2.0, 40.0),
    row("fewer steps", 2.0, 35.0),
    row("fewer steps", 2.0, 30.0),  # as fast, and worse
    row("fewer steps", 1.0, 35.0),  # as good, and slower
    row("fewer steps", 1.5, 10.0),  # both
    row("fewer steps", 4.0, 31.0),
    row("fewer steps", 16.0, 19.0),
]


def test_a_row_without_psnr_is_no_point():
    assert points(ROWS, "plain") == []
    assert points(ROWS, "auto") == [(8.0, 20.0), (2.0, 40.0)]


def test_the_envelope_holds_what_nothing_else_beats():
    assert envelope(ROWS, "fewer steps") == [(2.0, 35.0), (4.0, 31.0), (16.0, 19.0)]


def test_the_same_point_twice_is_one():
    assert envelope([row("auto", 2.0, 40.0)] * 2, "auto") == [(2.0, 40.0)]


@pytest.mark.parametrize(
    ("family", "speed", "psnr"),
    [
        ("auto", 2.0, 40.0),
        ("auto", 3.2, 30.0),  # work 5/16, in the middle of 1/2 and 1/8
        ("auto", 8.0, 20.0),
        ("fewer steps", 2.0, 35.0),
        ("fewer steps", 4.0, 31.0),
        ("fewer steps", 6.4, 25.0),  # work 5/32, in the middle of 1/4 and 1/16
        ("fewer steps", 16.0, 19.0),
    ],
)
def test_between_points_psnr_is_linear_in_the_work(family, speed, psnr):
    assert psnr_at(ROWS, family, speed) == psnr


def test_nothing_is_said_beyond_the_points():
    assert psnr_at(ROWS, "auto", 1.99) is None
    assert psnr_at(ROWS, "auto", 8.01) is None


def test_a_family_without_points_has_no_curve():
    assert envelope(ROWS, "plain") == []
    assert psnr_at(ROWS, "plain", 1.0) is None


def test_one_point_is_a_curve_of_one_place():
    rows = [row("centred", 2.0, 33.0)]
    assert psnr_at(rows, "centred", 2.0) == 33.0
    assert psnr_at(rows, "centred", 2.1) is None


def test_rows_whose_work_is_not_known_are_no_points():
    old = {"family": "auto", "speedup": 2.0, "psnr": 40.0, "settings": {}}
    assert points([old, {**old, "work_sd15": None}], "auto") == []
    assert nearest([old], "auto", 2.0) is None


def test_a_row_is_found_by_its_budget_or_by_its_work():
    two, four = row("auto", 2.0, 40.0), row("auto", 4.0, 30.0)
    four["settings"] = {"speed": 2.2}
    assert fitted_to([two, four], "auto", 2.2) is four
    assert fitted_to([two, four], "auto", 1.8) is None
    assert nearest([two, four], "auto", 2.2) is two
    assert nearest([two, four], "auto", 3.5) is four
    assert nearest([two, four], "sada", 2.2) is None


def test_results_come_in_the_order_of_the_samplers(tmp_path):
    for name in ("pndm-50", "ddim-50", "something-else"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"sampler": name}), encoding="utf-8")
    assert results(tmp_path) == {
        "ddim-50": {"sampler": "ddim-50"},
        "pndm-50": {"sampler": "pndm-50"},
    }
    assert list(results(tmp_path)) == ["ddim-50", "pndm-50"]


def test_results_of_another_model_lie_apart():
    assert folder_of("dpm-25", "shapes") == folder_of("ddpm-100", "shapes-ddpm") == RESULTS
    assert folder_of("dpm-25", "emoji") == RESULTS / "emoji"
