"""T-GATE 1.0.0 and tomesd 0.1.3, the published packages, on the networks of `catalogue`.

Both save other work than DeepCache does. tomesd merges tokens of attention. T-GATE keeps the output
of attention from some step on, and computes no guidance from there, which is where most of its
speed comes from; its loops are its own, in three pipelines of diffusers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
)
from torch import nn

from benchmarks.networks.loop_pipeline import LoopPipeline, placed

_GUIDANCE_SCALE = 7.5


@contextmanager
def merged_tokens(pipe: LoopPipeline, ratio: float = 0.5) -> Iterator[None]:
    """Have tomesd merge so many of the tokens for the length of a block.

    Raises:
        NotImplementedError: If the U-Net has no transformer block, so that nothing is merged.
    """
    import tomesd

    if not any(type(each).__name__ == "BasicTransformerBlock" for each in pipe.unet.modules()):
        raise NotImplementedError("tomesd merges nothing here: there are no transformer blocks")
    tomesd.apply_patch(pipe, ratio=ratio)
    try:
        yield
    finally:
        tomesd.remove_patch(pipe)


def t_gate(
    pipe: LoopPipeline, steps: int, *, batch: int, size: tuple[int, int], seed: int
) -> Callable[[], Any]:
    """What runs T-GATE's own loop once, up to the latents, with the settings of its documentation.

    Args:
        pipe: Whose U-Net and scheduler are used. T-GATE leaves its traces in the U-Net.
        steps: Of the loop; the gate closes at two fifths of them.
        batch: How many pictures or videos.
        size: Height and width of the latents.
        seed: Of the inputs.

    Raises:
        NotImplementedError: If T-GATE has no pipeline for the network.
    """
    makers: dict[str, Callable[..., tuple[DiffusionPipeline, dict[str, Any]]]] = {
        "SD 1.5": _text_to_image,
        "SD 2.1": _text_to_image,
        "SDXL": _text_to_image_xl,
        "SVD, 14 frames": _image_to_video,
    }
    title = pipe.network.title
    if title not in makers:
        raise NotImplementedError(f"T-GATE has no pipeline for {title}")
    theirs, arguments = makers[title](pipe, batch, seed)
    theirs.set_progress_bar_config(disable=True)
    height, width = size

    def run() -> Any:
        return theirs.tgate(  # type: ignore[attr-defined, unused-ignore]
            height=8 * height,
            width=8 * width,
            num_inference_steps=steps,
            gate_step=max(1, round(0.4 * steps)),
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **arguments,
        )

    return run


def _text_to_image(pipe: LoopPipeline, batch: int, seed: int) -> tuple[Any, dict[str, Any]]:
    from tgate import TgateSDLoader

    theirs = StableDiffusionPipeline(
        vae=_placed(_small_vae(), pipe),
        text_encoder=None,
        tokenizer=None,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return TgateSDLoader(theirs), _embeddings(pipe, batch, seed)


def _text_to_image_xl(pipe: LoopPipeline, batch: int, seed: int) -> tuple[Any, dict[str, Any]]:
    from tgate import TgateSDXLLoader

    theirs = StableDiffusionXLPipeline(
        vae=_placed(_small_vae(), pipe),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        add_watermarker=False,
    )
    added = pipe.call_arguments(batch=batch, seed=seed)["added_cond_kwargs"]["text_embeds"]
    pooled = {"pooled_prompt_embeds": added, "negative_pooled_prompt_embeds": -added}
    return TgateSDXLLoader(theirs), _embeddings(pipe, batch, seed) | pooled


def _image_to_video(pipe: LoopPipeline, batch: int, seed: int) -> tuple[Any, dict[str, Any]]:
    from PIL import Image
    from tgate import TgateSVDLoader
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    encoder = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=1024,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=224,
        patch_size=32,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * 4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
    )
    theirs = StableVideoDiffusionPipeline(
        vae=_placed(vae, pipe),
        image_encoder=_placed(CLIPVisionModelWithProjection(encoder), pipe),
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        feature_extractor=CLIPImageProcessor(),
    )
    return TgateSVDLoader(theirs), {"image": [Image.new("RGB", (64, 64))] * batch}


def _embeddings(pipe: LoopPipeline, batch: int, seed: int) -> dict[str, Any]:
    text = pipe.call_arguments(batch=batch, seed=seed)["encoder_hidden_states"]
    return {
        "prompt_embeds": text,
        "negative_prompt_embeds": -text,
        "guidance_scale": _GUIDANCE_SCALE,
    }


def _small_vae() -> AutoencoderKL:
    """One that the loop does not need, but the pipelines do."""
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _placed(module: nn.Module, pipe: LoopPipeline) -> nn.Module:
    return placed(module, pipe.device, pipe.unet.dtype)
