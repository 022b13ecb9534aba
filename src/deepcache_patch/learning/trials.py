"""Runs of a pipeline by what a calibration tries, and how far its pictures are from plain ones."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from torch import nn

from ..measuring.generation import as_floats
from ..measuring.loop_clock import LoopClock
from ..measuring.similarity import psnr
from ..running.face import Helper
from .calibrated_schedule import Calibrated
from .nearest import Way, nearest_way, usual_way
from .study import Study

#: Mean squares of the difference of two pictures, of floats in 0..1. Up to the first (50 dB) they
#: are one picture, made twice on a device that does not add up in a fixed order. The second takes
#: the place of 0, which has no logarithm.
_ROUNDING: Final = 1e-5
_NOTHING: Final = 1e-30


@dataclass
class Trials:
    """Runs with what is tried, beside plain ones.

    Attributes:
        helper: It is followed with what is tried.
        run: As it was given.
        study: Of the first run.
        unet: Whose loop is timed.
        share: The work of a shallow call, as a part of a full one's; `None` if it is not known.
        plain: What the plain pipeline makes; none if it is not the same each time.
    """

    helper: Helper
    run: Callable[[], Any]
    study: Study
    unet: nn.Module
    share: float | None
    plain: list[np.ndarray] = field(default_factory=list)

    def see_plain(self, first: Any) -> str | None:
        """Run once more without the helper, and compare it with what the studied run returned.

        Returns:
            Why the pictures cannot be compared, and the cure; `None` if they can.
        """
        with self.helper.paused():
            again = _pictures(self.run())
        found = _pictures(first)
        if not found:
            return (
                "run() must return what the pipeline returned, with pictures as PIL or NumPy; it "
                f"returned {type(first).__name__}"
            )
        if not _are_alike(found, again):
            return (
                "run() makes other pictures each time: give the pipeline a seeded generator in it"
            )
        self.plain = found
        return None

    def way(self, full_steps: int) -> Way:
        """How to go by so many full steps: the nearest of all ways, if they can be compared."""
        if not self.plain:
            return usual_way(self.study)
        return nearest_way(self.study, full_steps, lambda found: self._error(self.made(found)))

    def made(self, schedule: Calibrated) -> list[np.ndarray]:
        """The pictures by a schedule."""
        self.helper.follow(schedule)
        return _pictures(self.run())

    def plain_seconds(self) -> float:
        """Of the denoising loop without the helper."""
        with self.helper.paused():
            return self.seconds()

    def seconds(self) -> float:
        """Of the denoising loop with it."""
        with LoopClock(self.unet) as clock:
            self.run()
        return clock.seconds

    def work(self, found: Calibrated) -> float | None:
        """How many times less work the plan is, in the steps that a generation runs."""
        if self.share is None:
            return None
        steps = self.study.seen
        full = sum(step < steps for step in found.entries.full_steps)
        return steps / (full + (steps - full) * self.share)

    def _error(self, pictures: list[np.ndarray]) -> float:
        """The mean over the pictures of the logarithm of the mean square: as PSNR, but falling."""
        found = float(np.mean(np.log(np.maximum(_squares(self.plain, pictures), _NOTHING))))
        return math.inf if math.isnan(found) else found  # nothing is less than NaN


def _are_alike(pictures: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether they are the same, but for the rounding of kernels that add up in any order."""
    if [each.shape for each in pictures] != [each.shape for each in others]:
        return False
    squares = _squares(pictures, others)
    return all(each <= _ROUNDING or math.isnan(each) for each in squares)


def _squares(pictures: list[np.ndarray], others: list[np.ndarray]) -> list[float]:
    """The mean square of the difference, of each pair."""
    return [float(np.mean((a - b) ** 2)) for a, b in zip(pictures, others, strict=True)]


def closeness(plain: list[np.ndarray], pictures: list[np.ndarray]) -> list[float]:
    """The PSNR of each picture; none if there are no plain ones, and without scikit-image."""
    if not plain:
        return []
    try:
        found = [psnr(*pair) for pair in zip(plain, pictures, strict=True)]
    except ImportError:
        return []
    return [] if any(map(math.isnan, found)) else found


def _pictures(result: Any) -> list[np.ndarray]:
    """What `run` returned: pictures, a pipeline's output with pictures, or a list of those.

    There are none if it is anything else.
    """
    if isinstance(result, list | tuple) and any(hasattr(each, "images") for each in result):
        several = [_pictures(each) for each in result]
        return list(itertools.chain(*several)) if all(several) else []
    try:
        found = list(as_floats(getattr(result, "images", result)))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of tensors with gradients
        return []
    # Latents have as many axes, but no colours in the last one.
    return found if found and found[0].ndim == 3 and found[0].shape[-1] in (1, 3, 4) else []
