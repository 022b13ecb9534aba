"""The plainest one: the last output again, on an evenly spread plan."""

import torch

from benchmarks.fidelity.rivals.skipping import Planned


class OutputReuse(Planned):
    """Answers with the output of the last full call."""

    _last: torch.Tensor

    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep the output."""
        self._last = output

    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The last one."""
        return self._last
