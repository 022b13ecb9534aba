"""What one generation of one U-Net goes by: which steps are full, and what is replayed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from ..cutting.features import Recorded
from ..errors import InvalidSettingError
from .noise import noise_levels
from .plans import FULL, Explicit, PlanEntry, Schedule
from .replay import Replay


@dataclass(frozen=True)
class Context:
    """What is known when a generation begins.

    Attributes:
        num_steps: How many steps it has; a guess, to be raised later, without `timesteps`.
        timesteps: The values of the steps; `None` if there is no list of them.
        scheduler: The pipeline's, after `set_timesteps`, or `None`.
        unet: The U-Net inside `torch.compile`'s wrapper.
        is_own: Whether the timesteps are the scheduler's own list, not another pipeline's.
    """

    num_steps: int
    timesteps: tuple[float, ...] | None
    scheduler: Any
    unet: nn.Module
    is_own: bool = True

    def levels(self) -> tuple[float, ...] | None:
        """`noise_levels` of the steps."""
        if not self.timesteps:
            return None
        return noise_levels(self.scheduler, self.timesteps, is_own=self.is_own)


@dataclass(frozen=True)
class Position:
    """Where a U-Net call stands.

    Attributes:
        generation: Counts denoising loops, from 0.
        step: Counts the steps that this generation has run, from 0.
        slot: Which U-Net call of the step this is, from 0.
        num_steps: How many steps this generation has if it runs every one to the end of its
            timesteps, more than `step`; `None` when there is no list of timesteps.
    """

    generation: int
    step: int
    slot: int
    num_steps: int | None


@dataclass(frozen=True, eq=False)
class FinishedCall:
    """A U-Net call that is over, for a guide to look at.

    Attributes:
        position: Where it stood.
        sample: The U-Net's input, shape `(batch, channels, …)`.
        output: What the U-Net returned.
        features: What the call recorded, by branch, each of shape `(batch, channels, …)`.
    """

    position: Position
    sample: torch.Tensor
    output: Any
    features: Mapping[int, torch.Tensor]


class Guide:
    """What leads one U-Net through one generation. This one looks at nothing.

    Attributes:
        num_steps: Up to where it knows what to do.
        branches: Those that may be replayed, rising: what is recorded.
        keep: How many features of each slot and branch.
    """

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

    def observe(self, call: FinishedCall) -> None:
        """Look at a call that is over; called after each that recorded something, or could."""

    def finish(self) -> None:
        """Another generation begins, or the last step is over; not called after an error."""


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

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """The replay's."""
        return self._replay.feature(step, recorded, self._levels)


class PlannedGuide(ReplayGuide):
    """Goes by the plan of a schedule."""

    def __init__(self, schedule: Schedule, replay: Replay, context: Context) -> None:
        plan = schedule.plan(context.num_steps)
        if len(plan) != context.num_steps:
            raise InvalidSettingError(
                f"the plan of {schedule!r} has {len(plan)} entries for {context.num_steps} steps"
            )
        self._plan = Explicit(plan).entries
        super().__init__(context, self._plan.branches, replay)

    def entry(self, step: int) -> PlanEntry:
        """The plan's."""
        return self._plan[step]


def guides_of(schedule: AnySchedule, replay: Replay) -> Callable[[Context], Guide]:
    """What gives each generation its guide, by a schedule of either kind."""
    if isinstance(schedule, GuidingSchedule):
        return lambda context: schedule.begin(context, replay)
    return lambda context: PlannedGuide(schedule, replay, context)
