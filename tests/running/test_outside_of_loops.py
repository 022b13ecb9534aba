"""Calls of a U-Net that belong to no denoising loop are plain, whoever makes them and when."""

import gc
import random

import diffusers
import pytest
import torch
from builders.held import SD, loop
from builders.kinds_of_calls import kinds_of_calls
from builders.marks import mostly_slow
from builders.patched import slowly
from builders.unets import inputs2d_condition

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.running.locating.steps import StepTracker

OPTIONS = [
    pytest.param({"schedule": Uniform(3)}, id="branch 0"),
    pytest.param({"schedule": Uniform(3, -1)}, id="output"),
]
EITHER = pytest.mark.parametrize("options", OPTIONS)


def evaluated(unet, timesteps):
    """One output for each timestep, each of a sample of its own."""
    with torch.no_grad():
        return [
            unet(**inputs2d_condition(seed=seed) | {"timestep": timestep}).sample
            for seed, timestep in enumerate(timesteps)
        ]


def drawn(timesteps, count=48):
    """Timesteps at random, in the forms that people give them."""
    draw = random.Random(1)
    numbers = [draw.randrange(20, 980) for _ in range(count)]
    return {
        "numbers": numbers,
        "tensors": [torch.tensor([number]) for number in numbers],
        "batches": [torch.tensor([number, number]) for number in numbers],
        "of the list": [timesteps[draw.randrange(len(timesteps))] for _ in range(count)],
        "copies of the list's": [int(timesteps[draw.randrange(50)]) for _ in range(count)],
    }


FORMS = ["numbers", "tensors", "batches", "of the list", "copies of the list's"]


@pytest.mark.parametrize("options", mostly_slow(OPTIONS, 1))
@pytest.mark.parametrize("form", slowly(FORMS, FORMS[1:2]))
def test_evaluations_at_random_timesteps_are_plain(form, options):
    # Score distillation, a classifier by denoising, the loss of a validation: half of them replayed
    # what another sample had recorded.
    pipe = SD.load()
    pipe.scheduler.set_timesteps(50)
    timesteps = drawn(pipe.scheduler.timesteps)[form]
    plain = evaluated(pipe.unet, timesteps)
    with DeepCacheHelper(pipe, **options) as helper:
        found = evaluated(pipe.unet, timesteps)
        assert helper.stats.shallow_calls == 0
        SD.run(pipe, steps=5)
        assert helper.stats.shallow_calls == 3  # a loop is one as before
        assert all(map(torch.equal, evaluated(pipe.unet, timesteps), plain))
    assert all(map(torch.equal, found, plain))


@EITHER
def test_a_unet_that_outlives_helper_and_pipeline_is_plain(options):
    pipe = SD.load()
    unet = pipe.unet
    plain = evaluated(unet, range(900, 0, -100))
    DeepCacheHelper(pipe, **options).enable()
    SD.run(pipe)
    del pipe
    gc.collect()
    with kinds_of_calls(unet) as kinds:
        found = evaluated(unet, range(900, 0, -100))
        loop(unet)
    assert "".join(kinds) == "F" * 14
    assert all(map(torch.equal, found, plain))


def test_another_pipeline_with_the_unet_goes_on_when_the_helpers_is_gone():
    pipe = SD.load()
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    DeepCacheHelper(pipe, schedule=Uniform(3)).enable()
    del pipe
    gc.collect()
    with kinds_of_calls(other.unet) as kinds:
        SD.run(other)
    assert "".join(kinds) == "FssFs"


def by_hand():
    return False


def steps_of(calls, timesteps=None):
    tracker = StepTracker(by_hand)
    found = [tracker.locate(call, timesteps) for call in calls]
    return [None if each is None else (each.generation, each.step) for each in found]


def test_a_loop_of_ones_own_over_the_list_is_one_wherever_it_begins():
    timesteps = torch.arange(980, -1, -20)
    for first in (0, 20):
        calls = timesteps[first:]
        expected = [(0, step) for step in range(len(calls))]
        assert steps_of(calls, timesteps) == expected
        assert steps_of([int(each) for each in calls], timesteps) == expected


def test_calls_that_jump_are_of_no_loop_until_four_steps_in_a_row_are_alike():
    timesteps = torch.arange(980, -1, -20)
    calls = [timesteps[index] for index in (30, 3, 12, 13, 14, 15, 16, 17, 18)]
    assert steps_of(calls, timesteps) == [
        (0, 0), *[None] * 5, (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip


def test_another_list_ends_it_at_its_head():
    tracker, timesteps = StepTracker(by_hand), torch.arange(980, -1, -20)
    for index in (30, 3, 12):
        tracker.locate(timesteps[index], timesteps)
    again = timesteps.clone()
    positions = [tracker.locate(each, again) for each in again[:3]]
    assert [(each.generation, each.step) for each in positions] == [(1, 0), (1, 1), (1, 2)]


def test_values_that_fall_by_a_large_part_of_the_way_are_no_loop():
    assert steps_of([980, 300, 20]) == [(0, 0), None, None]
    assert steps_of([980, 940, 900, 100]) == [(0, 0), (0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize(
    "calls",
    [
        list(range(981, 0, -20)),
        [torch.full((2,), value) for value in range(951, 0, -50)],
        [999, 749, 499, 249],
        [14.6, 11.7, 9.3, 7.4, 5.7, 4.4, 3.3, 2.5, 1.8, 1.3, 0.9, 0.6, 0.4, 0.2, 0.1, 0.03],
        [80.0, 31.5, 2.5],
    ],
    ids=["numbers", "batches", "four", "sigmas", "few sigmas"],
)
def test_falling_values_are_a_loop_of_a_bare_unet(calls):
    assert steps_of(calls) == [(0, step) for step in range(len(calls))]
    assert steps_of([*calls, *calls])[len(calls) :] == [(1, step) for step in range(len(calls))]


def karras(steps):
    """Timesteps of a loop over Karras' sigmas, as wrappers of k-diffusion compute them."""
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log()
    ramp = torch.linspace(0, 1, steps)
    least, most = levels[0].exp() ** (1 / 7), levels[-1].exp() ** (1 / 7)
    sigmas = (most + ramp * (least - most)) ** 7
    found = torch.searchsorted(levels, sigmas.log()).clamp(1, 999)
    share = (sigmas.log() - levels[found - 1]) / (levels[found] - levels[found - 1])
    return found - 1 + share


@pytest.mark.parametrize(
    "form",
    [lambda t: t.repeat(2), float, lambda t: t.long(), int, lambda t: int(t.round())],
    ids=["batch", "float", "long", "int", "rounded"],
)
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler"])
def test_a_loop_over_computed_timesteps_is_one_generation(scheduler, form):
    scheduler = getattr(diffusers, scheduler)()
    scheduler.set_timesteps(20)
    found = steps_of([form(each) for each in karras(20)], scheduler.timesteps)
    assert {each[0] for each in found} == {0}
    assert found[0] == (0, 0)
    assert len({each[1] for each in found}) >= 19  # the last may be equal when rounded


@pytest.mark.parametrize("form", [int, float, lambda t: (t + 0.3).long(), lambda t: t - 0.99])
def test_timesteps_that_are_the_schedulers_but_for_rounding_have_its_length(form):
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(20)
    tracker = StepTracker(by_hand)
    positions = [tracker.locate(form(each), scheduler.timesteps) for each in scheduler.timesteps]
    assert [(each.generation, each.step) for each in positions] == [(0, i) for i in range(20)]
    assert {each.num_steps for each in positions} == {20}


def test_a_list_that_rises_by_rounding_is_one_generation():
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps
    tracker = StepTracker()
    positions = []
    for timestep in timesteps:
        positions.append(tracker.locate(timestep, timesteps))
        tracker.remaining()
    assert [(each.generation, each.step) for each in positions] == [
        (0, step) for step in range(len(timesteps))
    ]
    risen = torch.tensor([900.0, 700.0, 700.5, 500.0, 500.25, 100.0])
    assert steps_of(risen) == [(0, step) for step in range(6)]  # as a list of one's own
    for timestep in risen:
        position = tracker.locate(timestep, risen)
        tracker.remaining()
    assert (position.generation, position.step) == (1, 5)


def test_of_two_equal_entries_the_expected_one_is_meant():
    timesteps = torch.tensor([900, 500, 500, 300, 300, 100])
    calls = [int(each) for each in timesteps]
    assert steps_of(calls, timesteps) == [(0, step) for step in range(6)]
    tracker = StepTracker()
    twice = [tracker.locate(call, timesteps) for call in calls for _ in range(2)]
    assert [(each.step, each.order) for each in twice] == [
        (step, slot) for step in range(6) for slot in range(2)
    ]
    tracker.reset()
    assert tracker.locate(300, timesteps) is None  # nothing is expected
    assert tracker.unclear
