"""SADA (Jiang et al., arXiv 2507.17135), as far as it works at the U-Net's boundary.

The sampler's path is x(σ), the latents where the data's spread is 1, with the guided output as its
gradient y. Third-order extrapolation says where the path would be,
x̂(t-1) = x(t) - Δ·(5/6·y(t) + 5/6·y(t+1) - 2/3·y(t+2)); a step is stable, and its call left out,
if x(t-1) - x̂(t-1) points against the gradient's second difference. Then the last output is taken
at x̂: x0 = x̂ - σ·ε. The first fifth and the last 6 % run whole (10 and 3 of 50), and at least one
call of four. The sign alone has no budget: the cosine of the two is compared with a threshold that
is fitted; 0 is the paper's.

The formulas are those of the paper, with the noise level in the place of its time. Left out are
what needs layers (token pruning) and the fixed pattern of the second half (x0 by Lagrange's
polynomial).
"""

import math
from typing import Any

import torch

from benchmarks.fidelity.rivals.skipping import Rival
from deepcache_patch.schedules.noise import noise_levels

START, END = 0.2, 0.06
MOST_SKIPPED = 3
WEIGHTS = (5 / 6, 5 / 6, -2 / 3)


class Sada(Rival):
    """Leaves out calls of stable steps, and extrapolates where they would have been.

    Args:
        threshold: Of the cosine, -1 to 1; a larger one leaves out more.
    """

    #: Between which the threshold is searched.
    KNOB = (-1.0, 1.0)

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._gradients: list[torch.Tensor] = []  # of the last three steps, the newest first
        self._skipped = 0

    def begin(self, pipe: Any) -> None:
        """Look up the noise levels.

        Raises:
            ValueError: The scheduler does not say them.
        """
        super().begin(pipe)
        levels = noise_levels(pipe.scheduler, pipe.scheduler.timesteps.tolist())
        if levels is None:
            raise ValueError(f"{type(pipe.scheduler).__name__} does not say its noise levels")
        self._sigmas = [math.exp(level) for level in levels]

    def full(self, step: int, sample: torch.Tensor) -> bool:
        """Where the step is not stable, and at the start and the end."""
        sigma = self._sigmas[step]
        here = self._of_one(sample) * math.sqrt(1 + sigma**2)
        runs = True
        if self._is_inside(step):
            newest, newer, old = self._gradients
            width = sigma - self._sigmas[step - 1]
            slope = sum(w * y for w, y in zip(WEIGHTS, self._gradients, strict=True))
            self._off = here - (self._path + width * slope)
            against = torch.cosine_similarity(
                self._off.flatten(), (newest - 2 * newer + old).flatten(), dim=0
            )
            runs = self._skipped >= MOST_SKIPPED or not float(against) < self._threshold
        self._path = here
        return runs

    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep the output, and the gradient."""
        self._output, self._skipped = output, 0
        self._remember(self._guided(output))

    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The output with which x0 is that of the last one at the extrapolated place."""
        self._skipped += 1
        correction = self._off / self._sigmas[step]
        self._remember(self._guided(self._output) + correction)
        return self._output + correction.repeat(len(self._output) // len(correction), 1, 1, 1)

    def _is_inside(self, step: int) -> bool:
        first = max(3, round(self.steps * START))
        return first <= step < self.steps - max(1, round(self.steps * END))

    def _remember(self, gradient: torch.Tensor) -> None:
        self._gradients = [gradient, *self._gradients[:2]]

    def _has_two(self) -> bool:
        return bool(getattr(self.pipe, "do_classifier_free_guidance", False))

    def _of_one(self, sample: torch.Tensor) -> torch.Tensor:
        return sample.chunk(2)[0] if self._has_two() else sample

    def _guided(self, output: torch.Tensor) -> torch.Tensor:
        if not self._has_two():
            return output
        without, prompted = output.chunk(2)
        return without + self.pipe.guidance_scale * (prompted - without)
