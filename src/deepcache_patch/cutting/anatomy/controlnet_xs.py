"""The layout of ControlNet-XS: blocks with a base and a control path, in `UNetControlNetXSModel`.

The two paths exchange what they have before and after every layer, so each skip is a pair of
tensors, one of each path, and what is cut is cut in both. Otherwise skips go as in the layout of
`blocks`: one for the input convolutions, one for each layer and one for each downsampler. The
control path ends at the middle block, from where only its skips go on, so the deep feature is a
tensor of the base path.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedModelError
from ..cut import Cut, Swap
from ..features import Recorder, StandIn, Tap
from .base import Anatomy, has_lists
from .blocks import keep, spans

# What a block has for each of its layers; a list of `None` stands for attentions that it has not.
_DOWN = (
    "base_resnets",
    "base_attentions",
    "ctrl_resnets",
    "ctrl_attentions",
    "base_to_ctrl",  # these two: one for the downsampler, too
    "ctrl_to_base",
)
_UP = ("resnets", "attentions", "ctrl_to_base")
_SAMPLERS = ("base_downsamplers", "ctrl_downsamplers")


class ControlNetXSAnatomy(Anatomy):
    """The skips of a U-Net with ControlNet-XS, and how to cut it.

    Args:
        unet: The U-Net; it is only looked at.

    Raises:
        UnsupportedModelError: If the parts of a block do not go with its layers, or if the skips
            that are emitted do not add up to those that are consumed.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        down, up = list(self._unet.down_blocks), list(self._unet.up_blocks)
        for block in down:
            sampled = len(block.base_resnets) + (block.base_downsamplers is not None)
            lengths = [len(block.base_resnets)] * 4 + [sampled] * 2
            self._check(block, dict(zip(_DOWN, lengths, strict=True)))
        for block in up:
            self._check(block, dict.fromkeys(_UP, len(block.resnets)))
        # Skip 0 is that of the input convolutions, and is consumed last.
        self._down = spans(down, [len(block.ctrl_to_base) for block in down], first=1)
        self._up = spans(up[::-1], [len(block.resnets) for block in up[::-1]], first=0)[::-1]
        self.num_skips, consumed = self._down[-1].stop, self._up[0].stop
        if consumed != self.num_skips:
            raise UnsupportedModelError(
                f"{type(unet).__name__} cannot be cut: its down blocks emit {self.num_skips} skip "
                f"connections, its up blocks consume {consumed}"
            )
        self.branches = range(self.num_skips)
        lists = [child for block in (*down, *up) for child in block.children()]
        self._found([unet, self._unet.down_blocks, self._unet.up_blocks, *down, *up, *lists])

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has blocks with a base and a control path."""
        if not all(hasattr(model, name) for name in ("base_conv_in", "ctrl_conv_in", "mid_block")):
            return False
        if not has_lists(model, "down_blocks", "up_blocks"):
            return False
        return cls._takes(model, "sample", "timestep", "controlnet_cond") and all(
            has_lists(block, "base_resnets") for block in model.down_blocks
        )

    def cut(self, branch: int | None, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        taps: dict[Any, nn.Module] = {
            producer: Tap(producer, recorder)
            for tapped, recorder in recorders.items()
            for producer in self._producers(tapped)
        }
        limit = self.num_skips if branch is None else branch + 1  # skips below it are kept
        swaps: list[Swap] = []
        down = [span for span in self._down if span.first < limit]
        keep(swaps, self._unet, "down_blocks", [span.block for span in down])
        for block, first, stop in down:
            if limit < stop:
                for name in _parts(block, _DOWN):
                    keep(swaps, block, name, list(getattr(block, name))[: limit - first])
                swaps += [Swap(block, name, None) for name in _SAMPLERS]
        middle = self._unet.mid_block
        if branch is not None:
            swaps.append(Swap(self._unet, "mid_block", _BothPaths(stand_in)))
        elif middle in taps:
            swaps.append(Swap(self._unet, "mid_block", taps[middle]))
        up = [span for span in self._up if span.first < limit]
        keep(swaps, self._unet, "up_blocks", [span.block for span in up])
        for block, _first, stop in up:
            for name in _parts(block, _UP):
                kept = list(getattr(block, name))[max(stop - limit, 0) :]
                keep(swaps, block, name, [taps.get(part, part) for part in kept])
            if block.upsamplers in taps:
                swaps.append(Swap(block, "upsamplers", taps[block.upsamplers]))
        return Cut(swaps)

    def _producers(self, branch: int) -> list[Any]:
        """The modules whose output, the last of them to run, is the deep feature of the branch."""
        below = branch + 1  # the skip of the layer just below the lowest kept one
        if below == self.num_skips:
            return [self._unet.mid_block]
        block, first, stop = next(span for span in self._up if span.first <= below < span.stop)
        if below == first and block.upsamplers is not None:
            return [block.upsamplers]
        layer = stop - 1 - below
        return [getattr(block, name)[layer] for name in _parts(block, ("resnets", "attentions"))]

    def _check(self, block: Any, lengths: dict[str, int]) -> None:
        for name, length in lengths.items():
            if len(getattr(block, name)) != length:
                raise UnsupportedModelError(
                    f"{type(self._unet).__name__} cannot be cut: a {type(block).__name__} in it "
                    f"has {len(getattr(block, name))} {name} instead of {length}"
                )


class _BothPaths(nn.Module):
    """Returns the feature for both paths, like the middle block; the control path ends there."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in

    def forward(self, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        feature = self.stand_in()
        return feature, feature


def _parts(block: Any, names: Iterable[str]) -> list[str]:
    return [name for name in names if isinstance(getattr(block, name), nn.ModuleList)]
