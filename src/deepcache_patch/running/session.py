"""The state of one U-Net's current generation, for one thread or one `generation()` block."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..cutting.features import FeatureCache
from ..schedules.context import Position
from ..schedules.guide import Guide
from ..schedules.plans import FULL, PlanEntry
from .locating.declared import DeclaredGeneration
from .locating.declared_steps import DeclaredSteps
from .locating.steps import StepTracker
from .residuals import Residuals
from .slots import Slot, Slots, marks
from .stats import GenerationRecord


class Session:
    """Where the generation stands, what leads it, and what was recorded in it.

    `reset` ends the generation, `forget` only drops what was recorded, `enter` begins a step, and
    `called` ends a call.

    Args:
        declared: The one generation that it is for, if somebody has declared it.
        by_pipeline: Whether a pipeline makes the call that is located.

    Attributes:
        declared: The one generation, as it was given.
        tracker: Locates the U-Net's calls.
        cache: The deep features.
        generation: The number of the one that is under way.
        guide: Leads through it; `None` before its first call.
        is_guess: Whether nobody knows how many steps it has, so that the guide goes by a guess.
        entry: What the guide wants the current step to be.
        replayable_from: The first step whose recordings may be replayed: the last one that the
            guide wanted in full, or in which blocks were replaced.
        scheduler: The one that drives this generation, or `None`.
        course: How the generation goes.
        residuals: What ControlNets gave last.
        slots: The calls of its steps.
        watched: By branch and revision, why shallow calls are no good in this generation; `None` if
            they are.
    """

    def __init__(
        self,
        declared: DeclaredGeneration | None = None,
        by_pipeline: Callable[[], bool] = lambda: True,
    ) -> None:
        self.declared = declared
        self.tracker = StepTracker(by_pipeline) if declared is None else DeclaredSteps(declared)
        self.cache = FeatureCache()
        self.generation = -1
        self.course = GenerationRecord("")
        # A reset may come between the ControlNet's call and the U-Net's.
        self.residuals = Residuals()
        self._numbers = itertools.count()  # for slots: none comes twice in this session
        self._entered = -1
        self.reset()

    def reset(self) -> None:
        """Forget the current generation."""
        self.course.finish()
        self.tracker.reset()
        self.guide: Guide | None = None
        self.is_guess = False
        self.scheduler: Any = None
        self.forget()

    def forget(self, *, midway: bool = False) -> None:
        """Let go of what was recorded; `midway` in a step, which is full from there on."""
        self.cache.clear()
        self.residuals.forget()
        self.slots = Slots(self._numbers)
        self.entry: PlanEntry = FULL
        self.watched: dict[tuple[int, int], str | None] = {}
        if midway:
            self.replayable_from = self._entered
            return
        self.replayable_from = 0
        self._entered = -1  # the step that the entry is of
        self._calls = self._calls_before = 0  # of this step and of the one before

    def locate(
        self, timestep: Any, timesteps: torch.Tensor | None, *, ahead: bool = False
    ) -> Position | None:
        """Where a U-Net call with this timestep stands; `ahead` of the call, remember nothing."""
        tracker = copy.copy(self.tracker) if ahead else self.tracker
        return tracker.locate(timestep, timesteps)

    def has_lost_its_list(self, position: Position) -> bool:
        """Whether a list was known when the guide was made, and the loop has gone on beside it."""
        return position.num_steps is None and not self.is_guess

    def enter(self, guide: Guide, step: int) -> None:
        """Ask the guide what the step is, once for each; a full one left out is made up for."""
        if step == self._entered:
            return
        first = min(self._entered + 1, step)
        entries = [guide.entry(each) for each in range(first, step + 1)]
        if not guide.protected.isdisjoint(range(first, step + 1)):
            entries.append(FULL)
        self._entered = step
        self._calls, self._calls_before = 0, self._calls
        self.entry = FULL if FULL in entries else entries[-1]
        if self.entry == FULL:
            self.replayable_from = step
        for number in self.slots.next_step():
            self.cache.drop(number)

    def slot_of(
        self,
        position: Position,
        sample: torch.Tensor,
        conditioning: dict[str, torch.Tensor],
        hooks: Sequence[Any],
    ) -> Slot:
        """The slot of a call, by what it is given, and by the hooks that are there; see `slots`."""
        given = marks(sample, conditioning, hooks)
        return self.slots.of(position.order, given)

    def called(self, position: Position, slot: Slot | None = None) -> None:
        """A call is over; in the last step, let go of what only it and those before it needed.

        Args:
            position: The call's.
            slot: The call's; `None` in a generation that records nothing.
        """
        self._calls = position.order + 1
        if not position.is_last:
            return
        if slot is not None:
            self.cache.drop(slot.number)
        # A slot that the step before did without, such as guidance that ended, may never come.
        if self._calls >= self._calls_before:
            self.cache.clear()
            self.course.finish()
