"""U-Nets with one skip for each level, tiny ones: K-blocks, `UNet1DModel`, `Kandinsky3UNet`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from torch import nn

from builders.unets import TEXT_WIDTH, seeded
from builders.versions_needed import has
from deepcache_patch.cutting.anatomy.levels import (
    Kandinsky3Anatomy,
    KBlockAnatomy,
    OneDimensionalAnatomy,
)


def randomised(model: nn.Module) -> nn.Module:
    # Some layers start with weights of zero: an error behind one would not be seen.
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return model.eval()


def k_blocks(**overrides: Any) -> nn.Module:
    """A U-Net of K-blocks, which normalise groups of 32 channels; by default four levels.

    The deepest two levels and the time embedding are equally wide: from that, the first up block
    knows that no skip comes to it.
    """
    channels = overrides.get("block_out_channels", (32, 32, 64, 64))
    deeper = len(channels) - 1
    config = {
        "block_out_channels": channels,
        "down_block_types": ("KDownBlock2D",) + ("KCrossAttnDownBlock2D",) * deeper,
        "up_block_types": ("KCrossAttnUpBlock2D",) * deeper + ("KUpBlock2D",),
        "mid_block_type": None,
        "layers_per_block": 2,
        "attention_head_dim": 16,
        "act_fn": "gelu",
        "norm_num_groups": None,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "fourier",
        "time_embedding_dim": channels[-1],
        "timestep_post_act": "gelu",
        "cross_attention_dim": TEXT_WIDTH,
    }
    with torch.no_grad(), seeded(0):
        return randomised(diffusers.UNet2DConditionModel(**(config | overrides)))


def inputs_k_blocks(seed: int = 0, size: tuple[int, int] = (16, 24)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(2, 4, *size, generator=generator),
        "timestep": torch.tensor(0.5),
        "encoder_hidden_states": torch.randn(2, 7, TEXT_WIDTH, generator=generator),
    }


def one_dimensional(**overrides: Any) -> nn.Module:
    """A `UNet1DModel`; by default that of a sound, of three levels."""
    config = {"block_out_channels": (8, 32, 32), "extra_in_channels": 16}
    with torch.no_grad(), seeded(0):
        return randomised(diffusers.UNet1DModel(**(config | overrides)))


def planner(levels: int, **overrides: Any) -> nn.Module:
    """A `UNet1DModel` in the layout of reinforcement learning: one up block less."""
    config = {
        "in_channels": 2,
        "extra_in_channels": 0,
        "block_out_channels": (8, 16, 24, 32)[:levels],
        "down_block_types": ("DownResnetBlock1D",) * levels,
        "up_block_types": ("UpResnetBlock1D",) * (levels - 1),
        "mid_block_type": "MidResTemporalBlock1D",
        "out_block_type": "OutConv1DBlock",
        "time_embedding_type": "positional",
        "use_timestep_embedding": True,
        "act_fn": "mish",
    }
    return one_dimensional(**(config | overrides))


def inputs_one_dimensional(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"sample": torch.randn(2, 2, 64, generator=generator), "timestep": torch.tensor(5)}


def kandinsky3(levels: int = 4, layers: int = 2) -> nn.Module:
    with torch.no_grad(), seeded(0):
        return randomised(
            diffusers.Kandinsky3UNet(
                time_embedding_dim=16,
                groups=2,
                attention_head_dim=4,
                layers_per_block=layers,
                block_out_channels=(8, 8, 16, 16)[:levels],
                cross_attention_dim=TEXT_WIDTH,
                encoder_hid_dim=TEXT_WIDTH,
            )
        )


def inputs_kandinsky3(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(2, 4, 8, 16, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 7, TEXT_WIDTH, generator=generator),
        "encoder_attention_mask": torch.ones(2, 7),
    }


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: Callable[..., dict[str, Any]]
    layout: type
    skips: int  # by hand
    branches: int


WITHOUT_CROSS_ATTENTION = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("KDownBlock2D",) * 3,
    "up_block_types": ("KUpBlock2D",) * 3,
}

MIDDLE = {"mid_block_type": "UNetMidBlock2DCrossAttn", "norm_num_groups": 4}

CASES = {
    # The deepest of the levels has a skip of `None`.
    "k-blocks": Case(k_blocks, inputs_k_blocks, KBlockAnatomy, 3, 3),
    "k-blocks-1-layer": Case(
        lambda: k_blocks(layers_per_block=1), inputs_k_blocks, KBlockAnatomy, 3, 3
    ),
    "k-blocks-layers-1-2-3": Case(
        lambda: k_blocks(block_out_channels=(32, 64, 64), layers_per_block=(1, 2, 3)),
        inputs_k_blocks, KBlockAnatomy, 2, 2,
    ),
    "k-blocks-mid-block": Case(
        lambda: k_blocks(block_out_channels=(64, 64), **MIDDLE),
        inputs_k_blocks, KBlockAnatomy, 1, 1,
    ),
    # Here it has a skip; without a middle block, the branch below it would leave nothing out.
    "k-blocks-no-attention": Case(
        lambda: k_blocks(**WITHOUT_CROSS_ATTENTION), inputs_k_blocks, KBlockAnatomy, 3, 2
    ),
    "k-blocks-no-attention-mid-block": Case(
        lambda: k_blocks(**WITHOUT_CROSS_ATTENTION, **MIDDLE),
        inputs_k_blocks, KBlockAnatomy, 3, 3,
    ),
    "sound": Case(one_dimensional, inputs_one_dimensional, OneDimensionalAnatomy, 3, 3),
    "sound-2-levels": Case(
        lambda: one_dimensional(
            block_out_channels=(32, 32),
            # As wide as the timestep's embedding, which was 16 whatever the channels.
            extra_in_channels=64 if has("diffusers", "0.36") else 16,
            down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
            up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
        ),
        inputs_one_dimensional, OneDimensionalAnatomy, 2, 2,
    ),
    # Nobody consumes what the topmost level emits.
    "planner-4-levels": Case(
        lambda: planner(4), inputs_one_dimensional, OneDimensionalAnatomy, 3, 3
    ),
    "planner-3-levels": Case(
        lambda: planner(3, layers_per_block=2), inputs_one_dimensional, OneDimensionalAnatomy, 2, 2
    ),
    "planner-2-levels": Case(
        lambda: planner(2), inputs_one_dimensional, OneDimensionalAnatomy, 1, 1
    ),
    "kandinsky3": Case(kandinsky3, inputs_kandinsky3, Kandinsky3Anatomy, 3, 3),
    "kandinsky3-3-layers": Case(
        lambda: kandinsky3(layers=3), inputs_kandinsky3, Kandinsky3Anatomy, 3, 3
    ),
}  # fmt: skip
