"""Which step a U-Net call is of, in a generation that `helper.generation(...)` declares."""

import numpy as np
import pytest
import torch
from builders.declared_loops import SIGMAS, called, ddim, noise
from builders.loops import held_bytes
from builders.unets import unet2d
from diffusers import PNDMScheduler

from deepcache_patch import (
    FULL,
    DeepCacheHelper,
    DeepCacheWarning,
    InvalidSettingError,
    Uniform,
)
from deepcache_patch.running.locating.declared import declared_by
from deepcache_patch.running.locating.declared_steps import DeclaredSteps

pytestmark = pytest.mark.usefixtures("no_grad")


def walk(calls, **declared):
    """Generation, step and order of each call, or why it has no position."""
    steps = DeclaredSteps(declared_by(**declared))
    found = []
    for call in calls:
        at = steps.locate(call)
        found.append(steps.unclear if at is None else (at.generation, at.step, steps._order))
    return found


def test_by_noise_levels_another_value_is_the_next_step():
    for calls in ([900, 700, 400, 100], [0.9, 0.5, -0.1, -0.4], [1, 2, 3, 4]):
        assert walk(calls, **SIGMAS) == [(0, step, 0) for step in range(4)]


def test_by_noise_levels_an_equal_value_is_another_call_of_the_step():
    heun = [900.0, 700.0, 700.0 + 1e-4, 400.0, 400.0, 100.0, 100.0]
    assert walk(heun, **SIGMAS) == [
        (0, 0, 0),
        *((0, step, order) for step in (1, 2, 3) for order in (0, 1)),
    ]


def test_noise_levels_of_all_calls_may_be_given_and_equal_ones_are_one_step():
    heun = [8.0, 4.0, 4.0 * (1 + 1e-7), 2.0, 2.0, 0.0]
    assert declared_by(sigmas=heun).timesteps.tolist() == [8, 4, 2]
    assert declared_by(sigmas=torch.tensor([8.0, 4, 0])).timesteps.tolist() == [8, 4]
    assert declared_by(sigmas=np.array([8.0, 4.0])).timesteps.tolist() == [8, 4]


def test_more_steps_than_were_declared_run_in_full_with_one_warning():
    unet = unet2d()
    helper = DeepCacheHelper(unet, schedule=Uniform(2))
    with helper, pytest.warns(DeepCacheWarning) as said:
        called(helper, unet, (900, 800, 700, 600, 500, 400), **SIGMAS)
    assert [str(each.message) for each in said] == [
        "a U-Net call runs in full: it is the call of step 5, and generation() was given 4, so "
        "those before it may have been taken for other steps than they are, and the picture may be "
        "wrong: give the noise level of each call of the U-Net, also of those between two steps of "
        "the sampler"
    ]
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 2)


FEWER = (
    "of the 4 steps that generation() was given, 2 came, and were taken for the first: if the loop "
    "was not broken off, give those that run, which for image to image are the end of the list"
)


@pytest.mark.parametrize(
    ("calls", "declared"),
    [
        ([900, 700], SIGMAS),
        ([900, 700, 700], SIGMAS),  # by Heun's method
        ([900, 900, 700], SIGMAS),  # guided in two calls
        ([0.9, 0.7], {"timesteps": [900, 700, 400, 100]}),
    ],
    ids=["sigmas", "heun", "guided", "timesteps of which none is passed"],
)
def test_of_fewer_steps_than_were_declared_one_warning_says_so(calls, declared):
    # The end of a schedule, whose noise levels were all given, was taken for its beginning.
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        with pytest.warns(DeepCacheWarning) as said:
            called(helper, unet, calls, **declared)
        assert [str(each.message) for each in said] == [FEWER]
        assert held_bytes(helper) == 0
        called(helper, unet, calls[:1], **declared)
        # Another doubt is told of all the same.
        with pytest.warns(DeepCacheWarning, match="rounded to the same number"):
            called(helper, unet, [900, 700, 100, 100], **SIGMAS)
    assert list(helper.last_generations["unet"].plan) == [FULL, 0, FULL]


def test_a_loop_that_ends_by_an_error_is_no_doubt():
    unet = unet2d()

    def interrupted():
        yield 900
        raise KeyboardInterrupt

    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        with pytest.raises(KeyboardInterrupt):
            called(helper, unet, interrupted(), **SIGMAS)
        with pytest.warns(DeepCacheWarning, match="of the 4 steps"):  # nor was it told of by that
            called(helper, unet, [900], **SIGMAS)


def test_entries_of_a_list_may_be_its_first_or_its_last():
    unet, scheduler = unet2d(), ddim()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        for declared in ({"scheduler": scheduler}, {"timesteps": scheduler.timesteps.tolist()}):
            called(helper, unet, scheduler.timesteps[:3], **declared)
            called(helper, unet, scheduler.timesteps[-3:], **declared)
    assert helper.stats.generations == 4


def test_a_loop_that_goes_back_is_over_where_only_the_order_counts():
    found = walk([900, 700, 900, 700], **SIGMAS)
    assert found[:2] == [(0, 0, 0), (0, 1, 0)]
    assert found[2] == found[3]
    assert "enter a block for each picture" in found[2]


def test_samples_at_different_timesteps_have_no_step():
    for declared in (SIGMAS, {"timesteps": [900, 500, 100]}):
        found = walk([900, torch.tensor([900, 500]), 500], **declared)
        assert found == [
            (0, 0, 0),
            "the samples of its batch are at different timesteps",
            (0, 1, 0),
        ]


LISTED = [980, 940, 500, 460, 20]


@pytest.mark.parametrize(
    "declared",
    [LISTED, np.flip(np.array(sorted(LISTED))), torch.tensor(LISTED), tuple(LISTED)],
    ids=["list", "array", "tensor", "tuple"],
)
def test_timesteps_are_known_by_value_in_any_form(declared):
    expected = [(0, step, 0) for step in range(5)]
    assert walk(LISTED, timesteps=declared) == expected
    assert walk([torch.full((2,), each) for each in LISTED], timesteps=declared) == expected
    rounded = [torch.tensor(float(each), dtype=torch.bfloat16) for each in LISTED]
    assert walk(rounded, timesteps=declared) == expected
    assert walk(list(torch.tensor(LISTED)), timesteps=declared) == expected  # entries of a copy


def test_a_loop_may_begin_midway_and_leave_timesteps_out():
    timesteps = torch.tensor([900, 800, 700, 600, 500, 400])
    for calls in (timesteps[1::2], timesteps[1::2].tolist()):
        # Not the second of its steps is the list's, but the third: so noise levels stay right.
        assert walk(calls, timesteps=timesteps) == [(0, 0, 0), (0, 2, 0), (0, 4, 0)]


def test_a_full_step_that_is_left_out_is_made_up_for():
    unet, timesteps = unet2d(), torch.arange(9, 0, -1) * 100
    with DeepCacheHelper(unet, schedule=Uniform(5)) as helper:
        with helper.generation(timesteps=timesteps):
            for timestep in timesteps[::2]:
                unet(noise(), timestep)
        # Of the list, 0 and 5 are full; 5 is left out, so 6 is.
        assert list(helper.last_generations["unet"].plan) == [FULL, 0, 0, FULL, 0]


def test_a_list_is_begun_again_where_the_loop_goes_back():
    assert walk([900, 500, 900, 500], timesteps=[900, 500, 100]) == [
        (0, 0, 0),
        (0, 1, 0),
        (1, 0, 0),
        (1, 1, 0),
    ]


def test_of_equal_timesteps_each_is_a_step():
    scheduler = PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(5)
    timesteps = scheduler.timesteps
    assert len(timesteps) - len(set(timesteps.tolist())) == 1
    expected = [(0, step, 0) for step in range(len(timesteps))]
    assert walk(timesteps, scheduler=scheduler) == expected
    assert walk(timesteps.tolist(), scheduler=scheduler) == expected
    twice = [each for each in timesteps.tolist() for _ in range(2)]
    assert walk(twice, scheduler=scheduler) == [
        (0, step, order) for step in range(len(timesteps)) for order in range(2)
    ]


def test_what_is_none_of_the_timesteps_runs_in_full():
    found = walk([900, 700, 650, 500], timesteps=[900, 500, 100])
    stray = "its timestep 700 is none of those that generation() was given: give those of all calls"
    assert found == [(0, 0, 0), stray, stray, (0, 1, 0)]


def test_a_list_of_which_nothing_is_passed_counts_the_steps():
    # Such as a model that gets shares of the way, or noise levels.
    assert walk([0.98, 0.94, 0.94, 0.5], timesteps=LISTED) == [
        (0, 0, 0),
        (0, 1, 0),
        (0, 1, 1),
        (0, 2, 0),
    ]


def test_entries_between_those_that_were_declared_are_none_of_them():
    # A list of every second timestep shares its memory with the whole one.
    whole = torch.tensor([950, 900, 850, 800, 750])
    for calls in (whole, whole.tolist(), list(whole)):
        found = walk(calls, timesteps=whole[::2])
        assert [found[0], found[2], found[4]] == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
        assert found[1] == found[3]
        assert "timestep 900 is none of those" in found[1]
    found = walk(whole[1:], timesteps=whole[::2])
    assert "timestep 900 is none of those" in found[0]
    assert found[1] == (0, 0, 0)
    found = walk(whole, timesteps=whole[2:])
    assert "timestep 950 is none of those" in found[0]
    assert found[2:] == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


def test_another_list_of_as_many_entries_is_known_by_its_values():
    declared = torch.tensor([900, 700, 500, 300, 100])
    other = torch.tensor([950, 900, 500, 200, 100])
    found = walk(other[1:], timesteps=declared)
    stray = "its timestep 200 is none of those that generation() was given: give those of all calls"
    assert found == [(0, 0, 0), (0, 2, 0), stray, (0, 4, 0)]
    # A copy in another type is the same list, also where rounding makes two entries alike.
    near = torch.tensor([900, 899, 500, 300, 100])
    copied = near.to(torch.bfloat16)
    assert copied[0] == copied[1]
    assert walk(copied, timesteps=near) == [(0, step, 0) for step in range(5)]


def test_what_is_declared_is_read_once(monkeypatch):
    reads, original = [], torch.Tensor.tolist

    def counted(tensor):
        reads.append(tuple(tensor.shape))
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    timesteps = torch.tensor(LISTED)
    assert walk(list(timesteps), timesteps=timesteps) == [(0, step, 0) for step in range(5)]
    assert reads == [(5,)]


def test_a_scheduler_that_has_lost_its_timesteps_is_an_error():
    scheduler = ddim()
    steps = DeclaredSteps(declared_by(scheduler=scheduler))
    scheduler.timesteps = None
    with pytest.raises(InvalidSettingError, match=r"DDIMScheduler .* no timesteps any more"):
        steps.locate(900)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([900, 700, 100, 100], "of the 4 steps .*, 3 came, and one of them had 2 calls"),
        ([900, 900, 700, 400, 100], "of the 4 steps .*, 4 came, and one of them had 2 calls"),
    ],
    ids=["rounded to the same number", "a call to warm up"],
)
def test_steps_that_may_have_been_taken_for_one_are_told_of_once(calls, message):
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        with pytest.warns(DeepCacheWarning, match=message) as said:
            called(helper, unet, calls, **SIGMAS)
        assert len(said) == 1
        called(helper, unet, calls, **SIGMAS)


@pytest.mark.parametrize(
    "calls",
    [
        [900, 700, 400],
        [900, 700, 700, 400, 400],
        [900, 700, 700, 400, 400, 100, 100],
        [900, 900, 700, 700, 400, 400, 100, 100],
    ],
    ids=["where the last is none", "such of heun", "all of heun", "all of guided"],
)
def test_steps_of_several_calls_and_a_last_noise_level_that_is_none_are_no_matter(calls):
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        called(helper, unet, calls, **SIGMAS)
        assert helper.stats.generations == 1


def test_timesteps_that_a_scheduler_gets_within_the_block_count():
    scheduler = ddim(5)
    steps = DeclaredSteps(declared_by(scheduler=scheduler))
    scheduler.set_timesteps(7)
    found = [steps.locate(timestep) for timestep in scheduler.timesteps]
    assert [(at.step, at.num_steps) for at in found] == [(step, 7) for step in range(7)]
