"""Full generations that are looked at, and what is learned from them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from ..errors import InvalidSettingError
from ..schedules.context import Context, FinishedCall
from ..schedules.fit import DAMPING, fitted
from ..schedules.forecast import Forecast, Weights, channels
from ..schedules.guide import Guide
from ..schedules.noise import copied_scheduler, ends_with
from ..schedules.plans import OUTPUT, Plan
from ..schedules.transfer import sent
from .calibrated_schedule import Calibrated, ValidFor
from .fingerprint import Fingerprint

#: How many numbers of x0 are looked at in each step: memory is bounded.
SAMPLED: Final = 1 << 15

#: How many calls of a step are looked at; guidance makes two or three.
_FOLLOWED: Final = 4


@dataclass
class _Line:
    """x0 of one call of each step, from the first step on.

    Attributes:
        shape: The shape of the first sample.
        denoised: Some numbers of x0 for each step; none where it is not known.
    """

    shape: torch.Size
    denoised: list[torch.Tensor]


class Watched:
    """One full generation: x0 of its slots.

    Attributes:
        steps: How many have run.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._lines: dict[int | None, _Line] = {}

    def line(self, call: FinishedCall) -> _Line | None:
        """What the call goes on with; `None` if it is not that of each step before."""
        step, lines = call.position.step, self._lines
        self.steps = step + 1
        going_on = sum(len(each.denoised) >= step for each in lines.values())
        if call.slot not in lines and going_on < _FOLLOWED:
            before = lines.get(call.instead_of, _Line(call.sample.shape, []))
            lines[call.slot] = _Line(before.shape, before.denoised[:step])
        line = lines.get(call.slot)
        return line if line is not None and len(line.denoised) == step else None

    @property
    def front(self) -> int | None:
        """The slot that was called in the most steps; of several, the first."""
        return max(self._lines, key=lambda slot: len(self._lines[slot].denoised), default=None)

    @property
    def denoised(self) -> list[torch.Tensor]:
        """Some numbers of x0 for each step of that slot."""
        return self._lines[self.front].denoised


class Study:
    """Full generations in one setting.

    Of each step x0 is kept at some places, as one slot of the U-Net's has it: what several of them
    gave in turn is no course that any of them takes.

    Args:
        context: What is known of the first of them, before its first step.
        branch: The branch of the shallow steps to come; x0 is looked at for those above the output.
    """

    def __init__(self, context: Context, branch: int) -> None:
        self.setting = ValidFor.of(context)
        self.fingerprint = Fingerprint.of(context.unet)  # read now, while nothing is under way
        self.levels = context.levels
        self.protected = context.protected
        self.num_steps = context.num_steps
        self.forecast = Forecast.of(context) if branch == OUTPUT else None
        #: The branch of the shallow steps; where no forecast is possible, 0 instead of -1.
        self.branch = branch if branch != OUTPUT or self.forecast else 0
        # As it is before its first step. Nothing of the U-Net is kept, or it would stay alive.
        self._scheduler = copied_scheduler(context.scheduler)
        self._generations: list[Watched] = []
        self._chosen: dict[tuple[int, torch.device], torch.Tensor] = {}

    @property
    def seen(self) -> int:
        """How many steps ran, in each of the generations."""
        return min((each.steps for each in self._begun()), default=0)

    @property
    def always_full(self) -> int:
        """How many of the steps that ran are full in any plan: the first, and protected ones."""
        return len(self.protected.intersection(range(self.seen)) | {0})

    def begin(self) -> Watched:
        """Another generation begins."""
        self._generations.append(Watched())
        return self._generations[-1]

    def add(self, generation: Watched, call: FinishedCall) -> None:
        """Take one full call of the U-Net."""
        line, sample = generation.line(call), call.sample
        if line is None:
            return
        known, output = None, call.features.get(OUTPUT)  # if it is one tensor, and wanted
        if output is not None and line.shape == sample.shape:
            known = self._x0(call.position.step, sample, output)
        line.denoised.append(torch.zeros(0, device=sample.device) if known is None else known)

    def learn(self, plan: Plan, *, damping: float = DAMPING) -> Calibrated:
        """How to go by a plan; without weights where nothing is known that any could follow from.

        Args:
            plan: With an entry for each step of the generation.
            damping: The damping of the fit, as for `fitted`.
        """
        weights: Weights = {}
        generations = (each.denoised for each in self._begun())
        steps = [torch.cat(parts) for parts in zip(*generations, strict=False)]
        alike = itertools.takewhile(lambda each: len(each) == len(steps[0]) > 0, steps)
        denoised = [each.cpu() for each in alike]
        if self.forecast is not None and self._scheduler is not None and denoised:
            x0 = torch.stack(denoised)
            weights = fitted(x0, self._scheduler, self.forecast, plan, damping)
        return self.goes_by(plan, weights)

    def goes_by(self, plan: Plan, weights: Weights) -> Calibrated:
        """A schedule for this setting."""
        return Calibrated(self.setting, plan, weights, fingerprint=self.fingerprint)

    def _begun(self) -> list[Watched]:
        return [each for each in self._generations if each.steps]

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
        self._generation: Watched | None = study.begin()
        self._done = done

    def observe(self, call: FinishedCall) -> None:
        """Have the call studied."""
        if self._study is None or self._generation is None:
            return
        # The last step is over when this one was called; others may come, or not.
        is_last = call.position.step + 1 == self.num_steps and call.slot == self._generation.front
        self._study.add(self._generation, call)
        if is_last:
            self.finish()

    def finish(self) -> None:
        """Hand the study over."""
        study, self._study, self._generation = self._study, None, None
        if study is not None and self._done is not None:
            self._done(study)


class Studying:
    """A schedule that runs everything in full, for `DeepCacheHelper.calibrate`.

    Args:
        branch: The branch of the shallow steps to come.
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
        difference = self._study.setting.difference(ValidFor.of(context))
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
