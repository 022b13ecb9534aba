"""Which generation, step and slot is this U-Net call? Observes, patches nothing.

A scheduler makes a new `timesteps` tensor for each `set_timesteps`, and the timestep that a
pipeline passes to its U-Net is nearly always a view into that tensor. So the storage says which
generation it is, and the offset in it says which step: no value is read, no device waits, and
timesteps that occur twice (Heun, KDPM2, PNDM) stay apart. Only a timestep from elsewhere, a number
or a copy, is matched by value.
"""

from dataclasses import dataclass
from typing import Final

import torch

#: More calls than this in one step are no denoising loop, and each would keep a feature of its own.
MAX_SLOTS: Final = 256


@dataclass(frozen=True)
class Position:
    """Where a U-Net call stands.

    Attributes:
        generation: Counts denoising loops, from 0.
        step: 0-based, counted from the first step that this generation ran.
        slot: Which U-Net call of the step this is, 0-based.
        num_steps: How many steps this generation has if it runs to the end of its timesteps;
            `None` when there is no list of timesteps.
    """

    generation: int
    step: int
    slot: int
    num_steps: int | None


class StepTracker:
    """Locates U-Net calls from the timesteps that they get."""

    def __init__(self) -> None:
        self._generation = -1
        self.reset()

    def reset(self) -> None:
        """Forget the current generation: the next call starts a new one."""
        # What the current generation's indices count in. A tensor is kept, not its address, so
        # that the memory cannot be given to another generation's timesteps.
        self._timeline: torch.Tensor | None = None
        self._started = False
        self._first = 0
        self._index = 0
        self._slot = 0
        self._value = 0.0
        self._length: int | None = None
        self._values_of: torch.Tensor | None = None
        self._values: list[float] = []

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
            if timesteps is not None and _same_storage(timestep, timesteps):
                offset = int(timestep.storage_offset() - timesteps.storage_offset())
                return self._move(timesteps, offset // (timesteps.stride()[0] or 1), len(timesteps))
            # A copy of the timesteps on another device, or a hand-written loop.
            length = timestep.untyped_storage().nbytes() // timestep.element_size()
            return self._move(timestep, int(timestep.storage_offset()), length)
        value = _one_value(timestep)
        if value is None:
            return None
        return self._move_by_value(value, timesteps)

    def _move_by_value(self, value: float, timesteps: torch.Tensor | None) -> Position | None:
        if timesteps is not None and timesteps is not self._values_of:
            self._values_of, self._values = timesteps, timesteps.flatten().tolist()
        if timesteps is not None and value in self._values:
            if self._values.count(value) > 1:
                return None
            return self._move(timesteps, self._values.index(value), len(self._values))
        # Not the scheduler's timesteps, so only their order is known: a lower one is the next
        # step, a higher one a new start.
        falls = self._started and self._timeline is None and value <= self._value
        index = self._index + (value < self._value) if falls else 0
        if not falls:
            self._started = False
        self._value = value
        return self._move(None, index, None)

    def _move(
        self, timeline: torch.Tensor | None, index: int, length: int | None
    ) -> Position | None:
        if not self._started or not _same_timeline(timeline, self._timeline) or index < self._index:
            self._generation += 1
            self._started = True
            self._timeline = timeline
            self._first = index
            self._length = length
            self._slot = 0
        else:
            self._slot = self._slot + 1 if index == self._index else 0
        self._index = index
        if self._slot >= MAX_SLOTS:
            return None
        return Position(
            generation=self._generation,
            step=index - self._first,
            slot=self._slot,
            num_steps=None if self._length is None else self._length - self._first,
        )


def _is_one_entry_of_many(timestep: torch.Tensor) -> bool:
    one_entry = all(
        size == 1 or stride == 0
        for size, stride in zip(timestep.shape, timestep.stride(), strict=True)
    )
    return one_entry and timestep.untyped_storage().nbytes() > timestep.element_size()


def _same_storage(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        first.dtype == second.dtype
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def _same_timeline(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return _same_storage(first, second)


def _one_value(timestep: torch.Tensor | float) -> float | None:
    """The value that all entries share, or `None`."""
    if not isinstance(timestep, torch.Tensor):
        return float(timestep)
    values = timestep.flatten().tolist()
    return float(values[0]) if values and all(value == values[0] for value in values) else None
