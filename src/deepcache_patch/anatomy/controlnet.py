"""ControlNets: the down path of a U-Net, with a convolution that makes a residual of each skip."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..cut import Cut, Swap
from .blocks import DownPath, keep


class ControlNetAnatomy:
    """How to leave out of a ControlNet, or of several in one, what a shallow call does not use.

    Args:
        controlnet: One with `controlnet_down_blocks`, or a module with several of them in `nets`.

    Raises:
        UnsupportedModelError: If it is not known which skips a block emits.

    Attributes:
        num_skips: How many residuals there are for the skips; one more is for the middle block.
    """

    def __init__(self, controlnet: nn.Module) -> None:
        self._parameters = tuple(inspect.signature(type(controlnet).forward).parameters)[1:]
        self._nets: list[Any] = list(getattr(controlnet, "nets", [controlnet]))
        self._paths = [DownPath(net) for net in self._nets]
        counts = {path.num_skips for path in self._paths}
        counts |= {len(net.controlnet_down_blocks) for net in self._nets}
        self.num_skips = counts.pop() if len(counts) == 1 else -1
        owners = [controlnet, *(child for child in controlnet.children())]
        owners += [module for path in self._paths for module in path.modules()]
        owners += [net.controlnet_down_blocks for net in self._nets]
        self._seen = [(each._modules, tuple(each._modules.values())) for each in owners]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the model is such a ControlNet, or several of them."""
        nets = getattr(model, "nets", [model])
        parts = ("down_blocks", "controlnet_down_blocks", "controlnet_mid_block")
        return isinstance(model, nn.Module) and all(
            hasattr(net, part) for net in nets for part in parts
        )

    @property
    def is_current(self) -> bool:
        """Whether it still has the blocks and layers that were found in it."""
        return all(tuple(children.values()) == found for children, found in self._seen)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by the names in the signature of its `forward`."""
        return dict(zip(self._parameters, args, strict=False)) | dict(kwargs)

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep of a call; `None` if it has none."""
        return arguments.get("timestep")

    def sample(self, arguments: Mapping[str, Any]) -> Any:
        """What is denoised."""
        return arguments.get("sample")

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
            keep(swaps, net, "controlnet_down_blocks", net.controlnet_down_blocks[:limit])
            if net.mid_block is not None:
                swaps.append(Swap(net, "mid_block", _Through()))
            swaps.append(Swap(net, "controlnet_mid_block", _Zero()))
        return Cut(swaps)


class _Through(nn.Module):
    def forward(self, sample: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return sample


class _Zero(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        # With all dimensions, because some configurations take the mean over height and width.
        return sample.new_zeros([1] * sample.ndim)
