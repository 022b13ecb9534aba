"""Distances between sets of pictures: Fréchet's, between the features that the project's own
classifier sees in them. Which sets are compared is the caller's business.
"""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.train.shape_classifier import ShapeClassifier, as_batch
from benchmarks.train.shapes import draw, training_scene

DRAWINGS_SEED = 8080
DRAWINGS = 2000


class FeatureSpace:
    """The classifier's features along those axes in which fresh drawings vary most.

    A covariance of as many dimensions as there are pictures, or more, is singular, and one of
    nearly as many says more about the pictures that happened to be drawn than about their kind. So
    only the drawings' first principal axes are kept; they do not depend on the pictures compared.

    Args:
        classifier: Whose features.
        dimensions: How many axes are kept.

    Attributes:
        share: How much of the variance of the drawings' features these axes hold.
    """

    def __init__(self, classifier: ShapeClassifier, dimensions: int) -> None:
        self._classifier = classifier
        scenes = (training_scene(DRAWINGS_SEED, index) for index in range(DRAWINGS))
        self._drawings = as_batch([draw(scene) for scene in scenes])
        features = self._features(self._drawings)
        # In order of rising variance.
        variances, axes = np.linalg.eigh(np.cov(features, rowvar=False))
        self._axes = axes[:, -dimensions:]
        self.share = float(variances[-dimensions:].sum() / variances.sum())

    def describe(self, pictures: np.ndarray) -> np.ndarray:
        """Returns features (pictures, dimensions) in float64.

        Args:
            pictures: (pictures, height, width, 3), floats in 0..1.
        """
        return self._along_axes(torch.from_numpy(pictures).permute(0, 3, 1, 2))

    def describe_drawings(self, size: int) -> np.ndarray:
        """Returns the features of the fresh drawings, seen at `size` x `size` pixels."""
        # The unconditional model learned from drawings that were shrunk in the same way.
        return self._along_axes(F.interpolate(self._drawings, (size, size), mode="area"))

    def _along_axes(self, pictures: torch.Tensor) -> np.ndarray:
        return np.asarray(self._features(pictures) @ self._axes)

    @torch.no_grad()
    def _features(self, pictures: torch.Tensor) -> np.ndarray:
        parts = [self._classifier.features(part) for part in torch.split(pictures, 64)]
        return torch.cat(parts).double().numpy()


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
