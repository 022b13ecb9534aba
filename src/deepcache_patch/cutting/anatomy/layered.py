"""The down path and the up path of U-Nets whose blocks are made of layers, and how both are cut.

A layer is a resnet with what follows it: attentions, temporal layers, motion modules. Every down
block emits one skip for each layer and one for its downsampler. Every up block consumes one for
each layer, the last emitted first. Skip 0 is the output of `conv_in`. The layouts of `blocks`,
`second_stream` and `controlnet_xs` are made so, and the down path of a `controlnet`. What is
special about each of them stands in their files.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ...errors import UnsupportedModelError
from ..cut import CutAt, Swap, shorten
from ..features import Recorder, Tap
from .base import Anatomy, cannot_cut, do_not_add_up, with_blocks


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
            self._check(block)
        self.spans = _spans(blocks, [self._emits(block) for block in blocks], first=1)
        self.num_skips = self.spans[-1].stop

    def swaps(self, limit: int) -> list[Swap]:
        """What leaves the producers of the skips below `limit`, at least 1."""
        swaps: list[Swap] = []
        kept = _above(self.spans, limit)
        shorten(swaps, self._owner, "down_blocks", [span.block for span in kept])
        for block, first, stop in kept:
            if limit < stop:
                swaps += self._shortened(block, limit - first)
        return swaps

    def _check(self, block: Any) -> None:
        check_layers(self._owner, block)

    def _emits(self, block: Any) -> int:
        return len(block.resnets) + len(getattr(block, "downsamplers", None) or ())

    def _shortened(self, block: Any, layers: int) -> list[Swap]:
        """What leaves so many layers of a block, and no downsampler."""
        swaps: list[Swap] = []
        for name, each in layer_lists(block):
            shorten(swaps, block, name, getattr(block, name)[: layers * each])
        if getattr(block, "downsamplers", None) is not None:
            swaps.append(Swap(block, "downsamplers", None))
        return swaps


class LayeredAnatomy(Anatomy):
    """The skips of a U-Net with a down path and an up path of layers. A subclass for each layout.

    Branch k keeps the producers of skips 0…k and the top k+1 layers of the up path. At the deepest
    branch only the middle block is left out; a U-Net without one does not have that branch.

    Args:
        unet: The U-Net; it is only looked at.
        down: Its down path.

    Raises:
        UnsupportedModelError: If it is not known which skips an up block consumes, or if those that
            are emitted do not add up to those that are consumed.
    """

    def __init__(self, unet: nn.Module, down: DownPath) -> None:
        super().__init__(unet)
        for block in self._unet.up_blocks:
            self._check(block)
        ups = list(reversed(self._unet.up_blocks))  # skip 0 is consumed last
        self._down = down
        self._up = _spans(ups, [len(block.resnets) for block in ups], first=0)[::-1]
        self.num_skips, consumed = down.num_skips, self._up[0].stop
        if consumed != self.num_skips:
            raise do_not_add_up(unet, self.num_skips, consumed)
        # Without a middle block, the deepest branch would leave nothing out.
        self.branches = range(self.num_skips - (self._middle is None))
        self._found(with_blocks(unet, "down_blocks", "up_blocks"))

    @property
    def _middle(self) -> Any:
        return getattr(self._unet, "mid_block", None)

    def _swaps(
        self, branch: CutAt, stand_in: nn.Module, taps: Mapping[Any, nn.Module]
    ) -> list[Swap]:
        """What makes one kind of call; see `Anatomy.cut`.

        Args:
            branch: One of `branches` for a shallow call; `None` for one that runs everything.
            stand_in: Takes the place of the middle block in a shallow call.
            taps: What stands in the place of modules that are kept.
        """
        limit = self.num_skips if branch is None else branch + 1  # skips below it are kept
        middle = taps.get(self._middle, self._middle) if branch is None else stand_in
        swaps = self._down.swaps(limit)
        if middle is not self._middle:
            swaps.append(Swap(self._unet, "mid_block", middle))
        up = _above(self._up, limit)
        shorten(swaps, self._unet, "up_blocks", [taps.get(span.block, span.block) for span in up])
        for block, _first, stop in up:
            left_out, parts = max(stop - limit, 0), dict(layer_lists(block))
            for name, child in block.named_children():
                if child in taps:
                    swaps.append(Swap(block, name, taps[child]))
                elif isinstance(child, nn.ModuleList):
                    # What a block has once for all its layers is kept whole.
                    kept = child[left_out * parts.get(name, 0) :]
                    shorten(swaps, block, name, [taps.get(part, part) for part in kept])
        return swaps

    def _taps(self, recorders: Mapping[int, Recorder]) -> dict[Any, nn.Module]:
        """What records the deep features of branches, by the modules that it stands round."""
        return {
            producer: Tap(producer, recorder)
            for branch, recorder in recorders.items()
            for producer in self._producers(branch)
        }

    def _producers(self, branch: int) -> list[Any]:
        """The modules whose output, the last of them to run, is the deep feature of the branch."""
        below = branch + 1  # the skip of the layer just below the lowest kept one
        if below == self.num_skips:
            return [self._middle]
        block, first, stop = self._consumer(below)
        end = self._end(block)
        return [end] if below == first and end is not None else self._layer(block, stop - 1 - below)

    def _consumer(self, skip: int) -> Span:
        return next(span for span in self._up if span.first <= skip < span.stop)

    def _check(self, block: Any) -> None:
        """Check that it is known which skips an up block consumes."""
        check_layers(self._unet, block)

    def _end(self, block: Any) -> Any:
        """What puts out an up block's result after its layers; `None` if the last layer does."""
        upsamplers = getattr(block, "upsamplers", None)
        return None if upsamplers is None else upsamplers[-1]

    def _layer(self, block: Any, number: int) -> list[Any]:
        """The parts of one layer of an up block, from 0."""
        return [
            part
            for name, each in layer_lists(block)
            for part in getattr(block, name)[number * each : (number + 1) * each]
        ]


def check_layers(owner: nn.Module, block: Any) -> None:
    """Check that a block is made of layers: resnets, each with as many of the other parts.

    Raises:
        UnsupportedModelError: If it is not.
    """
    kind = type(block).__name__
    if not isinstance(getattr(block, "resnets", None), nn.ModuleList) or not len(block.resnets):
        raise UnsupportedModelError(
            f"{type(owner).__name__} with a {kind} cannot be cut: it is not known which skip "
            "connections that block emits or consumes"
        )
    for parts, each in layer_lists(block):
        if each * len(block.resnets) != len(getattr(block, parts)):
            raise cannot_cut(
                owner,
                f"a {kind} in it has {len(getattr(block, parts))} {parts} for "
                f"{len(block.resnets)} resnets",
            )


def layer_lists(block: Any) -> list[tuple[str, int]]:
    """The lists that hold the parts of the block's layers, and how many parts each layer has."""
    return [
        (name, len(child) // len(block.resnets))
        for name, child in block.named_children()
        if isinstance(child, nn.ModuleList) and name not in ("downsamplers", "upsamplers")
    ]


def _spans(blocks: Sequence[Any], counts: Iterable[int], *, first: int) -> list[Span]:
    """The blocks with the skips that are theirs, so many for each, counted on from `first`."""
    found = []
    for block, count in zip(blocks, counts, strict=True):
        found.append(Span(block, first, first + count))
        first += count
    return found


def _above(spans: Iterable[Span], limit: int) -> list[Span]:
    """Those with a skip below `limit`."""
    return [span for span in spans if span.first < limit]
