"""What stands for a scheduler where only noise levels are told knows what a scheduler knows."""

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from deepcache_patch.schedules.fit import copied
from deepcache_patch.schedules.forecast import Forecast
from deepcache_patch.schedules.guide import Context
from deepcache_patch.schedules.noise import ends_with, noise_levels
from deepcache_patch.schedules.told_noise import PREDICTIONS, ToldNoise

SIGMAS = [8.0, 4.0, 1.0, 0.25]


def test_it_knows_the_levels_that_it_was_told():
    told = ToldNoise(SIGMAS)
    for first in range(4):
        rest = tuple(SIGMAS[first:])
        assert ends_with(told, rest)
        assert noise_levels(told, rest) == tuple(math.log(each) for each in rest)


@pytest.mark.parametrize("prediction", [None, *PREDICTIONS])
def test_an_output_is_forecast_if_its_meaning_was_told(prediction):
    context = Context(4, tuple(SIGMAS), ToldNoise(SIGMAS, prediction), torch.nn.Identity())
    forecast = Forecast.of(context)
    assert (forecast and forecast.prediction) == prediction


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_its_steps_are_those_of_eulers_method(prediction):
    scheduler = EulerDiscreteScheduler(prediction_type=prediction)
    scheduler.set_timesteps(sigmas=[*SIGMAS, 0.0])
    told = copied(ToldNoise(scheduler.sigmas[:-1].tolist(), prediction))
    generator = torch.Generator().manual_seed(0)
    one = two = torch.randn(2, 4, 3, 3, generator=generator)
    for mine, its in zip(told.timesteps, scheduler.timesteps, strict=True):
        output = torch.randn(2, 4, 3, 3, generator=generator)
        # In float32 on both sides, by other orders of the same arithmetic.
        near = {"rtol": 1e-4, "atol": 1e-4}
        given = told.scale_model_input(one, mine)
        assert torch.allclose(given, scheduler.scale_model_input(two, its), **near)
        one = told.step(output, mine, one, return_dict=False)[0]
        two = scheduler.step(output, its, two).prev_sample
        assert torch.allclose(one, two, **near)
