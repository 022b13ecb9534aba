"""Where a generation goes on, ends or was none: the tracker's rules at their bounds, one by one.

What they are for is told in `test_steps` and `test_outside_of_loops`.
"""

import pytest
import torch

from deepcache_patch.running.locating.steps import StepTracker
from deepcache_patch.running.locating.timelines import ROUNDING

LONG = torch.arange(980, -1, -20)  # 50 entries
SHORT = torch.tensor([900.0, 700.0, 500.0, 300.0, 100.0])


def by_hand():
    return False


def by_pipeline():
    return True


class Walk:
    """Calls of one tracker; each is an entry of a list, or else a value."""

    def __init__(self, timesteps=None, caller=by_pipeline):
        self.timesteps, self.caller = timesteps, caller
        self.tracker = StepTracker(lambda: self.caller())

    def at(self, *calls, caller=None):
        self.caller, usual = caller or self.caller, self.caller
        found = []
        for call in calls:
            timestep = self.timesteps[call] if isinstance(call, int) else call
            found.append(self.tracker.locate(timestep, self.timesteps))
        self.caller = usual
        return [None if each is None else (each.generation, each.step) for each in found]


def astray():
    """Calls by hand that are of no loop, the last at entry 3 of 50."""
    walk = Walk(LONG, by_hand)
    assert walk.at(30, 3) == [(0, 0), None]
    return walk


def test_before_the_first_call_nothing_is_known():
    tracker = StepTracker()
    assert (tracker.unclear, tracker.remaining()) == (None, None)
    tracker.locate(LONG[0], LONG)
    tracker.reset()
    assert (tracker.unclear, tracker.remaining()) == (None, None)


def test_what_has_a_position_or_is_of_no_loop_is_not_unclear():
    walk = astray()
    assert walk.tracker.unclear is None
    walk.at(torch.tensor([900, 700]))
    assert walk.tracker.unclear.startswith("its step cannot be told")
    walk.at(0)
    assert walk.tracker.unclear is None


# --- astray -------------------------------------------------------------------------------------


def test_a_pipeline_that_calls_after_calls_that_were_astray_begins_a_loop_of_its_own():
    walk = astray()
    assert walk.at(20, 25, 40, caller=by_pipeline) == [(1, 0), (1, 1), (1, 2)]
    assert walk.at(45) == [(2, 0)]


def test_the_head_of_the_list_begins_one_that_only_the_next_entry_goes_on_with():
    assert astray().at(0, 1, 2) == [(1, 0), (1, 1), (1, 2)]
    assert astray().at(0, 2, 3) == [(1, 0), None, None]
    assert astray().at(1) == [None]


def test_a_loop_by_hand_is_none_that_a_pipeline_goes_on_with():
    walk = astray()
    walk.at(0, 1)
    assert walk.at(5, caller=by_pipeline) == [(2, 0)]


def test_calls_astray_may_go_back_and_are_none_the_less_astray():
    assert astray().at(2, 1, 9, 4) == [None] * 4


def test_several_calls_of_each_step_may_prove_a_loop():
    walk = astray()
    calls = [12, 13, 13, 14, 14, 15, 15, 16, 16, 17, 17]
    assert walk.at(*calls) == [None] * 7 + [(1, 0), (1, 0), (1, 1), (1, 1)]


def test_a_loop_that_was_proved_may_leave_entries_out():
    assert astray().at(12, 13, 14, 15, 16, 18, 22) == [*[None] * 4, (1, 0), (1, 1), (1, 2)]


def test_a_loop_that_was_proved_by_hand_is_no_pipelines():
    walk = astray()
    walk.at(12, 13, 14, 15, 16)
    assert walk.at(20, caller=by_pipeline) == [(2, 0)]


def test_calls_astray_in_another_list_go_on_being_so_but_from_its_head():
    again = LONG.clone()
    for index, caller, expected in (
        (5, by_hand, [None]),
        (0, by_hand, [(1, 0)]),
        (5, by_pipeline, [(1, 0)]),
    ):
        walk = astray()
        walk.timesteps = again
        assert walk.at(index, caller=caller) == expected


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ((0, 1, 0), [(0, 0), (0, 1), (1, 0)]),
        ((49, 10), [(0, 0), (1, 0)]),
        ((48, 10), [(0, 0), None]),
        ((0, 2), [(0, 0), (0, 1)]),
        ((0, 15), [(0, 0), (0, 1)]),
        ((0, 16), [(0, 0), None]),
        ((1, 3), [(0, 0), None]),
    ],
    ids=str,
)
def test_one_step_and_then_something_else_was_no_loop(calls, expected):
    assert Walk(LONG, by_hand).at(*calls) == expected


# --- beside a list ------------------------------------------------------------------------------


def test_a_loop_beside_its_list_has_no_values_to_read():
    walk = Walk(SHORT)
    walk.at(600.0)
    assert walk.tracker.remaining() is None
    walk.tracker.reset()
    walk.at(0)
    assert walk.tracker.remaining() == tuple(SHORT.tolist())


def test_values_beside_a_list_count_as_the_entries_that_they_would_be():
    walk, found = Walk(SHORT), []
    for call in (900.0, 590.0, 480.0, 190.0):
        walk.at(call)
        found.append((walk.tracker._place.entry, walk.tracker._index))
    assert found == [(0, 0), (None, 1), (2, 2), (None, 3)]
    walk.tracker.reset()
    walk.at(600.0, 590.0)
    assert walk.tracker._index is None
    walk.tracker.reset()
    walk.at(0, 2)  # one is left out
    assert walk.tracker._index == 2


def test_views_and_values_beside_the_list_are_steps_of_one_loop():
    assert Walk(SHORT).at(0, 590.0, 3, 150.0) == [(0, step) for step in range(4)]


def test_steps_beside_the_list_are_of_no_known_number():
    walk, timesteps = Walk(), torch.tensor([900.0, 100.0])
    found = [walk.tracker.locate(call, timesteps) for call in (900.0, 600.0, 100.0)]
    assert [(each.step, each.num_steps) for each in found] == [(0, 2), (1, None), (2, None)]


def test_nothing_follows_after_0():
    tracker = StepTracker()
    found = [tracker.locate(call) for call in (2.0, 1.0, 0.0)]
    assert [each.num_steps for each in found] == [None, None, 3]
    listed = [Walk(SHORT).tracker.locate(call, SHORT).num_steps for call in (SHORT[0], 900.0)]
    assert listed == [5, 5]


def test_in_the_first_step_nobody_knows_whether_another_call_of_it_is_to_come():
    timesteps = torch.tensor([900, 900, 500])
    walk = Walk(timesteps)
    assert walk.at(0, 900.0) == [(0, 0), None]
    assert walk.tracker.unclear is not None


# --- values without a list ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ((1000.0, 999.995), (0, 0)),
        ((1000.0, 999.9), (0, 1)),
        ((100_000.0, 99_999.0), (0, 0)),
        ((900.0, 904.0), (0, 0)),
        ((900.0, 904.1), (1, 0)),
        ((900.0, 905.0), (1, 0)),
        ((900.0, 100.0, 104.0), (0, 1)),
        ((0.0, 0.003), (1, 0)),
    ],
    ids=str,
)
def test_a_value_is_that_of_the_last_step_but_for_rounding(values, last):
    assert 2 * ROUNDING * 900 == 4
    assert Walk().at(*values)[-1] == last


@pytest.mark.parametrize(
    ("values", "last"),
    [((200.0, 20.0), (0, 1)), ((200.1, 20.0), None), ((1000.0, 700.0), (0, 1))],
    ids=str,
)
def test_only_small_values_are_noise_levels_that_may_go_down_by_any_share(values, last):
    assert Walk(caller=by_hand).at(*values)[-1] == last
