"""Full generations that are looked at, and what is learned from them."""

import itertools
from collections.abc import Callable
from typing import Any, Final

import torch

from ..errors import InvalidSettingError
from ..schedules.fit import copied, fitted
from ..schedules.forecast import Forecast, Weights, channels
from ..schedules.guide import Context, FinishedCall, Guide
from ..schedules.noise import ends_with
from ..schedules.plans import OUTPUT, Plan
from ..schedules.transfer import sent
from .calibrated_schedule import Calibrated, Setting
from .fingerprint import Fingerprint

#: How many numbers of x0 are looked at in each step: memory is bounded.
SAMPLED: Final = 1 << 15


class Study:
    """Full generations in one setting.

    Of each step x0 is kept, as its U-Net's first call has it, at some places.

    Args:
        context: Of the first of them, before its first step.
        branch: Of the shallow steps to come; x0 is looked at for those above the output.
    """

    def __init__(self, context: Context, branch: int) -> None:
        self.setting = Setting.of(context)
        self.fingerprint = Fingerprint.of(context.unet)  # read now, while nothing is under way
        self.levels = context.levels()
        self.protected = context.protected
        self.num_steps = context.num_steps
        self.forecast = Forecast.of(context) if branch == OUTPUT else None
        #: Of the shallow steps; where no forecast is possible, 0 instead of -1.
        self.branch = branch if branch != OUTPUT or self.forecast else 0
        # As it is before its first step. Nothing of the U-Net is kept, or it would stay alive.
        self._scheduler = copied(context.scheduler)
        self._shapes: list[torch.Size] = []  # of the samples, of each generation
        self._denoised: list[list[torch.Tensor]] = [[] for _ in range(context.num_steps)]
        self._chosen: dict[tuple[int, torch.device], torch.Tensor] = {}

    @property
    def seen(self) -> int:
        """How many steps ran, in each of the generations."""
        counts = [len(parts) for parts in self._denoised]
        fewer = (step for step, count in enumerate(counts) if count < max(counts[0], 1))
        return next(fewer, len(counts))

    def add(self, step: int, sample: torch.Tensor, output: torch.Tensor | None) -> None:
        """Take one full call of the U-Net.

        Args:
            step: Of the generation.
            sample: The U-Net's input.
            output: The U-Net's, if it is one tensor, and wanted.
        """
        generation, known = len(self._denoised[step]), None
        if step == 0:
            self._shapes.append(sample.shape)
        if output is not None and self._shapes[generation : generation + 1] == [sample.shape]:
            known = self._x0(step, sample, output)
        self._denoised[step].append(
            torch.zeros(0, device=sample.device) if known is None else known
        )

    def learn(self, plan: Plan) -> Calibrated:
        """How to go by a plan; without weights where nothing is known that any could follow from.

        Args:
            plan: With an entry for each step of the generation.
        """
        weights: Weights = {}
        steps = [torch.cat(parts) for parts in self._denoised[: self.seen]]
        alike = itertools.takewhile(lambda each: len(each) == len(steps[0]) > 0, steps)
        denoised = [each.cpu() for each in alike]
        if self.forecast is not None and self._scheduler is not None and denoised:
            weights = fitted(torch.stack(denoised), self._scheduler, self.forecast, plan)
        return Calibrated(self.setting, plan, weights, fingerprint=self.fingerprint)

    def _x0(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
        """Some of x0; `None` where a condition stands beside the sample."""
        place = channels(sample, output)
        if self.forecast is None or place is None or sample.shape[place] > output.shape[place]:
            return None
        output = output.narrow(place, 0, sample.shape[place])  # without a learned variance
        x, made = sample.detach().flatten(), output.detach().flatten()
        if len(x) > SAMPLED:
            places = self._places(len(x), x.device)
            x, made = x[places], made[places]
        return self.forecast.denoised(step, x.float(), made.float())

    def _places(self, count: int, device: torch.device) -> torch.Tensor:
        """Which of so many numbers are looked at: drawn once, for all steps."""
        if (count, device) not in self._chosen:
            drawn = torch.Generator().manual_seed(0)
            chosen = torch.randperm(count, generator=drawn, device="cpu")[:SAMPLED]
            self._chosen[count, device] = sent(chosen, device)
        return self._chosen[count, device]


class StudyGuide(Guide):
    """Runs everything in full and has it studied.

    Args:
        study: Where to.
        done: Called once, when the generation is over.
    """

    def __init__(self, study: Study, done: Callable[[Study], None] | None = None) -> None:
        super().__init__(study.num_steps, () if study.forecast is None else (OUTPUT,))
        self.learns = study.setting.short
        self._study: Study | None = study
        self._done = done

    def observe(self, call: FinishedCall) -> None:
        """Record the first call of each step; the others are much the same."""
        step = call.position.step
        if self._study is None or call.position.slot:
            return
        self._study.add(step, call.sample, call.features.get(OUTPUT))
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
        branch: Of the shallow steps to come.
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
