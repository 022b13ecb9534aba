"""Tiny transformers with long skips: Hunyuan-DiT, its ControlNet, UniDiffuser, its U-ViT."""

import torch
from diffusers import HunyuanDiT2DControlNetModel, HunyuanDiT2DModel, UniDiffuserModel

from builders.bare_models import (
    shake,
)
from builders.unets import seeded
from builders.versions_needed import deprecated

UTransformer2DModel = deprecated("unidiffuser.modeling_uvit").UTransformer2DModel

HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "hidden_size": 8,
    "mlp_ratio": 1.0,
    "cross_attention_dim": 8,
    "cross_attention_dim_t5": 8,
    "pooled_projection_dim": 4,
    "text_len": 3,
    "text_len_t5": 4,
    "use_style_cond_and_image_meta_size": False,
}


def hunyuan(num_layers):
    with seeded(0):
        return shake(HunyuanDiT2DModel(**HUNYUAN, num_layers=num_layers))


def hunyuan_controlnet(num_layers):
    with seeded(1):
        return shake(HunyuanDiT2DControlNetModel(**HUNYUAN, transformer_num_layers=num_layers))


def hunyuan_inputs(size=(8, 8), timestep=500.0, **more):
    generator = torch.Generator().manual_seed(0)
    tokens = size[0] * size[1] // 4
    return {
        "hidden_states": torch.randn(2, 4, *size, generator=generator),
        "timestep": torch.as_tensor(timestep).expand(2),
        "encoder_hidden_states": torch.randn(2, 3, 8, generator=generator),
        "text_embedding_mask": torch.ones(2, 3),
        "encoder_hidden_states_t5": torch.randn(2, 4, 8, generator=generator),
        "text_embedding_mask_t5": torch.tensor([[1, 1, 0, 0]] * 2).float(),
        "image_rotary_emb": tuple(torch.randn(tokens, 4, generator=generator) for _ in range(2)),
    } | more


UVIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
    "patch_size": 2,
    "attention_bias": True,
    "num_layers": 6,
}


def unidiffuser(**overrides):
    config = UVIT | {"text_dim": 8, "clip_img_dim": 8, "num_text_tokens": 3} | overrides
    with seeded(0):
        return shake(UniDiffuserModel(**config))


def unidiffuser_inputs(timestep=500.0):
    generator = torch.Generator().manual_seed(0)
    return {
        "latent_image_embeds": torch.randn(2, 4, 8, 8, generator=generator),
        "image_embeds": torch.randn(2, 1, 8, generator=generator),
        "prompt_embeds": torch.randn(2, 3, 8, generator=generator),
        "timestep_img": torch.as_tensor(timestep),
        "timestep_text": 0,
    }


def uvit(num_layers=6):
    with seeded(0):
        return shake(UTransformer2DModel(**UVIT | {"num_layers": num_layers}))


def uvit_inputs(timestep=500.0):
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.as_tensor(timestep),
    }
