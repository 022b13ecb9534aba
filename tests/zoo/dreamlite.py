"""Tiny DreamLite pipelines, which older versions of diffusers do not have."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from string import ascii_letters, digits, punctuation
from typing import Any

import torch
from builders.cases import PROMPT, Case, picture, run_pipeline
from builders.unets import SIDE, TEXT_WIDTH, seeded
from diffusers import (
    AutoencoderTiny,
    DiffusionPipeline,
    DreamLiteMobilePipeline,
    DreamLitePipeline,
    DreamLiteUNetModel,
    FlowMatchEulerDiscreteScheduler,
)
from transformers import (
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from zoo.cascades import load_with_parts


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer that spells; "Ġ" and "Ċ" are the space and the line's end."""
    special = [
        "<|endoftext|>",
        *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|image_pad|>", "<|video_pad|>"),
    ]
    words = [*special, *ascii_letters, *digits, *punctuation, "Ġ", "Ċ"]
    return Qwen2Tokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=[],
        additional_special_tokens=special[1:],
    )


class _Processor(Qwen3VLProcessor):
    """A processor without its part for videos, which torchvision is needed for."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        """Allows that None is passed."""


def _qwen_processor() -> Qwen3VLProcessor:
    return _Processor(Qwen2VLImageProcessorPil(patch_size=16), _qwen_tokenizer())


def _dreamlite_parts() -> dict[str, Any]:
    words = _qwen_tokenizer()
    text = {
        "vocab_size": len(words),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [1, 1, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_WIDTH,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    tokens = {
        f"{name}_token_id": words.convert_tokens_to_ids(f"<|{word}|>")
        for name, word in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    # Pixels are clamped to between 0 and 1: in the middle they show the most.
    torch.nn.init.constant_(autoencoder.decoder.layers[-1].bias, 0.5)
    with seeded(0):
        unet = DreamLiteUNetModel(
            sample_size=SIDE // 2,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=TEXT_WIDTH,
            encoder_hid_dim=TEXT_WIDTH,
            encoder_hid_dim_type="text_proj_rms",
            addition_embed_type="time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8,
        )
    with torch.no_grad():
        # Separable convolutions make little of random weights.
        unet.conv_out.weight *= 8
    return {
        "text_encoder": Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
        ),
        "tokenizer": words,
        "processor": None,
        "vae": autoencoder,
        "unet": unet,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _dreamlite() -> DiffusionPipeline:
    return DreamLitePipeline(**_dreamlite_parts())


def _dreamlite_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    others: Mapping[str, Mapping[str, Any]],
    **edited: Any,
) -> Case:
    """A case that edits the picture, or makes one if there is none."""

    def processor() -> dict[str, Any]:
        # Only editing needs it; one that is saved could not be loaded without torchvision.
        return {"processor": _qwen_processor() if edited else None}

    return Case(
        name,
        pipeline,
        load=functools.partial(load_with_parts, pipeline, _dreamlite, processor),
        run=functools.partial(
            run_pipeline, defaults={"height": SIDE, "width": SIDE, **PROMPT, **edited}
        ),
        others={
            "seed": {"seed": 1},
            "steps": {"steps": 7},
            "size": {"height": 2 * SIDE, "width": 2 * SIDE},
            **others,
        },
    )


#: Guidance cannot be switched off here: each step is a call with all prompts.
_GUIDANCE = {"guidance": {"guidance_scale": 2.0}}
_BATCH = {"batch": {"num_images_per_prompt": 2}}

#: Pipelines by readable id.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # Only without guidance and a picture can it make several pictures for a prompt.
        _dreamlite_case("dreamlite", DreamLitePipeline, _GUIDANCE),
        _dreamlite_case("dreamlite-edit", DreamLitePipeline, _GUIDANCE, image=picture()),
        _dreamlite_case("dreamlite-mobile", DreamLiteMobilePipeline, _BATCH),
        _dreamlite_case("dreamlite-mobile-edit", DreamLiteMobilePipeline, {}, image=picture()),
    )
}
