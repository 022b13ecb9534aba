"""The layout of diffusers' 2D U-Nets: `down_blocks`, `mid_block` and `up_blocks`.

Every down block emits one skip for each layer and one for its downsampler; every up block consumes
one for each layer, the last emitted first. Skip 0 is the output of `conv_in`. A layer is a resnet
with the attentions that follow it.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

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
        self._down: tuple[Any, ...] = tuple(unet.down_blocks)  # type: ignore[arg-type]
        self._up: tuple[Any, ...] = tuple(unet.up_blocks)  # type: ignore[arg-type]
        self._parameters = tuple(inspect.signature(type(unet).forward).parameters)[1:]
        for blocks, known in ((self._down, _DOWN_BLOCKS), (self._up, _UP_BLOCKS)):
            for block in blocks:
                if not isinstance(block, known):
                    raise UnsupportedModelError(
                        f"{type(unet).__name__} with a {type(block).__name__} cannot be cut: "
                        "it is not known which skip connections that block emits or consumes"
                    )
        emitted = 1 + sum(_emits(block) for block in self._down)
        consumed = sum(len(block.resnets) for block in self._up)
        if emitted != consumed:
            raise UnsupportedModelError(
                f"{type(unet).__name__} cannot be cut: its down blocks emit {emitted} skip "
                f"connections, its up blocks consume {consumed}"
            )
        self.num_skips = emitted
        self.branches = range(emitted if self._middle is not None else emitted - 1)
        self._layers = self._list_layers()

    @staticmethod
    def fits(model: object) -> bool:
        """Whether the model is of a class with this layout."""
        return isinstance(model, UNet2DModel | UNet2DConditionModel)

    @property
    def is_current(self) -> bool:
        """Whether the U-Net still has the blocks and layers that were found in it."""
        return (
            self._down == tuple(self._unet.down_blocks)  # type: ignore[arg-type]
            and self._up == tuple(self._unet.up_blocks)  # type: ignore[arg-type]
            and self._layers == self._list_layers()
        )

    def check_branch(self, branch: Any) -> None:
        """Raise `InvalidSettingError`, with the range, if this U-Net has no such branch."""
        if branch not in self.branches or isinstance(branch, bool):
            raise InvalidSettingError(
                f"branch {branch!r} is out of range: this {type(self._unet).__name__} has "
                f"{self.num_skips} skip connections, so branches 0 to {self.branches[-1]}"
            )

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call to the U-Net, by the names in the signature of its `forward`."""
        return dict(zip(self._parameters, args, strict=False)) | dict(kwargs)

    def cut(self, branch: int | None, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """The cut for one kind of call.

        Args:
            branch: One of `branches` for a shallow call; `None` for a call that runs everything.
            stand_in: What takes the place of the middle block in a shallow call.
            recorders: What receives the deep feature of a branch; each branch shallower than
                `branch`.
        """
        taps = {
            producer: Tap(producer, recorder)
            for tapped, recorder in recorders.items()
            for producer in self._producers(tapped)
        }
        swaps: list[Swap] = []

        def keep(owner: nn.Module, name: str, part: slice = slice(None)) -> None:
            present = list(getattr(owner, name))
            kept = [taps.get(module, module) for module in present[part]]
            if kept != present:
                swaps.append(Swap(owner, name, nn.ModuleList(kept)))

        kept_skips = kept_layers = self.num_skips
        if branch is not None:
            kept_skips = kept_layers = branch + 1
            swaps.append(Swap(self._unet, "mid_block", stand_in))
        elif self._middle in taps:
            swaps.append(Swap(self._unet, "mid_block", taps[self._middle]))

        kept_skips -= 1  # skip 0 comes from conv_in, which always runs
        for index, block in enumerate(self._down):
            if kept_skips == 0:
                keep(self._unet, "down_blocks", slice(index))
                break
            if kept_skips < _emits(block):
                for name in _layer_lists(block):
                    keep(block, name, slice(kept_skips * _multiple(block, name)))
                if block.downsamplers is not None:
                    swaps.append(Swap(block, "downsamplers", None))
            kept_skips -= min(kept_skips, _emits(block))

        for index, block in reversed(list(enumerate(self._up))):
            if kept_layers == 0:
                keep(self._unet, "up_blocks", slice(index + 1, None))
                break
            dropped = max(len(block.resnets) - kept_layers, 0)
            for name in _layer_lists(block):
                keep(block, name, slice(dropped * _multiple(block, name), None))
            if block.upsamplers is not None:
                keep(block, "upsamplers")
            kept_layers -= min(kept_layers, len(block.resnets))
        return Cut(swaps)

    def trimmed(self, branch: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a shallow call where they must differ from a full call's, else `None`.

        Residuals of a ControlNet are added by position, so those of the skips that are left out are
        not read; but the one for the middle block is part of the recorded feature already, unless
        the feature is the output of the middle block itself. Features of a T2I-Adapter are popped
        off a list, one for each down block, and one that is left over could be added to the
        replayed feature.
        """
        middle = arguments.get("mid_block_additional_residual")
        changed: dict[str, Any] = {}
        if branch == self.num_skips - 1:
            return None
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
        first_skip = 1
        for index, block in enumerate(self._down):
            # Cross-attention blocks add it to their last layer, others after their downsampler.
            whole = len(block.resnets) if _has_cross_attention(block) else _emits(block)
            if first_skip + whole - 1 > branch:
                return index
            first_skip += _emits(block)
        return len(self._down)

    @property
    def _middle(self) -> Any:
        return getattr(self._unet, "mid_block", None)

    def _list_layers(self) -> tuple[Any, ...]:
        return (*(tuple(block.resnets) for block in (*self._down, *self._up)), self._middle)

    def _producers(self, branch: int) -> list[Any]:
        """The modules whose output, the last of them to run, is the deep feature of the branch."""
        below = self.num_skips - 1 - branch  # layers of the up path that are left out
        if below == 0:
            return [self._middle]
        for block in self._up:
            if below <= len(block.resnets):
                break
            below -= len(block.resnets)
        if below == len(block.resnets) and block.upsamplers is not None:
            return [block.upsamplers[-1]]
        producers = []
        for name in _layer_lists(block):
            each = _multiple(block, name)
            producers += list(getattr(block, name))[(below - 1) * each : below * each]
        return producers


def _emits(block: Any) -> int:
    return len(block.resnets) + (0 if block.downsamplers is None else len(block.downsamplers))


def _has_cross_attention(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _layer_lists(block: Any) -> list[str]:
    """The names of the lists that hold the parts of the block's layers."""
    return [
        name
        for name, child in block.named_children()
        if isinstance(child, nn.ModuleList) and name not in ("downsamplers", "upsamplers")
    ]


def _multiple(block: Any, name: str) -> int:
    """How many modules of a list belong to each layer."""
    return len(getattr(block, name)) // len(block.resnets)
