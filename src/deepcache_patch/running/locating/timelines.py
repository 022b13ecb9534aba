"""In which list of timesteps does the timestep of a U-Net call stand, and where?

A scheduler makes a new `timesteps` tensor for each `set_timesteps`, and the timestep that a
pipeline passes to its U-Net is nearly always a view into that tensor. So the storage says which
list it is, and the offset in it says which entry: no value is read, no device waits, and timesteps
that occur twice (Heun, PNDM) stay apart. What is no such view is matched by value.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch

from ...schedules.noise import timesteps_of

#: Values that differ by no more, as a share of themselves, are the same.
SAME: Final = 1e-5

# A longer storage is no list of timesteps: diffusion models are trained with a thousand or so.
_LONGEST: Final = 10_000

#: What rounding to whole timesteps may do to a value, as a share of the range of a thousand or so
#: that a list has.
ROUNDING: Final = 1 / 450

#: Nor does it change a value by more than this share of it, where it is expected nowhere.
_NEAR: Final = 0.05

#: By what share of it computing it from a noise level may change it, in float32.
_ARITHMETIC: Final = 1e-6


class Place(NamedTuple):
    """Where a timestep stands.

    Attributes:
        timeline: The list that it is an entry of, or stands beside; `None` if there is no list.
        entry: Its index; `None` if it is none of them.
        length: How many entries the list has; `None` without an entry.
        value: Where it was read; `None` where it need not be.
        is_head: Whether it is the first entry, or before it.
    """

    timeline: torch.Tensor | None
    entry: int | None
    length: int | None
    value: float | None
    is_head: bool


class Expected(NamedTuple):
    """Where a generation stands, for values that may be those of several entries.

    Attributes:
        timeline: The list that it goes by.
        entry: The index of its last call.
        more: Whether the step had fewer calls until now than the one before; `None` in the first.
    """

    timeline: torch.Tensor | None
    entry: int
    more: bool | None


class Timelines:
    """Finds the places of timesteps, and remembers the lists that it has read."""

    def __init__(self) -> None:
        # The lists that were read last, with their values: the scheduler's, and another.
        self._known: tuple[torch.Tensor, torch.dtype, list[float]] | None = None
        self._foreign: tuple[torch.Tensor, list[float]] | None = None

    def place(
        self,
        timestep: torch.Tensor | float,
        timesteps: torch.Tensor | None,
        expected: Expected | None,
    ) -> Place | None:
        """Where the timestep stands.

        Args:
            timestep: A number, or a tensor of shape `()`, `(1,)` or `(batch,)`.
            timesteps: The scheduler's timesteps, shape `(steps,)`, if there is a scheduler.
            expected: Where the generation stands that is under way, if one is.

        Returns:
            The place, or `None` if it has none: the samples of the batch are at different
            timesteps, the view is from beyond the scheduler's timesteps, or the value is that of
            several of them, of which none is expected.
        """
        if isinstance(timestep, torch.Tensor) and _is_one_entry_of_many(timestep):
            if timesteps is not None and same_storage(timestep, timesteps):
                offset = int(timestep.storage_offset() - timesteps.storage_offset())
                index, beside = divmod(offset, timesteps.stride()[0] or 1)
                length = timesteps.shape[0]
                if not 0 <= index < length:
                    return None
                if not beside:  # else it is between two entries, and counts by its value
                    return Place(timesteps, index, length, None, index == 0)
            elif length := len(self.values_behind(timestep)):
                index = int(timestep.storage_offset())
                return Place(timestep, index, length, None, index == 0)
        value = one_value(timestep)
        if value is None:
            return None
        if timesteps is None:
            return Place(None, None, None, value, is_head=True)
        # Some pipelines cast it to the U-Net's dtype: 981 is 980 in bfloat16.
        dtype = timesteps.dtype
        if isinstance(timestep, torch.Tensor) and timestep.is_floating_point():
            dtype = timestep.dtype
        values = self._values_of(timesteps, dtype)
        if expected is not None and not same_timeline(expected.timeline, timesteps):
            expected = None
        found = _entries_like(value, values)
        if not found and expected is not None and _is_nearest(value, values, expected.entry + 1):
            found = [expected.entry + 1]
        if len(found) > 1:
            found = _expected_of(found, expected)
            if not found:
                return None
        if not found:
            return Place(timesteps, None, None, value, _is_head(value, values))
        return Place(timesteps, found[0], len(values), value, _is_head(value, values))

    def value_of(self, timeline: torch.Tensor | None, index: int) -> float | None:
        """The value of an entry, if the list has been read."""
        if timeline is None or self._known is None or not same_storage(self._known[0], timeline):
            return None
        values = self._known[2]
        return values[index] if index < len(values) else None

    def _values_of(self, timesteps: torch.Tensor, dtype: torch.dtype) -> list[float]:
        if self._known is None or self._known[0] is not timesteps or self._known[1] != dtype:
            self._known = (timesteps, dtype, timesteps.flatten().to(dtype).tolist())
        return self._known[2]

    def values_behind(self, timestep: torch.Tensor) -> list[float]:
        """The list of timesteps that this is a view into; an empty one if it is none.

        Such a list is a copy on another device, or the caller's own. What does not fall, such as a
        table of all timesteps or a pair of equal ones, says nothing about the order of the calls.
        """
        if self._foreign is None or not same_storage(timestep, self._foreign[0]):
            length = timestep.untyped_storage().nbytes() // timestep.element_size()
            whole = timestep.as_strided((length,), (1,), 0)
            is_list = length <= _LONGEST and _falls(values := whole.tolist())
            self._foreign = (timestep, values if is_list else [])
        return self._foreign[1]


def same_storage(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether both are views into the same memory, counted in the same units."""
    return (
        first.dtype == second.dtype
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def same_timeline(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether both are the same list, or both none."""
    if first is second or first is None or second is None:
        return first is second
    return same_storage(first, second)


def driving_scheduler(schedulers: Sequence[Any], timestep: Any) -> Any:
    """The scheduler whose list the timestep is a view into; the likeliest if it is no view."""
    if len(schedulers) > 1 and isinstance(timestep, torch.Tensor):
        for scheduler in schedulers:
            timesteps = timesteps_of(scheduler)
            if timesteps is not None and same_storage(timestep, timesteps):
                return scheduler
    return schedulers[0] if schedulers else None


def turns_back(values: Sequence[float], before: int, after: int) -> bool:
    """Whether a list goes back between two of its entries, by more than rounding does."""
    change, whole = values[after] - values[before], values[-1] - values[0]
    return change * whole < 0 and abs(change) > ROUNDING * abs(whole)


def _is_one_entry_of_many(timestep: torch.Tensor) -> bool:
    one_entry = timestep.ndim == 0 or all(
        size == 1 or stride == 0
        for size, stride in zip(timestep.shape, timestep.stride(), strict=True)
    )
    return one_entry and timestep.untyped_storage().nbytes() > timestep.element_size()


def _entries_like(value: float, values: Sequence[float]) -> list[int]:
    """The entries that the value is, but for rounding; several if they are as good as equal."""
    if not values:
        return []
    whole = max(values) - min(values)
    nearest = min(abs(value - each) for each in values)
    # Nor is a noise level, which is small, a timestep near 0.
    if nearest > min(ROUNDING / 2 * whole, _NEAR * abs(value)):
        return []
    bound = nearest + _ARITHMETIC * whole
    return [index for index, each in enumerate(values) if abs(value - each) <= bound]


def _is_head(value: float, values: Sequence[float]) -> bool:
    """Whether the value is that of the first entry, but for rounding, or before it."""
    whole = values[0] - values[-1] if values else 0.0
    return bool(values) and (value - values[0]) * whole >= -ROUNDING / 2 * whole**2


def _is_nearest(value: float, values: Sequence[float], index: int) -> bool:
    """Whether the entry is the nearest to the value, which is not beyond the ends of the list."""
    if index >= len(values) or not min(values) <= value <= max(values):
        return False
    return abs(value - values[index]) == min(abs(value - each) for each in values)


def _expected_of(found: list[int], expected: Expected | None) -> list[int]:
    """The one of several entries of the same value that is expected now; none if that is unclear.

    Those are the entry of the last call and the next. If both are, a step has as many calls as the
    one before had.
    """
    if expected is None:
        return []
    stays, goes_on = expected.entry in found, expected.entry + 1 in found
    if stays and goes_on and expected.more is None:
        return []
    if goes_on and not (stays and expected.more):
        return [expected.entry + 1]
    return [expected.entry] if stays else []


def _falls(values: list[float]) -> bool:
    """Whether the values never rise, but by rounding; they may stay (Heun), but not all of them."""
    bound = ROUNDING * (values[0] - values[-1])
    return bound > 0 and all(after <= before + bound for before, after in pairwise(values))


def one_value(timestep: torch.Tensor | float) -> float | None:
    """The value that all entries share, or `None`."""
    if not isinstance(timestep, torch.Tensor):
        return float(timestep)
    values = timestep.flatten().tolist()
    return float(values[0]) if values and all(value == values[0] for value in values) else None
