"""Which steps a loop may have, and which prove one: the bounds, to the last entry."""

import pytest

from deepcache_patch.running.locating.strides import Stride, Strides


def entries(far, whole=10):
    return Stride(far, whole, entries=True)


def values(far, whole=1000.0):
    return Stride(far, whole, entries=False)


def test_the_next_is_one_entry_on():
    assert [entries(far).is_next for far in (0, 1, 2)] == [False, True, False]
    assert not values(1).is_next


def test_the_next_entry_goes_on_whatever_went_before():
    assert Strides().fits(entries(1, whole=1))
    assert Strides(entries(0)).fits(entries(1))


def test_a_first_step_goes_no_further_than_three_tenths_of_the_way():
    assert [Strides().fits(entries(far)) for far in (2, 3, 4)] == [True, True, False]
    assert [Strides().fits(values(far)) for far in (300.0, 300.1)] == [True, False]
    after_values = Strides(values(1.0))
    assert [after_values.fits(entries(far)) for far in (3, 4)] == [True, False]
    after_entries = Strides(entries(400, whole=1000))
    assert [after_entries.fits(values(far)) for far in (300.0, 300.1)] == [True, False]


def test_a_step_is_at_most_four_times_as_long_as_the_one_before():
    before = Strides(entries(2, whole=1))
    assert [before.fits(entries(far, whole=1)) for far in (2, 8, 9)] == [True, True, False]
    before = Strides(values(2.0))
    assert [before.fits(values(far)) for far in (8.0, 8.1)] == [True, False]


@pytest.mark.parametrize(
    ("way", "alike"),
    [
        (entries(1, whole=1), 1),
        (entries(2, whole=1), 0),
        (entries(15, whole=100), 1),
        (entries(16, whole=100), 0),
        (values(150.0), 1),
        (values(150.1), 0),
        (values(0.1, whole=0.5), 0),
    ],
)
def test_a_step_like_no_other_may_be_the_first_of_a_loop_if_it_is_short(way, alike):
    assert Strides().after(way) == Strides(way, alike)


@pytest.mark.parametrize(
    ("last", "way", "alike"),
    [
        (entries(10, whole=1), entries(10, whole=1), 4),
        (entries(10, whole=1), entries(11, whole=1), 4),
        (entries(10, whole=1), entries(9, whole=1), 4),
        (entries(10, whole=1), entries(12, whole=1), 0),
        (entries(10, whole=1), entries(8, whole=1), 0),
        (values(30.0, whole=1), values(45.0, whole=1), 4),
        (values(30.0, whole=1), values(20.0, whole=1), 4),
        (values(30.0, whole=1), values(45.1, whole=1), 0),
        (values(30.0, whole=1), values(19.9, whole=1), 0),
        (values(30.0, whole=1), entries(30, whole=1), 0),
    ],
)
def test_steps_in_a_row_are_alike_within_a_tenth_of_entries_and_half_of_values(last, way, alike):
    assert Strides(last, 3).after(way) == Strides(way, alike)
