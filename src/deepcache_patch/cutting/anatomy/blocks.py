"""The layout of most U-Nets of diffusers: `conv_in`, `down_blocks`, `mid_block` and `up_blocks`.

The skips are counted in `layered`. Here stands what is given to such a U-Net from outside: the
residuals of a ControlNet and the features of a T2I-Adapter. The layout is known by its parts and
not by its class, so a U-Net of another library with the same parts is cut, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..cut import Cut, CutAt
from ..features import Recorder, StandIn
from .layered import DownPath, LayeredAnatomy


class BlockAnatomy(LayeredAnatomy):
    """The skips of a U-Net with down blocks and up blocks of layers, and how to cut it.

    Raises:
        UnsupportedModelError: If it is not known which skips a block emits or consumes, or if those
            that are emitted do not add up to those that are consumed.
    """

    lists = ("down_blocks", "up_blocks")
    parts = ("conv_in", "conv_out")

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, DownPath(unet))

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        return Cut(self._swaps(branch, stand_in, self._taps(recorders)))

    def trimmed(self, branch: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a shallow call where they must differ from a full call's, else `None`.

        A ControlNet's residuals are added by position, so those of the skips that are left out are
        not read; but the one for the middle block is part of the recorded feature already. Features
        of a T2I-Adapter are popped off a list, one for each down block, and one that is left over
        could be added to the replayed feature. At the deepest branch all is as in a full call: the
        feature there is the output of the middle block itself.

        Args:
            branch: Where the call is cut.
            arguments: Those of the call, by name.
        """
        if branch == self.num_skips - 1:
            return None
        changed: dict[str, Any] = {}
        middle = arguments.get("mid_block_additional_residual")
        if middle is not None:
            changed["mid_block_additional_residual"] = torch.zeros(
                (), dtype=middle.dtype, device=middle.device
            )
        adapted = "down_intrablock_additional_residuals"
        if arguments.get(adapted) is None and middle is None:
            adapted = "down_block_additional_residuals"  # the older name for the same
        if arguments.get(adapted) is not None:
            changed[adapted] = list(arguments[adapted])[: self._adapted_blocks(branch)]
        return arguments | changed if changed else None

    def residuals(
        self, arguments: Mapping[str, Any]
    ) -> tuple[Sequence[torch.Tensor] | None, torch.Tensor | None]:
        """What a ControlNet adds in this call: to each skip, and to the middle; `None` without."""
        down = arguments.get("down_block_additional_residuals")
        return down, arguments.get("mid_block_additional_residual")

    def with_residuals(self, arguments: Mapping[str, Any], given: Any) -> dict[str, Any]:
        """The arguments with what another call of the ControlNet has returned."""
        down, middle = given[0], given[1]
        return dict(arguments) | {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }

    def _adapted_blocks(self, branch: int) -> int:
        """How many down blocks run as far as the point where an adapter's feature is added."""
        # Cross-attention blocks add it to their last layer, others after their downsampler.
        last_skips = (
            (first + len(block.resnets) if _has_cross_attention(block) else stop) - 1
            for block, first, stop in self._down.spans
        )
        return sum(last <= branch for last in last_skips)


def _has_cross_attention(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
