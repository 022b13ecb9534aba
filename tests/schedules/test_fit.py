"""Weights that bring the chain of all steps back to where it was, without any call of a U-Net."""

import copy
from dataclasses import replace

import pytest
import torch
from builders.cases import CASES
from builders.schedulers import SCHEDULERS
from diffusers import DDIMScheduler

from deepcache_patch import FULL, NoiseAware, Plan, Uniform
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.fit import DAMPING, _nearest, fitted, trend
from deepcache_patch.schedules.forecast import Forecast
from deepcache_patch.schedules.guide import planned

STEPS = 12
CONFIG = CASES["sd"].load().scheduler.config


def prepared(name, **options):
    scheduler = SCHEDULERS[name](CONFIG | options)
    scheduler.set_timesteps(STEPS)
    timesteps = tuple(map(float, scheduler.timesteps.tolist()))
    return Context(len(timesteps), timesteps, scheduler)


def settling(context, numbers=64):
    """An x0 that settles, of each step: in sigma, and a little otherwise."""
    start, slope, other = torch.randn(3, numbers, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor(context.levels).exp()[:, None]
    return start + slope * sigmas / (1 + sigmas) + other * sigmas.sqrt() / (3 + sigmas)


def course(context, denoised, plan, weights):
    """The input of each step with a U-Net that always tells these x0."""
    scheduler, forecast = copy.deepcopy(context.scheduler), Forecast.of(context, weights=weights)
    sample, full, inputs = torch.zeros(1, 1, denoised.shape[1], 1), [], []
    for step, timestep in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(sample, timestep)
        inputs.append(x)
        if plan[step] == FULL:
            x0 = denoised[step][None, None, :, None]
            full = [(step, x0), *full][:3]
        else:
            x0 = forecast.ahead(step, [each for each, _ in full], [each for _, each in full])
        output = forecast.answer(step, x, x0)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
    return torch.stack(inputs)


def test_what_would_undo_an_error_is_damped_to_a_ninth():
    older, newer = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    missed = 3 * (newer - older)
    weights = _nearest(missed, [newer, older], (0.5,), DAMPING)
    assert weights == pytest.approx((0.5 + 3 / 9,), rel=1e-12)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm-multistep", "unipc"])
def test_the_chain_stays_nearer_to_where_it_was(name):
    context = prepared(name)
    plan, denoised = planned(NoiseAware(2.2), context), settling(context)
    weights = fitted(denoised, context.scheduler, Forecast.of(context), plan)
    plain, trend, learned = (
        course(context, denoised, *each)
        for each in (([FULL] * len(plan), {}), (plan, {}), (plan, weights))
    )
    assert (learned - plain).norm() < 0.9 * (trend - plain).norm()


def test_each_step_that_goes_on_from_two_full_ones_has_weights_but_the_last():
    context = prepared("ddim")
    plan = Plan([FULL, -1, FULL, -1, FULL, -1, -1, FULL, -1, -1, -1, -1])
    weights = fitted(settling(context), context.scheduler, Forecast.of(context), plan)
    assert list(weights) == [
        (3, 2, 0),
        (5, 4, 2, 0),
        (6, 4, 2, 0),
        (8, 7, 4, 2),
        (9, 7, 4, 2),
        (10, 7, 4, 2),
    ]
    assert [len(each) for each in weights.values()] == [1, 2, 2, 2, 2, 2]


def test_the_weights_of_a_trend_are_those_without_weights():
    context = prepared("ddim")
    plan, denoised = planned(NoiseAware(2.2), context), settling(context)
    half = Forecast.of(context, strength=0.5)
    weights = trend(half, plan)
    full: list[int] = []
    for step, entry in enumerate(plan):
        if entry == FULL:
            full = [step, *full][:3]
        elif len(full) > 1:
            known = [denoised[each] for each in full]
            followed = replace(half, strength=1.0, weights=weights).ahead(step, full, known)
            assert torch.equal(followed, half.ahead(step, full, known))
    assert [step for step, *_ in weights] == [
        step for step in range(plan.full_steps[1], STEPS) if plan[step] != FULL
    ]


def test_of_steps_that_were_not_seen_there_are_none():
    context, plan = prepared("ddim"), Uniform(3).plan(STEPS)
    weights = fitted(settling(context)[:8], context.scheduler, Forecast.of(context), plan)
    assert [step for step, *_ in weights] == [4, 5, 7]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_followed_or_given_up_and_left_as_it_was(name):
    context = prepared(name)
    forecast = Forecast.of(context)
    if forecast is None:
        return
    plan, denoised = planned(NoiseAware(2.2), context), settling(context)
    before, random = copy.deepcopy(vars(context.scheduler)), torch.random.get_rng_state()
    weights = fitted(denoised, context.scheduler, forecast, plan)
    assert fitted(denoised, context.scheduler, forecast, plan) == weights
    assert torch.equal(torch.random.get_rng_state(), random)
    assert str(vars(context.scheduler)) == str(before)


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral"])
def test_a_scheduler_that_adds_noise_has_none(name):
    context = prepared(name)
    plan = planned(NoiseAware(2.2), context)
    assert fitted(settling(context), context.scheduler, Forecast.of(context), plan) == {}


class Refusing(DDIMScheduler):
    def step(self, *_args, **_kwargs):
        raise RuntimeError("only pictures")


class Deaf(DDIMScheduler):
    def step(self, _output, _timestep, sample, **_kwargs):
        return (sample,)


@pytest.mark.parametrize("kind", [Refusing, Deaf])
def test_a_scheduler_that_cannot_be_followed_has_none(kind):
    scheduler = kind.from_config(CONFIG)
    scheduler.set_timesteps(STEPS)
    context = prepared("ddim")
    plan = planned(NoiseAware(2.2), context)
    assert fitted(settling(context), scheduler, Forecast.of(context), plan) == {}


def test_of_an_x0_that_is_not_finite_there_are_none():
    context = prepared("ddim")
    denoised = settling(context)
    denoised[3, 5] = float("nan")
    plan = planned(NoiseAware(2.2), context)
    assert fitted(denoised, context.scheduler, Forecast.of(context), plan) == {}
