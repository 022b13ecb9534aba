"""The U-Nets that are measured: of their true size, with random weights, without a download.

The work that a network does depends on its configuration and on the shape of its input, not on its
weights. `NETWORKS` says what there is, and `build` makes a pipeline of one. On the device "meta"
nothing has values: that is for counting work without doing it.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn

from benchmarks.networks.loop_pipeline import LoopPipeline, Network, loop_of


def build(
    name: str,
    *,
    width: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LoopPipeline:
    """Make a pipeline of a network with random weights.

    Args:
        name: A key of `NETWORKS`.
        width: Its channels are those of the true network times this, more than 0, and rounded to
            what its norms and heads can be made of.
        device: Where it is made; "meta" for one without values.
        dtype: Of weights and inputs.
        seed: Of the weights.
    """
    network = NETWORKS[name]
    torch.manual_seed(seed)
    with torch.device(device):
        parts = network.parts(width)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=not network.guided,
        set_alpha_to_one=False,
    )
    # To the device once more: SVD makes some parameters on the CPU all the same.
    return loop_of(network, parts, scheduler, device=device, dtype=dtype)


def _channels(width: float, channels: tuple[int, ...], multiple: int) -> tuple[int, ...]:
    """The channels times `width`, as multiples of the size of a head or the number of groups."""
    return tuple(max(1, round(each * width / multiple)) * multiple for each in channels)


def _text_to_image(width: float, *, heads_of: int | None, **config: Any) -> UNet2DConditionModel:
    """One in the layout of Stable Diffusion; with 8 heads, or heads of so many channels."""
    given = config.pop("channels", (320, 640, 1280, 1280))
    channels = _channels(width, given, heads_of or 32)
    return UNet2DConditionModel(
        block_out_channels=channels,
        attention_head_dim=tuple(each // heads_of for each in channels) if heads_of else 8,
        **config,
    )


def _sd15(width: float) -> dict[str, nn.Module]:
    unet = _text_to_image(width, heads_of=None, cross_attention_dim=768, sample_size=64)
    return {"unet": unet}


def _sd15_controlnet(width: float) -> dict[str, nn.Module]:
    unet = _sd15(width)["unet"]
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return {"unet": unet, "controlnet": controlnet}


def _sd21(width: float) -> dict[str, nn.Module]:
    unet = _text_to_image(
        width, heads_of=64, cross_attention_dim=1024, use_linear_projection=True, sample_size=96
    )
    return {"unet": unet}


def _sdxl(width: float) -> dict[str, nn.Module]:
    unet = _text_to_image(
        width,
        heads_of=64,
        channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        sample_size=128,
    )
    return {"unet": unet}


def _ldm4(width: float) -> dict[str, nn.Module]:
    # `cin256-v2.yaml` of CompVis/latent-diffusion: attention where one side is 32, 16 and 8.
    unet = _text_to_image(
        width,
        heads_of=32,
        channels=(192, 384, 576, 960),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        cross_attention_dim=512,
        sample_size=64,
    )
    return {"unet": unet}


def _svd(width: float) -> dict[str, nn.Module]:
    channels = _channels(width, (320, 640, 1280, 1280), 64)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=channels,
        num_attention_heads=tuple(each // 64 for each in channels),
        num_frames=_SVD_FRAMES,
        sample_size=96,
    )
    return {"unet": unet}


def _animatediff(width: float) -> dict[str, nn.Module]:
    # What `UNetMotionModel.from_unet2d` makes of SD 1.5 and a default `MotionAdapter`.
    unet = UNetMotionModel(
        block_out_channels=_channels(width, (320, 640, 1280, 1280), 32),
        cross_attention_dim=768,
        sample_size=64,
    )
    return {"unet": unet}


def _ddpm(
    width: float, channels: tuple[int, ...], attention: int, size: int
) -> dict[str, nn.Module]:
    """One of google/ddpm-*: with attention at one level, 0 being the outermost."""
    levels = range(len(channels))
    unet = UNet2DModel(
        sample_size=size,
        block_out_channels=_channels(width, channels, 32),
        down_block_types=["AttnDownBlock2D" if n == attention else "DownBlock2D" for n in levels],
        up_block_types=["AttnUpBlock2D" if n == attention else "UpBlock2D" for n in levels][::-1],
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    return {"unet": unet}


def _text_shapes(width: int) -> Callable[[int, int, int], dict[str, Any]]:
    return lambda n, h, w: {"sample": (n, 4, h, w), "encoder_hidden_states": (n, 77, width)}


def _picture_shapes(n: int, h: int, w: int) -> dict[str, Any]:
    return {"sample": (n, 3, h, w)}


def _controlnet_shapes(n: int, h: int, w: int) -> dict[str, Any]:
    return {**_text_shapes(768)(n, h, w), "controlnet_cond": (n, 3, 8 * h, 8 * w)}


def _sdxl_shapes(n: int, h: int, w: int) -> dict[str, Any]:
    added = {"text_embeds": (n, 1280), "time_ids": (n, 6)}
    return {**_text_shapes(2048)(n, h, w), "added_cond_kwargs": added}


_SVD_FRAMES = 14
_ANIMATEDIFF_FRAMES = 16


def _svd_shapes(n: int, h: int, w: int) -> dict[str, Any]:
    return {
        "sample": (n, _SVD_FRAMES, 8, h, w),
        "encoder_hidden_states": (n, 1, 1024),
        "added_time_ids": (n, 3),
    }


def _animatediff_shapes(n: int, h: int, w: int) -> dict[str, Any]:
    frames = _ANIMATEDIFF_FRAMES
    return {
        "sample": (n, 4, frames, h, w),
        "encoder_hidden_states": (n * frames, 77, 768),
    }


#: Beside branch 0 stands the one of the paper's tables. It counts from 1, and its code from 0: "the
#: skip branch 3/1/2 for DDPMs, LDM-4-G and Stable Diffusion" are 2, 0 and 1.
NETWORKS = {
    "sd15": Network("SD 1.5", _sd15, _text_shapes(768), (64, 64), 859.5, branches=(0, 1)),
    "sd21": Network("SD 2.1", _sd21, _text_shapes(1024), (96, 96), 865.9, branches=(0, 1)),
    "sdxl": Network("SDXL", _sdxl, _sdxl_shapes, (128, 128), 2567.5, branches=(0, 1)),
    "svd": Network("SVD, 14 frames", _svd, _svd_shapes, (72, 128), 1524.6),
    "ldm4-imagenet": Network(
        "LDM-4, ImageNet",
        _ldm4,
        lambda n, h, w: {"sample": (n, 3, h, w), "encoder_hidden_states": (n, 1, 512)},
        (64, 64),
        400.9,
    ),
    "ddpm-cifar10": Network(
        "DDPM, CIFAR-10",
        lambda width: _ddpm(width, (128, 256, 256, 256), 1, 32),
        _picture_shapes,
        (32, 32),
        35.7,
        guided=False,
        branches=(0, 2),
        smallest=16,
    ),
    "ddpm-lsun": Network(
        "DDPM, LSUN church",
        lambda width: _ddpm(width, (128, 128, 256, 256, 512, 512), 4, 256),
        _picture_shapes,
        (256, 256),
        113.7,
        guided=False,
        branches=(0, 2),
        smallest=64,
    ),
    "animatediff": Network(
        "AnimateDiff, 16 frames", _animatediff, _animatediff_shapes, (64, 64), 1312.7
    ),
    "sd15-controlnet": Network(
        "SD 1.5 + ControlNet", _sd15_controlnet, _controlnet_shapes, (64, 64), 859.5
    ),
}
