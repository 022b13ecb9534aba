"""Where single timesteps stand in their lists, without a generation round them."""

from types import SimpleNamespace

import pytest
import torch

from deepcache_patch.running.locating.timelines import (
    ROUNDING,
    Expected,
    Place,
    Timelines,
    driving_scheduler,
    turns_back,
)

TIMESTEPS = torch.tensor([900.0, 700.0, 500.0, 300.0, 0.0])


def place(timestep, timesteps=TIMESTEPS, expected=None):
    return Timelines().place(timestep, timesteps, expected)


def entry(timestep, timesteps=TIMESTEPS, expected=None):
    found = place(timestep, timesteps, expected)
    return None if found is None else found.entry


def at(index, *, more=False, timeline=TIMESTEPS):
    """Where a generation stands that has come to this entry."""
    return Expected(timeline, index, more)


@pytest.mark.parametrize("index", [0, 1, 4])
def test_a_view_needs_no_value(index):
    expected = Place(TIMESTEPS, index, 5, None, index == 0)
    found = place(TIMESTEPS[index])
    assert found[1:] == expected[1:]
    assert found.timeline is TIMESTEPS
    assert type(found.is_head) is bool


@pytest.mark.parametrize("index", [0, 1, 4])
def test_a_view_into_a_list_of_the_callers_own_needs_none_either(index):
    view = TIMESTEPS.clone()[index]
    for timesteps in (TIMESTEPS, None):
        found = place(view, timesteps)
        assert found[1:] == (index, 5, None, index == 0)
        assert found.timeline is view
        assert type(found.is_head) is bool


def test_a_number_without_a_list_is_a_value_that_may_be_the_first():
    found = place(80.0, None)
    assert found == (None, None, None, 80.0, True)
    assert found.is_head is True


@pytest.mark.parametrize(
    ("value", "index", "is_head"),
    [
        (900, 0, True),
        (700, 1, False),
        (0, 4, False),
        (950, None, True),
        (600, None, False),
        (-50, None, False),
    ],
)
def test_a_value_is_that_of_an_entry_or_stands_beside_the_list(value, index, is_head):
    found = place(value)
    assert found[1:] == (index, None if index is None else 5, value, is_head)
    assert found.timeline is TIMESTEPS
    assert type(found.is_head) is bool


def test_a_list_that_rises_begins_at_its_least_value():
    rising = TIMESTEPS.flip(0)
    heads = {value: place(value, rising).is_head for value in (-50, 0, 0.5, 100, 900, 950)}
    assert heads == {-50: True, 0: True, 0.5: True, 100: False, 900: False, 950: False}


def test_the_head_is_the_head_but_for_rounding():
    # Half of what rounding may do: the list's range is 900, and so its 900th part is 1.
    assert ROUNDING == 1 / 450
    assert [place(900 + by).is_head for by in (-1.0, -1.01)] == [True, False]
    assert [entry(900 + by) for by in (1.0, -1.0, 1.01, -1.01)] == [0, 0, None, None]


def test_a_list_whose_ends_are_equal_begins_anywhere():
    flat = torch.tensor([500.0, 300.0, 500.0])
    assert [place(value, flat).is_head for value in (300, 400)] == [True, True]


def test_a_list_without_entries_has_none_and_no_head():
    empty = torch.tensor([])
    assert place(500.0, empty)[1:] == (None, None, 500.0, False)


def test_a_noise_level_is_no_timestep_near_0():
    timesteps = torch.tensor([900.0, 500.0, 0.5])
    assert [entry(value, timesteps) for value in (0.5, 0.52, 0.53, 0.46)] == [2, 2, None, None]
    assert entry(1.0) is None


def test_a_list_of_one_step_has_that_one():
    assert [entry(value, torch.tensor([500.0])) for value in (500, 500.5)] == [0, None]


def test_a_list_whose_values_are_far_from_0_is_matched_by_its_range():
    timesteps = torch.tensor([10_900.0, 10_450.0, 10_000.0])
    assert [entry(value, timesteps) for value in (10_001, 10_001.1)] == [2, None]


@pytest.mark.parametrize(("gap", "found"), [(0.0004, None), (0.01, 2)])
def test_entries_are_as_good_as_equal_within_float32(gap, found):
    # Their range is 900, and a millionth of it is what arithmetic may do.
    timesteps = torch.tensor([900.0, 500.0, 0.5 + gap, 0.5], dtype=torch.float64)
    assert entry(0.5 + gap, timesteps) == found


def test_a_table_of_equal_entries_is_met_nowhere_but_where_it_is_expected():
    timesteps = torch.tensor([900.0, 500.0, 500.0, 500.0, 100.0])
    steps = [entry(500, timesteps, at(index, timeline=timesteps)) for index in range(5)]
    assert steps == [1, 2, 3, 3, None]
    more = [entry(500, timesteps, at(i, more=True, timeline=timesteps)) for i in range(4)]
    assert more == [1, 1, 2, 3]
    first = [entry(500, timesteps, at(i, more=None, timeline=timesteps)) for i in range(4)]
    assert first == [1, None, None, 3]
    assert entry(500, timesteps, at(1, timeline=timesteps.clone())) is None
    assert entry(500, timesteps) is None


def test_what_is_nearest_to_the_expected_entry_is_it():
    # Where timesteps are computed from noise levels, and rounded in more than one place.
    near = [entry(value, expected=at(0)) for value in (790, 650, 610, 601, 590)]
    assert near == [1, 1, 1, 1, None]
    assert entry(610) is None
    assert entry(610, expected=at(1)) is None
    assert entry(610, expected=at(0, timeline=TIMESTEPS.clone())) is None


def test_beyond_the_ends_of_a_list_nothing_is_near():
    assert entry(950, expected=at(-1)) is None
    assert entry(-50, expected=at(3)) is None
    assert entry(-50, expected=at(4)) is None
    assert entry(50, expected=at(3)) == 4
    assert entry(50, expected=at(4)) is None
    assert entry(850, expected=at(-1)) == 0


def test_a_list_that_is_one_entry_again_and_again_has_that_one():
    whole = torch.tensor([900.0, 700.0, 500.0])
    flat = whole[:1].expand(3)
    assert place(flat[0], flat)[1:] == (0, 3, None, True)
    assert entry(whole[1], flat) == 1


def test_a_view_between_two_entries_counts_by_its_value():
    whole = torch.tensor([900.0, 800.0, 700.0, 600.0])
    listed = whole[::2]
    assert place(whole[1], listed)[1:] == (None, None, 800.0, False)
    assert place(whole[1], listed, at(0, timeline=listed))[1:] == (1, 2, 800.0, False)


def test_the_value_of_an_entry_is_known_once_its_list_was_read():
    timelines = Timelines()
    assert timelines.value_of(TIMESTEPS, 1) is None
    timelines.place(700, TIMESTEPS, None)
    assert [timelines.value_of(TIMESTEPS, index) for index in (1, 4, 5, 6)] == [700, 0, None, None]
    assert timelines.value_of(TIMESTEPS.clone(), 1) is None
    assert timelines.value_of(None, 1) is None


def test_a_list_may_have_ten_thousand_entries():
    for length, expected in ((10_000, 1), (10_001, None)):
        view = torch.arange(length, 0, -1)[1]
        assert entry(view, None) == expected


def test_a_list_may_rise_by_rounding_and_no_further():
    # Its range is 450, so rounding may do 1.
    for risen, expected in ((1.0, 2), (1.5, None)):
        values = torch.tensor([950.0, 700.0, 700.0 + risen, 500.0])
        assert entry(values[2], None) == expected


def test_a_list_turns_back_by_more_than_rounding():
    assert [turns_back([950.0, 700.0 - by, 700.0, 500.0], 1, 2) for by in (1.0, 1.5)] == [
        False, True,
    ]  # fmt: skip
    assert not turns_back([0.9, 0.7, 0.5], 0, 1)
    assert turns_back([0.9, 0.5, 0.7, 0.1], 1, 2)


def scheduler(timesteps):
    return SimpleNamespace(timesteps=timesteps)


def test_the_scheduler_whose_list_is_viewed_drives():
    first, second = (scheduler(TIMESTEPS.clone()) for _ in range(2))
    nothing = scheduler(None)
    for schedulers in ([first, second], [nothing, first, second]):
        for each in (first, second):
            assert driving_scheduler(schedulers, each.timesteps[1]) is each


def test_the_likeliest_scheduler_drives_where_none_is_viewed():
    first, second = (scheduler(TIMESTEPS.clone()) for _ in range(2))
    for timestep in (700, TIMESTEPS[1]):
        assert driving_scheduler([first, second], timestep) is first
        assert driving_scheduler([first], timestep) is first
        assert driving_scheduler([], timestep) is None
