"""`Auto`: the first generation runs in full and is the calibration of all that follow."""

import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import nn

from ..errors import InvalidSettingError, warn
from ..schedules.guide import Context, Guide
from ..schedules.noise import ends_with
from ..schedules.plans import whole_number
from .calibrated_schedule import Calibrated, Setting, SolutionGuide, load_all, save_all
from .study import Study, StudyGuide, budget

#: How many settings are remembered; the one that was learned first is forgotten first.
_REMEMBERED: Final = 64

#: Several U-Nets, each with a lock of its own, may share an `Auto`, and several of them a file.
_LEARNING: Final = threading.RLock()


class Auto:
    """Learns when to compute in full, and how to replay, from the first generation.

    The first generation of each setting (U-Net, scheduler with its config, timesteps) runs in full;
    its pictures are the plain pipeline's. From the second on the plan that was learned runs; see
    `learned`. A generation that stops early teaches as far as it went, if that was half the way;
    one that goes further then makes the next learn anew. Where the timesteps are not those of the
    pipeline's scheduler (a bare U-Net has none), everything runs in full.

    The plan is learned with the steps that the helper's `first` and `last` protect, and anew if
    these change. The picture's size, guidance and adapters (LoRA) are not part of the setting:
    after a change of them that matters, take a new `Auto`.

    Args:
        interval: The budget: as many full steps as `Uniform` has with this interval, at least 1.
        branch: The branch of the shallow steps, at least 0.
        file: A JSON file in which to keep what was learned, so that the next process begins with
            it. It is read now if it exists, and written after each calibration. What it says is
            taken for every U-Net of equal class and config, whatever its weights.

    Raises:
        InvalidSettingError: If an argument is out of range, or the file is damaged or its folder
            missing.
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
        self._warned = False
        # Of which U-Net each was learned; that of a file is for any.
        self._learned: list[tuple[weakref.ref[nn.Module] | None, Calibrated]] = []
        if self.file is not None:
            if not self.file.absolute().parent.is_dir():
                raise InvalidSettingError(f"the folder of file={str(self.file)!r} does not exist")
            if self.file.exists():
                self._learned = [(None, each) for each in load_all(self.file)]

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that a plan may name."""
        return (self.branch,)

    @property
    def learned(self) -> tuple[Calibrated, ...]:
        """What was learned so far or read from the file, the newest last."""
        return tuple(calibrated for _, calibrated in self._learned)

    def begin(self, context: Context, replay: Any) -> Guide:
        """Lead through a generation: to learn, or by what was learned."""
        if context.timesteps is None or not ends_with(context.scheduler, context.timesteps):
            if not self._warned:
                self._warned = True
                warn(
                    "the U-Net runs in full: schedule='auto' needs a pipeline that runs the "
                    "timesteps of its scheduler; give interval= or another schedule"
                )
            return Guide(context.num_steps, ())
        setting, unet = Setting.of(context), weakref.ref(context.unet)
        for of, known in self._learned:
            if of in (None, unet) and self._answers(known, setting, context.protected):
                return SolutionGuide(known.solution, partial(self._forget, known))
        return StudyGuide(Study(context, self.branch), lambda study: self._learn(study, unet))

    def _learn(self, study: Study, unet: "weakref.ref[nn.Module]") -> None:
        """Learn what can be learned; the generation goes on whatever happens here."""
        try:
            found = study.solve(interval=self.interval)
            if found is None or 2 * found.solution.seen < study.recording.num_steps:
                return
            with _LEARNING:
                self._learned = [
                    (of, known)
                    for of, known in self._learned
                    if of not in (None, unet)
                    or not self._answers(known, study.setting, study.protected)
                ]
                self._learned = [*self._learned, (unet, found)][-_REMEMBERED:]
                self._write()
        except Exception as error:
            warn(f"schedule='auto' could not learn from this generation, or not keep it: {error}")

    def _forget(self, known: Calibrated) -> None:
        """A generation went further than the one that taught this: the next shall teach more."""
        with _LEARNING:
            self._learned = [each for each in self._learned if each[1] is not known]

    def _write(self) -> None:
        """Keep what is known in the file, beside what others wrote meanwhile."""
        if self.file is None:
            return
        mine = self.learned
        others = load_all(self.file) if self.file.exists() else []
        kept = [
            each
            for each in others
            if not any(
                each.setting == my.setting
                and (each.interval, each.branches) == (my.interval, my.branches)
                for my in mine
            )
        ]
        save_all(self.file, [*kept, *mine])

    def _answers(self, known: Calibrated, setting: Setting, protected: frozenset[int]) -> bool:
        """Whether it was learned for the setting, the budget and the steps that are protected."""
        if known.setting != setting or known.interval != self.interval:
            return False
        seen = known.solution.seen
        full = {step for step in known.solution.plan.full_steps if step < seen}
        return (
            {self.branch, *known.branches} == {self.branch}
            and full.issuperset(protected.intersection(range(seen)))
            and len(full) == budget(seen, self.interval, protected)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_learned": [(None, each) for each in self.learned]}

    def __repr__(self) -> str:
        file = "" if self.file is None else f", file={str(self.file)!r}"
        return f"Auto(interval={self.interval}, branch={self.branch}{file})"
