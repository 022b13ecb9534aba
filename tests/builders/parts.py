"""What a tiny pipeline consists of: text encoders, tokenizers, autoencoders, for each base model.

The bare U-Nets are in `unets`; what is built of the parts, saved and loaded is in `models`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any, TypeVar

from diffusers import (
    AutoencoderKL,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from builders.schedulers import sd_scheduler
from builders.unets import SDXL, SIDE, TEXT_WIDTH, unet2d_condition
from builders.versions_needed import require

Tokenizer = TypeVar("Tokenizer")


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells: one token for each letter or digit, no merges."""
    letters = ascii_lowercase + digits
    words = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    # From files, because the arguments are others in transformers 4 than in 5.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def from_vocabulary(kind: Callable[..., Tokenizer], **options: Any) -> Tokenizer:
    """A tokenizer of another kind, made from its vocabulary; skips the test where none can be."""
    require("transformers", "5", f"{kind.__name__}(vocab=…)")
    return kind(**options)


def text_config() -> CLIPTextConfig:
    words = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def vae(channels: tuple[int, ...] = (4, 8)) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIDE,
        # SDXL's pipelines cast the autoencoder to float32 by default, and log that they do.
        force_upcast=False,
    )


def vqvae() -> VQModel:
    return VQModel(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=2,
        sample_size=SIDE,
    )


def sd_parts(**unet: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": CLIPTextModel(text_config()),
        "tokenizer": tokenizer(),
        "unet": unet2d_condition(**unet),
        "scheduler": sd_scheduler(),
    }


#: The parts of SD's pipelines that these cases do without.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def depth_parts() -> dict[str, Any]:
    estimator = DPTConfig(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4,
        is_hybrid=False,
    )
    return {
        "depth_estimator": DPTForDepthEstimation(estimator),
        "feature_extractor": DPTImageProcessor(size={"height": 32, "width": 32}),
    }


def sdxl_parts() -> dict[str, Any]:
    return {
        **sd_parts(**SDXL, cross_attention_dim=2 * TEXT_WIDTH),
        "tokenizer_2": tokenizer(),
        "text_encoder_2": CLIPTextModelWithProjection(text_config()),
    }


def refiner_parts() -> dict[str, Any]:
    """The refiner has the second text encoder only, and five time ids in place of six."""
    unet = {
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": (
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        "up_block_types": (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "UpBlock2D",
        ),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 5 * 4,
    }
    return {
        **sd_parts(**unet),
        "text_encoder": None,
        "tokenizer": None,
        "tokenizer_2": tokenizer(),
        "text_encoder_2": CLIPTextModelWithProjection(text_config()),
        "requires_aesthetics_score": True,
    }
