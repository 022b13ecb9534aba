"""Two networks that do next to nothing, to see the helper's own work and what it leaves behind."""

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel, UNet2DModel

from benchmarks.networks.loop_pipeline import LoopPipeline, Network, loop_of


def tiny(device: torch.device | str, dtype: torch.dtype) -> LoopPipeline:
    """A pipeline whose U-Net does next to nothing, to see the helper's own work beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what an adaptive schedule does depends on the weights
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
        )
    network = Network(
        title="tiny",
        parts=lambda width: {"unet": unet},
        shapes=lambda batch, height, width: {"sample": (batch, 3, height, width)},
        size=(8, 8),
        parameters=0.0,
        guided=False,
    )
    return loop_of(network, {"unet": unet}, DDIMScheduler(), device=device, dtype=dtype)


def smallest(device: torch.device | str, dtype: torch.dtype) -> LoopPipeline:
    """A pipeline with a ControlNet of two levels of one layer: a call takes milliseconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as above
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=8,
        )
        parts = {"unet": unet, "controlnet": ControlNetModel.from_unet(unet)}
    network = Network(
        title="the smallest with a ControlNet",
        parts=lambda width: parts,
        shapes=lambda batch, height, width: {
            "sample": (batch, 4, height, width),
            "encoder_hidden_states": (batch, 7, 8),
            "controlnet_cond": (batch, 3, 8 * height, 8 * width),
        },
        size=(8, 8),
        parameters=0.0,
    )
    return loop_of(network, parts, DDIMScheduler(), device=device, dtype=dtype)
