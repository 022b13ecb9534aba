"""Spectrum (Han et al., arXiv 2603.01623): of left-out calls only the output convolution runs.

What enters `conv_norm_out` is forecast from that of all full calls so far: a ridge regression on
Chebyshev polynomials of the step, blended half with the line through the last two. Four bases,
ridge 0.1, half, five full steps first and gaps that begin with 2 and grow are the authors' settings
for SDXL; the growth is fitted to the budget (`plans.spectrum`). Four bases are the degrees 0 to 3;
the authors' code has one degree more, which forecasts worse where steps are few, so the rival is
spared it. Steps are mapped to -1..1 over the whole generation. The work of what runs is counted as
0: in SD 1.5 it is less than a thousandth.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.fidelity.rivals.skipping import Planned

DEGREE = 3
RIDGE = 0.1
BLEND = 0.5


class Spectrum(Planned):
    """Forecasts the last hidden state."""

    def __init__(self, plan: list[int]) -> None:
        super().__init__(plan)
        self._places: list[int] = []
        self._features: list[torch.Tensor] = []

    @contextmanager
    def watching(self, unet: Any) -> Iterator[None]:
        """See what enters the output convolution."""

        def keep(module: Any, inputs: tuple[torch.Tensor]) -> None:
            (self._entered,) = inputs

        handle = unet.conv_norm_out.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep what entered the output convolution."""
        self._places.append(step)
        self._features.append(self._entered)

    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The output convolution of the forecast."""
        shares = weights(self._places, step, self.steps)
        feature = sum(w * each for w, each in zip(shares, self._features, strict=True))
        unet = self.pipe.unet
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(feature)))


def weights(places: list[int], step: int, steps: int) -> list[float]:
    """With what shares the features of the full steps make that of another step.

    Args:
        places: The full steps, at least one.
        step: Whose feature is forecast.
        steps: Of the generation.
    """
    design = np.polynomial.chebyshev.chebvander(2 * np.array([*places, step]) / steps - 1, DEGREE)
    known, wanted = design[:-1], design[-1]
    fit = np.linalg.solve(known.T @ known + RIDGE * np.eye(DEGREE + 1), known.T)
    line = np.zeros(len(places))
    line[-1] = 1
    if len(places) > 1:
        ahead = (step - places[-1]) / (places[-1] - places[-2])
        line[-2:] = -ahead, 1 + ahead
    return list((BLEND * (wanted @ fit) + (1 - BLEND) * line).tolist())
