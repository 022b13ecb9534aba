"""The layout of guided-diffusion and of what came of it: input, middle and output blocks.

CompVis' latent-diffusion, sgm, A1111 and ComfyUI have it, too. Every input block emits one skip,
and every output block consumes one, the last emitted first. A block is a sequence of layers.
ComfyUI does not call it but runs its layers one by one, so taps and the stand-in can be iterated.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..cut import Cut, CutAt, Swap, shorten
from ..features import Recorder, StandIn, Tap
from .base import Anatomy, cannot_cut, do_not_add_up


class OriginalAnatomy(Anatomy):
    """The skips of a U-Net with input blocks and output blocks, and how to cut it.

    At the deepest branch only the middle block is left out; a U-Net without one (ComfyUI has such
    models) does not have that branch.

    Raises:
        UnsupportedModelError: If it does not have as many output blocks as input blocks.
    """

    lists = ("input_blocks", "output_blocks")
    parts = ("middle_block",)
    sample_name = "x"
    timestep_name = "timesteps"

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        ins, outs = self._unet.input_blocks, self._unet.output_blocks
        if len(ins) != len(outs):
            raise do_not_add_up(unet, len(ins), len(outs), "input blocks", "output blocks")
        self.num_skips = len(ins)
        self.branches = range(len(ins) - (self._unet.middle_block is None))
        if not self.branches:
            reason = "with one skip connection and no middle block there is nothing to leave out"
            raise cannot_cut(unet, reason)
        self._found([unet, ins, outs])

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        outs, middle = list(self._unet.output_blocks), self._unet.middle_block
        for tapped, recorder in recorders.items():
            if tapped == self.num_skips - 1:
                middle = _TappedBlock(middle, recorder)
            else:
                outs[-2 - tapped] = _TappedBlock(outs[-2 - tapped], recorder)
        swaps: list[Swap] = []
        if branch is not None:
            middle, outs = stand_in, outs[-1 - branch :]
            shorten(swaps, self._unet, "input_blocks", list(self._unet.input_blocks)[: branch + 1])
        if middle is not self._unet.middle_block:
            swaps.append(Swap(self._unet, "middle_block", middle))
        shorten(swaps, self._unet, "output_blocks", outs)
        return Cut(swaps)

    def refusal(self, arguments: Mapping[str, Any]) -> str | None:
        """Why a call with these arguments must run in full, if it must."""
        if arguments.get("control") is not None:
            return "a ControlNet's residuals are popped off by the blocks, also by those left out"
        options = arguments.get("transformer_options") or {}
        if options.get("patches") or options.get("patches_replace"):
            # ComfyUI's, for single blocks: those of the up path are counted from the deepest.
            return "it has patches that go by the numbers of the blocks"
        return None


class _TappedBlock(Tap):
    """A tap that records whether it is called or its layers are run one by one."""

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self.inner
        yield _Record(self.recorder)


class _Record(nn.Module):
    """Hands a copy of its input to a recorder, like a tap."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.recorder.latest = hidden_states.clone()
        return hidden_states
