"""Tiny bare U-Nets of many layouts, with seeded random weights, and the arguments of their forward.

Nothing here knows of the package under test. The parts that a pipeline has besides its U-Net are in
`parts`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers import (
    UNet2DConditionModel,
    UNet2DModel,
)

from builders.copies import kept

Model = TypeVar("Model", bound=torch.nn.Module)

#: Side of the pictures that every text-guided case makes by default, in pixels.
SIDE = 16

#: Width of the text embeddings, and the `cross_attention_dim` of U-Nets with one text encoder.
TEXT_WIDTH = 16


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator inside, and puts its CPU state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def unet2d(*, seed: int = 0, **overrides: Any) -> UNet2DModel:
    """A small `UNet2DModel` in eval mode: by default two levels of one layer, 8×8 pixels.

    `down_block_types` and `up_block_types` follow `block_out_channels`, without attention, unless
    they are given.
    """
    channels = overrides.get("block_out_channels", (8, 16))
    config = {
        "sample_size": 8,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D",) * len(channels),
        "up_block_types": ("UpBlock2D",) * len(channels),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return _fresh(UNet2DModel, seed, config | overrides)


def unet2d_condition(*, seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    """A small `UNet2DConditionModel` in eval mode: by default SD's layout, three levels of two.

    `down_block_types` and `up_block_types` follow `block_out_channels`, with cross-attention in
    all but the deepest, unless they are given.
    """
    channels = overrides.get("block_out_channels", (8, 16, 16))
    deeper = len(channels) - 1
    config = {
        "sample_size": 8,
        "block_out_channels": channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * deeper + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deeper,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
    }
    return _fresh(UNet2DConditionModel, seed, config | overrides)


def _fresh(kind: type[Model], seed: int, config: dict[str, Any]) -> Model:
    """A model in eval mode; one of the same arguments is built only once."""

    def build() -> Model:
        with seeded(seed):
            return kind(**config).eval()

    key = f"{kind.__name__}({seed}, {config})"
    return _KEPT.setdefault(key, kept(build))()


#: What makes copies of each model that was asked for.
_KEPT: dict[str, Callable[[], Any]] = {}


def inputs2d(
    *, seed: int = 0, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: int = 500
) -> dict[str, Any]:
    """The keyword arguments of one `UNet2DModel.forward`, seeded."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 3, *size, generator=generator),
        "timestep": torch.tensor(timestep),
    }


def inputs2d_condition(
    *, seed: int = 0, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: int = 500
) -> dict[str, Any]:
    """The keyword arguments of one `UNet2DConditionModel.forward`, seeded."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 4, *size, generator=generator),
        "timestep": torch.tensor(timestep),
        "encoder_hidden_states": torch.randn(batch, 7, TEXT_WIDTH, generator=generator),
    }


class TinyUNet(NamedTuple):
    """How to build a bare U-Net and the keyword arguments of its forward.

    `inputs` takes `seed`, `batch` and `timestep` (and `size`, unless the layout fixes it).
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[..., dict[str, Any]]


def _plain(**config: Any) -> TinyUNet:
    return TinyUNet(functools.partial(unet2d, **config), inputs2d)


def _conditional(**config: Any) -> TinyUNet:
    return TinyUNet(functools.partial(unet2d_condition, **config), inputs2d_condition)


def _class_labels(inputs: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def with_labels(*, batch: int = 2, **options: Any) -> dict[str, Any]:
        return inputs(batch=batch, **options) | {"class_labels": torch.arange(batch) % 3}

    return with_labels


def _sdxl_inputs(*, seed: int = 0, batch: int = 2, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + 1)
    return inputs2d_condition(seed=seed, batch=batch, **options) | {
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch, TEXT_WIDTH, generator=generator),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]).repeat(batch, 1),
        }
    }


SDXL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 4,
}

#: Bare U-Nets of many layouts: readable id -> (build, inputs).
UNETS: dict[str, TinyUNet] = {
    "2d-1-layer": _plain(),
    "2d-2-layers": _plain(layers_per_block=2, block_out_channels=(8, 8, 16)),
    "2d-3-layers": _plain(layers_per_block=3),
    "2d-1-level": _plain(block_out_channels=(8,), layers_per_block=2),
    "2d-4-levels": _plain(block_out_channels=(8, 8, 8, 16)),
    "2d-attention-everywhere": _plain(
        layers_per_block=2,
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
    ),
    "2d-attention-inside": _plain(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
    "2d-resnet-samplers": _plain(
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
    ),
    # Only the attention blocks read `downsample_type` and `upsample_type`.
    "2d-attention-resnet-samplers": _plain(
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
        downsample_type="resnet",
        upsample_type="resnet",
    ),
    "2d-no-mid-block": _plain(mid_block_type=None),
    "2d-mid-without-attention": _plain(add_attention=False, resnet_time_scale_shift="scale_shift"),
    "2d-class-labels": TinyUNet(
        functools.partial(unet2d, num_class_embeds=3), _class_labels(inputs2d)
    ),
    "condition-1-layer": _conditional(layers_per_block=1),
    "condition-2-layers": _conditional(),
    "condition-3-layers": _conditional(layers_per_block=3, block_out_channels=(8, 16)),
    "condition-layers-1-2-3": _conditional(layers_per_block=(1, 2, 3)),
    "condition-1-level": _conditional(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ),
    "condition-4-levels": _conditional(block_out_channels=(8, 8, 16, 16), layers_per_block=1),
    "condition-transformer-layers": _conditional(
        transformer_layers_per_block=[1, 2, 3],
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    ),
    "condition-reverse-transformer-layers": _conditional(
        transformer_layers_per_block=[[1, 2], [2, 1], [1, 1]],
        reverse_transformer_layers_per_block=[[1, 1, 1], [1, 2, 1], [2, 1, 1]],
        # With nested lists the mid block cannot read its depth off the last level.
        mid_block_type=None,
    ),
    "condition-no-attention": _conditional(
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
    ),
    "condition-self-attention": _conditional(
        down_block_types=("AttnDownBlock2D",) * 3, up_block_types=("AttnUpBlock2D",) * 3
    ),
    # DeepFloyd IF's blocks.
    "condition-simple-attention": _conditional(
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=4,
    ),
    # SSD-1B's.
    "condition-no-mid-block": _conditional(mid_block_type=None),
    "condition-class-labels": TinyUNet(
        functools.partial(unet2d_condition, num_class_embeds=3, layers_per_block=1),
        _class_labels(inputs2d_condition),
    ),
    "condition-sdxl": TinyUNet(functools.partial(unet2d_condition, **SDXL), _sdxl_inputs),
    # The U-Net reads the shape of a skip for each upsampling here. `UNet2DModel` has no such code.
    "condition-odd-size": TinyUNet(
        unet2d_condition, functools.partial(inputs2d_condition, size=(9, 11))
    ),
}
