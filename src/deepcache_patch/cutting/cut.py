"""Swaps of child modules, for the length of one call.

A `Cut` is a list of swaps. Applied, a module's own `forward` sees other children (shorter block
lists, a stand-in for the middle, a tap that records); afterwards every child is back in its place,
whatever happened in between. Which children are to be swapped is known in `anatomy`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import getitem, setitem
from typing import Any, TypeAlias

from torch import nn

#: Where a network is cut for one call: the branch; `None` for a call that runs everything.
CutAt: TypeAlias = int | None


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

    @property
    def place(self) -> dict[str, Any]:
        """Where the child stands by its name.

        A child that was `None` from the start is a plain entry of `vars(owner)`, not of
        `_modules`, and hides an entry of the same name there: swap where the name lives. Assigning
        to an existing key keeps the order of the children.
        """
        own = vars(self.owner)  # asking the module itself takes it longer than all the rest
        found: dict[str, Any] = own if self.name in own else own["_modules"]
        return found


def shorten(swaps: list[Swap], owner: Any, name: str, kept: Iterable[nn.Module]) -> None:
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
        """Make every swap at once; undo all of them at once on the way out."""
        places, names = [swap.place for swap in self._swaps], [swap.name for swap in self._swaps]
        before = list(map(getitem, places, names))
        forth = map(setitem, places, names, [swap.value for swap in self._swaps])
        back = map(setitem, places, names, before)
        # Ctrl-C comes between two operations of Python's. So all swaps are one operation, and their
        # undoing is another. Within contextlib's own lines it may still come while the swaps are
        # made: they are undone then when whoever caught it lets go of its traceback.
        try:
            deque(forth, 0)
            yield
        finally:
            deque(back, 0)
