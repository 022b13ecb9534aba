"""Noise levels that somebody has told, in the place of the scheduler that would know them."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch

from .forecast import Forecast

#: What the output of a U-Net may be told to mean.
PREDICTIONS: Final = ("epsilon", "v_prediction", "sample")


class ToldNoise:
    """What stands for the scheduler of a loop of which only the noise levels are known.

    Its timesteps are the noise levels themselves. It makes steps, too: those of Euler's method, by
    which `fit` sees what becomes of an output.

    Args:
        sigmas: The noise's standard deviation at each step, where the data's is 1; falling, above
            0.
        prediction_type: What the U-Net's output means, one of `PREDICTIONS`, if it gets
            x / sqrt(1 + sigma²); `None` if that is not known, and nothing can be forecast.
    """

    def __init__(self, sigmas: Sequence[float], prediction_type: str | None = None) -> None:
        self.timesteps = torch.tensor(sigmas, dtype=torch.float64, device="cpu")
        self.sigmas = self.timesteps
        self.alphas_cumprod = 1 / (1 + self.sigmas**2)
        self.config: dict[str, Any] = {"prediction_type": prediction_type}

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the U-Net gets."""
        return sample / math.hypot(1, float(timestep))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """The sample of the next step, by Euler's method; of the last one, x0."""
        place, sigma = self.timesteps.tolist().index(float(timestep)), float(timestep)
        after = float(self.sigmas[place + 1]) if place + 1 < len(self.sigmas) else 0.0
        meaning = Forecast((math.log(sigma),), self.config["prediction_type"])
        denoised = meaning.denoised(0, self.scale_model_input(sample, timestep), model_output)
        return (denoised + (sample - denoised) * (after / sigma),)
