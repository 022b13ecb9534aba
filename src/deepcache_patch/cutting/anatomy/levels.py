"""Layouts with one skip for each level: a down block emits one, an up block consumes one.

Three of diffusers' U-Nets are made so: that of the latent upscaler, of K-blocks; `UNet1DModel`; and
`Kandinsky3UNet`. Skip 0 is that of the topmost level. Blocks are kept whole, for a skip joins the
hidden state once, at the start of its up block. The feature of a branch is what the up block below
the lowest kept one puts out, or the middle block below the deepest.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_blocks import (
    KCrossAttnDownBlock2D,
    KCrossAttnUpBlock2D,
    KDownBlock2D,
    KUpBlock2D,
)
from torch import nn

from ..cut import Cut, CutAt, Swap, shorten
from ..features import Recorder, StandIn, Tap
from .base import Anatomy, cannot_cut, do_not_add_up, with_blocks


class LevelAnatomy(Anatomy):
    """The skips of a U-Net with one for each level, and how to cut it. A subclass for each layout.

    Args:
        unet: The U-Net; it is only looked at.
        num_skips: How many skips its up blocks consume, the last block the first of them.

    Raises:
        UnsupportedModelError: If there is nothing that a cut could leave out.
    """

    def __init__(self, unet: nn.Module, num_skips: int) -> None:
        super().__init__(unet)
        self._downs: list[Any] = list(self._unet.down_blocks)
        self._ups: list[Any] = list(self._unet.up_blocks)
        self.num_skips = num_skips
        # Where even the deepest up block consumes a skip and there is no middle block, the deepest
        # branch would leave nothing out.
        whole = num_skips == len(self._ups) and self._middle is None
        self.branches = range(num_skips - whole)
        if not self.branches:
            raise cannot_cut(unet, "there is nothing below its topmost level")
        self._found(with_blocks(unet, "down_blocks", "up_blocks"))

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        producers = {self._producer(tapped): recorder for tapped, recorder in recorders.items()}
        taps = {producer: Tap(producer, recorder) for producer, recorder in producers.items()}
        swaps: list[Swap] = []
        if branch is None:
            ups, middle = self._ups, taps.get(self._middle, self._middle)
        else:
            ups, middle = self._ups[-(branch + 1) :], stand_in
            # Where fewer blocks go up than down, nobody consumes what the topmost ones emit.
            last = len(self._downs) - len(self._ups) + branch
            shorten(swaps, self._unet, "down_blocks", self._downs[: last + 1])
            swaps += self._after_skip(self._downs[last])
        ups = [taps.get(block, block) for block in ups]
        if middle is not self._middle:
            swaps += self._instead_of_the_middle(middle, ups)
        shorten(swaps, self._unet, "up_blocks", ups)
        return Cut(swaps)

    @property
    def _middle(self) -> Any:
        return getattr(self._unet, "mid_block", None) or None

    def _producer(self, branch: int) -> Any:
        below = len(self._ups) - 2 - branch
        return self._ups[below] if below >= 0 else self._middle

    def _after_skip(self, block: Any) -> list[Swap]:
        """What leaves out the part of a down block that runs after it has made its skip."""
        return []

    def _instead_of_the_middle(self, middle: nn.Module, ups: list[Any]) -> list[Swap]:
        """What puts a module between the way down and `ups`, which may be changed."""
        return [Swap(self._unet, "mid_block", middle)]


class KBlockAnatomy(LevelAnatomy):
    """The layout of the latent upscaler: a `UNet2DConditionModel` of K-blocks.

    Its down blocks emit a tensor for each layer and its up blocks take as many, but use only the
    last. The output of `conv_in` is not consumed. The deepest block with cross-attention emits
    `None`, so there is one skip less than there are levels.

    Raises:
        UnsupportedModelError: If not all blocks are K-blocks, or those of a level do not match.
    """

    lists = ("down_blocks", "up_blocks")
    parts = ("conv_in", "mid_block", "conv_out")

    def __init__(self, unet: nn.Module) -> None:
        model: Any = unet
        for paths, kinds in ((model.down_blocks, _K_DOWN), (model.up_blocks, _K_UP)):
            strange = [type(block).__name__ for block in paths if not isinstance(block, kinds)]
            if strange:
                raise cannot_cut(unet, f"it has a {strange[0]} beside K-blocks")
        emitted = [len(block.resnets) for block in model.down_blocks]
        taken = [len(block.resnets) for block in reversed(model.up_blocks)]
        if emitted != taken:
            raise cannot_cut(
                unet,
                f"its down blocks emit {emitted} tensors at the levels from the top, its up blocks "
                f"take {taken}",
            )
        silent = [
            isinstance(block, KCrossAttnDownBlock2D) and block.downsamplers is None
            for block in model.down_blocks
        ]
        if any(silent[:-1]):
            raise cannot_cut(unet, "a down block above the deepest emits no skip connection")
        super().__init__(unet, len(silent) - silent[-1])

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has these parts, and K-blocks among them."""
        # Nothing but its class tells a K-block from a block with a skip for each layer.
        return super().fits(model) and any(
            isinstance(b, (*_K_DOWN, *_K_UP)) for b in (*model.down_blocks, *model.up_blocks)
        )

    def refusal(self, arguments: Mapping[str, Any]) -> str | None:
        """Why a call with these arguments must run in full, if it must."""
        # No ControlNet or adapter is made for K-blocks: what one would add where is not known.
        given = [name for name in _RESIDUALS if arguments.get(name) is not None]
        return f"the U-Net has K-blocks, and is given {given[0]}" if given else None

    def _after_skip(self, block: Any) -> list[Swap]:
        # Not `None`: with that, a block with cross-attention would emit `None`.
        nothing = nn.ModuleList()
        return [] if block.downsamplers is None else [Swap(block, "downsamplers", nothing)]


class OneDimensionalAnatomy(LevelAnatomy):
    """The layout of `UNet1DModel`: an up block consumes what a down block emits, the last first.

    There may be fewer up blocks than down blocks: then the topmost down blocks emit in vain.

    Raises:
        UnsupportedModelError: If there are more up blocks than down blocks, or unknown ones.
    """

    lists = ("down_blocks", "up_blocks")  # a value function has no way up, and is none
    parts = ("out_block",)
    absent = ("conv_in",)

    def __init__(self, unet: nn.Module) -> None:
        model: Any = unet
        for block in (*model.down_blocks, *model.up_blocks):
            if not hasattr(block, "resnets") or hasattr(block, "downsamplers"):
                kind = type(block).__name__
                raise cannot_cut(unet, f"it is not known how many skip connections a {kind} has")
        emitted, consumed = len(model.down_blocks), len(model.up_blocks)
        if emitted < consumed:
            raise do_not_add_up(unet, emitted, consumed)
        super().__init__(unet, consumed)

    def _after_skip(self, block: Any) -> list[Swap]:
        # Other kinds of block emit last of all.
        missing = getattr(block, "downsample", None) is None
        return [] if missing else [Swap(block, "downsample", None)]


class Kandinsky3Anatomy(LevelAnatomy):
    """The layout of `Kandinsky3UNet`: a skip is what a down block puts out, downsampled.

    There is no middle block: the deepest down block, which emits no skip, and the first up block,
    which consumes none, are what every branch leaves out. The stand-in takes the place of the
    latter. `num_levels` stays as it is: the kept down blocks all emit, being above the deepest.

    Raises:
        UnsupportedModelError: If there are not as many blocks on both ways as `num_levels` says.
    """

    lists = ("down_blocks", "up_blocks")
    parts = ("num_levels",)
    absent = ("mid_block",)

    def __init__(self, unet: nn.Module) -> None:
        model: Any = unet
        downs, ups, levels = len(model.down_blocks), len(model.up_blocks), model.num_levels
        if not downs == ups == levels:
            raise cannot_cut(
                unet, f"it has {levels} levels, but {downs} down blocks and {ups} up blocks"
            )
        super().__init__(unet, levels - 1)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has these parts, and blocks that begin with a resnet."""
        return super().fits(model) and all(
            hasattr(b, "resnets_in") for b in (*model.down_blocks, *model.up_blocks)
        )

    def _instead_of_the_middle(self, middle: nn.Module, ups: list[Any]) -> list[Swap]:
        ups.insert(0, middle)
        return []


_K_DOWN = (KDownBlock2D, KCrossAttnDownBlock2D)
_K_UP = (KUpBlock2D, KCrossAttnUpBlock2D)

_RESIDUALS = (
    "mid_block_additional_residual",
    "down_block_additional_residuals",
    "down_intrablock_additional_residuals",
)
