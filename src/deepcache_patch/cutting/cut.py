"""Swaps of child modules, for the length of one call.

A `Cut` is a list of swaps. Applied, a module's own `forward` sees other children (shorter block
lists, a stand-in for the middle, a tap that records); afterwards every child is back in its place,
whatever happened in between. Which children are to be swapped is known in `anatomy`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Swap:
    """One child of one module, and what stands in its place while the cut is applied.

    Attributes:
        owner: The parent module.
        name: The child's attribute name; it must exist.
        value: The module that takes its place, or `None`.
    """

    owner: nn.Module
    name: str
    value: nn.Module | None

    def exchange(self, value: Any) -> Any:
        """Put `value` in the place, and return what stood there.

        A child that was `None` from the start is a plain entry of `vars(owner)`, not of
        `_modules`, and hides an entry of the same name there: swap where the name lives. Assigning
        to an existing key keeps the order of the children.
        """
        own = vars(self.owner)  # asking the module itself takes it longer than all the rest
        place = own if self.name in own else own["_modules"]
        before = place[self.name]
        place[self.name] = value
        return before


def keep(swaps: list[Swap], owner: Any, name: str, kept: Iterable[nn.Module]) -> None:
    """Add the swap that leaves `kept` of a list of children, unless that is what it has."""
    kept = list(kept)
    if kept != list(getattr(owner, name)):
        swaps.append(Swap(owner, name, nn.ModuleList(kept)))


class Cut:
    """A list of swaps that are made and undone together."""

    def __init__(self, swaps: Sequence[Swap]) -> None:
        self._swaps = tuple(swaps)

    @property
    def owners(self) -> set[nn.Module]:
        """The modules whose children are swapped."""
        return {swap.owner for swap in self._swaps}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Make every swap; undo those that were made, in reverse order, on the way out."""
        undo: list[tuple[Swap, Any]] = []
        try:
            for swap in self._swaps:
                undo.append((swap, swap.exchange(swap.value)))
            yield
        finally:
            for swap, before in reversed(undo):
                swap.exchange(before)
