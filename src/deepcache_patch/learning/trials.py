"""Runs of a pipeline by what a calibration tries, and how far its pictures are from plain ones."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from torch import nn

from ..errors import InvalidSettingError
from ..measuring.generation import as_floats
from ..measuring.loop_clock import LoopClock
from ..measuring.similarity import mean_of, psnr
from ..measuring.speed import Speed
from ..running.protocol import Helper
from ..schedules.placing import FEW_STEPS
from .calibrated_schedule import Calibrated
from .nearest import USUAL_WAY, Way, nearest_way
from .reached import Reached
from .study import Study

#: PSNR in dB, from which two pictures are one, made twice on a device that does not add up in a
#: fixed order.
_ROUNDING: Final = 50.0


@dataclass
class Trials:
    """Runs with what is tried, beside plain ones.

    Attributes:
        helper: It is followed with what is tried.
        run: What runs the pipeline, as it was given.
        study: The study of the first run.
        unet: Whose loop is timed.
        share: The work of a shallow call, as a part of a full one's; `None` if it is not known.
        plain: What the plain pipeline makes; none if it is not the same each time.
        tried: What the helper went by, and the PSNR of each picture then.
    """

    helper: Helper
    run: Callable[[], Any]
    study: Study
    unet: nn.Module
    share: float | None
    plain: list[np.ndarray] = field(default_factory=list)
    tried: list[tuple[Calibrated, list[float]]] = field(default_factory=list)

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
                "run() must return what the pipeline returned, with pictures as PIL or NumPy, not "
                f"latents; it returned {type(first).__name__}"
            )
        if any(np.isnan(each).any() for each in found):
            return "the plain pipeline makes pictures with NaN: mend that first"
        if not _are_alike(found, again):
            return (
                "run() makes other pictures each time: give the pipeline a seeded generator in it"
            )
        self.plain = found
        return None

    def way(self, full_steps: int) -> Way:
        """How to go by so many full steps: the nearest of all ways, if they can be compared."""
        if not self.plain:
            return USUAL_WAY
        return nearest_way(self.study, full_steps, self._error)

    def nearest(self, full_steps: int) -> Calibrated:
        """The schedule with so many full steps that is nearest, if they can be compared."""
        return self.way(full_steps).schedule(self.study, full_steps)

    def closeness_by(self, schedule: Calibrated) -> list[float]:
        """Go by a schedule, and run by it if that was not done before.

        Returns:
            The PSNR of each picture to the plain one, in dB; none if there are no plain ones.
        """
        self.helper.follow(schedule)
        for other, known in self.tried:
            if other == schedule:
                return known
        made = _pictures(self.run())
        if self.plain and [each.shape for each in made] != [each.shape for each in self.plain]:
            raise InvalidSettingError(
                f"run() returned {len(made)} pictures, and {len(self.plain)} before, or others in "
                "size: it has to make the same each time"
            )
        self.tried.append((schedule, _each_psnr(self.plain, made) if self.plain else []))
        return self.tried[-1][1]

    def reached(self, found: Calibrated, speed: Speed | None = None) -> Reached:
        """What was reached with it, beside the default's rule with as many full steps."""
        if not self.plain:
            return Reached.of(self.work(found), speed)
        close, beside = self.closeness_by(found), []
        if self.study.seen > FEW_STEPS:
            default = Way().schedule(self.study, self._full_steps(found))
            beside = self.closeness_by(default)
        return Reached.of(self.work(found), speed, close, beside)

    def plain_seconds(self) -> float:
        """The seconds of the denoising loop without the helper."""
        with self.helper.paused():
            return self.seconds()

    def seconds(self) -> float:
        """The seconds of the denoising loop with the helper."""
        with LoopClock(self.unet) as clock:
            self.run()
        return clock.seconds

    def work(self, found: Calibrated) -> float | None:
        """How many times less work the plan is, in the steps that a generation runs."""
        if self.share is None:
            return None
        steps, full = self.study.seen, self._full_steps(found)
        return steps / (full + (steps - full) * self.share)

    def _full_steps(self, found: Calibrated) -> int:
        """How many of those that a generation runs."""
        return sum(step < self.study.seen for step in found.entries.full_steps)

    def _error(self, schedule: Calibrated) -> float:
        """How far its pictures are from the plain ones: the mean PSNR, but falling."""
        found = mean_of(self.closeness_by(schedule))
        return math.inf if math.isnan(found) else -found  # nothing is less than NaN


def _are_alike(pictures: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether they are the same, but for the rounding of kernels that add up in any order."""
    if [each.shape for each in pictures] != [each.shape for each in others]:
        return False
    return all(each >= _ROUNDING for each in _each_psnr(pictures, others))


def _each_psnr(pictures: list[np.ndarray], others: list[np.ndarray]) -> list[float]:
    return [psnr(one, other) for one, other in zip(pictures, others, strict=True)]


def _pictures(result: Any) -> list[np.ndarray]:
    """What `run` returned: pictures, a pipeline's output with pictures, or a list of those.

    There are none if it is anything else.
    """
    if isinstance(result, list | tuple) and any(hasattr(each, "images") for each in result):
        several = [_pictures(each) for each in result]
        return list(itertools.chain(*several)) if all(several) else []
    images = getattr(result, "images", result)
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (1, 3, 4):
        images = images[None]  # one picture, whose rows are none
    try:
        found = list(as_floats(images))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of tensors with gradients
        return []
    # Latents have as many axes, but no colours in the last one.
    return found if found and found[0].ndim == 3 and found[0].shape[-1] in (1, 3, 4) else []
