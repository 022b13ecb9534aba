"""U-Nets of Stable Cascade and Würstchen, tiny ones, and the arguments of their forward."""

import torch
from diffusers import StableCascadeUNet

from builders.bare_models import (
    shake,
)
from builders.unets import seeded
from builders.versions_needed import deprecated

WuerstchenDiffNeXt = deprecated("wuerstchen.modeling_wuerstchen_diffnext").WuerstchenDiffNeXt

BLOCKS = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")


def cascade(down, up, *, down_repeats=None, up_repeats=None, **overrides):
    """Layers and repetitions of each level; `up` and `up_repeats` from the lowest."""
    levels = len(down)
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": 8,
        "block_out_channels": (8, 12, 16, 8)[:levels],
        "num_attention_heads": (2,) * levels,
        "down_num_layers_per_block": down,
        "up_num_layers_per_block": up,
        "down_blocks_repeat_mappers": down_repeats or (1,) * levels,
        "up_blocks_repeat_mappers": up_repeats or (1,) * levels,
        "block_types_per_layer": (BLOCKS,) * levels,
        "clip_text_pooled_in_channels": 8,
        "clip_seq": 2,
        "dropout": (0.1,) * levels,
    }
    with seeded(0):
        return shake(StableCascadeUNet(**(config | overrides)))


def cascade_inputs(size=(8, 8), timestep_ratio=0.5, **more):
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, *size, generator=generator),
        "timestep_ratio": torch.as_tensor(timestep_ratio).expand(2),
        "clip_text_pooled": torch.randn(2, 1, 8, generator=generator),
    } | more


def wuerstchen(blocks, **overrides):
    levels = len(blocks)
    config = {
        "c_r": 8,
        "c_cond": 8,
        "c_hidden": [8, 12, 16, 8][:levels],
        "nhead": [2] * levels,
        "blocks": blocks,
        "level_config": ["CT", "CTA", "CTA", "CTA"][:levels],
        "inject_effnet": [False, True, True, True][:levels],
        "effnet_embd": 4,
        "clip_embd": 8,
    }
    with seeded(0):
        return shake(WuerstchenDiffNeXt(**(config | overrides)))


def wuerstchen_inputs(size=(16, 16), r=0.5):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(2, 4, *size, generator=generator),
        "r": torch.as_tensor(r).expand(2),
        "effnet": torch.randn(2, 4, 4, 4, generator=generator),
        "clip": torch.randn(2, 3, 8, generator=generator),
    }


CASCADES = {
    "2-levels": lambda: cascade((1, 2), (2, 1)),
    "3-levels-repeated": lambda: cascade(
        (1, 2, 1), (2, 1, 3), down_repeats=(2, 1, 2), up_repeats=(3, 2, 1)
    ),
    "4-levels": lambda: cascade((2, 1, 1, 1), (1, 1, 1, 2)),
    "switched": lambda: cascade((1, 1, 1), (1, 1, 1), switch_level=(True, False)),
    "stage-b": lambda: cascade(
        (1, 1, 2),
        (2, 1, 1),
        up_repeats=(3, 3, 2),
        block_types_per_layer=(BLOCKS[:2], BLOCKS[:2], BLOCKS),
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
        patch_size=2,
        timestep_conditioning_type=("sca",),
    ),
}

CASCADE_SKIPS = {
    "2-levels": 1,
    "3-levels-repeated": 2,
    "4-levels": 3,
    "switched": 2,
    "stage-b": 2,
}

WUERSTCHENS = {
    "2-levels": lambda: wuerstchen([1, 2]),
    "3-levels": lambda: wuerstchen([1, 2, 1], inject_effnet=[True, False, True]),
    "4-levels": lambda: wuerstchen([2, 1, 1, 1]),
}


def inputs_of(name, size):
    more = (
        {"effnet": torch.linspace(-1, 1, 2 * 4 * 9).view(2, 4, 3, 3)} if name == "stage-b" else {}
    )
    return lambda: cascade_inputs(size, **more)
