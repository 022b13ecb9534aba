"""Which generation and step is this U-Net call of? Observes, patches nothing.

A generation goes by a list of timesteps, entry after entry, and `timelines` says which entry a call
is at. What else calls may be depends on who makes them. A pipeline's are of a denoising loop: all
that matters is whether their timesteps go on or back. Those of somebody else are of a loop while
they go on as one does (`strides`), or astray: of none, such as a loss at a random timestep.
"""

from collections.abc import Callable
from typing import Any, Final

import torch

from ...schedules.context import Position
from .declared_steps import Doubt
from .strides import Stride, Strides
from .timelines import ROUNDING, SAME, Expected, Place, Timelines, same_timeline, turns_back

#: How many steps in a row have to be alike for calls that were astray to be a loop.
_PROOF: Final = 4

#: A loop over larger values is one over timesteps, down to about 0. Noise levels are smaller, and
#: may go down by any share in one step.
_NOISE_LEVEL: Final = 200

_UNCLEAR: Final = (
    "its step cannot be told from its timestep: pass an element of the scheduler's timesteps, the "
    "same for the whole batch"
)


class StepTracker:
    """Locates the U-Net calls of one thread from the timesteps that they get.

    Args:
        by_pipeline: Whether a pipeline makes the call that is located; asked where that matters.

    Attributes:
        unclear: Why the last call has no position, if its step could not be told; `None` if it has
            one, or is of no generation.
    """

    def __init__(self, by_pipeline: Callable[[], bool] = lambda: True) -> None:
        self._by_pipeline = by_pipeline
        self._generation = -1
        self.reset()

    def reset(self) -> None:
        """Forget the current generation: the next call starts a new one."""
        self.unclear: str | None = None
        self._timelines = Timelines()
        # What the current generation's indices count in; `None` for values of no known list. A
        # tensor is kept, not its address, so that the memory cannot go to another list.
        self._timeline: torch.Tensor | None = None
        self._values: list[float] = []  # of the timeline, once `remaining` has read them
        self._first = self._step = self._order = self._calls_before = 0
        self._length: int | None = None  # of the timeline
        self._pipelines = False  # whether a pipeline has begun it
        self._left_list = False  # gone on elsewhere: the entries are not its steps then
        self._is_loop = False  # whether it goes on without the next entry of its list, too
        # The last step: the list that its timestep is of, or beside; the entry, or how many it
        # would be; whether it is an entry; its value, where it was read.
        self._place: Place | None = None
        self._index: int | None = None
        self._start = 0.0  # the value that it all began with, where it was read
        self._strides = Strides()
        self._astray = False

    def runs_on(self, timesteps: torch.Tensor | None) -> bool:
        """Whether the current generation goes by this very list."""
        return same_timeline(self._timeline, timesteps)

    def remaining(self) -> tuple[float, ...] | None:
        """The values of this generation's steps to their end; `None` if there is no list of them.

        Read from the list that the generation runs on, whether or not it is the scheduler's.
        """
        if self._timeline is None:
            return None
        if not self._values:
            timeline = self._timeline
            if timeline.ndim != 1 or timeline.stride()[0] == 0 or len(timeline) == 1:
                length = timeline.untyped_storage().nbytes() // timeline.element_size()
                timeline = timeline.as_strided((length,), (1,), 0)
            self._values = [float(value) for value in timeline.tolist()]
        return tuple(self._values[self._first :])

    def locate(
        self, timestep: torch.Tensor | float, timesteps: torch.Tensor | None = None
    ) -> Position | None:
        """Return where this call stands, and remember it.

        Args:
            timestep: What the U-Net got: a number, or a tensor of shape `()`, `(1,)` or `(batch,)`.
            timesteps: The scheduler's timesteps, shape `(steps,)`, if there is a scheduler.

        Returns:
            The position, or `None` if there is none: the samples of the batch are at different
            timesteps, a timestep that is known by its value only occurs several times and none of
            them is expected (then it is `unclear`), or the call is of no loop.
        """
        place = self._timelines.place(timestep, timesteps, self._expected())
        self.unclear = _UNCLEAR if place is None else None
        if place is None:
            return None
        last = self._place
        if last is None or not same_timeline(place.timeline, last.timeline):
            # Whoever was astray may begin a loop at the head of another list.
            if self._astray and not place.is_head and not self._by_pipeline():
                self._go_astray(place)
                return None
            return self._begin(place, self._by_pipeline())
        stride = self._stride(place, last)
        if self._astray:
            return self._find_back(place, stride)
        if stride is not None and stride.far == 0:
            self._order += 1
            return self._position()
        if stride is not None and (stride.is_next or self._goes_on(stride)):
            self._strides = self._strides.after(stride)
            self._calls_before, self._order = self._order + 1, 0
            self._step += 1
            self._stand(place)
            self._left_list |= self._is_elsewhere(place, stride)
            return self._position()
        # One step and then another that is not the next, with more of them to come: that was none.
        is_over = self._step > 0 or (self._length or 0) - 1 == self._index
        if is_over or self._by_pipeline():
            return self._begin(place, self._by_pipeline())
        self._go_astray(place)
        return None

    def passed(self, timestep: Any, *, is_written_down: bool = False) -> None:
        """A call ran plainly: it is none of a loop, and does not count."""

    def doubt(self) -> Doubt | None:
        """`None`: nobody has declared which steps there are. `DeclaredSteps` may have doubts."""
        return None

    def _goes_on(self, stride: Stride) -> bool:
        """Whether a step of this generation may be where the next entry of its list is not."""
        if self._by_pipeline():
            return self._pipelines
        return self._is_loop and not self._pipelines and self._strides.fits(stride)

    def _is_elsewhere(self, place: Place, stride: Stride) -> bool:
        """Whether the step is not at the next entry of its list, nor but for rounding."""
        if stride.entries or self._index is None or place.value is None:
            return stride.entries and not stride.is_next
        values = [self._timelines.value_of(place.timeline, each) for each in (0, self._index)]
        if values[0] is None or values[1] is None:
            return False
        return abs(place.value - values[1]) > ROUNDING * abs(values[0])

    def _begin(self, place: Place, by_pipeline: bool, *, is_loop: bool | None = None) -> Position:
        """A generation begins with this call; one at the head of its list is a loop's."""
        timeline = None if place.entry is None else place.timeline
        if not same_timeline(timeline, self._timeline):
            self._timeline, self._values = timeline, []
        self._generation += 1
        self._pipelines = by_pipeline
        self._is_loop = place.is_head if is_loop is None else is_loop
        self._astray = self._left_list = False
        self._first, self._length = place.entry or 0, place.length
        self._step = self._order = self._calls_before = 0
        if not is_loop:
            self._strides = Strides()
        self._index = None
        self._stand(place)
        self._start = abs(place.value or 0.0)
        return self._position()

    def _go_astray(self, place: Place) -> None:
        self._astray, self._strides, self._index = True, Strides(), None
        self._stand(place)

    def _find_back(self, place: Place, stride: Stride | None) -> Position | None:
        """A call after those that were astray: as they are, or the first of a loop."""
        if self._by_pipeline():
            return self._begin(place, True)
        if place.entry == 0:  # or a loss that was drawn there: only the next entry goes on
            return self._begin(place, False, is_loop=False)
        if stride is None:
            self._go_astray(place)
            return None
        if stride.far > 0:
            self._strides = self._strides.after(stride)
            self._index = None
            self._stand(place)
        if self._strides.alike < _PROOF:
            return None
        return self._begin(place, False, is_loop=True)

    def _stand(self, place: Place) -> None:
        """Remember where the last step is."""
        beside = place.entry is None and self._index is not None
        self._index = self._index + 1 if beside and self._index is not None else place.entry
        self._place = place

    def _position(self) -> Position:
        length = None if self._left_list else self._length
        num_steps = None if length is None else length - self._first
        if num_steps is not None and num_steps <= self._step:  # it has left its list behind
            num_steps = None
        if num_steps is None and self._place is not None and self._place.value == 0:
            num_steps = self._step + 1  # below 0 no step can follow
        return Position(self._generation, self._step, self._order, num_steps)

    def _expected(self) -> Expected | None:
        if self._place is None or self._index is None:
            return None
        more = self._order + 1 < self._calls_before if self._step else None
        return Expected(self._place.timeline, self._index, more)

    def _stride(self, place: Place, last: Place) -> Stride | None:
        """How far the call is from the last step; `None` if it is behind it."""
        if place.entry is not None and last.entry is not None:
            far = place.entry - last.entry
            if far < 0 or self._turns_back(last.entry, place.entry):
                return None
            return Stride(far, place.length or 1, entries=True)
        before, now = self._value(last), self._value(place)
        if before is None or now is None:
            return None
        fall = before - now
        if abs(fall) <= SAME * abs(before) or 0 > fall >= -2 * ROUNDING * self._start:
            fall = 0.0
        whole = max(self._start, abs(before))
        known = whole if whole > _NOISE_LEVEL else float("inf")
        return Stride(fall, known, entries=False) if fall >= 0 else None

    def _value(self, place: Place) -> float | None:
        if place.value is not None or place.entry is None:
            return place.value
        return self._timelines.value_of(place.timeline, place.entry)

    def _turns_back(self, before: int, after: int) -> bool:
        """Whether the list itself has gone back since the last call, as RePaint's does."""
        return bool(self._values) and turns_back(self._values, before, after)
