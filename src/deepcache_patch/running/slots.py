"""Which slot a call of the U-Net has: calls of one step are told apart by what they are given.

That is the conditioning, and where the sample lies in a larger tensor. A slot is known by the
memory of these, whatever its order in the step: no value is read off a device. Some pipelines make
their conditioning anew for each step. No memory comes twice there, so the order has to tell.
Guiders give the same in two calls of a step, and leave layers out of one of them, by hooks; so
these tell, too.

Nothing here keeps a conditioning alive: who else does is a part of the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_WeakRef: Any = StorageWeakRef  # which has no types

# The name of the sample's place among what a call is given.
_PLACE: Final = "the place of its sample"

# The name of what is hung round its layers, among the same things.
_HOOKS: Final = "the hooks of its layers"

# Labels on the CPU, which nobody has to wait for, are known by their values up to this number.
_FEW: Final = 64


class _Mark(Protocol):
    """What is remembered of a tensor that a call was given."""

    def is_of(self, given: "_Mark") -> bool: ...

    def outlives(self, given: "_Mark") -> bool: ...

    @property
    def is_gone(self) -> bool: ...


class _Memory:
    """Which memory a tensor has, and its state: writing into it makes it another.

    The address of memory that was freed cannot come back as long as this is there.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._storage = _WeakRef(tensor.untyped_storage())
        self._view = tensor.storage_offset(), tensor.stride(), tensor.shape, tensor.dtype
        self._version = None if tensor.is_inference() else tensor._version

    def is_of(self, given: _Mark) -> bool:
        """Whether the other is the same memory in the same state."""
        return (
            isinstance(given, _Memory) and self._is_where(given) and self._version == given._version
        )

    def outlives(self, given: _Mark) -> bool:
        """Whether it is still there, beside the other that came in its place."""
        return not self._is_where(given) and not self.is_gone

    @property
    def is_gone(self) -> bool:
        """Whether the memory is freed, as nobody has it."""
        return bool(self._storage.expired())

    def _is_where(self, given: _Mark) -> bool:
        return (
            isinstance(given, _Memory)
            and self._view == given._view
            and bool(self._storage.cdata == given._storage.cdata)
        )


class _Known:
    """Something that is known by its value: it differs or it does not."""

    is_gone = False

    def __init__(self, value: Any) -> None:
        self._value = value

    def is_of(self, given: _Mark) -> bool:
        """Whether the other has the same value."""
        return isinstance(given, _Known) and self._value == given._value

    def outlives(self, given: _Mark) -> bool:
        """Another value is another thing."""
        return True


class _Window(_Known):
    """Which part of a larger tensor the sample is; `None` for all of a tensor of its own."""

    def __init__(self, sample: torch.Tensor) -> None:
        whole, start = sample.untyped_storage().nbytes(), sample.storage_offset()
        is_part = sample.nbytes != whole
        self._value = ((whole, tuple(sample.shape)), start, sample.stride()) if is_part else None
        self._is_entry = sample.is_contiguous() and start % max(1, sample.numel()) == 0

    def is_of(self, given: _Mark) -> bool:
        """Whether the other is the same part, or of a tensor in which this has no place."""
        mine, other = self._value, given._value if isinstance(given, _Window) else None
        return mine is None or other is None or mine[0] != other[0] or mine == other

    def outlives(self, given: _Mark) -> bool:
        """Whether the other is not just another entry of one list."""
        return not (self._is_entry and isinstance(given, _Window) and given._is_entry)


class Slot:
    """One of the calls of a step.

    Attributes:
        number: What the cache and the guide know it by, at least 0.
        instead_of: The number of the slot whose place it took when it was new, or `None`.
        order: The order of its last call in the step, from 0.
        is_called: Whether the current step has called it.
        is_earlier: Whether it was called earlier in this step than before: calls are left out.
        differing: The names of what it is given otherwise than the slot whose place it took.
    """

    def __init__(self, number: int, order: int, given: Mapping[str, _Mark]) -> None:
        self.number = number
        self.instead_of: int | None = None
        self.order = order
        self.is_called = True
        self.is_earlier = False
        self.differing: tuple[str, ...] = ()
        self._given = given
        self._before: dict[str, _Mark] = {}  # what was given in its place before
        self._steady: set[str] = set()  # what was the same in two steps
        self._late = False  # whether what was given before that was gone, too
        self._is_replaced = False

    def is_given(self, given: Mapping[str, _Mark]) -> bool:
        """Whether all of this is what the slot was given last."""
        return self._given.keys() == given.keys() and all(
            mark.is_of(given[name]) for name, mark in self._given.items()
        )

    @property
    def place(self) -> _Mark:
        """Where its sample was."""
        return self._given[_PLACE]

    def differs(self, given: Mapping[str, _Mark], *, is_one_sample: bool) -> tuple[str, ...]:
        """The names of what is another than what the slot was given, and not just made anew.

        Args:
            given: What a call with the order of this slot is given.
            is_one_sample: Whether all calls of a step have their sample at one place.
        """
        names = self._given.keys() | given.keys()
        return tuple(sorted(each for each in names if self._differs(each, given, is_one_sample)))

    def _differs(self, name: str, given: Mapping[str, _Mark], is_one_sample: bool) -> bool:
        old, new = self._given.get(name), given.get(name)
        if old is None or new is None:
            return True
        if old.is_of(new):
            return False
        if name == _PLACE:
            # Inversion keeps the samples of all steps in one tensor: if a step has one sample, the
            # next entry is the same picture.
            return not is_one_sample or old.outlives(new)
        if name in self._steady:
            return True
        # Somebody keeps the old one, so there are two: unless all before it are gone, made for one
        # step each and let go of a step late.
        return old.outlives(new) and not (self._late and self._is_late(name))

    def _is_late(self, name: str) -> bool:
        """Whether nobody has what was given in its place before."""
        before = self._before.get(name)
        return before is not None and before.is_gone

    def repeat(self, order: int, given: Mapping[str, _Mark]) -> None:
        """It is called again, and is given the same."""
        self._steady.update(given)
        self._called(order, given)

    def call(self, order: int, given: Mapping[str, _Mark]) -> None:
        """It is called again, and some of what it is given was made anew."""
        for name, new in given.items():
            old = self._given.get(name)
            if old is not None and old.is_of(new):
                self._steady.add(name)
                continue
            self._before.pop(name, None)
            if old is not None and old.outlives(new):
                self._before[name] = old
        self._called(order, given)

    def _called(self, order: int, given: Mapping[str, _Mark]) -> None:
        self._given = given
        self.is_earlier = order < self.order
        self.order, self.is_called, self._is_replaced, self.differing = order, True, False, ()

    def replace(self, other: "Slot", differing: tuple[str, ...]) -> None:
        """Takes the place of `other`, which goes at the step's end unless a later call uses it."""
        self.differing, self.instead_of = differing, other.number
        self._late = all(other._is_late(name) for name in differing)
        self._before = dict(other._given)
        other._is_replaced = True

    def is_over(self) -> bool:
        """Whether another has taken its place; asked at the end of each step."""
        called, self.is_called = self.is_called, False
        return self._is_replaced and not called


class Slots:
    """The slots of one generation.

    Args:
        numbers: What their numbers are taken from, none of which comes twice.

    Attributes:
        changes: In how many steps in a row before this one something else was given than before.
    """

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._slots: list[Slot] = []
        self._by_order: dict[int, Slot] = {}
        self.changes = 0

    def at(self, order: int) -> Slot | None:
        """The slot that was called last as this one of a step, counted from 0."""
        return self._by_order.get(order)

    def next_step(self) -> list[int]:
        """Another step begins; gives the numbers of the slots that are over."""
        over = [each for each in self._slots if each.is_over()]
        self.changes = self.changes + 1 if over else 0
        if over:
            self._slots = [each for each in self._slots if each not in over]
            self._by_order = {order: s for order, s in self._by_order.items() if s not in over}
        self._slots.sort(key=lambda each: each.order)
        return [each.number for each in over]

    def of(self, order: int, given: Mapping[str, _Mark]) -> Slot:
        """The slot of a call; a new one if no other is given the same.

        Args:
            order: Which call of its step it is, from 0.
            given: What the call is given, by `marks`.
        """
        # Several may be given the same: then those of this step are those of the last, in order.
        for slot in self._slots:
            if not slot.is_called and slot.is_given(given):
                slot.repeat(order, given)
                self._by_order[order] = slot
                return slot
        found, at_order = None, self._by_order.get(order)
        differing: tuple[str, ...] = ()
        if at_order is not None and not at_order.is_called:
            # Calls before this one have gone on to the place that it should have then, too.
            is_one_sample = all(
                each.place.is_of(given[_PLACE] if each.is_called else at_order.place)
                for each in self._slots
            )
            differing = at_order.differs(given, is_one_sample=is_one_sample)
            found = None if differing else at_order
        if found is not None:
            found.call(order, given)
        else:
            found = Slot(next(self._numbers), order, given)
            if differing and at_order is not None:
                found.replace(at_order, differing)
            self._slots.append(found)
        self._by_order[order] = found
        return found


def marks(
    sample: torch.Tensor,
    conditioning: Mapping[str, torch.Tensor],
    hooks: Sequence[Any] = (),
) -> dict[str, _Mark]:
    """What a call is given, as far as a slot is known by it.

    Args:
        sample: What is denoised.
        conditioning: The tensors that say what the call is about, by name.
        hooks: Hooks of diffusers, in the U-Net.
    """
    found: dict[str, _Mark] = {name: _mark(each) for name, each in conditioning.items()}
    if hooks:
        found[_HOOKS] = _Known(hooks)
    return {_PLACE: _Window(sample), **found}


def _mark(tensor: torch.Tensor) -> _Mark:
    if tensor.is_cpu and tensor.numel() <= _FEW and _is_whole_number(tensor):
        return _Known((tensor.shape, tensor.tolist()))
    return _Memory(tensor)


def _is_whole_number(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
