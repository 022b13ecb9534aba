"""All modules of a network; where a proxy stands in the place of a layer, the proxy.

A U-Net has a thousand modules or two. It is walked through once, and again only when it has become
another one; whether it has is seen at the start of each generation, and once more before its first
shallow call. What is looked for there is known in `unet_cuts`, `observers` and `offloading`.
"""

from collections.abc import Set
from itertools import chain
from operator import is_
from typing import Any

from torch import nn

from ...cutting.cut import Cut


def every_module(network: nn.Module) -> list[nn.Module]:
    """The network and all modules within it, each once, the outer ones first.

    `nn.Module.modules` takes four times as long, and gives what a proxy in the place of a layer
    wraps, never the proxy, which may keep what it sees.
    """
    found: dict[nn.Module, None] = {}
    todo: list[nn.Module | None] = [next(network.modules())]  # of a proxy, what it stands for
    while todo:
        module = todo.pop()
        if module is not None and module not in found:
            found[module] = None
            children = module._modules
            if children:  # most have none
                todo += reversed(children.values())
    return list(found)


class Parts:
    """The modules of a network as it was walked through.

    Args:
        network: Is held, and so are all of its modules; one that is replaced, until the next walk.

    Attributes:
        network: The network, as it was given.
        modules: Its modules, as `every_module` gives them.
        kinds: Their classes, each once.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = every_module(network)
        self._types = [*map(type, self.modules)]
        self.kinds = [*dict.fromkeys(self._types)]
        self._own = [*map(vars, self.modules)]
        self._children = [each._modules for each in self.modules]
        self._sizes = [*map(len, self._children)]
        # Views, which give the children of the time at which they are read.
        self._views = [each.values() for each in self._children if each]
        self._found = [*chain.from_iterable(self._views)]
        self._kept: dict[Cut, Set[nn.Module]] = {}

    @property
    def is_current(self) -> bool:
        """Whether a walk would find the same modules, of the same classes."""
        return (
            [*map(len, self._children)] == self._sizes
            and all(map(is_, chain.from_iterable(self._views), self._found))
            and [*map(type, self.modules)] == self._types
        )

    def kept_by(self, cut: Cut) -> Set[nn.Module]:
        """The modules that are there while the cut is applied."""
        if cut not in self._kept:
            with cut.applied():
                self._kept[cut] = frozenset(every_module(self.network))
        return self._kept[cut]

    def attributes(self) -> list[dict[str, Any]]:
        """The attributes of each module whose class is not torch's own."""
        ours = {kind for kind in self.kinds if kind.__module__[:6] != "torch."}
        return [own for own, kind in zip(self._own, self._types, strict=True) if kind in ours]

    def marked(self, kinds: Set[type]) -> list[nn.Module]:
        """The modules of some classes, and all that have a mark of their own.

        That is an attention processor, a function in the place of a class's code, or a hook of
        accelerate's or diffusers'.
        """
        every = zip(self.modules, self._types, self._own, self._children, strict=True)
        # All in one expression, because any call takes longer than all of these.
        return [
            module
            for module, kind, own, children in every
            if "processor" in own
            or "forward" in own
            or "_call_impl" in own
            or "_hf_hook" in own
            or "_diffusers_hook" in own
            or "processor" in children
            or kind in kinds
        ]
