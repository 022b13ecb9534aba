"""The mean of how alike results are, some of which may be identical."""

import math

import pytest

from deepcache_patch.measuring.similarity import mean_of


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([20.0, 30.0], 25.0),
        ([math.inf, 20.0], 20.0),  # what is identical does not make the rest so
        ([math.inf, math.inf], math.inf),
        ([-math.inf, 1.0], -math.inf),
    ],
)
def test_the_mean_leaves_out_what_is_identical(values, mean):
    assert mean_of(values) == mean


def test_there_is_no_mean_of_nothing():
    assert math.isnan(mean_of([]))
