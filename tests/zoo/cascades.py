"""Tiny DeepFloyd IF, unCLIP, Würstchen and Stable Cascade pipelines.

They come in stages: pipelines that one calls after each other, or several denoisers
in one pipeline, which `unets` then names in the order in which they run. Würstchen's and unCLIP's
priors have no skips: they are no U-Nets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from builders.cases import ABSENT, PROMPT, Case, mask, picture, run_pipeline
from builders.models import load_pipeline, model_folder
from builders.parts import UNCHECKED, text_config, tokenizer
from builders.unets import SIDE, TEXT_WIDTH, seeded, unet2d, unet2d_condition
from builders.versions_needed import deprecated
from diffusers import (
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    WuerstchenCombinedPipeline,
    WuerstchenDecoderPipeline,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from zoo.kandinsky import (
    SIMPLE_BLOCKS,
    fill_zeros,
    image_encoder,
    image_processor,
    prior,
    t5_parts,
    variations,
)

UnCLIPTextProjModel = deprecated("unclip.text_proj").UnCLIPTextProjModel
PaellaVQModel = deprecated("wuerstchen").PaellaVQModel
WuerstchenDiffNeXt = deprecated("wuerstchen").WuerstchenDiffNeXt
WuerstchenPrior = deprecated("wuerstchen").WuerstchenPrior


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load_with_parts(
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    parts: Callable[[], dict[str, Any]],
) -> DiffusionPipeline:
    """As `load_pipeline`, with components that `from_pretrained` itself does not load."""
    pipe = pipeline.from_pretrained(model_folder(build), local_files_only=True, **parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _built(build: Callable[[], DiffusionPipeline]) -> DiffusionPipeline:
    """A pipeline that `from_pretrained` cannot load: built anew each time, with equal weights.

    diffusers 0.42 moved deprecated pipelines, and no longer finds the classes of models that only
    they have: neither what is saved loads, nor can components of these classes be passed.
    """
    with seeded(0):
        pipe = build()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _case(
    name: str,
    pipeline: type[DiffusionPipeline],
    load: Callable[[], DiffusionPipeline],
    *,
    unets: tuple[str, ...] = ("unet",),
    stages: tuple[str, ...] = ("num_inference_steps",),
    others: Mapping[str, Mapping[str, Any]],
    **defaults: Any,
) -> Case:
    """A case whose `steps` is what each of the arguments `stages` gets."""

    def run(
        pipe: DiffusionPipeline, *, steps: int = 5, seed: int = 0, **overrides: Any
    ) -> torch.Tensor:
        each = {"num_inference_steps": ABSENT, **defaults, **dict.fromkeys(stages, steps)}
        return run_pipeline(pipe, defaults=each, steps=steps, seed=seed, **overrides)

    basic = {"seed": {"seed": 1}, "steps": {"steps": 7}}
    return Case(name, pipeline, load, run, unets=unets, others={**basic, **others})


# --- DeepFloyd IF -------------------------------------------------------------------------------


def _if_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )


def _if_parts(**unet: Any) -> dict[str, Any]:
    config = {
        **SIMPLE_BLOCKS,
        "sample_size": SIDE,
        "in_channels": 3,
        # The other half of the channels is the variance.
        "out_channels": 6,
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "encoder_hid_dim": TEXT_WIDTH,
        "cross_attention_dim": 32,  # The norm of what is attended to has 32 groups.
        "cross_attention_norm": "group_norm",
    }
    return {
        **t5_parts(),
        "unet": unet2d_condition(**(config | unet)),
        "scheduler": _if_scheduler(),
        **UNCHECKED,
        "watermarker": None,
    }


def _if_upscaler_parts() -> dict[str, Any]:
    unet = {
        "in_channels": 6,
        "class_embed_type": "timestep",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.414,
        "mid_block_scale_factor": 1.414,
        "time_embedding_act_fn": "gelu",
    }
    return {
        **_if_parts(**unet),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def _if_base() -> DiffusionPipeline:
    return IFPipeline(**_if_parts())


def _if_upscaler() -> DiffusionPipeline:
    return IFSuperResolutionPipeline(**_if_upscaler_parts())


#: "pt", since "np" would clamp the pictures, which are pixels all the way.
_IF = {**PROMPT, "clean_caption": False, "output_type": "pt"}
_LARGE = {"height": 2 * SIDE, "width": 2 * SIDE}
_LARGE_PICTURE = _noise(1, 3, 2 * SIDE, 2 * SIDE).clamp(-1, 1)
_LARGE_MASK = (torch.arange(2 * SIDE) >= SIDE).float().expand(1, 1, 2 * SIDE, 2 * SIDE)


def _if_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    large: dict[str, Any],
    **pictures: Any,
) -> Case:
    # The pipelines repeat the pictures themselves.
    others = variations(pipeline, pictures, pictures, size=large)
    # The watermarker is optional, but one of the classes does not say so.
    load = functools.partial(load_with_parts, pipeline, build, lambda: {"watermarker": None})
    return _case(name, pipeline, load, others=others, **_IF, **pictures)


# --- unCLIP -------------------------------------------------------------------------------------


def _unclip_scheduler() -> UnCLIPScheduler:
    return UnCLIPScheduler(variance_type="learned_range")


def _unclip_parts() -> dict[str, Any]:
    upscaler = {
        "sample_size": 2 * SIDE,
        "in_channels": 6,
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "resnet_time_scale_shift": "scale_shift",
        "add_attention": False,
    }
    decoder = unet2d_condition(
        **SIMPLE_BLOCKS,
        sample_size=SIDE,
        in_channels=3,
        out_channels=6,
        class_embed_type="identity",
    )
    return {
        "decoder": decoder,
        "text_encoder": CLIPTextModelWithProjection(text_config()),
        "tokenizer": tokenizer(),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=TEXT_WIDTH,
            time_embed_dim=4 * decoder.config.block_out_channels[0],
            cross_attention_dim=TEXT_WIDTH,
        ),
        "super_res_first": unet2d(**upscaler),
        "super_res_last": unet2d(**upscaler, seed=1),
        "decoder_scheduler": _unclip_scheduler(),
        "super_res_scheduler": UnCLIPScheduler(),
    }


def _unclip() -> DiffusionPipeline:
    return UnCLIPPipeline(
        **_unclip_parts(),
        prior=prior(),
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
    )


def _unclip_variation() -> DiffusionPipeline:
    return UnCLIPImageVariationPipeline(
        **_unclip_parts(), feature_extractor=image_processor(), image_encoder=image_encoder()
    )


#: `super_res_last` takes the last of the upscaler's steps, `super_res_first` all before.
_UNCLIP: dict[str, Any] = {
    "unets": ("decoder", "super_res_first", "super_res_last"),
    "stages": ("decoder_num_inference_steps", "super_res_num_inference_steps"),
}
_FEWER_UPSCALING = {"super_res_num_inference_steps": 4}

# --- Würstchen and Stable Cascade ---------------------------------------------------------------

#: Channels of what the priors make.
_EMBEDS = 4


def _vqgan(scale_factor: float) -> PaellaVQModel:
    model = PaellaVQModel(levels=1, bottleneck_blocks=1, embed_dim=8, scale_factor=scale_factor)
    # Pixels are clamped to between 0 and 1: in the middle they show the most.
    torch.nn.init.constant_(model.out_block[0].bias, 0.5)
    return model


def _deepen(model: torch.nn.Module) -> torch.nn.Module:
    """Lets what comes from the deeper levels count, beside what each adds on the way up."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.ConvTranspose2d) or name.startswith("up_repeat_mappers"):
                for parameter in module.parameters(recurse=False):
                    parameter *= 4
    return model


def _wuerstchen_parts() -> dict[str, Any]:
    with seeded(0):
        decoder = WuerstchenDiffNeXt(
            c_r=8,
            c_cond=TEXT_WIDTH,
            # Four levels: three skips.
            c_hidden=[8, 8, 16, 16],
            nhead=[-1, 2, 2, 2],
            blocks=[1, 1, 2, 1],
            effnet_embd=_EMBEDS,
            clip_embd=TEXT_WIDTH,
        )
    # Its last layer and the time's start as zeros.
    _deepen(fill_zeros(decoder, std=0.3))
    with torch.no_grad():
        # What it returns is divided by a sigmoid of the outputs' second half. With a half there,
        # the latents would double in each step.
        decoder.clf[1].bias[len(decoder.clf[1].bias) // 2 :] += 4
    return {
        "tokenizer": tokenizer(),
        "text_encoder": CLIPTextModel(text_config()),
        "decoder": decoder,
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": _vqgan(0.3764),
    }


def _wuerstchen() -> DiffusionPipeline:
    return WuerstchenDecoderPipeline(**_wuerstchen_parts())


def _wuerstchen_combined() -> DiffusionPipeline:
    return WuerstchenCombinedPipeline(
        **_wuerstchen_parts(),
        prior_tokenizer=tokenizer(),
        prior_text_encoder=CLIPTextModel(text_config()),
        prior_prior=WuerstchenPrior(c_in=_EMBEDS, c=8, c_cond=TEXT_WIDTH, c_r=8, depth=1, nhead=2),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


def _cascade_unet(**config: Any) -> StableCascadeUNet:
    """A U-Net of Stable Cascade of four levels: three skips."""
    thin, thick = (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    )
    defaults = {
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": TEXT_WIDTH,
        "block_out_channels": (8, 8, 16, 16),
        "num_attention_heads": (0, 0, 2, 2),
        "block_types_per_layer": (thin, thin, thick, thick),
        "down_num_layers_per_block": (1, 1, 2, 1),
        "up_num_layers_per_block": (1, 2, 1, 1),
        "down_blocks_repeat_mappers": (1, 1, 1, 1),
        "up_blocks_repeat_mappers": (1, 1, 1, 1),
        "dropout": (0.0,) * 4,
        "clip_text_pooled_in_channels": TEXT_WIDTH,
        "clip_seq": 2,
    }
    with seeded(0):
        model = StableCascadeUNet(**(defaults | config))
    return _deepen(fill_zeros(model))


def _cascade_text() -> dict[str, Any]:
    return {
        "tokenizer": tokenizer(),
        "text_encoder": CLIPTextModelWithProjection(text_config()),
        "scheduler": DDPMWuerstchenScheduler(),
    }


def _cascade_prior_parts() -> dict[str, Any]:
    return {
        **_cascade_text(),
        # The released one has two levels, of one size: a single skip.
        "prior": _cascade_unet(
            in_channels=_EMBEDS,
            out_channels=_EMBEDS,
            clip_text_in_channels=TEXT_WIDTH,
            clip_image_in_channels=TEXT_WIDTH,
            switch_level=(False, True, False),
        ),
    }


def _cascade_decoder_parts() -> dict[str, Any]:
    return {
        **_cascade_text(),
        "decoder": _cascade_unet(
            in_channels=4,
            out_channels=4,
            patch_size=2,
            effnet_in_channels=_EMBEDS,
            pixel_mapper_in_channels=3,
            timestep_conditioning_type=("sca",),
            # As released: the upper levels run again, skip and all.
            up_blocks_repeat_mappers=(3, 3, 2, 2),
        ),
        # Random weights take no noise away, so the latents grow a hundredfold.
        "vqgan": _vqgan(0.003764),
    }


def _cascade_prior() -> DiffusionPipeline:
    return StableCascadePriorPipeline(**_cascade_prior_parts())


def _cascade_decoder() -> DiffusionPipeline:
    return StableCascadeDecoderPipeline(**_cascade_decoder_parts())


def _cascade_combined() -> DiffusionPipeline:
    first = {f"prior_{name}": part for name, part in _cascade_prior_parts().items()}
    return StableCascadeCombinedPipeline(**_cascade_decoder_parts(), **first)


#: 3×3 from a prior are 32×32 latents.
_SQUARE = {"height": 128, "width": 128}
_WIDE = {"height": 128, "width": 256}
_DECODED = {"image_embeddings": _noise(1, _EMBEDS, 3, 3)}
_DECODED_OTHERS = {
    "size": {"image_embeddings": _noise(1, _EMBEDS, 3, 6)},
    "guidance": {"guidance_scale": 2.0},  # Off by default.
}
_COMBINED_OTHERS = {
    "batch": {"num_images_per_prompt": 2},
    "size": _WIDE,
    "no-guidance": {"prior_guidance_scale": 1.0},
    "guidance": {"decoder_guidance_scale": 2.0},
}

# --- cases --------------------------------------------------------------------------------------

#: Pipelines by readable id.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _if_case("if", IFPipeline, _if_base, _LARGE),
        _if_case(
            "if-img2img",
            IFImg2ImgPipeline,
            _if_base,
            {"image": _LARGE_PICTURE},
            image=picture(),
            strength=0.8,
        ),
        _if_case(
            "if-inpaint",
            IFInpaintingPipeline,
            _if_base,
            {"image": _LARGE_PICTURE, "mask_image": _LARGE_MASK},
            image=picture(),
            mask_image=mask(),
        ),
        _if_case(
            "if-superresolution",
            IFSuperResolutionPipeline,
            _if_upscaler,
            _LARGE,
            image=picture(SIDE // 2),
        ),
        _if_case(
            "if-img2img-superresolution",
            IFImg2ImgSuperResolutionPipeline,
            _if_upscaler,
            {"original_image": _LARGE_PICTURE},
            image=picture(SIDE // 2),
            original_image=picture(),
            strength=0.8,
        ),
        _if_case(
            "if-inpaint-superresolution",
            IFInpaintingSuperResolutionPipeline,
            _if_upscaler,
            {"original_image": _LARGE_PICTURE, "mask_image": _LARGE_MASK},
            image=picture(SIDE // 2),
            original_image=picture(),
            mask_image=mask(),
            strength=0.8,
        ),
        _case(
            "unclip",
            UnCLIPPipeline,
            functools.partial(_built, _unclip),
            others={
                "batch": {"num_images_per_prompt": 2},
                "no-guidance": {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0},
                "fewer-upscaling-steps": _FEWER_UPSCALING,
            },
            prior_num_inference_steps=2,
            **PROMPT,
            **_UNCLIP,
        ),
        _case(
            "unclip-image-variation",
            UnCLIPImageVariationPipeline,
            functools.partial(_built, _unclip_variation),
            others={
                "batch": {"num_images_per_prompt": 2, "image": picture()},
                "no-guidance": {"decoder_guidance_scale": 1.0},
                "fewer-upscaling-steps": _FEWER_UPSCALING,
            },
            image=picture(),
            **_UNCLIP,
        ),
        _case(
            "wuerstchen-decoder",
            WuerstchenDecoderPipeline,
            functools.partial(_built, _wuerstchen),
            unets=("decoder",),
            others={
                **_DECODED_OTHERS,
                # Several pictures for a prompt are several embeddings here.
                "batch": {"image_embeddings": _noise(2, _EMBEDS, 3, 3)},
            },
            **PROMPT,
            **_DECODED,
        ),
        _case(
            "wuerstchen-combined",
            WuerstchenCombinedPipeline,
            functools.partial(_built, _wuerstchen_combined),
            unets=("decoder",),
            others=_COMBINED_OTHERS,
            prior_num_inference_steps=2,
            **PROMPT,
            **_SQUARE,
        ),
        _case(
            "stable-cascade-prior",
            StableCascadePriorPipeline,
            functools.partial(load_pipeline, StableCascadePriorPipeline, _cascade_prior),
            unets=("prior",),
            others={
                "batch": {"num_images_per_prompt": 2},
                "size": _WIDE,
                "no-guidance": {"guidance_scale": 1.0},
            },
            height=256,
            width=256,
            **PROMPT,
        ),
        _case(
            "stable-cascade-decoder",
            StableCascadeDecoderPipeline,
            functools.partial(_built, _cascade_decoder),
            unets=("decoder",),
            others={**_DECODED_OTHERS, "batch": {"num_images_per_prompt": 2}},
            **PROMPT,
            **_DECODED,
        ),
        _case(
            "stable-cascade-combined",
            StableCascadeCombinedPipeline,
            functools.partial(_built, _cascade_combined),
            unets=("prior_prior", "decoder"),
            stages=("prior_num_inference_steps", "num_inference_steps"),
            others={**_COMBINED_OTHERS, "fewer-prior-steps": {"prior_num_inference_steps": 4}},
            **PROMPT,
            **_SQUARE,
        ),
    )
}
