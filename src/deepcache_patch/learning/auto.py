"""`Auto`: the first generation runs in full and is the calibration of all that follow."""

import threading
import weakref
from pathlib import Path
from typing import Any, Final

from torch import nn

from ..errors import InvalidSettingError, warn
from ..schedules.context import Context
from ..schedules.forecast import Forecast
from ..schedules.guide import Guide, PlannedGuide, planned
from ..schedules.noise import ends_with
from ..schedules.noise_aware import NoiseAware
from ..schedules.plans import OUTPUT, OneBranch, Plan
from ..schedules.replay import Replay
from .calibrated_schedule import Calibrated, ValidFor, load_all, save_all
from .study import Study, StudyGuide

#: With fewer full steps than these nothing is learned: what fits one picture does not carry over to
#: others there. Measured with 12 to 20 steps (docs/plans-and-forecasts.md).
FEW_FULL_STEPS: Final = 8

#: How many settings are remembered; the one that was learned first is forgotten first.
_REMEMBERED: Final = 64

#: Several U-Nets, each with a lock of its own, may share an `Auto`, and several of them a file.
_LEARNING: Final = threading.RLock()


class Auto(OneBranch):
    """`NoiseAware`, that learns from the first generation how to go on from full steps.

    The first generation of each setting (U-Net, scheduler with its config, timesteps) runs in full;
    its pictures are the plain pipeline's. From the second on its plan runs, and shallow steps go on
    from full ones with the weights that were learned; see `learned`. A generation that stops early
    teaches as far as it went, if that was half the way. Where nothing can be learned this is
    `NoiseAware` from the first generation on: with fewer than 8 full steps, at branches from 0,
    where no forecast is possible, and where the timesteps are not those of the pipeline's
    scheduler, or of one that a loop of your own has declared.

    It is learned anew for other steps that the helper's `first` and `last` protect. The picture's
    size, guidance and adapters (LoRA) are not part of the setting: after a change of them that
    matters, take a new `Auto`.

    Args:
        interval: One full step in so many, from 1, a whole number or not, as for `NoiseAware`.
        branch: -1, above the output, or at least 0, as for `NoiseAware`.
        file: A JSON file in which to keep what was learned, so that the next process begins with
            it. It is read now if it exists, and written after each calibration. What it says is
            taken for every U-Net of equal class and config; if the weights are others, with one
            warning. So give each model a file of its own.

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
        self, interval: float = 2.2, branch: int = OUTPUT, *, file: str | Path | None = None
    ) -> None:
        #: By whose plan it goes, once it has learned and where it cannot.
        self.default = NoiseAware(interval, branch)
        self.interval, self.branch = self.default.interval, self.default.branch
        self.file = None if file is None else Path(file)
        # Of which U-Net each was learned; that of a file is for any.
        self._learned: list[tuple[weakref.ref[nn.Module] | None, Calibrated]] = []
        if self.file is not None:
            if not self.file.absolute().parent.is_dir():
                raise InvalidSettingError(f"the folder of file={str(self.file)!r} does not exist")
            if self.file.exists():
                self._learned = [(None, each) for each in load_all(self.file)]

    @property
    def learned(self) -> tuple[Calibrated, ...]:
        """What was learned so far or read from the file, the newest last."""
        return tuple(calibrated for _, calibrated in self._learned)

    def plan_for(self, context: Context) -> Plan:
        """What runs once it has learned, and where it cannot."""
        return self.default.plan_for(context)

    def begin(self, context: Context, replay: Replay) -> Guide:
        """Lead through a generation: to learn, by what was learned, or as `NoiseAware` does."""
        plan = planned(self, context)
        if not self._can_learn(context, plan):
            self._tell(context, plan)
            return PlannedGuide(self.default, replay, context)
        setting, unet = ValidFor.of(context), weakref.ref(context.unet)
        for of, known in self._learned:
            if of in (None, unet) and (known.setting, known.entries) == (setting, plan):
                if of is None:
                    self._compare_weights(known, context.unet)
                return PlannedGuide(known, replay, context, weights=known.weights)
        return StudyGuide(Study(context, self.branch), lambda study: self._learn(study, plan, unet))

    def equals(self, other: Any) -> bool:
        """Whether another schedule would do the same, had it learned the same."""
        return type(other) is type(self) and repr(other) == repr(self)

    @staticmethod
    def is_worth_it(plan: Plan) -> bool:
        """Whether there is anything to learn for such a plan."""
        return plan.branches == (OUTPUT,) and _is_enough(plan)

    def remark_on(self, plan: Plan, *, is_past: bool = False) -> str | None:
        """What to know of the plan: that it is learned at first, or that nothing is.

        Args:
            plan: The plan of generations with this schedule.
            is_past: Whether it has run, so that the first need not be told.
        """
        if not plan.branches:
            return self.default.remark_on(plan, is_past=is_past)
        if plan.branches != (OUTPUT,):
            return f"nothing is learned at branch {plan.branches[0]}: as the default"
        if not self.is_worth_it(plan):
            full = len(plan.full_steps)
            return f"{full} full steps, too few to learn from: as the default"
        return None if is_past else "the first generation in each setting runs in full, to learn"

    def _compare_weights(self, known: Calibrated, unet: nn.Module) -> None:
        """Warn if what another process learned was learned with other weights."""
        if self.file is None:
            name, cure = "what schedule='auto' goes by", "take a new Auto() to learn anew"
        else:
            name = f"what schedule='auto' goes by, in {self.file},"
            cure = "give each model a file of its own, or remove this one to learn anew"
        known.compare_weights(unet, name, cure)

    def _can_learn(self, context: Context, plan: Plan) -> bool:
        """Whether there is anything to learn in such a generation, and it is seen."""
        return (
            self.is_worth_it(plan)
            and context.timesteps is not None
            and ends_with(context.scheduler, context.timesteps)
            and hasattr(context.scheduler, "step")
            and Forecast.of(context) is not None
        )

    def _tell(self, context: Context, plan: Plan) -> None:
        """Says that nothing is learned, to somebody who has declared the generation."""
        if context.is_declared and self.branch == OUTPUT and _is_enough(plan):
            context.warn_once(
                "schedule='auto' learns nothing from what generation() was given, and goes by the "
                "default plan: only a scheduler=, whose output is noise, velocity or sample, says "
                "what becomes of an output"
            )

    def _learn(self, study: Study, plan: Plan, unet: "weakref.ref[nn.Module]") -> None:
        """Learn what can be learned; the generation goes on whatever happens here."""
        try:
            if 2 * study.seen < len(plan):
                return
            found = study.learn(plan)
            with _LEARNING:
                self._learned = [*self._learned, (unet, found)][-_REMEMBERED:]
                self._write()
        except Exception as error:
            warn(f"schedule='auto' could not learn from this generation, or not keep it: {error}")

    def _write(self) -> None:
        """Keep what is known in the file, beside what others wrote meanwhile."""
        if self.file is None:
            return
        mine = self.learned
        known = [(each.setting, each.entries) for each in mine]
        others = load_all(self.file) if self.file.exists() else []
        kept = [each for each in others if (each.setting, each.entries) not in known]
        save_all(self.file, [*kept, *mine])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_learned": [(None, each) for each in self.learned]}

    def __repr__(self) -> str:
        file = "" if self.file is None else f", file={str(self.file)!r}"
        return f"Auto(interval={self.interval}, branch={self.branch}{file})"


def _is_enough(plan: Plan) -> bool:
    """Whether so many steps are full, and not all."""
    return FEW_FULL_STEPS <= len(plan.full_steps) < len(plan)
