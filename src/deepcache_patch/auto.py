"""`Auto`: the first generation runs in full and is the calibration of all that follow."""

import warnings
import weakref
from pathlib import Path
from typing import Any, Final

from torch import nn

from .calibrated import Calibrated, Setting, SolutionGuide, load_all, save_all
from .errors import DeepCacheWarning
from .guide import Context, Guide
from .schedule import whole_number
from .study import FullGuide, Study, StudyGuide

#: How many settings are remembered; the one that was learned first is forgotten first.
_REMEMBERED: Final = 64


class Auto:
    """Learns when to compute in full, and how to replay, from the first generation.

    The first generation of each setting (U-Net, scheduler with its config, timesteps) runs in full;
    its pictures are the plain pipeline's. From the second on the plan that was learned runs; see
    `learned`. A generation that stops early teaches as far as it went. Where the timesteps are not
    known (a bare U-Net, for which no scheduler can be found), everything runs in full.

    Args:
        interval: The budget: as many full steps as `Uniform` has with this interval, at least 1.
        branch: The branch of the shallow steps, at least 0.
        file: A JSON file in which to keep what was learned, so that the next process begins with
            it. It is read now if it exists, and written after each calibration.

    Raises:
        InvalidSettingError: If an argument is out of range, or the file is damaged.
        OSError: If the file cannot be read.

    Example:
        >>> helper = DeepCacheHelper(pipe, schedule=Auto(interval=3)).enable()  # doctest: +SKIP
        >>> pipe("a red circle")  # in full: the calibration  # doctest: +SKIP
        >>> pipe("a blue square")  # fast  # doctest: +SKIP
    """

    own_replay = True

    def __init__(
        self, interval: int = 3, branch: int = 0, *, file: str | Path | None = None
    ) -> None:
        self.interval = whole_number("interval", interval, 1)
        self.branch = whole_number("branch", branch, 0)
        self.file = None if file is None else Path(file)
        self._learned: list[Calibrated] = []
        if self.file is not None and self.file.exists():
            self._learned = load_all(self.file)
        self._unfinished: weakref.WeakKeyDictionary[nn.Module, StudyGuide]
        self._unfinished = weakref.WeakKeyDictionary()

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that a plan may name."""
        return (self.branch,)

    @property
    def learned(self) -> tuple[Calibrated, ...]:
        """What was learned so far or read from the file, the newest last."""
        return tuple(self._learned)

    def begin(self, context: Context, replay: Any) -> Guide:
        """Lead through a generation: to learn, or by what was learned."""
        unfinished = self._unfinished.pop(context.unet, None)
        if unfinished is not None:  # it stopped early
            unfinished.finish()
        if context.timesteps is None:
            warnings.warn(
                "the U-Net runs in full: schedule='auto' needs a pipeline whose scheduler lists "
                "its timesteps; give interval= or another schedule",
                DeepCacheWarning,
                stacklevel=2,
            )
            return FullGuide(context.num_steps)
        setting = Setting.of(context)
        for known in self._learned:
            if self._answers(known, setting):
                return SolutionGuide(known.solution)
        guide = StudyGuide(Study(context, self.branch), self._learn)
        self._unfinished[context.unet] = guide
        return guide

    def _learn(self, study: Study) -> None:
        found = study.solve(interval=self.interval)
        if found is not None:
            others = [each for each in self._learned if not self._answers(each, study.setting)]
            self._learned = [*others, found][-_REMEMBERED:]
            if self.file is not None:
                save_all(self.file, self._learned)

    def _answers(self, known: Calibrated, setting: Setting) -> bool:
        branches = {self.branch, *known.branches}
        return known.setting == setting and known.interval == self.interval and len(branches) == 1

    def __repr__(self) -> str:
        file = "" if self.file is None else f", file={str(self.file)!r}"
        return f"Auto(interval={self.interval}, branch={self.branch}{file})"
