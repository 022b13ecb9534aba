"""What one generation of one U-Net goes by: which steps are full, and what is replayed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from ..cutting.features import Recorded
from ..errors import InvalidSettingError, warn
from .forecast import Forecast
from .noise import adds_noise, noise_levels
from .plans import FULL, OUTPUT, Explicit, Plan, PlanEntry, Schedule
from .replay import Extrapolate, Replay
from .window import NO_WINDOW, Window


@dataclass(frozen=True)
class Context:
    """What is known when a generation begins.

    Attributes:
        num_steps: How many steps it has.
        timesteps: The values of the steps; `None` if there is no list of them.
        scheduler: The pipeline's, after `set_timesteps`, or `None`.
        unet: The U-Net inside `torch.compile`'s wrapper.
        is_own: Whether the timesteps are the scheduler's own list, not another pipeline's.
        is_guess: Whether `num_steps` is a guess, to be raised later.
        window: What runs in full whatever the schedule says.
        is_told: Whether somebody has told of it, because the loop is their own.
        warned: What was said already by `warn_once`, since the helper was enabled.
    """

    num_steps: int
    timesteps: tuple[float, ...] | None
    scheduler: Any
    unet: nn.Module
    is_own: bool = True
    is_guess: bool = False
    window: Window = NO_WINDOW
    is_told: bool = False
    warned: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def protected(self) -> frozenset[int]:
        """The steps that run in full whatever the schedule says, as far as they are known."""
        return self.window.steps(self.num_steps, is_guess=self.is_guess)

    def warn_once(self, message: str) -> None:
        """Warns, unless a generation before has."""
        if message not in self.warned:
            self.warned.add(message)
            warn(message)

    def levels(self) -> tuple[float, ...] | None:
        """`noise_levels` of the steps."""
        return self._levels

    @cached_property  # plan, replay and forecast ask for it, and a device has to be waited for
    def _levels(self) -> tuple[float, ...] | None:
        if not self.timesteps:
            return None
        return noise_levels(self.scheduler, self.timesteps, is_own=self.is_own)

    @property
    def adds_noise(self) -> bool:
        """Whether the scheduler adds noise in its steps."""
        return adds_noise(self.scheduler)


class Position(NamedTuple):
    """Where a U-Net call stands.

    Attributes:
        generation: Counts denoising loops, from 0.
        step: Counts the steps that this generation has run, from 0.
        order: Which U-Net call of the step this is, from 0.
        num_steps: How many steps this generation has if it runs every one to the end of its
            timesteps, more than `step`; `None` when there is no list of timesteps.
    """

    generation: int
    step: int
    order: int
    num_steps: int | None


class FinishedCall(NamedTuple):
    """A U-Net call that is over, for a guide to look at.

    Attributes:
        position: Where it stood.
        sample: The U-Net's input, shape `(batch, channels, …)`.
        output: What the U-Net returned.
        features: What the call recorded, by branch, each of shape `(batch, channels, …)`.
        replaced: What a shallow call in its place would have been made of: of each branch that it
            recorded, what was recorded before for calls that are given the same, the newest first.
        slot: A number that all calls of the generation have that are given the same.
        instead_of: The slot that the step before had in the place of this one, which is new;
            `None` for one that is not, or had no place.
    """

    position: Position
    sample: torch.Tensor
    output: Any
    features: Mapping[int, torch.Tensor]
    replaced: Mapping[int, Sequence[Recorded]] = {}
    slot: int = 0
    instead_of: int | None = None


class Guide:
    """What leads one U-Net through one generation. This one looks at nothing.

    Attributes:
        learns: If the generation is a calibration, what for: "50 steps with DDIMScheduler".
        num_steps: Up to where it knows what to do.
        branches: Those that may be replayed, rising: what is recorded.
        keep: How many features of each slot and branch.
    """

    learns: str | None = None

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

    def observe(self, call: FinishedCall) -> None:
        """Look at a call that is over; called after each that recorded something, or could."""

    def finish(self) -> None:
        """Another generation begins, or the block of one that was told is over.

        Not called after a reset, such as an error in a call brings.
        """


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
    """One that makes features by a replay."""

    def __init__(self, context: Context, branches: tuple[int, ...], replay: Replay) -> None:
        super().__init__(context.num_steps, branches, replay.keep)
        self._replay = replay
        # Read now, while nothing of this generation waits on the device.
        self._levels = context.levels() if replay.keep > 1 else None
        self._forecast = None
        if OUTPUT in branches and isinstance(replay, Extrapolate):
            self._forecast = Forecast.of(context, strength=replay.strength)

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """The replay's."""
        return self._replay.feature(step, recorded, self._levels)

    def output(self, step: int, recorded: Sequence[Recorded], sample: torch.Tensor) -> torch.Tensor:
        """The forecast, where the replay is to go on from what was."""
        if self._forecast is None:
            return super().output(step, recorded, sample)
        return self._forecast.output(step, recorded, sample)


class PlannedGuide(ReplayGuide):
    """Goes by the plan of a schedule."""

    def __init__(self, schedule: Schedule, replay: Replay, context: Context) -> None:
        self._plan = planned(schedule, context)
        super().__init__(context, self._plan.branches, replay)

    def entry(self, step: int) -> PlanEntry:
        """The plan's."""
        return self._plan[step]


class ProtectingGuide(Guide):
    """Another guide, but for the steps that run in full whatever it says.

    Args:
        guide: Is asked and told everything, as if it were alone.
        protected: Those steps.
    """

    def __init__(self, guide: Guide, protected: frozenset[int]) -> None:
        super().__init__(guide.num_steps, guide.branches, guide.keep)
        self.learns = guide.learns
        self._guide = guide
        self._protected = protected

    def entry(self, step: int) -> PlanEntry:
        """Full, or the guide's."""
        entry = self._guide.entry(step)
        return FULL if step in self._protected else entry

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """The guide's."""
        return self._guide.feature(step, branch, recorded)

    def output(self, step: int, recorded: Sequence[Recorded], sample: torch.Tensor) -> torch.Tensor:
        """The guide's."""
        return self._guide.output(step, recorded, sample)

    def observe(self, call: FinishedCall) -> None:
        """Let the guide look."""
        self._guide.observe(call)

    def finish(self) -> None:
        """Tell the guide."""
        self._guide.finish()


def planned(schedule: Schedule, context: Context) -> Plan:
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


def guides_of(
    schedule: AnySchedule, replay: Replay, window: Window = NO_WINDOW
) -> Callable[[Context], Guide]:
    """What gives each generation its guide, by a schedule of either kind, within a window."""
    warned: set[str] = set()

    def guide(context: Context) -> Guide:
        context = replace(context, window=window, warned=warned)
        if not isinstance(schedule, GuidingSchedule):
            return PlannedGuide(schedule, replay, context)
        found = schedule.begin(context, replay)
        return ProtectingGuide(found, context.protected) if window else found

    return guide
