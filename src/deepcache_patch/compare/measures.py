"""How alike results are, by one measure, and how a person reads it. Measuring itself is done in
`measuring`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

#: Name, unit and digits after the point; the first that there is stands for all.
_KNOWN: Final = (("PSNR", "dB", 2), ("SSIM", "", 4), ("LPIPS", "", 4), ("SNR", "dB", 2))


class Measure(NamedTuple):
    """How alike the results are, by one measure: one value for each."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    digits: int = 4

    @property
    def mean(self) -> float:
        """Of the finite values; infinite only where every result is identical."""
        different = [value for value in self.values if value != float("inf")]
        return statistics.fmean(different) if different else float("inf")

    def text(self, value: float | None = None) -> str:
        """A value, by default the mean, as a person reads it."""
        value = self.mean if value is None else value
        if value == float("inf"):
            return "identical"
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


def measures_of(values: Sequence[tuple[float, ...] | None]) -> tuple[Measure, ...]:
    """Those that there are.

    Args:
        values: Of PSNR, SSIM, LPIPS and SNR, in this order; `None` for one that was not taken.
    """
    return tuple(
        Measure(name, each, unit, digits)
        for (name, unit, digits), each in zip(_KNOWN, values, strict=True)
        if each is not None
    )
