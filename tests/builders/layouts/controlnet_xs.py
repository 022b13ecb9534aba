"""U-Nets with a ControlNet-XS, tiny ones, and the arguments of their forward."""

import torch
from diffusers import ControlNetXSAdapter, UNetControlNetXSModel

from builders.bare_models import (
    shake,
)
from builders.unets import seeded, unet2d_condition


def unet_xs(channels=(4, 8, 8), **overrides):
    levels = len(channels)
    config = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        "block_out_channels": channels,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "num_attention_heads": 2,
        "upcast_attention": False,
        "ctrl_conditioning_embedding_out_channels": (2, 4),
        "ctrl_block_out_channels": (2, 4, 4, 4)[:levels],
        "ctrl_num_attention_heads": 2,
        "ctrl_max_norm_num_groups": 2,
    }
    with seeded(0):
        return shake(UNetControlNetXSModel(**(config | overrides)))


def inputs(size=(8, 8), timestep=500, **more):
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, *size, generator=generator),
        "timestep": torch.as_tensor(timestep),
        "encoder_hidden_states": torch.randn(2, 5, 8, generator=generator),
        # Two embedding channels, so the condition is halved once.
        "controlnet_cond": torch.rand(2, 3, *(2 * side for side in size), generator=generator),
        "conditioning_scale": 0.7,
    } | more


# The skips by hand: one for the input, two for each level, one for each downsampler.
UNETS = {
    "2-levels": (lambda: unet_xs((4, 8)), 1 + 2 * 2 + 1),
    "3-levels": (unet_xs, 1 + 3 * 2 + 2),
    "4-levels": (lambda: unet_xs((4, 4, 8, 8)), 1 + 4 * 2 + 3),
    "time-embedding": (
        lambda: unet_xs((4, 8), ctrl_learn_time_embedding=True, time_embedding_mix=0.5),
        1 + 2 * 2 + 1,
    ),
    "attention-everywhere": (
        lambda: unet_xs(
            (4, 8),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        ),
        1 + 2 * 2 + 1,
    ),
    "from-unet": (
        lambda: shake(_from_unet()),
        1 + 3 * 2 + 2,
    ),
}


def _from_unet():
    unet = unet2d_condition(cross_attention_dim=8)
    with seeded(0):
        adapter = ControlNetXSAdapter.from_unet(
            unet,
            size_ratio=0.5,
            conditioning_embedding_out_channels=(2, 4),
            num_attention_heads=2,
        )
    return UNetControlNetXSModel.from_unet(unet, adapter)
