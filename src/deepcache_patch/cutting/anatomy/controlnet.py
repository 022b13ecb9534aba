"""ControlNets: the first half of a U-Net, with a layer that makes a residual of each skip.

A U-Net that is cut at branch k uses the residuals of skips 0…k. So the ControlNet keeps the layers
that make those. The layers below them are left out, and so is its middle block. When a ControlNet
is cut is decided in `running`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from ..cut import Cut, Swap, shorten
from .base import Dissected, with_blocks
from .layered import DownPath


class ControlNetAnatomy(Dissected, ABC):
    """How to leave out of a ControlNet, or of several in one, what a shallow call does not use.

    Args:
        controlnet: A ControlNet, or a module with several of them in `nets`.

    Attributes:
        sample_name: The argument of its `forward` that is denoised.
        parts: The children by which it is known.
        num_skips: How many residuals there are for the skips; -1 if several do not agree.
    """

    sample_name: ClassVar[str] = "sample"
    parts: ClassVar[tuple[str, ...]]
    num_skips: int

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__(controlnet)
        self._controlnet = controlnet
        self._nets = _nets(controlnet)

    @property
    def networks(self) -> list[nn.Module]:
        """The ControlNet, and those in it."""
        return [self._controlnet, *(net for net in self._nets if net is not self._controlnet)]

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model is such a ControlNet, or several of them."""
        nets = _nets(model)
        # Not `hasattr`: diffusers warns of that, where a configuration has the name.
        return bool(nets) and all(part in net._modules for net in nets for part in cls.parts)

    def _found(self, counts: set[int], owners: Iterable[nn.Module]) -> None:
        self.num_skips = counts.pop() if len(counts) == 1 else -1
        self._remember([self._controlnet, *self._controlnet.children(), *self._nets, *owners])

    @abstractmethod
    def cut(self, branch: int) -> Cut:
        """What leaves the residuals that a shallow call uses."""


class BlockControlNetAnatomy(ControlNetAnatomy):
    """The ControlNets of U-Nets with blocks of layers.

    Raises:
        UnsupportedModelError: If it is not known which skips a block emits.
    """

    parts = ("down_blocks", "controlnet_down_blocks", "controlnet_mid_block")

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__(controlnet)
        self._paths = [DownPath(net) for net in self._nets]
        counts = {path.num_skips for path in self._paths}
        counts |= {len(net.controlnet_down_blocks) for net in self._nets}
        owners = [module for net in self._nets for module in with_blocks(net, "down_blocks")]
        self._found(counts, [*owners, *(net.controlnet_down_blocks for net in self._nets)])

    def cut(self, branch: int) -> Cut:
        """What leaves the residuals of skips 0…branch; that of the middle block becomes 0.

        Nothing is left out for the deepest branch, where the middle block's residual is used.
        """
        limit = branch + 1
        swaps: list[Swap] = []
        if limit >= self.num_skips:
            return Cut(swaps)
        for net, path in zip(self._nets, self._paths, strict=True):
            swaps += path.swaps(limit)
            shorten(swaps, net, "controlnet_down_blocks", net.controlnet_down_blocks[:limit])
            if net.mid_block is not None:
                swaps.append(Swap(net, "mid_block", _Through()))
            swaps.append(Swap(net, "controlnet_mid_block", _Zero()))
        return Cut(swaps)


class HunyuanControlNetAnatomy(ControlNetAnatomy):
    """The ControlNets of Hunyuan-DiT."""

    parts = ("blocks", "controlnet_blocks")
    sample_name = "hidden_states"

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__(controlnet)
        counts = {len(getattr(net, part)) for net in self._nets for part in self.parts}
        self._found(counts, [getattr(net, part) for net in self._nets for part in self.parts])

    def cut(self, branch: int) -> Cut:
        """What leaves the residuals of skips 0…branch.

        A residual does not depend on the blocks behind the one that makes it.
        """
        swaps: list[Swap] = []
        for net in self._nets:
            for part in self.parts:
                shorten(swaps, net, part, list(getattr(net, part))[: branch + 1])
        return Cut(swaps)


def _nets(model: Any) -> list[Any]:
    if not isinstance(model, nn.Module):
        return []
    nets: Any = getattr(model, "nets", [model])
    return list(nets)


class _Through(nn.Module):
    def forward(self, sample: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return sample


class _Zero(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        # With all dimensions, because some configurations take the mean over height and width.
        return sample.new_zeros([1] * sample.ndim)
