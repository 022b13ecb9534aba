"""ZEUS (Wang et al., arXiv 2604.01552): outputs of left-out calls by a predictor of two points.

Of the step t just computed and the step before it, ψ(t-1) is taken for 2·ψ(t) - ψ(t+1). Two such
forecasts never follow each other: the next call gets what was observed, ψ(t), the one after that
the forecast again, and so on. The start and the end run whole, as in the authors' settings for 50
steps (10 and 5); between them so many steps, evenly, as the budget has left, where theirs are a
third. The step before t may have been forecast itself: with two calls of three left out it always
is. How the observed pair is used over more than two left-out calls is not spelled out where it
could be read; forecast at odd distances and reuse at even ones is what the zigzag of the paper's
figure says. The anchors of the second half (x0 by Lagrange's polynomial) are left out.
"""

import torch

from benchmarks.fidelity.rivals.skipping import Planned


class Zeus(Planned):
    """Forecasts and reuses in turn."""

    _answer: torch.Tensor | None = None  # of the step before, computed or not

    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep the output, and what it forecasts together with that of the step before."""
        before = output if self._answer is None else self._answer
        self._at, self._observed, self._ahead = step, output, 2 * output - before
        self._answer = output

    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The line through two steps at odd distances, the last full output at even ones."""
        self._answer = self._ahead if (step - self._at) % 2 else self._observed
        return self._answer
