"""The layout of most U-Nets of diffusers: `conv_in`, `down_blocks`, `mid_block` and `up_blocks`.

Every down block emits one skip for each layer and one for its downsampler; every up block consumes
one for each layer, the last emitted first. Skip 0 is the output of `conv_in`. A layer is a resnet
with what follows it: attentions, temporal layers, motion modules. The layout is known by its parts
and not by its class, so a U-Net of another library with the same parts is cut, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import UnsupportedModelError
from ..cut import Cut, Swap
from ..features import Recorder, StandIn, Tap
from .base import Anatomy, has_lists


class Span(NamedTuple):
    """A block and the skips that it emits or consumes: `first`, …, `stop - 1`."""

    block: Any
    first: int
    stop: int


class DownPath:
    """The down blocks of a U-Net or a ControlNet.

    Args:
        owner: What has the `down_blocks`.

    Raises:
        UnsupportedModelError: If it is not known which skips a block emits.

    Attributes:
        spans: The blocks, with the skips that each emits.
        num_skips: How many there are, that of `conv_in` included.
    """

    def __init__(self, owner: nn.Module) -> None:
        self._owner = owner
        blocks: Any = owner.down_blocks
        for block in blocks:
            check_layers(owner, block)
        self.spans = spans(blocks, [_emits(block) for block in blocks], first=1)
        self.num_skips = self.spans[-1].stop

    def swaps(self, limit: int) -> list[Swap]:
        """What leaves the producers of the skips below `limit`, at least 1."""
        swaps: list[Swap] = []
        kept = [span for span in self.spans if span.first < limit]
        keep(swaps, self._owner, "down_blocks", [span.block for span in kept])
        for block, first, stop in kept:
            for name, each in layer_lists(block):
                keep(swaps, block, name, getattr(block, name)[: (limit - first) * each])
            if limit < stop and getattr(block, "downsamplers", None) is not None:
                swaps.append(Swap(block, "downsamplers", None))
        return swaps

    def modules(self) -> list[nn.Module]:
        """All whose children the swaps look at."""
        blocks = [span.block for span in self.spans]
        path: Any = self._owner.down_blocks
        return [self._owner, path, *blocks, *_lists(blocks)]


class BlockAnatomy(Anatomy):
    """The skips of a U-Net with down blocks and up blocks of layers, and how to cut it.

    Branch k keeps the producers of skips 0…k and the top k+1 layers of the up path. At the deepest
    branch only the middle block is left out; a U-Net without one does not have that branch.

    Args:
        unet: The U-Net; it is only looked at.

    Raises:
        UnsupportedModelError: If it is not known which skips a block emits or consumes, or if those
            that are emitted do not add up to those that are consumed.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._down = DownPath(unet)
        up_path = list(reversed(self._unet.up_blocks))  # skip 0 is consumed last
        for block in up_path:
            check_layers(unet, block)
        self._up = spans(up_path, [len(block.resnets) for block in up_path], first=0)[::-1]
        self.num_skips = self._down.num_skips
        consumed = self._up[0].stop
        if consumed != self.num_skips:
            raise UnsupportedModelError(
                f"{type(unet).__name__} cannot be cut: its down blocks emit {self.num_skips} skip "
                f"connections, its up blocks consume {consumed}"
            )
        # Without a middle block, the deepest branch would leave nothing out.
        self.branches = range(self.num_skips if self._middle is not None else self.num_skips - 1)
        ups = [span.block for span in self._up]
        self._found([*self._down.modules(), self._unet.up_blocks, *ups, *_lists(ups)])

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has these parts, and blocks of layers in them."""
        return (
            all(hasattr(model, name) for name in ("conv_in", "conv_out"))
            and has_lists(model, "down_blocks", "up_blocks")
            and cls._takes(model, "sample", "timestep")
        )

    def cut(self, branch: int | None, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        taps: dict[Any, nn.Module] = {
            producer: Tap(producer, recorder)
            for tapped, recorder in recorders.items()
            for producer in self._producers(tapped)
        }
        limit = self.num_skips if branch is None else branch + 1  # skips below it are kept
        swaps = self._down.swaps(limit)
        middle = taps.get(self._middle, self._middle) if branch is None else stand_in
        if middle is not self._middle:
            swaps.append(Swap(self._unet, "mid_block", middle))
        up = [span for span in self._up if span.first < limit]
        keep(swaps, self._unet, "up_blocks", [span.block for span in up])
        for block, _first, stop in up:
            for name, each in layer_lists(block):
                kept = getattr(block, name)[max(stop - limit, 0) * each :]
                keep(swaps, block, name, [taps.get(part, part) for part in kept])
            if getattr(block, "upsamplers", None) is not None:
                tapped = [taps.get(part, part) for part in block.upsamplers]
                keep(swaps, block, "upsamplers", tapped)
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

    def residuals(self, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor] | None:
        """What a ControlNet adds to the skips in this call, one for each; `None` without one."""
        if arguments.get("mid_block_additional_residual") is None:
            return None
        found: Sequence[torch.Tensor] | None = arguments.get("down_block_additional_residuals")
        return found

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

    @property
    def _middle(self) -> Any:
        return getattr(self._unet, "mid_block", None)

    def _producers(self, branch: int) -> list[Any]:
        """The modules whose output, the last of them to run, is the deep feature of the branch."""
        below = branch + 1  # the skip of the layer just below the lowest kept one
        if below == self.num_skips:
            return [self._middle]
        block, first, stop = next(span for span in self._up if span.first <= below < span.stop)
        if below == first and getattr(block, "upsamplers", None) is not None:
            return [block.upsamplers[-1]]
        layer = stop - 1 - below
        return [
            part
            for name, each in layer_lists(block)
            for part in getattr(block, name)[layer * each : (layer + 1) * each]
        ]


def check_layers(owner: nn.Module, block: Any) -> None:
    """Check that a block is made of layers: resnets, each with as many of the other parts.

    Raises:
        UnsupportedModelError: If it is not.
    """
    name, kind = type(owner).__name__, type(block).__name__
    if not isinstance(getattr(block, "resnets", None), nn.ModuleList) or not len(block.resnets):
        raise UnsupportedModelError(
            f"{name} with a {kind} cannot be cut: it is not known which skip connections that "
            "block emits or consumes"
        )
    for parts, each in layer_lists(block):
        if each * len(block.resnets) != len(getattr(block, parts)):
            raise UnsupportedModelError(
                f"{name} cannot be cut: a {kind} in it has {len(getattr(block, parts))} {parts} "
                f"for {len(block.resnets)} resnets"
            )


def keep(swaps: list[Swap], owner: Any, name: str, kept: Iterable[nn.Module]) -> None:
    """Add the swap that leaves `kept` of a list of children, unless that is what it has."""
    kept = list(kept)
    if kept != list(getattr(owner, name)):
        swaps.append(Swap(owner, name, nn.ModuleList(kept)))


def layer_lists(block: Any) -> list[tuple[str, int]]:
    """The lists that hold the parts of the block's layers, and how many parts each layer has."""
    return [
        (name, len(child) // len(block.resnets))
        for name, child in block.named_children()
        if isinstance(child, nn.ModuleList) and name not in ("downsamplers", "upsamplers")
    ]


def _lists(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    return [child for block in blocks for child in block.children()]


def spans(blocks: Sequence[Any], counts: Sequence[int], *, first: int) -> list[Span]:
    """The blocks with the skips that are theirs, so many for each, counted on from `first`."""
    found = []
    for block, count in zip(blocks, counts, strict=True):
        found.append(Span(block, first, first + count))
        first += count
    return found


def _emits(block: Any) -> int:
    return len(block.resnets) + len(getattr(block, "downsamplers", None) or ())


def _has_cross_attention(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
