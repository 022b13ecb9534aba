"""What stands for a scheduler where only noise levels are declared knows what a scheduler knows."""

import math

import pytest

from deepcache_patch.running.locating.declared import DeclaredNoise
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.forecast import PREDICTIONS, Forecast
from deepcache_patch.schedules.noise import ends_with, noise_levels

SIGMAS = [8.0, 4.0, 1.0, 0.25]


def test_it_knows_the_levels_that_it_was_given():
    declared = DeclaredNoise(SIGMAS)
    for first in range(4):
        rest = tuple(SIGMAS[first:])
        assert ends_with(declared, rest)
        assert noise_levels(declared, rest) == tuple(math.log(each) for each in rest)


@pytest.mark.parametrize("prediction", [None, *PREDICTIONS])
def test_an_output_is_forecast_if_its_meaning_was_given(prediction):
    context = Context(4, tuple(SIGMAS), DeclaredNoise(SIGMAS, prediction))
    forecast = Forecast.of(context)
    assert (forecast and forecast.prediction) == prediction
