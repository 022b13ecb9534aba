"""What one generation of one U-Net goes by: which steps are full, and what is replayed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from .errors import InvalidSettingError
from .features import Recorded
from .noise import noise_levels
from .replay import Replay
from .schedule import Explicit, PlanEntry, Schedule
from .steps import Position


@dataclass(frozen=True)
class Context:
    """What is known when a generation begins.

    Attributes:
        num_steps: How many steps it has; a guess, to be raised later, if not `counted`.
        counted: Whether the number of steps is known.
        scheduler: The pipeline's, after `set_timesteps`, or `None`.
        unet: The U-Net inside `torch.compile`'s wrapper.
    """

    num_steps: int
    counted: bool
    scheduler: Any
    unet: nn.Module

    @cached_property
    def timesteps(self) -> tuple[float, ...] | None:
        """The values of the steps, read once; `None` if the scheduler has no such list."""
        timesteps = getattr(self.scheduler, "timesteps", None)
        if not self.counted or not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            return None
        values = timesteps.tolist()[-self.num_steps :]
        return tuple(map(float, values)) if len(values) == self.num_steps else None

    @cached_property
    def levels(self) -> tuple[float, ...] | None:
        """`noise_levels` of the steps."""
        return noise_levels(self.scheduler, self.timesteps) if self.timesteps else None


class Guide(Protocol):
    """What `AttachedUNet` asks of whatever leads it through a generation.

    Attributes:
        num_steps: Up to where it knows what to do.
        branches: Those that may be replayed, rising: what is recorded.
        keep: How many features of each slot and branch.
    """

    num_steps: int
    branches: tuple[int, ...]
    keep: int

    def entry(self, step: int) -> PlanEntry:
        """What the step is; asked once for each step, in order."""
        ...

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """What the step replays, made of what was recorded, the newest first."""
        ...

    def observe(
        self,
        position: Position,
        sample: torch.Tensor,
        output: Any,
        features: Mapping[int, torch.Tensor],
    ) -> None:
        """Look at a call that is over: its input, its output and what it recorded."""
        ...


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


class PlannedGuide:
    """Goes by the plan of a schedule and by one replay."""

    def __init__(self, schedule: Schedule, replay: Replay, context: Context) -> None:
        plan = schedule.plan(context.num_steps)
        if len(plan) != context.num_steps:
            raise InvalidSettingError(
                f"the plan of {schedule!r} has {len(plan)} entries for {context.num_steps} steps"
            )
        self._plan = Explicit(plan).entries
        self._replay = replay
        self._context = context
        self.num_steps = context.num_steps
        self.branches = self._plan.branches
        self.keep = replay.keep

    def entry(self, step: int) -> PlanEntry:
        """The plan's."""
        return self._plan[step]

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """The replay's."""
        levels = self._context.levels if self.keep > 1 else None
        return self._replay.feature(step, recorded, levels)

    def observe(
        self,
        position: Position,
        sample: torch.Tensor,
        output: Any,
        features: Mapping[int, torch.Tensor],
    ) -> None:
        """Nothing to learn."""
