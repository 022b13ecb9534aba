"""What grows and what does not, where it can be counted; and every part of the benchmark once."""

import torch

from benchmarks.cost import scaling
from benchmarks.networks.toys import tiny

CPU = torch.device("cpu")


def test_the_cache_grows_with_slots_and_not_with_steps():
    pipe = tiny("cpu", torch.float32)
    by_slots = [scaling.by_slots(pipe, slots, 1) for slots in (1, 4)]
    feature = 2 * 8 * 8 * 8 * 4
    assert [row["cache_nbytes"] for row in by_slots] == [2 * feature, 4 * 2 * feature]
    by_steps = scaling.by_steps(pipe, (10, 20), 1)
    assert {row["cache_nbytes"] for rows in by_steps.values() for row in rows} == {
        2 * feature,
        3 * 2 * (2 * 3 * 8 * 8 * 4),  # what `Auto` goes on from: three inputs and outputs
    }
    assert [[row["steps"] for row in rows] for rows in by_steps.values()] == [[10, 20]] * 3


def test_the_cache_grows_with_pixels_and_batch():
    pipe = tiny("cpu", torch.float32)
    rows = [scaling.by_size(pipe, *sizes, 1) for sizes in ((8, 2), (16, 2), (8, 4))]
    feature = 2 * 8 * 8 * 8 * 4
    assert [row["cache_nbytes"] for row in rows] == [2 * feature, 8 * feature, 4 * feature]


def test_the_record_grows_with_the_steps():
    rows = [scaling.learning(steps, 8, CPU) for steps in (9, 18)]
    x0 = 2 * 4 * 8 * 8 * 4
    assert [row["record_nbytes"] for row in rows] == [9 * x0, 18 * x0]


def test_plans_of_all_kinds_are_timed():
    assert list(scaling.plan_times(10, 1)) == ["steps", "uniform_us", "centred_us"]
