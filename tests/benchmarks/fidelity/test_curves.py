"""What is read off the curves: powers of two as speedups, so that every logarithm is exact."""

import json

import pytest

from benchmarks.fidelity.curves import envelope, points, psnr_at, results, speedup_at_psnr


def row(family, speedup, psnr):
    return {"family": family, "speedup": speedup, "psnr": psnr}


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
    ("family", "speedup", "psnr"),
    [
        ("auto", 2.0, 40.0),
        ("auto", 4.0, 30.0),  # in the middle of 2 and 8, as powers of two go
        ("auto", 8.0, 20.0),
        ("fewer steps", 2.0, 35.0),
        ("fewer steps", 4.0, 31.0),
        ("fewer steps", 8.0, 25.0),
        ("fewer steps", 16.0, 19.0),
    ],
)
def test_between_points_psnr_is_linear_in_log_speedup(family, speedup, psnr):
    assert psnr_at(ROWS, family, speedup) == psnr
    assert speedup_at_psnr(ROWS, family, psnr) == speedup


def test_nothing_is_said_beyond_the_points():
    assert psnr_at(ROWS, "auto", 1.99) is None
    assert psnr_at(ROWS, "auto", 8.01) is None
    assert speedup_at_psnr(ROWS, "auto", 40.1) is None
    assert speedup_at_psnr(ROWS, "auto", 19.9) is None


def test_a_family_without_points_has_no_curve():
    assert envelope(ROWS, "plain") == []
    assert psnr_at(ROWS, "plain", 1.0) is None
    assert speedup_at_psnr(ROWS, "centred", 30.0) is None


def test_one_point_is_a_curve_of_one_place():
    rows = [row("centred", 2.0, 33.0)]
    assert psnr_at(rows, "centred", 2.0) == 33.0
    assert psnr_at(rows, "centred", 2.1) is None
    assert speedup_at_psnr(rows, "centred", 33.0) == 2.0


def test_results_come_in_the_order_of_the_samplers(tmp_path):
    for name in ("pndm-50", "ddim-50", "something-else"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"sampler": name}), encoding="utf-8")
    assert results(tmp_path) == {
        "ddim-50": {"sampler": "ddim-50"},
        "pndm-50": {"sampler": "pndm-50"},
    }
    assert list(results(tmp_path)) == ["ddim-50", "pndm-50"]
