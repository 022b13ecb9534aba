"""Full generations that are looked at, and what follows from them: between `solver`, which is
arithmetic, and the schedules that use it.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InvalidSettingError
from ..schedules.guide import Context, FinishedCall, Guide
from ..schedules.noise import ends_with, error_weights
from .calibrated_schedule import Calibrated, Setting
from .solver import Recording, solve


def budget(num_steps: int, interval: int, protected: frozenset[int]) -> int:
    """How many of the steps are full for `Uniform` with this interval and these protected steps."""
    return len(protected.intersection(range(num_steps)).union(range(0, num_steps, interval)))


class Study:
    """Full generations in one setting.

    Args:
        context: Of the first of them, before its first step.
        branch: What is recorded.
    """

    def __init__(self, context: Context, branch: int) -> None:
        self.setting = Setting.of(context)
        self.branch = branch
        self.recording = Recording(context.num_steps)
        self.protected = context.protected
        # As it is before its first step. Nothing of the U-Net is kept, or it would stay alive.
        self._scheduler = copy.deepcopy(context.scheduler)
        self._levels = context.levels()

    def solve(
        self, *, full_steps: int | None = None, interval: int | None = None
    ) -> Calibrated | None:
        """The best schedule with so many full steps, or as many as `interval` leaves.

        The protected steps are among them.

        Returns:
            The schedule; `None` if nothing was recorded, or what was recorded is not finite.
        """
        features = self.recording.features(self.branch)
        steps = len(features)
        if not steps:
            return None
        if full_steps is None:
            full_steps = budget(steps, interval or 1, self.protected)
        timesteps = self.setting.timesteps
        weights = error_weights(self._scheduler, timesteps, self.recording.slopes(), self._levels)
        solution = solve(
            features,
            weights,
            self._levels,
            full_steps=full_steps,
            branch=self.branch,
            num_steps=self.recording.num_steps,
            protected=self.protected,
        )
        # The search looks at some of the channels; a blend has all of them.
        finite = (np.isfinite(blend[2:]).all() for blend in solution.blends.values())
        if not math.isfinite(solution.error) or not all(finite):
            return None
        return Calibrated(self.setting, solution, interval)


class StudyGuide(Guide):
    """Runs everything in full and records it.

    Args:
        study: Where to.
        done: Called once, when the generation is over.
    """

    def __init__(self, study: Study, done: Callable[[Study], None] | None = None) -> None:
        super().__init__(study.recording.num_steps, (study.branch,))
        self.learns = study.setting.short
        self._study: Study | None = study
        self._done = done

    def observe(self, call: FinishedCall) -> None:
        """Record the first call of each step; the others are much the same."""
        step = call.position.step
        if self._study is None or call.position.slot:
            return
        self._study.recording.add(step, call.sample, call.output[0], call.features)
        if step + 1 == self.num_steps:
            self.finish()

    def finish(self) -> None:
        """Hand the study over."""
        study, self._study = self._study, None
        if study is not None and self._done is not None:
            self._done(study)


class Studying:
    """A schedule that runs everything in full, for `DeepCacheHelper.calibrate`.

    Args:
        branch: What is recorded.
    """

    own_replay = True

    def __init__(self, branch: int) -> None:
        self.branches = (branch,)
        self._study: Study | None = None

    def begin(self, context: Context, replay: Any) -> StudyGuide:
        """Lead through a generation in full.

        Raises:
            InvalidSettingError: If it cannot be calibrated, or not together with those before.
        """
        if context.timesteps is None or not ends_with(context.scheduler, context.timesteps):
            raise InvalidSettingError(
                "a calibration needs a pipeline that runs the timesteps of its scheduler"
            )
        if self._study is None:
            self._study = Study(context, self.branches[0])
        difference = self._study.setting.difference(Setting.of(context))
        if difference:
            raise InvalidSettingError(
                f"what is calibrated must be of one kind, but {difference}: calibrate one U-Net "
                "with one list of timesteps at a time, or use schedule='auto'"
            )
        return StudyGuide(self._study)

    @property
    def study(self) -> Study:
        """What was recorded.

        Raises:
            InvalidSettingError: If there was no generation.
        """
        if self._study is None:
            raise InvalidSettingError(
                "run() started no generation of this pipeline: give a function that calls it"
            )
        return self._study
