"""What one thread has of the generation that it runs through one U-Net."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ..cutting.features import FeatureCache
from ..schedules.guide import Guide, Position
from ..schedules.plans import FULL, PlanEntry
from .residuals import Residuals
from .stats import Course
from .steps import StepTracker


class Session:
    """Where the generation stands, what leads it, and what was recorded in it.

    Attributes:
        tracker: Locates the U-Net's calls.
        cache: The deep features.
        generation: The number of the one that is under way.
        guide: Leads through it; `None` before its first call.
        entry: What the guide wants the current step to be.
        last_full: The last step that it wanted in full.
        scheduler: The one that drives this generation, or `None`.
        course: How that goes.
        residuals: What companions gave last.
        watched: By branch, why shallow calls are no good in this generation; `None` if they are.
    """

    def __init__(self) -> None:
        self.tracker = StepTracker()
        self.cache = FeatureCache()
        self.generation = -1
        self.course = Course("")
        # A reset may come between the companion's call and the U-Net's.
        self.residuals = Residuals()
        self.reset()

    def reset(self) -> None:
        """Forget the current generation."""
        self.course.finish()
        self.tracker.reset()
        self.guide: Guide | None = None
        self.scheduler: Any = None
        self.forget()

    def forget(self) -> None:
        """Let go of what was recorded."""
        self.cache.clear()
        self.residuals.forget()
        # The conditioning of each slot in the last full step.
        self._conditionings: dict[int, torch.Tensor | None] = {}
        self._conditionings_before: dict[int, torch.Tensor | None] = {}
        self.entry: PlanEntry = FULL
        self._entered = -1  # the step that the entry is of
        self._calls = self._calls_before = 0  # of this step and of the one before
        self.last_full = 0
        self.watched: dict[int, str | None] = {}

    def locate(
        self, timestep: Any, timesteps: torch.Tensor | None, *, ahead: bool = False
    ) -> Position | None:
        """Where a U-Net call with this timestep stands; `ahead` of the call, remember nothing."""
        tracker = copy.copy(self.tracker) if ahead else self.tracker
        return tracker.locate(timestep, timesteps)

    def enter(self, guide: Guide, step: int) -> None:
        """Ask the guide what the step is, once for each step."""
        if step == self._entered:
            return
        self._entered = step
        self._calls, self._calls_before = 0, self._calls
        self.entry = guide.entry(step)
        if self.entry == FULL:
            self.last_full = step
            self._conditionings_before, self._conditionings = self._conditionings, {}

    def recorded_by(self, slot: int, conditioning: torch.Tensor | None) -> None:
        """Remember whose conditioning the slot has."""
        self._conditionings[slot] = conditioning

    def took_the_place(self, slot: int, conditioning: torch.Tensor | None) -> bool:
        """Whether in the full step before the conditioning was that of another slot alone.

        Then what the slot holds from there is of another prompt, and no trend leads on from it.
        """
        return _is_of_others(self._conditionings_before, slot, conditioning)

    def called(self, slot: int, *, last_step: bool) -> None:
        """A call is over; in the last step, let go of what only it and those before it needed."""
        self._calls = slot + 1
        if not last_step:
            return
        self.cache.drop(slot)
        self._conditionings.pop(slot, None)
        self._conditionings_before.pop(slot, None)
        # A slot that the step before did without, such as guidance that ended, may never come.
        if self._calls >= self._calls_before:
            self.cache.clear()
            self._conditionings.clear()
            self._conditionings_before.clear()
            self.course.finish()

    def is_anothers(self, slot: int, conditioning: torch.Tensor | None) -> bool:
        """Whether the call has the conditioning of other slots, because one before was left out."""
        return _is_of_others(self._conditionings, slot, conditioning)


def _is_of_others(
    conditionings: Mapping[int, torch.Tensor | None], slot: int, conditioning: torch.Tensor | None
) -> bool:
    """Whether other slots have the conditioning, and this one has not."""
    slots = [s for s, its in conditionings.items() if _same_memory(its, conditioning)]
    return bool(slots) and slot not in slots


def _same_memory(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape
