"""All modules of a network, as `nn.Module.modules` gives them, in a small part of its time.

A U-Net of a thousand modules is walked through at the start of each generation, and once more
before its first shallow call. What is looked for there is known in `shallow`, `observers` and
`offloading`.
"""

from torch import nn


def every_module(network: nn.Module) -> list[nn.Module]:
    """The network and all modules within it, each once, the outer ones first."""
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
