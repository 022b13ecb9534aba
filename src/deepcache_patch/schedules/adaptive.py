"""`Adaptive`: the plan is made as a generation goes, by how far what is replayed is from the truth.

Each full step shows what a shallow one in its place would have got wrong. From that follows how
fast this generation changes, and so when the next full step is due.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from ..cutting.features import FeatureKey, Recorded
from ..errors import InvalidSettingError
from .context import Context, FinishedCall
from .forecast import Forecast
from .guide import ReplayGuide
from .placing import FEW_STEPS, count_of_full_steps, early_weights, how_long_used, usual_levels
from .plans import FULL, OUTPUT, PlanEntry, number_between, whole_number
from .replay import Replay
from .transfer import HostCopy

#: The rate of change before anything is measured. Most pictures have less, but what
#: early steps get is worth more to a picture than what it can still be given when this is known.
_USUAL_RATE: Final = 0.085

#: (1 + sigma)^this is how much more an error costs under noise: more than in `NoiseAware`, as an
#: early error is measured late, when it can no longer be made good.
_POWER: Final = 1.25

#: Up to which sigma a measured rate is taken as it is: under more noise all pictures change alike.
_TELLING: Final = 1.0

#: ln(sigma) from step to step where nobody knows how many there will be: that of 50 steps.
_USUAL_GAP: Final = 0.11

#: No rate is higher, not that of features that are not finite.
_HIGHEST_RATE: Final = 1e3


class Adaptive:
    """Runs a step in full when what shallow ones get wrong would add up to more than a tolerance.

    Let step i stand at sigma_i and its output be used over h_i = |ln sigma_i - ln sigma_(i+1)|, the
    last one over 1. Computed from what step a has left, branch b is expected to add the error
    rate_b · h_i · |ln sigma_i - ln sigma_a| · (1 + sigma_i)^1.25 to the picture, as a part of it.
    The shallowest branch is run with which the errors since the last full step stay below the
    tolerance; it refreshes those above it. If there is none, the step is full. With rates that do
    not change, and sigmas up to about 15, this puts full steps about where `NoiseAware` does, but
    more of them first and below sigma = 0.15; as many as the tolerance asks for.

    The rate is measured where a branch is recorded: the relative error of what would have been
    replayed there, as x0 has it, in each ln(sigma) and (1 + sigma)^1.25. The picture of a batch
    that changes most counts; and a new rate takes the place of the old by the share
    (2 / (1 + sigma))^2, at most 1, since under strong noise it says little. Errors are computed on
    the device and copied without waiting; they are used two steps later, whether they arrived
    sooner or not, so that equal inputs give equal plans. Where the noise levels are not known,
    those of a usual generation are taken.

    Args:
        tolerance: The error between two full steps, as a part of the picture, from 0 to 1. Its work
            depends on sampler and model; docs/plans-and-forecasts.md has some.
        branches: Those to choose from, at least -1, which is above the output. Where a forecast is
            not possible, -1 stands for 0.
        interval: One full step in so many, at least 1: at most steps / interval steps run in full,
            but never fewer than one, and those that are protected on top. When the budget is short,
            the tolerance for what is left is raised until it lasts. It does not hold where nobody
            knows how many steps there will be, nor for 8 steps or fewer.
        longest: The most steps from one full step to the next, at least 1, where the budget leaves
            as many.

    Raises:
        InvalidSettingError: If an argument is out of range.

    Example:
        >>> helper = DeepCacheHelper(pipe, schedule=Adaptive(0.03))  # doctest: +SKIP
    """

    #: How many steps after it was computed an error is used.
    delay = 2

    def __init__(
        self,
        tolerance: float = 0.03,
        branches: Sequence[int] = (OUTPUT,),
        *,
        interval: float = 1.5,
        longest: int = 10,
    ) -> None:
        self.tolerance = number_between("tolerance", tolerance, 0, 1)
        self.branches = tuple(sorted(whole_number("a branch", each, OUTPUT) for each in branches))
        self.interval = number_between("interval", interval, 1, 1000)
        self.longest = whole_number("longest", longest, 1)
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise InvalidSettingError(f"branches must be different integers, not {branches!r}")

    def begin(self, context: Context, replay: Replay) -> "AdaptiveGuide":
        """Lead through a generation."""
        return AdaptiveGuide(self, context, replay)

    def most_full(self, context: Context) -> int:
        """How many steps of a generation run in full at most."""
        if context.is_guess or context.num_steps <= FEW_STEPS:
            return context.num_steps
        protected = context.protected
        return max(
            count_of_full_steps(self.interval, context.num_steps, protected), len(protected | {0})
        )

    def __repr__(self) -> str:
        return (
            f"Adaptive({self.tolerance:g}, {self.branches}, interval={self.interval:g}, "
            f"longest={self.longest})"
        )


@dataclass
class _PlanState:
    """What has run so far, or would have.

    Attributes:
        full: How many full steps.
        spent: The error since the last of them.
        since: By branch, the step that recorded it last; the deepest by full steps alone.
        last_full: The last full step.
    """

    full: int = 0
    spent: float = 0.0
    since: dict[int, int] = field(default_factory=dict)
    last_full: int = 0


@dataclass(frozen=True)
class _Measured:
    """The relative error that a branch would have had at a step, as far as it shows in x0."""

    step: int
    branch: int
    gap: float  # in ln(sigma), from the step that recorded it before
    error: HostCopy


class AdaptiveGuide(ReplayGuide):
    """Goes by what it measures."""

    def __init__(self, schedule: Adaptive, context: Context, replay: Replay) -> None:
        forecast, steps = Forecast.of(context), context.num_steps
        possible = {max(each, OUTPUT if forecast else 0) for each in schedule.branches}
        super().__init__(context, tuple(sorted(possible)), replay)
        self._schedule, self._protected = schedule, context.protected
        levels = np.asarray(context.levels or usual_levels(steps))
        sigmas, used = np.exp(levels), how_long_used(levels)
        if context.is_guess:  # as if the noise stayed as strong as the picture
            levels, sigmas = -_USUAL_GAP * np.arange(steps), np.ones(steps)
            used = np.full(steps, _USUAL_GAP)
        self._level: list[float] = levels.tolist()
        self._early: list[float] = early_weights(sigmas, _POWER).tolist()
        self._weight: list[float] = (used * self._early).tolist()
        self._trust = np.minimum(1, ((1 + _TELLING) / (1 + sigmas)) ** 2).tolist()
        self._reach = sigmas.tolist()
        if forecast is not None:
            self._reach = [forecast.reach(step) for step in range(steps)]
        self._budget = schedule.most_full(context)
        self._rates = dict.fromkeys(self.branches, _USUAL_RATE)
        self._state = _PlanState()
        self._plan: list[PlanEntry] = []
        self._measured: list[_Measured] = []

    def entry(self, step: int) -> PlanEntry:
        """The plan's, which is made anew when something was measured."""
        if self._learn(step) or not self._plan:
            self._plan[step:] = self._rest(step)
            self._plan[:0] = [FULL] * (self.num_steps - len(self._plan))
        self._run(self._state, step, self._plan[step])
        return self._plan[step]

    def observe(self, call: FinishedCall) -> None:
        """Begin to measure what would have been replayed in the place of what was recorded."""
        step = call.position.step
        if call.position.is_last:
            self._measured.clear()  # nothing is kept when the generation is over
            return
        for branch, before in call.replaced.items():
            gap = abs(self._level[before[0].step] - self._level[step]) if before else 0
            if gap and before[0].key == FeatureKey.of(call.sample):
                made = self._made(step, branch, before, call.sample)
                error = _relative_error(made, call.features[branch]) * self._reach[step]
                self._measured.append(_Measured(step, branch, gap, HostCopy(error)))

    def _made(
        self, step: int, branch: int, recorded: Sequence[Recorded], sample: torch.Tensor
    ) -> torch.Tensor:
        if branch == OUTPUT:
            return self.output(step, recorded, sample)
        return self.feature(step, branch, recorded)

    def _learn(self, step: int) -> bool:
        """Bring the rates up to date, and say whether there was anything new."""
        due = [each for each in self._measured if each.step + self._schedule.delay <= step]
        del self._measured[: len(due)]
        worst: dict[tuple[int, int], float] = {}  # of all calls of a step
        for each in due:
            rate = each.error.value() / (each.gap * self._early[each.step])
            rate = min(rate, _HIGHEST_RATE)
            place = each.step, each.branch
            worst[place] = max(worst.get(place, rate), rate)
        for (measured, branch), rate in worst.items():
            known = self._rates[branch]
            self._rates[branch] = known + self._trust[measured] * (rate - known)
        return bool(due)

    def _rest(self, step: int) -> list[PlanEntry]:
        """The plan from a step on, within what the budget leaves.

        With a tolerance that is high enough only the first and the protected steps are full.
        """
        left, longest = self._budget - self._state.full, self._schedule.longest
        tolerance = self._schedule.tolerance
        while True:
            state, entries = deepcopy(self._state), []
            for each in range(step, self.num_steps):
                entries.append(self._chosen(state, each, tolerance, longest))
                self._run(state, each, entries[-1])
            if entries.count(FULL) <= left:
                return entries
            tolerance, longest = max(1.25 * tolerance, 1e-3), self.num_steps

    def _chosen(self, state: _PlanState, step: int, tolerance: float, longest: int) -> PlanEntry:
        if not state.since or step in self._protected or step - state.last_full >= longest:
            return FULL
        for branch in self.branches:
            if state.spent + self._error(state, step, branch) < tolerance:
                return branch
        return FULL

    def _run(self, state: _PlanState, step: int, entry: PlanEntry) -> None:
        if entry == FULL:
            state.full, state.spent, state.last_full = state.full + 1, 0.0, step
        else:
            state.spent += self._error(state, step, entry)
        refreshed = (each for each in self.branches if entry == FULL or each < entry)
        state.since |= dict.fromkeys(refreshed, step)

    def _error(self, state: _PlanState, step: int, branch: int) -> float:
        gap = abs(self._level[step] - self._level[state.since[branch]])
        return self._rates[branch] * self._weight[step] * gap


def _relative_error(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """|made - true| / |true| of the picture where that is the most, on the device, in float32."""
    made, true = made.float().flatten(1), true.float().flatten(1)
    size = true.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.nan_to_num((made - true).norm(dim=1) / size, nan=torch.inf).amax()
