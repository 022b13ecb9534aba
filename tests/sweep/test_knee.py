"""The curve of a sweep: who is on it, where it bends, and where its ticks stand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from builders.sweeps import made, row

from deepcache_patch import Plan
from deepcache_patch.sweep.curve import asides, curve_of, ticks
from deepcache_patch.sweep.knee import BY_WORK, front_of, knee_of, why_none


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 3), (2, 2), (3, 1)], [0, 1, 2]),
        ([(3, 1), (1, 3), (2, 2)], [1, 2, 0]),
        ([(1, 3), (2, 2), (2, 2.5), (3, 1)], [0, 2, 3]),  # as fast, and better
        ([(1, 2), (2, 2)], [1]),  # as good, and faster
        ([(1, 1), (2, 3), (3, 2)], [1, 2]),
        ([(2, 2), (2, 2)], [0]),
        ([], []),
    ],
)
def test_on_the_curve_is_what_nothing_beats(points: Any, front: list[int]) -> None:
    assert front_of(points) == front


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(1, 30), (2, 28), (3, 10)], 1),
        ([(1, 30), (2, 28), (3, 25), (4, 10)], 2),  # 5 + 25 / 3 above 20 - 20 / 3
        ([(1, 30), (2, 20), (3, 10)], None),  # on the line
        ([(1, 30), (2, 15), (3, 10)], None),  # below it
        ([(1, 30), (2, 28)], None),
        ([(1, 30), (2, 28), (3, 29)], None),  # the second is beaten
        ([], None),
    ],
)
def test_the_knee_is_highest_above_the_line(points: Any, knee: int | None) -> None:
    assert knee_of(points) == knee


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([], "it takes three settings, and here is no setting"),
        ([(1, 30)], "it takes three settings, and here is one setting"),
        ([(1, 30), (2, 28)], "it takes three settings, and here are two settings"),
        (
            [(1, 30), (2, 28), (3, 29)],
            "only two are not beaten by another in both speed by work and quality",
        ),
        (
            [(1, 30), (2, 31), (3, 32)],
            "only one is not beaten by another in both speed by work and quality",
        ),
        ([(1, 30), (2, 15), (3, 10)], "no setting lies above the straight line from the sl"),
    ],
)
def test_why_there_is_no_knee_is_said(points: Any, why: str) -> None:
    assert knee_of(points) is None
    assert why in why_none(points, BY_WORK)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(0.5, 0.5), (0.1, 0.5), (0.51, 0.52), (0.5, 0.6)], [0, 0, -1, 0]),
        ([(0.5, 0.5)] * 5, [0, -1, 1, -2, 2]),
        ([(1.0, 0.5)] * 3, [0, -1, -2]),  # to the right they would leave the picture
        ([(0.0, 0.5)] * 3, [0, 1, 2]),  # to the left they would cover the ticks
        # A mark that was moved hid one that it had not been near to: one step left or right does.
        ([(0.56, 0.5), (0.5, 0.5), (0.42, 0.5), (0.51, 0.5)], [0, 0, 0, -2]),
    ],
)
def test_no_mark_covers_another(places: Any, expected: list[int]) -> None:
    assert asides(places) == expected


def test_where_there_is_no_room_left_a_mark_stays() -> None:
    moved = asides([(0.5, 0.5)] * 40)
    assert len(set(moved)) == len([each for each in moved if each]) + 1
    assert moved[-1] == 0


def test_points_that_would_cover_each_other_are_drawn_side_by_side() -> None:
    same = row(2.5, 38, made().settings[2].setting)
    sweep = made(settings=(*made().settings, same))
    points = curve_of(sweep).points
    assert {point.mark: point.aside for point in points if point.aside} == {"5": -1}
    (knee,) = (point for point in points if point.is_knee)
    assert (knee.mark, knee.row is sweep.knee) == ("3", True)
    aside = next(point for point in points if point.aside)
    assert (aside.x, aside.drawn_x) == (0.6, 0.6 - 0.075)
    page = sweep.to_html()
    y = f"{100 - 100 * aside.y:.2f}%"
    assert page.count(f'<line class="lead" x1="60.00%" y1="{y}" x2="52.50%" y2="{y}"/>') == 1
    assert page.count('<line class="lead"') == page.count('<circle cx="52.50%"') == 1
    moved = "a mark that would cover another is moved aside, and a line leads to its place"
    assert (moved in page, moved in made().to_html()) == (True, False)


def test_fewer_steps_make_way_for_settings() -> None:
    fewer = (row(2.5, 38, steps=10, plan=Plan()), row(1.5, 25, steps=16, plan=Plan()))
    points = curve_of(made(fewer=fewer)).points
    assert [(each.mark, each.aside) for each in points][:3] == [("10", -1), ("16", 0), ("1", 0)]
    assert not any(each.aside for each in points[1:])


def test_the_knee_does_not_depend_on_units() -> None:
    points = [(1, 30), (2, 29), (3, 24), (4, 10)]
    assert knee_of(points) == knee_of([(100 * x, y / 7) for x, y in points]) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 3, [1, 1.5, 2, 2.5, 3]),
        (1, 3.1, [1, 1.5, 2, 2.5, 3, 3.5]),
        (21.6, 48.2, [20, 30, 40, 50]),
        (38, 38, [30, 40]),
        (0.95, 1.0, [0.94, 0.96, 0.98, 1.0]),
    ],
)
def test_ticks_are_round_and_enclose_all(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_points_stand_by_work_and_by_the_mean() -> None:
    sweep = made()
    curve = curve_of(sweep)
    # From 1 to 3.5 times, and from 20 to 40 dB.
    places = {point.mark: (point.x, point.y) for point in curve.points}
    rounded = {mark: (round(x, 9), round(y, 9)) for mark, (x, y) in places.items()}
    expected = {"16": (0.2, 0.25), "1": (0.2, 1), "2": (0.4, 0.5), "3": (0.6, 0.9), "4": (1, 0)}
    assert rounded == expected
    assert curve.front == (places["1"], places["3"], places["4"])
    assert [point.mark for point in curve.points if point.is_knee] == ["3"]
    assert sweep.knee is sweep.settings[2]


def test_where_work_is_not_known_the_curve_goes_by_time() -> None:
    settings = [row(speed, quality, worth=None) for speed, quality in [(1.5, 40), (3, 20)]]
    sweep = made(settings=tuple(settings), fewer=())
    assert not sweep.by_work
    assert [sweep.speed_of(each) for each in settings] == [each.speedup for each in settings]
    assert curve_of(sweep).x_title == sweep.speed_name == "measured speed"


def test_identical_results_stand_at_the_top_and_are_no_knee() -> None:
    same = row(1.2, float("inf"), psnr=(float("inf"),) * 2)
    sweep = made(settings=(same, *made().settings))
    assert curve_of(sweep).points[1].y == 1.0
    assert sweep.knee is sweep.settings[3]


@pytest.mark.parametrize("worst", [math.nan, -math.inf])
def test_what_has_no_quality_stands_at_the_bottom_and_hides_no_knee(worst: float) -> None:
    """Regression: NaN stood at the top, as if identical, and nothing slower was on the curve."""
    sweep = made()
    broken = row(5, 0, psnr=(worst, worst))
    found = made(settings=(*sweep.settings, broken))
    curve = curve_of(found)
    assert [point.y for point in curve.points if point.row is broken] == [0.0]
    assert [y for _, y in curve.front] == [y for _, y in curve_of(sweep).front]
    assert found.knee is sweep.knee is not None
