"""Which step is this U-Net call of, in a generation that somebody has declared?

The list of its steps is known. A timestep that is an entry of it says which step, by memory or by
value. Where the list has only noise levels, or the loop passes something else, the order says it:
another value than that of the last call is the next step.
"""

import statistics
from typing import Any, NamedTuple

import torch

from ...schedules.context import Position
from .declared import DeclaredGeneration, falls_evenly
from .timelines import (
    ROUNDING,
    SAME,
    Expected,
    Place,
    Timelines,
    one_value,
    same_storage,
    same_timeline,
    turns_back,
)


class Doubt(NamedTuple):
    """What to say at the end of a loop whose calls may have been taken for other steps.

    Attributes:
        kind: What its calls were like. To say it once of each kind is enough.
        text: With the numbers of this loop.
    """

    kind: str
    text: str


class DeclaredSteps:
    """Locates the U-Net calls of one declared generation, in the place of a `StepTracker`.

    Args:
        declared: The generation.

    Attributes:
        unclear: Why the last call has no position; `None` if it has one.
    """

    def __init__(self, declared: DeclaredGeneration) -> None:
        self._declared = declared
        self._timelines = Timelines()
        self._generation = -1
        self._timeline: torch.Tensor | None = None  # of the steps; known from the first call on
        self._values: list[float] = []
        self._is_listed: bool | None = None  # whether what is passed are entries of the list
        self._at = -1  # the entry of the last call
        self._passed: float | None = None  # its value, where the order counts
        self._rises: bool | None = None  # whether such values rise, from step to step
        self._counts: tuple[int, ...] = ()  # of the calls of each step; look-aheads share it
        self._foreign: list[float] | None = None  # another list that entries came of
        self._is_copy = False  # whether that has the values of the declared one
        self._missed = _DISABLED if declared.is_missed else None
        self._ended: str | None = None  # why no later call has a position
        self._astray: str | None = None  # what was said of the first call that is not in the list
        self.unclear: str | None = None
        self.reset()

    def reset(self) -> None:
        """Nothing recorded is of use: the next call begins anew, from where the loop stands."""
        self.unclear = None
        self._first: int | None = None
        self._order = self._calls_before = 0

    def runs_on(self, timesteps: torch.Tensor | None) -> bool:
        """Whether the generation goes by this very list."""
        return same_timeline(self._timeline, timesteps)

    def remaining(self) -> tuple[float, ...]:
        """The list, from the step on with which the generation has begun."""
        return tuple(self._values[self._first or 0 :])

    def locate(
        self,
        timestep: torch.Tensor | float,
        timesteps: torch.Tensor | None = None,
    ) -> Position | None:
        """Return where this call stands, and remember it.

        Args:
            timestep: What the U-Net got: a number, or a tensor of shape `()`, `(1,)` or `(batch,)`.
            timesteps: Is not looked at: what was declared counts.

        Returns:
            The position; `None` if there is none, and `unclear` says why.
        """
        if self._timeline is None:
            self._timeline = self._declared.timesteps
            given = self._declared.values
            self._values = [float(value) for value in given or self._timeline.tolist()]
        entry = self._entry(timestep)
        if entry is None:
            return None
        self.unclear = None
        goes_on = entry >= self._at and not self._turns_back(entry)
        if self._first is None or not goes_on:
            self._generation += 1
            self._first, self._order, self._calls_before = entry, 0, 0
        elif entry == self._at:
            self._order += 1
        else:
            self._order, self._calls_before = 0, self._order + 1
        self._at = entry
        step, steps = entry - self._first, len(self._values) - self._first
        return Position(self._generation, step, self._order, steps)

    def passed(self, timestep: Any, *, is_written_down: bool = False) -> None:
        """A call ran plainly. It is counted, because steps may be known by their order.

        Args:
            timestep: What the U-Net got; `None` if it got none.
            is_written_down: Whether it may have no value, if it is a tensor.
        """
        if is_written_down and isinstance(timestep, torch.Tensor):
            self._missed = self._missed or _UNREAD
        elif timestep is not None:
            self.locate(timestep)

    def doubt(self) -> Doubt | None:
        """What to say at the end of this loop; `None` if nothing speaks against its steps."""
        steps, counts = len(self._values), self._counts
        if self._ended is not None or self._missed is not None or not counts:
            return None
        came = f"of the {steps} steps that generation() was given, {len(counts)} came"
        usual, most = statistics.mode(counts), max(counts)
        # All calls of a whole loop came, but not all steps.
        is_short = len(counts) < steps <= sum(counts) and most > usual
        if len(counts) > 2 and (is_short or counts[0] > max(counts[1:])):
            return Doubt(
                "several in one",
                f"{came}, and one of them had {most} calls of the U-Net, where others had {usual}: "
                "it may have been several steps, whose timesteps are rounded to the same number, "
                "or a call to warm up, and the picture may be wrong. Give timesteps= or "
                "scheduler=, and warm up before the block",
            )
        # The last of a list may be where a loop ends, and not a step.
        if len(counts) < steps - 1:
            return Doubt(
                "too few",
                f"{came}, and were taken for the first: if the loop was not broken off, give those "
                "that run, which for image to image are the end of the list",
            )
        return None

    def _entry(self, timestep: torch.Tensor | float) -> int | None:
        """Which entry of the list the call is at."""
        if self._declared.by_order or self._is_listed is False:
            return self._by_order(timestep)
        found = self._listed(timestep)
        if found is not None:
            self._is_listed = True
        elif self._is_listed is None and not self._is_of_list(timestep):
            return self._by_order(timestep)  # nor will those be listed that follow
        else:
            self._is_listed = True
            self.unclear = self._stray(one_value(timestep))
        return found

    def _listed(self, timestep: torch.Tensor | float) -> int | None:
        """The entry that the timestep is, by its memory or its value."""
        place = self._timelines.place(timestep, self._timeline, None)
        is_own = place is None or same_timeline(place.timeline, self._timeline)
        if place is not None and (is_own or self._is_copy_of_list(place)):
            return place.entry  # of the list, or of a copy of it, such as one on the device
        if not is_own and isinstance(timestep, torch.Tensor):
            timestep = timestep.clone()  # it counts by its value
        more = self._order + 1 < self._calls_before
        expected = Expected(self._timeline, self._at, more)  # one of several equal entries
        place = self._timelines.place(timestep, self._timeline, expected if is_own else None)
        return None if place is None else place.entry

    def _is_of_list(self, timestep: torch.Tensor | float) -> bool:
        """Whether it is a view into the list's memory: such as one between two entries."""
        if self._timeline is None or not isinstance(timestep, torch.Tensor):
            return False
        return same_storage(timestep, self._timeline)

    def _is_copy_of_list(self, place: Place) -> bool:
        """Whether the list that the place is in has the declared one's values, but for rounding."""
        foreign = place.timeline
        if foreign is None or place.length != len(self._values):
            return False
        values = self._timelines.values_behind(foreign)
        if values is not self._foreign:
            own = torch.tensor(self._values, dtype=torch.float64).to(foreign.dtype).tolist()
            bound = ROUNDING / 2 * (max(own) - min(own))
            near = (abs(one - other) <= bound for one, other in zip(own, values, strict=True))
            self._foreign, self._is_copy = values, all(near)
        return self._is_copy

    def _stray(self, value: float | None) -> str:
        """Why a call has no place in the list; of all that are none of it, what the first said."""
        if value is None:
            return _SEVERAL
        self._astray = self._astray or (
            f"its timestep {value:g} is none of those that generation() was given: give those of "
            "all calls"
        )
        return self._astray

    def _by_order(self, timestep: torch.Tensor | float) -> int | None:
        """The entry by how often the value has changed."""
        if self._ended is not None:
            self.unclear = self._ended
            return None
        value = one_value(timestep)
        if value is None:
            self.unclear = _SEVERAL
            return None
        if self._missed is not None:
            self.unclear = self._ended = self._missed
            return None
        if self._passed is None and self._are_noise_levels(value):
            self._ended = (
                f"its timestep {value:g} is above all that generation() was given, which fall from "
                f"{self._values[0]:g} as noise levels do: give sigmas="
            )
        self._is_listed = False
        before, self._passed = self._passed, value
        if before is not None and abs(value - before) <= SAME * max(abs(value), abs(before)):
            if self._first is not None:  # else it may be one that failed, again
                self._counts = (*self._counts[:-1], self._counts[-1] + 1)
            return self._at
        self._counts = (*self._counts, 1)
        steps = len(self._values)
        if before is not None:
            rises = value > before
            if self._rises not in (None, rises):
                self._ended = (
                    "its loop went back, and where generation() was given noise levels each "
                    "block is one loop: enter a block for each picture"
                )
            self._rises = rises
        if self._at + 1 == steps and self._ended is None:
            self._ended = (
                f"it is the call of step {steps + 1}, and generation() was given {steps}, so those "
                "before it may have been taken for other steps than they are, and the picture may "
                "be wrong: give the noise level of each call of the U-Net, also of those between "
                "two steps of the sampler"
            )
        self.unclear = self._ended
        return self._at + 1 if self._ended is None else None

    def _are_noise_levels(self, passed: float) -> bool:
        """Whether noise levels were given as timesteps. Others may be counts, or shares of 1."""
        values = sorted(set(self._declared.values or ()), reverse=True)
        is_way_down = len(values) > 3 and self._values[0] == values[0]
        return is_way_down and 1 < values[0] < 0.9 * passed and not falls_evenly(values)

    def _turns_back(self, entry: int) -> bool:
        """Whether the list itself has gone back since the last call, as RePaint's does."""
        return self._at >= 0 and turns_back(self._values, self._at, entry)


_DISABLED = "the helper was disabled within the block of generation(), and calls were missed"
_UNREAD = (
    "a call within the block of generation() was traced, captured or mapped by torch.func, and its "
    "timestep cannot be read: give it as a number, or make such calls outside of the block"
)
_SEVERAL = "the samples of its batch are at different timesteps"
