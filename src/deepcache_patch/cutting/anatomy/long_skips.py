"""Transformers with long skip connections: Hunyuan-DiT, and the U-ViT of UniDiffuser.

Each block of the first half emits one skip, and the block as far from the end consumes it. Skip 0
is the output of the first block. In between are blocks without skips: two in Hunyuan-DiT, whose
blocks are one list, and one in a U-ViT. Deep features have the shape `(batch, tokens, channels)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..cut import Cut, CutAt, Swap, shorten
from ..features import Recorder, StandIn, Tap
from .base import Anatomy, cannot_cut, do_not_add_up


class HunyuanAnatomy(Anatomy):
    """The skips of a `HunyuanDiT2DModel`, and how to cut it.

    Its forward knows by their numbers which blocks emit and consume, so a shallow call has as many
    blocks as a full one: in the place of those that are left out stands what returns its input, and
    in the place of the last of them the stand-in. Those emit and consume as well, which comes to
    nothing.

    Args:
        unet: The transformer; it is only looked at.

    Raises:
        UnsupportedModelError: If other blocks consume a skip than its forward makes use.
    """

    lists = ("blocks",)
    parts = ("config",)
    sample_name = "hidden_states"
    more_arguments = ("controlnet_block_samples",)

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._blocks: list[nn.Module] = list(self._unet.blocks)
        number, half = len(self._blocks), self._unet.config.num_layers // 2
        consumers = [i for i, each in enumerate(self._blocks) if _consumes(each)]
        self.num_skips = half - 1
        if number != 2 * half or consumers != list(range(half + 1, number)) or not consumers:
            raise cannot_cut(
                unet,
                f"of its {number} blocks {max(half - 1, 0)} emit a skip connection, the blocks "
                f"{consumers} consume one",
            )
        self.branches = range(self.num_skips)
        self._found([unet, self._unet.blocks, *self._blocks[half:]])

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has these parts, and blocks that may have a layer for a skip."""
        return super().fits(model) and all(hasattr(block, "skip_linear") for block in model.blocks)

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        blocks = list(self._blocks)
        for tapped, recorder in recorders.items():
            producer = self._last_left_out(tapped)
            blocks[producer] = Tap(blocks[producer], recorder)
        if branch is not None:
            last = self._last_left_out(branch)
            blocks[branch + 1 : last] = [_PassThrough()] * (last - branch - 1)
            blocks[last] = stand_in
        swaps: list[Swap] = []
        shorten(swaps, self._unet, "blocks", blocks)
        return Cut(swaps)

    def trimmed(self, branch: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a shallow call where they must differ from a full call's, else `None`.

        A ControlNet's residuals are popped off their list, those of the deepest skip first, and
        there must be one for each skip. Those of the skips that are left out are not used, and may
        be missing, because a ControlNet may be cut itself.

        Args:
            branch: Where the call is cut.
            arguments: Those of the call, by name.
        """
        residuals = arguments.get("controlnet_block_samples")
        if not residuals:
            return None
        kept = list(residuals)[: branch + 1]
        nothing = torch.zeros((), dtype=kept[0].dtype, device=kept[0].device)
        padded = kept + [nothing] * (self.num_skips - len(kept))
        return arguments | {"controlnet_block_samples": padded}

    def residuals(
        self, arguments: Mapping[str, Any]
    ) -> tuple[Sequence[torch.Tensor] | None, torch.Tensor | None]:
        """What a ControlNet adds in this call: to each skip, and to the middle; `None` without."""
        return arguments.get("controlnet_block_samples"), None

    def with_residuals(self, arguments: Mapping[str, Any], given: Any) -> dict[str, Any]:
        """The arguments with what another call of the ControlNet has returned."""
        return dict(arguments) | {"controlnet_block_samples": list(given[0])}

    def _last_left_out(self, branch: int) -> int:
        """The block whose output is the deep feature of the branch."""
        return len(self._blocks) - 2 - branch


class UViTAnatomy(Anatomy):
    """The skips of a `UTransformer2DModel`, and how to cut it.

    Args:
        unet: The transformer; it is only looked at.

    Raises:
        UnsupportedModelError: If it has no skips, or if other skips are consumed than emitted.
    """

    lists = ("transformer_in_blocks", "transformer_out_blocks")
    may_be_empty = True
    parts = ("transformer_mid_block",)
    sample_name = "hidden_states"

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._core = self._transformer(unet)
        ins, outs = self._core.transformer_in_blocks, self._core.transformer_out_blocks
        self.num_skips = len(ins)
        if len(outs) != len(ins) or not len(ins):
            raise do_not_add_up(unet, len(ins), len(outs), "in-blocks", "out-blocks")
        self.branches = range(self.num_skips)
        self._found([unet, self._core, ins, outs, *outs])

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        core = self._core
        swaps: list[Swap] = []
        for tapped, recorder in recorders.items():
            owner, name = core, "transformer_mid_block"
            if tapped < self.num_skips - 1:
                owner, name = core.transformer_out_blocks[-2 - tapped], "block"
            swaps.append(Swap(owner, name, Tap(owner._modules[name], recorder)))
        if branch is not None:
            kept = branch + 1
            ins, outs = list(core.transformer_in_blocks), list(core.transformer_out_blocks)
            shorten(swaps, core, "transformer_in_blocks", ins[:kept])
            swaps.append(Swap(core, "transformer_mid_block", stand_in))
            shorten(swaps, core, "transformer_out_blocks", outs[-kept:])
        return Cut(swaps)

    @staticmethod
    def _transformer(unet: Any) -> Any:
        return unet


class UniDiffuserAnatomy(UViTAnatomy):
    """The skips of a `UniDiffuserModel`, whose U-ViT takes a picture and a text at once.

    What is denoised may be the picture, the text or both. The picture's latents are what a call is
    known by in any case: they are there in every call, and their batch is the text's.
    """

    sample_name = "latent_image_embeds"
    timestep_name = "timestep_img"
    more_arguments = ("timestep_text",)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has a `transformer` with these parts, and takes these arguments."""
        return cls._has_parts(getattr(model, "transformer", None)) and cls._takes_arguments(model)

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep of what is denoised, a number or a tensor.

        That of what is given, or left out, is 0 or the highest of all in every call: the pipeline
        passes it as a number, and the one that moves as an element of its scheduler's timesteps.
        """
        timesteps = [arguments.get(name) for name in ("timestep_img", "timestep_text")]
        moving = (each for each in timesteps if isinstance(each, torch.Tensor))
        return next(moving, timesteps[0])

    def conditioning(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """See `Anatomy.conditioning`; not what is denoised, whose timestep moves."""
        found = super().conditioning(arguments)
        kinds = {"timestep_text": "prompt_embeds", "timestep_img": "image_embeds"}
        for timestep, name in kinds.items():
            if isinstance(arguments.get(timestep), torch.Tensor):
                found.pop(name, None)
        return found

    @staticmethod
    def _transformer(unet: Any) -> Any:
        return unet.transformer


class _PassThrough(nn.Module):
    """Stands for a block that is left out."""

    def forward(self, hidden_states: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        return hidden_states


def _consumes(block: Any) -> bool:
    return block.skip_linear is not None
