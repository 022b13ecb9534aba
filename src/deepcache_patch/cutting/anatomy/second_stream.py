"""The layout of NCSN++ (score-SDE): a second stream runs beside the hidden state.

It has the layers and the skips of `layered`, but some blocks have a `skip_conv`. On the way down,
such a block makes the picture smaller and adds it to the hidden state. On the way up, its
`upsampler` makes the second stream larger, its `skip_conv` adds a picture made of the hidden state,
and what comes out at the top is added to the U-Net's output. So the layers above a branch need two
tensors: the hidden state, and the second stream as the lowest kept up block's `upsampler` puts it
out. Both have the same height and width there, so the deep feature is one tensor: the channels of
the one, then those of the other.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedModelError
from ..cut import Cut, CutAt, Swap
from ..features import Around, Recorder, StandIn, Tap
from .base import cannot_cut
from .layered import DownPath, LayeredAnatomy


class SecondStreamAnatomy(LayeredAnatomy):
    """The skips of a U-Net with a second stream, and how to cut it.

    Branch k keeps the producers of skips 0…k and the top k+1 resnets of the up path, with the one
    attention that follows all resnets of a block.

    Raises:
        UnsupportedModelError: If a block is unknown, if the second stream ends below the top, or if
            the skips that are emitted do not add up to those that are consumed.
    """

    lists = ("down_blocks", "up_blocks")
    parts = ("conv_in", "mid_block", "conv_out")

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, DownPath(unet))
        for below, block in pairwise(self._unet.up_blocks):
            if _has_stream(below) and not _has_stream(block):
                raise cannot_cut(
                    unet,
                    f"a {type(block).__name__} above a {type(below).__name__} does not pass the "
                    "second stream on",
                )

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has these parts, and blocks with a second stream."""
        return super().fits(model) and any(
            _has_stream(block) for block in chain(model.down_blocks, model.up_blocks)
        )

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        taps = self._taps(recorders)
        lowest, source = (None, None) if branch is None else self._lowest(branch)
        replayed: list[Recorder] = []  # of branches whose second stream comes from the stand-in
        for tapped, recorder in recorders.items():
            block, below = self._lowest(tapped)
            if below is not None and block is lowest:
                replayed.append(recorder)
            elif below is not None:
                inner = taps.get(block.upsampler, block.upsampler)
                taps[block.upsampler] = _StreamTap(inner, recorder)
        if source is None:
            return Cut(self._swaps(branch, stand_in, taps))
        channels = source.skip_conv.out_channels
        swaps = self._swaps(branch, _HiddenState(stand_in, channels), taps)
        return Cut([*swaps, self._added(lowest, stand_in, channels, replayed)])

    def _check(self, block: Any) -> None:
        if not _has_stream(block):
            super()._check(block)
        elif not all(hasattr(block, name) for name in ("resnets", "resnet_up", "upsampler")) or (
            len(getattr(block, "attentions", ())) > 1
        ):
            raise UnsupportedModelError(
                f"{type(self._unet).__name__} with a {type(block).__name__} cannot be cut: it is "
                "not known what goes with the second stream there"
            )

    def _end(self, block: Any) -> Any:
        # The attention that a block has for all its resnets runs after them, and so does what
        # makes the hidden state larger: the block itself is what puts it out.
        return block

    def _lowest(self, branch: int) -> tuple[Any, Any]:
        """The lowest kept up block, and that whose second stream enters it, if there is one."""
        lowest = self._consumer(branch)
        below = self._consumer(lowest.stop).block if lowest.stop < self.num_skips else None
        return lowest.block, below if _has_stream(below) else None

    def _added(
        self, block: Any, stand_in: StandIn, channels: int, recorders: Sequence[Recorder]
    ) -> Swap:
        """What adds the recorded second stream where the block would add that from below.

        In a shallow call no second stream comes to the block, which then begins one of zero, adds
        the output of its `skip_conv` and hands it on. The topmost block has none: what it hands on
        is added to that of `conv_out`. Both are exact, since a + b is b + a.
        """
        place, name = (self._unet, "conv_out") if block.skip_conv is None else (block, "skip_conv")
        return Swap(place, name, _Added(getattr(place, name), stand_in, channels, recorders))


class _StreamTap(Tap):
    """Puts the channels that pass behind those that the recorder has already."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden_states = self.recorder.latest
        output = super().forward(*args, **kwargs)
        _record(self.recorder, hidden_states, output)
        return output


class _HiddenState(nn.Module):
    """Returns the deep feature without the second stream."""

    def __init__(self, stand_in: StandIn, channels: int) -> None:
        super().__init__()
        self.stand_in = stand_in
        self.channels = channels

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        feature: torch.Tensor = self.stand_in()
        return feature[:, : -self.channels]


class _Added(Around):
    """Adds the second stream of the deep feature to the output of `inner`."""

    def __init__(
        self, inner: nn.Module, stand_in: StandIn, channels: int, recorders: Sequence[Recorder]
    ) -> None:
        super().__init__(inner)
        # Not a child, which would become one of `inner`.
        vars(self)["stand_in"] = stand_in
        self.channels = channels
        self.recorders = recorders

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        stream: torch.Tensor = self.stand_in()[:, -self.channels :]
        for recorder in self.recorders:
            _record(recorder, recorder.latest, stream)
        output: torch.Tensor = self.inner(*args, **kwargs)
        return output + stream


def _record(recorder: Recorder, hidden_states: torch.Tensor | None, stream: torch.Tensor) -> None:
    if hidden_states is None:
        raise RuntimeError("the second stream came before the hidden state")
    recorder.latest = torch.cat([hidden_states, stream], dim=1)


def _has_stream(block: Any) -> bool:
    return hasattr(block, "skip_conv")
