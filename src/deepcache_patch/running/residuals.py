"""What ControlNets gave, and whether it reached the U-Net as it was given.

Who weighs, masks or sums residuals between a ControlNet and the U-Net may count them, and what was
done to a few cannot be done to more of them later. So a ControlNet is cut only once what it gave in
this generation was seen to reach the U-Net, and never again once something else did.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

#: How many calls of ControlNets are remembered: several may come before the U-Net's first.
_MOST_CALLS: Final = 16


@dataclass(eq=False)
class Source:
    """A ControlNet, as its residuals are known.

    Attributes:
        name: The name of its class.
        changed: Whether something else than it gave has reached the U-Net.
        is_own: Whether all that its call runs is known, and nobody's who may count residuals.
    """

    name: str
    changed: bool = False
    is_own: bool = True


class Given:
    """What one call of a ControlNet gave, held by nobody here.

    Args:
        source: The ControlNet.
        output: What it returned, which `is_known`.
        again: If it was cut: calls it with the same arguments, in full.

    Attributes:
        seen: Whether residuals have reached the U-Net since.
        is_over: Whether they had in a generation before this one. What arrives now was not made of
            them, so the ControlNet is not to blame for it.
        again: `None` once nobody has the first residual any more.
    """

    def __init__(self, source: Source, output: Any, again: Callable[[], Any] | None = None) -> None:
        self.source = source
        self.is_cut = again is not None
        self.seen = self.is_over = False
        self.again = again
        residuals, *middle = _parts(output)
        self._residuals = [_Witness(each, self.is_cut) for each in residuals]
        self._middle = [_Witness(each, self.is_cut) for each in middle[:1]]
        if again is not None:
            weakref.finalize(residuals[0], self._let_go).atexit = False

    def _let_go(self) -> None:
        self.again = None

    def is_what(self, residuals: Sequence[Any], middle: Any) -> bool:
        """Whether these are what it gave, and not something made of it."""
        if len(residuals) != len(self._residuals):
            return False
        arrived = [*residuals, *([middle] if self._middle else [])]
        return all(map(_Witness.knows, self._witnesses, arrived))

    def is_unwritten(self) -> bool:
        """Whether nobody has written into it in inference mode, which counts no writes.

        This waits for the device there.
        """
        return all(map(_Witness.is_unwritten, self._witnesses))

    @property
    def _witnesses(self) -> "list[_Witness]":
        return self._residuals + self._middle


@contextmanager
def watching_hooks(controlnet: nn.Module, source: Source) -> Iterator[Callable[[Any], None]]:
    """See whether forward hooks change what a call of the ControlNet in the `with` block gives.

    Yields:
        Takes what the call returned.
    """
    if not controlnet._forward_hooks:
        yield lambda _output: None
        return
    first: list[Given] = []

    def before_others(_module: Any, _args: Any, output: Any) -> None:
        if is_known(output):
            first.append(Given(source, output))

    def compare(output: Any) -> None:
        residuals, *middle = _parts(output) or [()]
        for given in first:
            source.changed |= not given.is_what(residuals, *(middle[:1] or [None]))

    handle = controlnet.register_forward_hook(before_others, prepend=True)
    try:
        yield compare
    finally:
        handle.remove()


def is_known(output: Any) -> bool:
    """Whether a ControlNet returned residuals for the skips, alone or with one for the middle."""
    residuals, *middle = _parts(output) or [None]
    if not isinstance(residuals, list | tuple) or not residuals:
        return False
    return all(isinstance(each, torch.Tensor) for each in (*residuals, *middle[:1]))


def _parts(output: Any) -> list[Any]:
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, tuple) else []


class _Witness:
    """One tensor as it was given.

    Args:
        tensor: The tensor.
        copied: Whether to keep a copy where writes into it are not counted.
    """

    def __init__(self, tensor: torch.Tensor, copied: bool) -> None:
        self._tensor = weakref.ref(tensor)
        uncounted = tensor.is_inference()
        self._version = None if uncounted else tensor._version
        self._copy = tensor.clone() if uncounted and copied else None

    def knows(self, tensor: Any) -> bool:
        """Whether it is this very tensor, and no write into it was counted."""
        known = self._tensor()
        if known is None or known is not tensor:
            return False
        return self._version is None or known._version == self._version

    def is_unwritten(self) -> bool:
        tensor = self._tensor()
        return self._copy is None or (tensor is not None and torch.equal(tensor, self._copy))


class Residuals:
    """The last calls of ControlNets in one thread, and which of those may be cut."""

    def __init__(self) -> None:
        self._calls: deque[Given] = deque(maxlen=_MOST_CALLS)
        self._trusted: set[Source] = set()

    def give(self, call: Given) -> None:
        """Remember a call until the U-Net gets residuals, and after that."""
        self._calls.append(call)

    def trusts(self, source: Source) -> bool:
        """Whether what it gave in this generation reached the U-Net as it was, and always has."""
        return source in self._trusted and source.is_own and not source.changed

    def arrive(self, residuals: Sequence[Any], middle: Any) -> Given | None:
        """Say which call gave what a U-Net call gets; if none, this generation's were changed."""
        found = None
        for call in self._calls:
            if call.is_what(residuals, middle):
                found = call
        blamed = [call for call in self._calls if not call.is_over]
        for call in blamed if found is None else [found]:
            call.seen = True
            call.source.changed |= found is None
            self._trusted.add(call.source)
        return found

    @property
    def sources_cut(self) -> list[str]:
        """The names of the ControlNets that gave only some residuals in calls remembered here."""
        return sorted({call.source.name for call in self._calls if call.is_cut})

    def forget(self) -> None:
        """A generation is over; what is on its way to the U-Net, or may come again, stays.

        What has not arrived yet counts as given in the generation to come.
        """
        self._trusted.clear()
        left = [call for call in self._calls if call.again is not None or not call.seen]
        self._calls.clear()
        self._calls.extend(left)
        for call in left:
            call.is_over = call.seen

    def clear(self) -> None:
        """Let go of everything."""
        self._trusted.clear()
        self._calls.clear()
