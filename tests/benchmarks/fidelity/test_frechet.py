"""Fréchet's distance in cases that can be worked out by hand, and against a matrix root."""

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks.fidelity.frechet import FeatureSpace, frechet_distance

FOUR = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
#: The eigenvalues come from an iteration: a few roundings, on figures of about 1.
ROUNDING = 1e-12


def test_a_set_is_at_no_distance_from_itself():
    assert frechet_distance(FOUR, FOUR) == pytest.approx(0, abs=ROUNDING)


def test_a_shift_counts_squared():
    assert frechet_distance(FOUR, FOUR + np.array([3.0, 4.0])) == pytest.approx(25, abs=ROUNDING)


def test_a_spread_counts_by_the_difference_of_standard_deviations():
    # Along each of two axes the variance is 4/3, and nine times that: √(4/3)·(3 - 1), squared.
    assert frechet_distance(FOUR, 3 * FOUR) == pytest.approx(2 * 16 / 3, abs=1e-11)


def test_one_dimension_will_do():
    line = np.array([[-1.0], [1.0]])  # variance 2
    assert frechet_distance(line, 2 * line) == pytest.approx(2, abs=ROUNDING)


def test_a_covariance_without_full_rank_is_no_obstacle():
    flat = FOUR * [1.0, 0.0]
    assert frechet_distance(FOUR, flat) == pytest.approx(4 / 3, abs=ROUNDING)


def test_it_is_the_formula_with_the_root_of_the_product():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(40, 5)), random.normal(size=(30, 5)) @ np.diag(range(1, 6))
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    offset = first.mean(axis=0) - second.mean(axis=0)
    root = scipy.linalg.sqrtm(one @ other).real
    expected = offset @ offset + np.trace(one + other - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-10)


#: Variances 4/3, 12 and 1/3 along three axes.
EXAMPLES = np.column_stack([FOUR, np.array([0.5, -0.5, -0.5, 0.5])]) * [1.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("dimensions", "kept", "variance"),
    [(1, [1], 12), (2, [0, 1], 12 + 4 / 3), (9, [0, 1, 2], 41 / 3)],
)
def test_pictures_are_described_along_the_axes_of_most_variance(dimensions, kept, variance):
    space = FeatureSpace(lambda pictures: pictures.mean(dim=(2, 3)), EXAMPLES, dimensions)
    assert space.dimensions == len(kept)
    assert space.share == pytest.approx(variance / (41 / 3), abs=ROUNDING)
    pictures = torch.tensor([3.0, 5.0, 7.0])[None, :, None, None].expand(70, 3, 2, 2)
    described = space.describe(pictures)
    assert described.shape == (70, len(kept))
    assert described.dtype == np.float64
    # An axis may point either way.
    assert sorted(np.abs(described[69])) == pytest.approx([3 + 2 * axis for axis in kept])
