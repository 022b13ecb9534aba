"""Noise levels that somebody has declared, in the place of the scheduler that would know them."""

from collections.abc import Sequence
from typing import Any

import torch


class DeclaredNoise:
    """What stands for the scheduler of a loop of which only the noise levels are known.

    Its timesteps are the noise levels themselves. It makes no steps: which method the sampler goes
    by is not known, and what is learned by another one's steps makes the pictures worse.

    Args:
        sigmas: The noise's standard deviation at each step, where the data's is 1; falling, above
            0.
        prediction_type: What the U-Net's output means, one of `forecast.PREDICTIONS`, if it gets
            x / sqrt(1 + sigma²); `None` if that is not known, and nothing can be forecast.
    """

    def __init__(self, sigmas: Sequence[float], prediction_type: str | None = None) -> None:
        self.timesteps = torch.tensor(sigmas, dtype=torch.float64, device="cpu")
        self.sigmas = self.timesteps
        self.alphas_cumprod = 1 / (1 + self.sigmas**2)
        self.config: dict[str, Any] = {"prediction_type": prediction_type}
