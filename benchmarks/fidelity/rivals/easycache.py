"""EasyCache (Zhou et al., arXiv 2507.02860), for a U-Net: what the network adds to its input again.

Between full calls the change of the output is guessed from that of the input, by their ratio at the
last full call, k; relative to the last output it is added up, and while the sum is below the
threshold, a call is answered with its input plus the last difference of output and input. The start
and the end run whole: 15 % and 5 % of the steps, the settings with which stable-diffusion.cpp and
ComfyUI offer it. The threshold is fitted to the budget; those published (0.025 to 0.2) are of
transformers.
"""

import math

import torch

from benchmarks.fidelity.rivals.skipping import Rival

START, END = 0.15, 0.05


class EasyCache(Rival):
    """Reuses output minus input under an accumulated relative change.

    Args:
        threshold: Of the sum, at least 0; a larger one leaves out more.
    """

    #: Between which the threshold is searched.
    KNOB = (1e-4, 100.0)

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._sum = 0.0
        self._ratio: float | None = None  # k
        self._output: torch.Tensor | None = None

    def full(self, step: int, sample: torch.Tensor) -> bool:
        """Where the guessed change has added up, and at the start and the end."""
        runs = True
        last = self.steps - max(1, round(self.steps * END))
        inside = math.ceil(self.steps * START) <= step < last
        if inside and self._output is not None and self._ratio is not None:
            change = float((sample - self._before).abs().mean())
            self._sum += self._ratio * change / float(self._output.abs().mean())
            runs = self._sum >= self._threshold
        if runs:
            self._sum = 0.0
        self._before = sample
        return runs

    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep what the network added, and how its output followed its input."""
        if self._output is not None:
            moved = float((output - self._output).abs().mean())
            self._ratio = moved / max(float((sample - self._input).abs().mean()), 1e-12)
        self._input, self._output, self._added = sample, output, output - sample

    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The input plus what the network added last."""
        return sample + self._added
