"""What leads through one generation of one U-Net: which steps are full, and what is replayed."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from ..cutting.features import Recorded
from ..errors import DeepCacheWarning, InvalidSettingError
from .context import Context, FinishedCall
from .forecast import KEEP, Forecast, Weights
from .plans import FULL, OUTPUT, Explicit, Plan, PlanEntry, Schedule
from .replay import Extrapolate, Replay
from .window import NO_WINDOW, Window


class Guide:
    """What leads one U-Net through one generation. This one looks at nothing.

    Attributes:
        learns: If the generation is a calibration, what for: "50 steps with DDIMScheduler".
        num_steps: Up to where it knows what to do.
        branches: Those that may be replayed, rising: what is recorded.
        keep: How many features of each slot and branch.
        protected: Steps that run in full whatever it says of them.
    """

    learns: str | None = None
    protected: frozenset[int] = frozenset()

    def __init__(self, num_steps: int, branches: tuple[int, ...], keep: int = 1) -> None:
        self.num_steps = num_steps
        self.branches = branches
        self.keep = keep

    def entry(self, step: int) -> PlanEntry:
        """What the step is; asked once for each step, in order."""
        return FULL

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """What the step replays, made of what was recorded, the newest first."""
        return recorded[0].feature

    def output(self, step: int, recorded: Sequence[Recorded], sample: torch.Tensor) -> torch.Tensor:
        """The U-Net's output in a step above the output, made of those that were recorded."""
        return self.feature(step, OUTPUT, recorded)

    @property
    def observes(self) -> bool:
        """Whether it has an `observe` of its own."""
        return type(self).observe is not Guide.observe

    def observe(self, call: FinishedCall) -> None:
        """Look at a call that is over; called after each that recorded something, or could."""

    def finish(self) -> None:
        """Another generation begins, or the block of one that was declared is over.

        Not called after a reset, such as an error in a call brings.
        """


#: Gives each generation its guide, before its first step.
GuideFactory: TypeAlias = Callable[[Context], Guide]


@runtime_checkable
class GuidingSchedule(Protocol):
    """A schedule that looks at the generation instead of planning it from the number of steps.

    One that has a true attribute `own_replay` makes the replayed features itself.
    """

    def begin(self, context: Context, replay: Replay) -> Guide:
        """Lead through a generation; called before its first step."""
        ...


#: What `DeepCacheHelper` takes for a schedule.
AnySchedule: TypeAlias = Schedule | GuidingSchedule


class ReplayGuide(Guide):
    """One that makes features by a replay, and outputs by a forecast where one is possible.

    Without weights, outputs are forecast only if the replay is `Extrapolate`; with weights, always.
    """

    def __init__(
        self,
        context: Context,
        branches: tuple[int, ...],
        replay: Replay,
        *,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(context.num_steps, branches, replay.keep)
        self._replay = replay
        # Read now, while nothing of this generation waits on the device.
        self._levels = context.levels if replay.keep > 1 else None
        self._forecast = None
        if weights:
            self._forecast, self.keep = Forecast.of(context, weights=weights), KEEP
        elif OUTPUT in branches and isinstance(replay, Extrapolate):
            self._forecast = Forecast.of(context, strength=replay.strength)
            if self._forecast is not None and len(branches) == 1:  # deep features are large
                self.keep = KEEP

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """The replay's."""
        return self._replay.feature(step, recorded, self._levels)

    def output(self, step: int, recorded: Sequence[Recorded], sample: torch.Tensor) -> torch.Tensor:
        """The forecast, where there is one."""
        if self._forecast is None:
            return super().output(step, recorded, sample)
        return self._forecast.output(step, recorded, sample)


class PlannedGuide(ReplayGuide):
    """Goes by the plan of a schedule."""

    def __init__(
        self,
        schedule: Schedule,
        replay: Replay,
        context: Context,
        *,
        weights: Weights | None = None,
    ) -> None:
        self._plan = planned(schedule, context)
        super().__init__(context, self._plan.branches, replay, weights=weights)

    def entry(self, step: int) -> PlanEntry:
        """The plan's."""
        return self._plan[step]


def brings_replay(schedule: Any) -> bool:
    """Whether a schedule makes what shallow steps get itself: by a true `own_replay`."""
    return bool(getattr(schedule, "own_replay", False))


def plans_ahead(schedule: Any) -> bool:
    """Whether a schedule has a plan before a generation: by `plan_for(context)`, or `plan(n)`."""
    return hasattr(schedule, "plan_for") or hasattr(schedule, "plan")


def expected(schedule: Any, context: Context) -> Plan:
    """What will run by the plan, of a generation that has not been; so nothing is told of it.

    The first step is full whatever the plan says, because nothing is recorded before it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepCacheWarning)
        plan = planned(schedule, context)
    return plan if plan[0] == FULL else Explicit((FULL, *plan[1:])).entries


def planned(schedule: Any, context: Context) -> Plan:
    """The plan of a generation, with what its window protects in full.

    A schedule that has a method `plan_for(context)` is asked by that, any other by its
    `plan(num_steps)`.

    Raises:
        InvalidSettingError: If it is not a plan of so many steps.
    """
    plan_for = getattr(schedule, "plan_for", None)
    plan = schedule.plan(context.num_steps) if plan_for is None else plan_for(context)
    if len(plan) != context.num_steps:
        raise InvalidSettingError(
            f"the plan of {schedule!r} has {len(plan)} entries for {context.num_steps} steps"
        )
    return context.window.protect(Explicit(plan).entries, is_guess=context.is_guess)


def guide_factory(
    schedule: AnySchedule, replay: Replay, window: Window = NO_WINDOW
) -> GuideFactory:
    """What gives each generation its guide, by a schedule of either kind, within a window."""
    warned: set[str] = set()

    def guide(context: Context) -> Guide:
        context = replace(context, window=window, warned=warned)
        if not isinstance(schedule, GuidingSchedule):
            return PlannedGuide(schedule, replay, context)
        found = schedule.begin(context, replay)
        found.protected = context.protected
        return found

    return guide
