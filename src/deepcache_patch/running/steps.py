"""Which generation, step and slot is this U-Net call? Observes, patches nothing.

A scheduler makes a new `timesteps` tensor for each `set_timesteps`, and the timestep that a
pipeline passes to its U-Net is nearly always a view into that tensor. So the storage says which
generation it is, and the offset in it says which step: no value is read, no device waits, and
timesteps that occur twice (Heun, PNDM) stay apart. What is no such view is matched by value.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import torch

from ..schedules.guide import Position
from ..schedules.noise import timesteps_of

# A longer storage is no list of timesteps: diffusion models are trained with a thousand or so.
_LONGEST: Final = 10_000


class StepTracker:
    """Locates the U-Net calls of one thread from the timesteps that they get."""

    def __init__(self) -> None:
        self._generation = -1
        self.reset()

    def reset(self) -> None:
        """Forget the current generation: the next call starts a new one."""
        # What the current generation's indices count in; `None` for values of no known list. A
        # tensor is kept, not its address, so that the memory cannot go to another list.
        self._timeline: torch.Tensor | None = None
        self._values: list[float] = []  # of the timeline, once `remaining` has read them
        self._started = False
        self._first = self._index = self._step = self._slot = 0
        self._value = 0.0
        # The lists that were read last: the scheduler's with its values, another with its length.
        self._known: tuple[torch.Tensor, torch.dtype, list[float]] | None = None
        self._foreign: tuple[torch.Tensor, int] | None = None

    def runs_on(self, timesteps: torch.Tensor | None) -> bool:
        """Whether the current generation goes by this very list."""
        return _same_timeline(self._timeline, timesteps)

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
            timesteps, or a timestep that is known by its value only occurs several times.
        """
        if isinstance(timestep, torch.Tensor) and _is_one_entry_of_many(timestep):
            if timesteps is not None and same_storage(timestep, timesteps):
                stride = timesteps.stride()[0] or 1
                index = int(timestep.storage_offset() - timesteps.storage_offset()) // stride
                return self._move(timesteps, index, len(timesteps))
            length = self._length_behind(timestep)
            if length:
                return self._move(timestep, int(timestep.storage_offset()), length)
        value = _one_value(timestep)
        if value is None:
            return None
        if timesteps is None:
            return self._move_by_value(value, None, [])
        # Some pipelines cast it to the U-Net's dtype: 981 is 980 in bfloat16.
        dtype = timesteps.dtype
        if isinstance(timestep, torch.Tensor) and timestep.is_floating_point():
            dtype = timestep.dtype
        return self._move_by_value(value, timesteps, self._values_of(timesteps, dtype))

    def _move_by_value(
        self, value: float, timesteps: torch.Tensor | None, values: list[float]
    ) -> Position | None:
        if value in values:
            if values.count(value) > 1:
                return None
            return self._move(timesteps, values.index(value), len(values))
        # Not the scheduler's timesteps, so only their order is known: a lower one is the next
        # step, a higher one a new start.
        if self._timeline is None and value > self._value:
            self._started = False
        goes_on = self._started and self._timeline is None
        index = self._index + (value < self._value) if goes_on else 0
        self._value = value
        return self._move(None, index, None)

    def _move(
        self, timeline: torch.Tensor | None, index: int, length: int | None
    ) -> Position | None:
        if length is not None and not 0 <= index < length:
            return None
        goes_on = self._started and _same_timeline(timeline, self._timeline)
        if not goes_on:
            self._timeline, self._values = timeline, []
        if not goes_on or index < self._index or self._turns_back(index):
            self._generation += 1
            self._started = True
            self._first = index
            self._step = self._slot = 0
        elif index == self._index:
            self._slot += 1
        else:
            self._step += 1
            self._slot = 0
        self._index = index
        num_steps = None if length is None else length - self._first
        return Position(self._generation, self._step, self._slot, num_steps)

    def _turns_back(self, index: int) -> bool:
        """Whether the list itself has gone back since the last call, as RePaint's does."""
        if not self._values:
            return False
        change = self._values[index] - self._values[self._index]
        return change * (self._values[-1] - self._values[0]) < 0

    def _values_of(self, timesteps: torch.Tensor, dtype: torch.dtype) -> list[float]:
        if self._known is None or self._known[0] is not timesteps or self._known[1] != dtype:
            self._known = (timesteps, dtype, timesteps.flatten().to(dtype).tolist())
        return self._known[2]

    def _length_behind(self, timestep: torch.Tensor) -> int:
        """How long the list of timesteps is that this is a view into; 0 if it is none.

        Such a list is a copy on another device, or the caller's own. What does not fall, such as a
        table of all timesteps or a pair of equal ones, says nothing about the order of the calls.
        """
        if self._foreign is None or not same_storage(timestep, self._foreign[0]):
            length = timestep.untyped_storage().nbytes() // timestep.element_size()
            whole = timestep.as_strided((min(length, _LONGEST),), (1,), 0)
            self._foreign = (timestep, length if _falls(whole.tolist()) else 0)
        return self._foreign[1]


def _is_one_entry_of_many(timestep: torch.Tensor) -> bool:
    one_entry = all(
        size == 1 or stride == 0
        for size, stride in zip(timestep.shape, timestep.stride(), strict=True)
    )
    return one_entry and timestep.untyped_storage().nbytes() > timestep.element_size()


def same_storage(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether both are views into the same memory, counted in the same units."""
    return (
        first.dtype == second.dtype
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def driving_scheduler(schedulers: Sequence[Any], timestep: Any) -> Any:
    """The scheduler whose list the timestep is a view into; the likeliest if it is no view."""
    if len(schedulers) > 1 and isinstance(timestep, torch.Tensor):
        for scheduler in schedulers:
            timesteps = timesteps_of(scheduler)
            if timesteps is not None and same_storage(timestep, timesteps):
                return scheduler
    return schedulers[0] if schedulers else None


def _same_timeline(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return same_storage(first, second)


def _falls(values: list[float]) -> bool:
    """Whether the values never rise; they may stay (Heun), but not all be equal."""
    return values[0] > values[-1] and all(after <= before for before, after in pairwise(values))


def _one_value(timestep: torch.Tensor | float) -> float | None:
    """The value that all entries share, or `None`."""
    if not isinstance(timestep, torch.Tensor):
        return float(timestep)
    values = timestep.flatten().tolist()
    return float(values[0]) if values and all(value == values[0] for value in values) else None
