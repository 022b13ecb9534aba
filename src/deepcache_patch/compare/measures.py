"""How alike results are, by one measure, how a person reads it, and the verdict in words. Measuring
itself is done in `measuring`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..measuring.similarity import mean_of

SAME, DETAILS, SHAPES = "no visible difference", "details move", "shapes differ"

#: PSNR in dB and SSIM from which a picture is called `SAME`, and below which `SHAPES`.
_ALIKE: Final = (40.0, 0.98)
_APART: Final = (25.0, 0.90)

#: dB. A smaller difference of two means is no reason to choose: where one picture turns out
#: otherwise, the mean of 8 to 32 moves by 1 to 2 dB (docs/experiments.md).
CLEAR: Final = 1.0

#: The rule of `looks_of`, in words.
RULE: Final = (
    f"“{SAME}”: every result has at least {_ALIKE[0]:g} dB and SSIM {_ALIKE[1]:.2f}; "
    f"“{SHAPES}”: one has less than {_APART[0]:g} dB or SSIM {_APART[1]:.2f}; "
    f"“{DETAILS}”: all else. The limits are this package’s own convention: look at the pictures."
)

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
        """`mean_of` the values: infinite only where every result is identical."""
        return mean_of(self.values)

    @property
    def worst(self) -> int:
        """The place, from 0, of the result that is farthest from the plain one."""
        sign = -1 if self.name == "LPIPS" else 1  # the only distance among them
        order = [-math.inf if math.isnan(value) else sign * value for value in self.values]
        return order.index(min(order))

    def worst_text(self) -> str:
        """The worst value and its number: "30.60 dB, #4"; a single one has no number."""
        number = f", #{self.worst + 1}" if len(self.values) > 1 else ""
        return f"{self.text(self.values[self.worst])}{number}"

    def mean_text(self) -> str:
        """The mean and the worst value: "33.12 dB (worst 30.60 dB, #4)"."""
        return self.text() + (f" (worst {self.worst_text()})" if len(self.values) > 1 else "")

    def text(self, value: float | None = None) -> str:
        """A value, by default the mean, as a person reads it."""
        value = self.mean if value is None else value
        if value == float("inf"):
            return "identical"
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How alike a contestant's results are to the plain ones, by each measure that was taken.

    Attributes:
        psnr: For each picture, dB against the plain one; infinite where both are identical. For
            each video, the mean over its frames. `None` for sounds.
        ssim: For each, as for `psnr`; 1 where both are identical.
        lpips: For each, as for `psnr`; 0 where both are identical. `None` also for pictures
            narrower than 32 pixels, and where the package `lpips` is not installed.
        snr: For each sound, the ratio of signal to noise in dB; else `None`.
    """

    psnr: tuple[float, ...] | None = None
    ssim: tuple[float, ...] | None = None
    lpips: tuple[float, ...] | None = None
    snr: tuple[float, ...] | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that were taken, of PSNR, SSIM, LPIPS and SNR."""
        values = (self.psnr, self.ssim, self.lpips, self.snr)
        return tuple(
            Measure(name, each, unit, digits)
            for (name, unit, digits), each in zip(_KNOWN, values, strict=True)
            if each is not None
        )

    @property
    def looks(self) -> str | None:
        """The verdict on the results in words; `None` for sounds.

        "no visible difference": all have at least 40 dB and SSIM 0.98. "shapes differ": one has
        less than 25 dB or SSIM 0.90. "details move": all else. A video counts by the means over its
        frames. The limits are a convention of this package; see `looks_of`.
        """
        return looks_of(self.measures)


def looks_of(measures: Sequence[Measure]) -> str | None:
    """Returns the verdict on all results in words: `SAME`, `DETAILS` or `SHAPES`.

    `RULE` states the rule: the least PSNR and the least SSIM decide. The limits are a convention of
    this package. The nearest that is published are studies of compressed photographs: half of the
    viewers told pictures from their JPEGs below an SSIM of 0.92 to 0.96 (Flynn et al., "Image
    quality assessment using the SSIM and the just noticeable difference paradigm", 2013). No study
    backs limits for pictures of a diffusion model, where things move. These are stricter, and were
    chosen by looking at pictures of this project's small models.

    Returns:
        `None` where there is no PSNR or no SSIM, as for sounds.
    """
    least = {each.name: each.values[each.worst] for each in measures}
    if not {"PSNR", "SSIM"} <= least.keys():
        return None

    def reach(limits: tuple[float, float]) -> bool:
        return least["PSNR"] >= limits[0] and least["SSIM"] >= limits[1]  # never, if not a number

    return SAME if reach(_ALIKE) else DETAILS if reach(_APART) else SHAPES
