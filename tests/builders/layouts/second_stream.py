"""Tiny U-Nets of NCSN++, with a second stream, and the arguments of their forward."""

from typing import Any

import torch
from torch import nn

from builders.unets import inputs2d, unet2d

# Attention blocks normalise in 32 groups, whatever `norm_num_groups`.
CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {
        "block_out_channels": (8, 32, 32),
        "down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"),
    },
    "attention-in-between-2-layers": {
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "layers_per_block": 2,
    },
    "attention-at-the-top": {
        "block_out_channels": (32, 32),
        "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D"),
    },
    "3-layers": {
        "block_out_channels": (8, 16),
        "down_block_types": ("SkipDownBlock2D",) * 2,
        "up_block_types": ("SkipUpBlock2D",) * 2,
        "layers_per_block": 3,
    },
    "1-level": {
        "block_out_channels": (8,),
        "down_block_types": ("SkipDownBlock2D",),
        "up_block_types": ("SkipUpBlock2D",),
    },
    "no-mid-block": {
        "block_out_channels": (8, 16),
        "down_block_types": ("SkipDownBlock2D",) * 2,
        "up_block_types": ("SkipUpBlock2D",) * 2,
        "mid_block_type": None,
    },
    # The second stream begins and ends above the deepest level.
    "ordinary-deepest": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"),
    },
    "only-down": {
        "block_out_channels": (8, 16),
        "down_block_types": ("SkipDownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
    },
    "only-up": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("SkipUpBlock2D",) * 2,
    },
}

# By hand: one for conv_in, one for each layer, one for each downsampler.
SKIPS = {
    "attention": 1 + 3 * 1 + 2,
    "attention-in-between-2-layers": 1 + 3 * 2 + 2,
    "attention-at-the-top": 1 + 2 * 1 + 1,
    "3-layers": 1 + 2 * 3 + 1,
    "1-level": 1 + 1,
    "no-mid-block": 1 + 2 * 1 + 1,
    "ordinary-deepest": 1 + 3 * 1 + 2,
    "only-down": 1 + 2 * 1 + 1,
    "only-up": 1 + 2 * 1 + 1,
}


def build(name: str) -> nn.Module:
    return unet2d(time_embedding_type="fourier", **CONFIGS[name])


def inputs(seed: int = 0, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    return inputs2d(seed=seed, size=size) | {"timestep": torch.tensor(2.5)}
