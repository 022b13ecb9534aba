"""The layout of ControlNet-XS: blocks with a base and a control path, in `UNetControlNetXSModel`.

The two paths exchange what they have before and after every layer, so each skip is a pair of
tensors, one of each path, and what is cut is cut in both. Otherwise skips go as in `layered`: one
for the input convolutions, one for each layer and one for each downsampler. The control path ends
at the middle block, from where only its skips go on, so the deep feature is a tensor of the base
path.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..cut import Cut, CutAt, Swap, shorten
from ..features import Recorder, StandIn
from .base import cannot_cut, has_lists
from .layered import DownPath, LayeredAnatomy

# What a block has for each of its layers; a list of `None` stands for attentions that it has not.
_DOWN = ("base_resnets", "base_attentions", "ctrl_resnets", "ctrl_attentions")
_EXCHANGES = ("base_to_ctrl", "ctrl_to_base")  # on the way down; one for the downsampler, too
_UP = ("resnets", "attentions", "ctrl_to_base")
_SAMPLERS = ("base_downsamplers", "ctrl_downsamplers")


class ControlNetXSAnatomy(LayeredAnatomy):
    """The skips of a U-Net with ControlNet-XS, and how to cut it.

    Raises:
        UnsupportedModelError: If the parts of a block do not go with its layers, or if the skips
            that are emitted do not add up to those that are consumed.
    """

    lists = ("down_blocks", "up_blocks")
    parts = ("base_conv_in", "ctrl_conv_in", "mid_block")
    more_arguments = ("controlnet_cond",)

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, _DownPath(unet))

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has these parts, and its blocks have a base path."""
        return super().fits(model) and all(
            has_lists(block, "base_resnets") for block in model.down_blocks
        )

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        return Cut(self._swaps(branch, _BothPaths(stand_in), self._taps(recorders)))

    def _check(self, block: Any) -> None:
        _check_lengths(self._unet, block, dict.fromkeys(_UP, len(block.resnets)))

    def _end(self, block: Any) -> Any:
        return block.upsamplers  # one module

    def _layer(self, block: Any, number: int) -> list[Any]:
        # Without `ctrl_to_base`, which runs before the others.
        return [getattr(block, name)[number] for name in _lists(block, ("resnets", "attentions"))]


class _DownPath(DownPath):
    """The down blocks, each with a base and a control path."""

    def _check(self, block: Any) -> None:
        layers = len(block.base_resnets)
        sampled = layers + (block.base_downsamplers is not None)
        _check_lengths(self._owner, block, dict.fromkeys(_DOWN, layers))
        _check_lengths(self._owner, block, dict.fromkeys(_EXCHANGES, sampled))

    def _emits(self, block: Any) -> int:
        return len(block.ctrl_to_base)

    def _shortened(self, block: Any, layers: int) -> list[Swap]:
        swaps = [Swap(block, name, None) for name in _SAMPLERS]
        for name in _lists(block, (*_DOWN, *_EXCHANGES)):
            shorten(swaps, block, name, list(getattr(block, name))[:layers])
        return swaps


class _BothPaths(nn.Module):
    """Returns the feature for both paths, like the middle block; the control path ends there."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in

    def forward(self, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        feature = self.stand_in()
        return feature, feature


def _check_lengths(unet: nn.Module, block: Any, lengths: Mapping[str, int]) -> None:
    for name, length in lengths.items():
        if len(getattr(block, name)) != length:
            raise cannot_cut(
                unet,
                f"a {type(block).__name__} in it has {len(getattr(block, name))} {name} instead "
                f"of {length}",
            )


def _lists(block: Any, names: Iterable[str]) -> list[str]:
    return [name for name in names if isinstance(getattr(block, name), nn.ModuleList)]
