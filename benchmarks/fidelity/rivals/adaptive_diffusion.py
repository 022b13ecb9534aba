"""AdaptiveDiffusion (Ye et al., arXiv 2410.09873): the output again while the latents move evenly.

With d the mean absolute difference of the latents of neighbouring steps, a call is left out if
|(d(i) + d(i-2)) / 2 - d(i-1)| ≤ δ · d(i-1), a difference of the third order. The first four calls
run whole, and at least one of five. δ is fitted to the budget; 0.01 and at most four left-out calls
are the published ones. The latents are those that enter the U-Net, which Euler's scheduler has
scaled; the batch decides together, as in the authors' code.
"""

import torch

from benchmarks.fidelity.rivals.skipping import Rival

FIRST = 4
MOST_SKIPPED = 4


class AdaptiveDiffusion(Rival):
    """Reuses outputs where the latents' third difference is small.

    Args:
        threshold: δ, at least 0; a larger one leaves out more.
    """

    #: Between which the threshold is searched.
    KNOB = (1e-4, 30.0)

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._moves: list[float] = []
        self._skipped = 0

    def full(self, step: int, sample: torch.Tensor) -> bool:
        """By the last three moves of the latents."""
        if step > 0:
            self._moves.append(float((sample - self._before).abs().mean()))
        self._before = sample
        if step < FIRST or self._skipped >= MOST_SKIPPED:
            return True
        older, old, new = self._moves[-3:]
        return abs((new + older) / 2 - old) > self._threshold * old

    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep the output."""
        self._output, self._skipped = output, 0

    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The last one."""
        self._skipped += 1
        return self._output
