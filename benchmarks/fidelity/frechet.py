"""Distances between sets of pictures: Fréchet's, between the features that a classifier sees in
them. Which classifier, and which sets are compared, is the caller's business.
"""

from collections.abc import Callable

import numpy as np
import torch

#: Of pictures (pictures, 3, height, width), floats in 0..1: (pictures, features).
Features = Callable[[torch.Tensor], torch.Tensor]


class FeatureSpace:
    """A classifier's features along those axes in which what its pictures show varies most.

    A covariance of as many dimensions as there are pictures, or more, is singular, and one of
    nearly as many says more about the pictures that happened to be drawn than about their kind. So
    only the first principal axes are kept; they do not depend on the pictures compared.

    Args:
        features: Those of the classifier.
        examples: (examples, features) in float64: what there is to show.
        dimensions: How many axes are kept; all, if there are no more.

    Attributes:
        dimensions: How many axes were kept.
        share: How much of the variance of the examples these axes hold.
    """

    def __init__(self, features: Features, examples: np.ndarray, dimensions: int) -> None:
        self._features = features
        # In order of rising variance.
        variances, axes = np.linalg.eigh(np.cov(examples, rowvar=False))
        self._axes = axes[:, -dimensions:]
        self.dimensions = self._axes.shape[1]
        self.share = float(variances[-dimensions:].sum() / variances.sum())

    def describe(self, pictures: torch.Tensor) -> np.ndarray:
        """Returns features (pictures, dimensions) in float64.

        Args:
            pictures: (pictures, 3, height, width), floats in 0..1, on the classifier's device.
        """
        return np.asarray(described(self._features, pictures) @ self._axes)


@torch.no_grad()
def described(features: Features, pictures: torch.Tensor) -> np.ndarray:
    """Returns the features of many pictures, (pictures, features) in float64."""
    return torch.cat([features(part) for part in torch.split(pictures, 64)]).double().cpu().numpy()


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the squared Fréchet distance of the two Gaussians that fit the features, as in FID.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½). It falls with the number of pictures: compare only
    figures that come from equally many.

    Args:
        first: Features (pictures, dimensions) in float64, at least two of each.
        second: Features of as many dimensions.
    """
    offset = first.mean(axis=0) - second.mean(axis=0)
    one, other = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (first, second))
    # Σ₁Σ₂ has the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric: no complex root is needed.
    # Rounding can make the smallest ones, and the sum, a little less than zero.
    variances, axes = np.linalg.eigh(one)
    root = (axes * np.sqrt(variances.clip(0))) @ axes.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    return max(0.0, float(offset @ offset + np.trace(one) + np.trace(other) - 2 * mixed))
