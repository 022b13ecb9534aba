"""The layout of diffusers' 2D U-Nets: `down_blocks`, `mid_block` and `up_blocks`.

Every down block emits one skip for each layer and one for its downsampler; every up block consumes
one for each layer, the last emitted first. Skip 0 is the output of `conv_in`. A layer is a resnet
with the attentions that follow it.
"""

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Final, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.unets import unet_2d_blocks
from torch import nn

from ..cut import Cut, Swap
from ..errors import InvalidSettingError, UnsupportedModelError
from ..features import Recorder, StandIn, Tap

# The blocks whose skips follow the rule above. Others (the K-blocks of the latent upscaler, the
# second stream of the Skip*Block2D) emit or consume them otherwise.
_DOWN_BLOCKS: Final = (
    unet_2d_blocks.DownBlock2D,
    unet_2d_blocks.CrossAttnDownBlock2D,
    unet_2d_blocks.AttnDownBlock2D,
    unet_2d_blocks.ResnetDownsampleBlock2D,
    unet_2d_blocks.SimpleCrossAttnDownBlock2D,
)
_UP_BLOCKS: Final = (
    unet_2d_blocks.UpBlock2D,
    unet_2d_blocks.CrossAttnUpBlock2D,
    unet_2d_blocks.AttnUpBlock2D,
    unet_2d_blocks.ResnetUpsampleBlock2D,
    unet_2d_blocks.SimpleCrossAttnUpBlock2D,
)


class _Span(NamedTuple):
    """A block and the skips that it emits or consumes: `first`, …, `stop - 1`."""

    block: Any
    first: int
    stop: int


class BlockAnatomy:
    """The skips of one `UNet2DModel` or `UNet2DConditionModel`, and how to cut it.

    Branch k keeps the producers of skips 0…k and the top k+1 layers of the up path. At the deepest
    branch only the middle block is left out; a U-Net without one does not have that branch.

    Args:
        unet: The U-Net; it is only looked at.

    Raises:
        UnsupportedModelError: If a block emits or consumes skips in a way that is not known here.

    Attributes:
        num_skips: How many skip connections there are.
        branches: The branches of this U-Net, `range(0, …)`.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._parameters = tuple(inspect.signature(type(unet).forward).parameters)[1:]
        down_blocks: Any = unet.down_blocks
        up_blocks: Any = unet.up_blocks
        for blocks, known in ((down_blocks, _DOWN_BLOCKS), (up_blocks, _UP_BLOCKS)):
            for block in blocks:
                self._check_block(block, known)
        self._down = _spans(down_blocks, [_emits(block) for block in down_blocks], first=1)
        up_path = list(reversed(up_blocks))  # skip 0 is consumed last
        self._up = _spans(up_path, [len(block.resnets) for block in up_path], first=0)[::-1]
        self.num_skips = self._down[-1].stop
        consumed = self._up[0].stop
        if consumed != self.num_skips:
            raise UnsupportedModelError(
                f"{type(unet).__name__} cannot be cut: its down blocks emit {self.num_skips} skip "
                f"connections, its up blocks consume {consumed}"
            )
        # Without a middle block, the deepest branch would leave nothing out.
        self.branches = range(self.num_skips if self._middle is not None else self.num_skips - 1)
        self._found = [(children, tuple(children.values())) for children in self._children()]

    @staticmethod
    def fits(model: object) -> bool:
        """Whether the model is of a class with this layout."""
        return isinstance(model, UNet2DModel | UNet2DConditionModel)

    @property
    def is_current(self) -> bool:
        """Whether the U-Net still has the blocks and layers that were found in it."""
        return all(tuple(children.values()) == found for children, found in self._found)

    def check_branch(self, branch: Any) -> None:
        """Check that this U-Net has the branch.

        Raises:
            InvalidSettingError: If it has not; the message names the range.
        """
        whole = isinstance(branch, Integral) and not isinstance(branch, bool)
        if not whole or branch not in self.branches:
            raise InvalidSettingError(
                f"branch {branch!r} is out of range: this {type(self._unet).__name__} has "
                f"{self.num_skips} skip connections, so branches 0 to {self.branches[-1]}"
            )

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call to the U-Net, by the names in the signature of its `forward`."""
        return dict(zip(self._parameters, args, strict=False)) | dict(kwargs)

    def cut(self, branch: int | None, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs.

        Args:
            branch: One of `branches` for a shallow call; `None` for a call that runs everything.
            stand_in: Takes the place of the middle block in a shallow call.
            recorders: What receives the deep feature of a branch, for branches shallower than
                `branch`.

        Returns:
            The swaps: while they are applied, a call of the U-Net is of that kind.
        """
        taps = {
            producer: Tap(producer, recorder)
            for tapped, recorder in recorders.items()
            for producer in self._producers(tapped)
        }
        swaps = []

        def keep(owner: Any, name: str, kept: Sequence[nn.Module]) -> None:
            tapped = [taps.get(module, module) for module in kept]
            if tapped != list(getattr(owner, name)):
                swaps.append(Swap(owner, name, nn.ModuleList(tapped)))

        middle = taps.get(self._middle, self._middle) if branch is None else stand_in
        if middle is not self._middle:
            swaps.append(Swap(self._unet, "mid_block", middle))
        limit = self.num_skips if branch is None else branch + 1  # skips below it are kept
        down = [span for span in self._down if span.first < limit]
        keep(self._unet, "down_blocks", [span.block for span in down])
        for block, first, stop in down:
            for name, each in _layer_lists(block):
                keep(block, name, getattr(block, name)[: (limit - first) * each])
            if limit < stop and block.downsamplers is not None:
                swaps.append(Swap(block, "downsamplers", None))
        up = [span for span in self._up if span.first < limit]
        keep(self._unet, "up_blocks", [span.block for span in up])
        for block, _first, stop in up:
            for name, each in _layer_lists(block):
                keep(block, name, getattr(block, name)[max(stop - limit, 0) * each :])
            if block.upsamplers is not None:
                keep(block, "upsamplers", list(block.upsamplers))
        return Cut(swaps)

    def trimmed(self, branch: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a shallow call where they must differ from a full call's, else `None`.

        A ControlNet's residuals are added by position, so those of the skips that are left out are
        not read; but the one for the middle block is part of the recorded feature already. Features
        of a T2I-Adapter are popped off a list, one for each down block, and one that is left over
        could be added to the replayed feature. At the deepest branch all is as in a full call: the
        feature there is the output of the middle block itself.

        Args:
            branch: Where the call is cut.
            arguments: By name.
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

    def _adapted_blocks(self, branch: int) -> int:
        """How many down blocks run as far as the point where an adapter's feature is added."""
        # Cross-attention blocks add it to their last layer, others after their downsampler.
        last_skips = (
            (first + len(block.resnets) if _has_cross_attention(block) else stop) - 1
            for block, first, stop in self._down
        )
        return sum(last <= branch for last in last_skips)

    @property
    def _middle(self) -> Any:
        return getattr(self._unet, "mid_block", None)

    def _check_block(self, block: Any, known: tuple[type, ...]) -> None:
        name = type(self._unet).__name__
        if not issubclass(type(block), known):
            raise UnsupportedModelError(
                f"{name} with a {type(block).__name__} cannot be cut: it is not known which skip "
                "connections that block emits or consumes"
            )
        for parts, each in _layer_lists(block):
            if each * len(block.resnets) != len(getattr(block, parts)):
                raise UnsupportedModelError(
                    f"{name} cannot be cut: a {type(block).__name__} in it has "
                    f"{len(getattr(block, parts))} {parts} for {len(block.resnets)} resnets"
                )

    def _children(self) -> list[dict[str, nn.Module | None]]:
        """Where torch keeps the children of all that a cut looks at."""
        unet: Any = self._unet
        blocks = [*unet.down_blocks, *unet.up_blocks]
        lists = [child for block in blocks for child in block.children()]
        return [each._modules for each in (unet, unet.down_blocks, unet.up_blocks, *blocks, *lists)]

    def _producers(self, branch: int) -> list[Any]:
        """The modules whose output, the last of them to run, is the deep feature of the branch."""
        below = branch + 1  # the skip of the layer just below the lowest kept one
        if below == self.num_skips:
            return [self._middle]
        block, first, stop = next(span for span in self._up if span.first <= below < span.stop)
        if below == first and block.upsamplers is not None:
            return [block.upsamplers[-1]]
        layer = stop - 1 - below
        return [
            part
            for name, each in _layer_lists(block)
            for part in getattr(block, name)[layer * each : (layer + 1) * each]
        ]


def _spans(blocks: Sequence[Any], counts: Sequence[int], *, first: int) -> list[_Span]:
    spans = []
    for block, count in zip(blocks, counts, strict=True):
        spans.append(_Span(block, first, first + count))
        first += count
    return spans


def _emits(block: Any) -> int:
    return len(block.resnets) + (0 if block.downsamplers is None else len(block.downsamplers))


def _has_cross_attention(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _layer_lists(block: Any) -> list[tuple[str, int]]:
    """The lists that hold the parts of the block's layers, and how many parts each layer has."""
    return [
        (name, len(child) // len(block.resnets))
        for name, child in block.named_children()
        if isinstance(child, nn.ModuleList) and name not in ("downsamplers", "upsamplers")
    ]
