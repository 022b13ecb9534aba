"""What a calibration reached with the plan that it chose: for its file, and to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from ..measuring.similarity import mean_of
from ..measuring.speed import Speed

#: With fewer pictures a plan may suit them and no others (docs/experiments.md).
ENOUGH: Final = 8


@dataclass(frozen=True)
class Reached:
    """What a calibration reached, on its own inputs and on the machine that it ran on.

    Attributes:
        work: All multiply-adds of the U-Net's plain calls, over those with the plan; `None` if a
            shallow call's cannot be counted. The same on every machine.
        speed: How many times as fast the denoising loop was, the median of the timings; `None` if
            it was not timed.
        quartiles: The least and the greatest of the middle half of the timings; `None` if there
            are none.
        timings: How many there are, each of a plain run and an accelerated one.
        psnr: The mean PSNR to the plain pictures, in dB; infinite for identical ones; `None` if it
            was not measured.
        worst_psnr: The PSNR of the picture that is the least close.
        default_psnr: The mean PSNR by the default's rule with as many full steps, at the same
            branch; `None` where the default leaves out none.
        pictures: How many there are; 0 if they were not compared.
    """

    work: float | None = None
    speed: float | None = None
    quartiles: tuple[float, float] | None = None
    timings: int = 0
    psnr: float | None = None
    worst_psnr: float | None = None
    default_psnr: float | None = None
    pictures: int = 0

    @classmethod
    def of(
        cls,
        work: float | None,
        speed: Speed | None = None,
        decibels: Sequence[float] = (),
        default: Sequence[float] = (),
    ) -> Reached:
        """From what was counted, the timings, and the PSNR of each picture, if there are any."""
        timed = (speed.median, speed.quartiles, len(speed.ratios)) if speed else (None, None, 0)
        found, mean = cls(work, *timed), mean_of(decibels)
        if math.isnan(mean):
            return found
        found = replace(found, psnr=mean, worst_psnr=min(decibels), pictures=len(decibels))
        usual = mean_of(default)
        return found if math.isnan(usual) else replace(found, default_psnr=usual)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reached:
        """What `to_dict` gave; it is not checked here."""
        quartiles = data["quartiles"]
        return cls(**{**data, "quartiles": None if quartiles is None else tuple(quartiles)})

    def to_dict(self, digits: int) -> dict[str, Any]:
        """The figures in JSON's types, but that an infinite PSNR stays a float."""

        def shortened(value: Any) -> Any:
            if isinstance(value, tuple):
                return [shortened(each) for each in value]
            return float(f"{value:.{digits}g}") if isinstance(value, float) else value

        return {name: shortened(value) for name, value in asdict(self).items()}

    @property
    def short(self) -> str:
        """The figures in a few words: the speed, or else the work; and the mean PSNR."""
        parts = [] if self.speed is None else [f"{self.speed:.2f}× measured"]
        if self.speed is None and self.work is not None:
            parts = [f"{self.work:.2f}× by work"]
        return ", ".join([*parts, *self._closeness(worst=False)])

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What was reached, and how it was measured: a name and a text for each."""
        found = []
        if self.speed is not None and self.quartiles is not None:
            low, high = self.quartiles
            timed = f"{low:.2f}–{high:.2f}, {self.timings} timings"
            found.append(("speed", f"{self.speed:.2f}× measured ({timed})"))
        if self.work is not None:
            found.append(("" if found else "speed", f"{self.work:.2f}× by work"))
        found += [("PSNR", text) for text in self._closeness(worst=True)]
        if self.psnr is not None and self.default_psnr not in (None, self.psnr):
            found.append(("", f"{self.default_psnr:.1f} dB with the default's plan"))
        if self.psnr is not None and self.pictures:
            few = "" if self.pictures >= ENOUGH else f", too few to be sure: give {ENOUGH} or more"
            found.append(("", f"over {self.pictures} picture{'s' * (self.pictures > 1)}{few}"))
        return found

    def __str__(self) -> str:
        return ", ".join(text for _, text in self.rows)

    def _closeness(self, *, worst: bool) -> list[str]:
        if self.psnr is None or self.worst_psnr is None:
            return []
        if math.isinf(self.worst_psnr):
            return ["identical pictures"]
        return [f"{self.psnr:.1f} dB" + (f" (worst {self.worst_psnr:.1f})" if worst else "")]
