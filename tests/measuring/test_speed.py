"""Timings in turn: how many are taken, and what they say together."""

from __future__ import annotations

import pytest

from deepcache_patch.measuring.generation import Timing
from deepcache_patch.measuring.speed import Speed, measured_speed


def timed(ratios: list[float], goal: float = 0.0) -> tuple[Speed, list[str]]:
    """What is measured if the slow one takes these seconds, and the fast one 1; their order."""
    order: list[str] = []
    seconds = iter(ratios)

    def slow() -> float:
        order.append("slow")
        return next(seconds)

    def fast() -> float:
        order.append("fast")
        return 1.0

    return measured_speed(slow, fast, goal=goal), order


def test_both_run_in_turn_three_times_where_they_agree() -> None:
    speed, order = timed([2.0, 2.1, 2.2, 9.0])
    assert order == ["slow", "fast"] * 3
    assert speed == Speed((2.0, 2.1, 2.2))
    assert speed.median == 2.1
    assert speed.quartiles == (2.0, 2.2)  # of up to four, all


def test_one_that_is_far_off_is_outvoted_by_more() -> None:
    # Quartiles of 2, 2 and 8 are 2 and 8, as they are of four; of five, 2 and 2.
    speed, order = timed([2.0, 8.0, 2.0, 2.0, 2.0, 9.0])
    assert len(order) == 2 * 5
    assert (speed.median, speed.quartiles, speed.is_steady) == (2.0, (2.0, 2.0), True)


def test_what_is_too_slow_is_timed_nine_times() -> None:
    speed, order = timed([1.9] * 10, goal=2.0)
    assert len(order) == 2 * 9
    assert speed.median == 1.9


def test_what_varies_is_timed_nine_times_and_no_more() -> None:
    speed, order = timed([1.0, 2.0, 3.0] * 4)
    assert len(order) == 2 * 9
    assert (speed.median, speed.quartiles, speed.is_steady) == (2.0, (1.0, 3.0), False)


def test_a_fifth_of_the_median_is_the_most_that_half_of_them_may_span() -> None:
    assert Speed((9.0, 10.0, 11.0)).is_steady  # of up to four, all: a fifth
    assert not Speed((8.9, 10.0, 11.0)).is_steady
    assert Speed((1.0, 9.0, 10.0, 11.0, 99.0)).is_steady  # of five, the middle three
    assert not Speed((1.0, 8.9, 10.0, 11.0, 99.0)).is_steady
    assert Speed((2.0,)).is_steady


def test_a_speed_is_that_of_runs_that_followed_each_other() -> None:
    slow, fast = ([Timing(each, 2 * each, 1) for each in row] for row in ((4.0, 8.0), (2.0, 2.0)))
    assert Speed.of(slow, fast) == Speed.of(slow, fast, "call_seconds") == Speed((2.0, 4.0))
    assert Speed.of(slow, fast).median == 3.0
    with pytest.raises(ValueError, match="shorter"):
        Speed.of(slow, fast[:1])


def test_more_than_the_saved_work_allows_is_noticed_as_soon_as_it_is_seen() -> None:
    # 2.50× stood above "by work at most 2.27×" without a word: up to a fifth was let pass.
    assert not Speed((2.004,)).is_beyond(2.0)  # both are written 2.00×
    assert Speed((2.006,)).is_beyond(2.0)
    assert not Speed((2.1,)).is_beyond(None)
