"""Tiny cases of Stable Diffusion and what shares its loop: SDXL, latent consistency, unCLIP, the
upscalers, T2I adapters, LEDITS++, Marigold, latent diffusion and Kolors.

Strengths other than the default ones begin at another step, which is no multiple of 3 away from the
default's, with 8 steps as with 5.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from builders.cases import (
    EDIT,
    PAINT,
    PROMPT,
    Case,
    as_tensor,
    latents,
    make_case,
    picture,
    run_pipeline,
)
from builders.models import MODELS, load_pipeline
from builders.parts import UNCHECKED, sd_parts, sdxl_parts, text_config, tokenizer, vae, vqvae
from builders.schedulers import sd_scheduler
from builders.unets import SDXL, SIDE, TEXT_WIDTH, unet2d, unet2d_condition
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    LEditsPPPipelineStableDiffusion,
    LEditsPPPipelineStableDiffusionXL,
    MarigoldDepthPipeline,
    MarigoldIntrinsicsPipeline,
    MarigoldNormalsPipeline,
    PriorTransformer,
    StableDiffusionAdapterPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
    T2IAdapter,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from transformers import (
    BatchEncoding,
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

# Not from `diffusers`, which has dummies of them where sentencepiece is not installed: only their
# tokenizer needs it.
with warnings.catch_warnings():
    # The module of their text encoder decorates a function with `torch.jit.script`.
    warnings.simplefilter("ignore", DeprecationWarning)
    from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
    from diffusers.pipelines.kolors.pipeline_kolors_img2img import KolorsImg2ImgPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.pag.pipeline_pag_kolors import KolorsPAGPipeline

# --- parts ------------------------------------------------------------------------------------


def _vision_parts() -> dict[str, Any]:
    """An image encoder and what prepares its pictures."""
    config = CLIPVisionConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=SIDE // 2,
    )
    return {
        "image_encoder": CLIPVisionModelWithProjection(config),
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
    }


def _image_variation() -> DiffusionPipeline:
    return StableDiffusionImageVariationPipeline(
        vae=vae(),
        unet=unet2d_condition(layers_per_block=1),
        scheduler=sd_scheduler(),
        **UNCHECKED | _vision_parts(),
    )


def _latent_upscale() -> DiffusionPipeline:
    """The layout of stabilityai/sd-x2-latent-upscaler, with fewer layers and channels.

    Its blocks normalise groups of 32 channels: no fewer than 32 will do. The time embedding is as
    wide as the deepest level, from which the first up block knows that it is the first.
    """
    unet = {
        "block_out_channels": (32, 32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("KDownBlock2D",) + ("KCrossAttnDownBlock2D",) * 3,
        "mid_block_type": None,
        "up_block_types": ("KCrossAttnUpBlock2D",) * 3 + ("KUpBlock2D",),
        "in_channels": 8,
        "out_channels": 5,
        "conv_in_kernel": 1,
        "conv_out_kernel": 1,
        "attention_head_dim": 16,
        "act_fn": "gelu",
        "norm_num_groups": None,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "fourier",
        "timestep_post_act": "gelu",
        # Two noise levels of 64, and the pooled text.
        "time_cond_proj_dim": 128 + TEXT_WIDTH,
    }
    return StableDiffusionLatentUpscalePipeline(
        **sd_parts(**unet)
        | {
            "scheduler": EulerDiscreteScheduler.from_config(
                sd_scheduler().config, prediction_type="sample"
            )
        }
    )


def _upscale() -> DiffusionPipeline:
    """The layout of stabilityai/stable-diffusion-x4-upscaler, with fewer layers and channels."""
    parts = sd_parts(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        in_channels=7,
        num_class_embeds=1000,
        only_cross_attention=(True, True, True, False),
        use_linear_projection=True,
    )
    decoder = vae((4, 4, 8))
    # Any other scaling factor is deprecated.
    decoder.register_to_config(scaling_factor=0.08333)
    return StableDiffusionUpscalePipeline(
        **parts | {"vae": decoder},
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
    )


def _unclip_parts() -> dict[str, Any]:
    """What both unCLIP pipelines have: the U-Net gets the noised image embedding as a class."""
    return {
        **sd_parts(
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=1,
            class_embed_type="projection",
            # An image embedding and an embedding of its noise level.
            projection_class_embeddings_input_dim=2 * TEXT_WIDTH,
        ),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=TEXT_WIDTH),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def _unclip() -> DiffusionPipeline:
    # A transformer, run in a loop of its own before the U-Net's.
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=TEXT_WIDTH,
        num_embeddings=77,
    )
    return StableUnCLIPPipeline(
        **_unclip_parts(),
        prior_tokenizer=tokenizer(),
        prior_text_encoder=CLIPTextModelWithProjection(text_config()),
        prior=prior,
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
    )


def _unclip_img2img() -> DiffusionPipeline:
    return StableUnCLIPImg2ImgPipeline(**_unclip_parts(), **_vision_parts())


def _sdxl_instruct_pix2pix() -> DiffusionPipeline:
    unet = unet2d_condition(**SDXL, cross_attention_dim=2 * TEXT_WIDTH, in_channels=8)
    return StableDiffusionXLInstructPix2PixPipeline(
        **sdxl_parts() | {"unet": unet}, add_watermarker=False
    )


def _lcm() -> DiffusionPipeline:
    return LatentConsistencyModelPipeline(
        # The guidance scale comes in as an embedding: there is no second, unconditional half.
        **sd_parts(layers_per_block=1, time_cond_proj_dim=8)
        | {"scheduler": LCMScheduler.from_config(sd_scheduler().config)},
        **UNCHECKED,
    )


def _ledits_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler.from_config(
        sd_scheduler().config, algorithm_type="sde-dpmsolver++", solver_order=2
    )


def _ledits_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    # The sides of a picture have to be multiples of 32; ones far larger than this are logged.
    parts["vae"].register_to_config(sample_size=4 * SIDE)
    return {**parts, "scheduler": _ledits_scheduler()}


def _ledits() -> DiffusionPipeline:
    # Four levels, as the masks are made of the attention at a quarter of the latents' resolution.
    parts = _ledits_parts(sd_parts(block_out_channels=(8, 8, 16, 16), layers_per_block=1))
    return LEditsPPPipelineStableDiffusion(**parts, **UNCHECKED)


def _ledits_sdxl() -> DiffusionPipeline:
    return LEditsPPPipelineStableDiffusionXL(
        **_ledits_parts(sdxl_parts()),
        image_encoder=None,
        feature_extractor=None,
        add_watermarker=False,
    )


def _marigold_parts(targets: int = 1) -> dict[str, Any]:
    """The U-Net gets the picture's latents and those of each target, and predicts the latter."""
    return {
        **sd_parts(layers_per_block=1, in_channels=4 + 4 * targets, out_channels=4 * targets),
        "default_denoising_steps": 4,
        "default_processing_resolution": 0,
    }


def _marigold_depth() -> DiffusionPipeline:
    return MarigoldDepthPipeline(
        **_marigold_parts(), prediction_type="depth", scale_invariant=True, shift_invariant=True
    )


def _marigold_normals() -> DiffusionPipeline:
    return MarigoldNormalsPipeline(**_marigold_parts(), prediction_type="normals")


def _marigold_intrinsics() -> DiffusionPipeline:
    targets = {
        "target_names": ["albedo", "material"],
        "albedo": {"prediction_space": "srgb", "up_to_scale": False},
        "material": {
            "prediction_space": "linear",
            "up_to_scale": False,
            "sub_target_names": ["roughness", "metallicity", None],
        },
    }
    return MarigoldIntrinsicsPipeline(
        **_marigold_parts(2), prediction_type="intrinsics", target_properties=targets
    )


def _adapter() -> DiffusionPipeline:
    return StableDiffusionAdapterPipeline(
        **sd_parts(),
        # One feature map for each level of the U-Net, added inside its down blocks.
        adapter=T2IAdapter(channels=[8, 16, 16], num_res_blocks=1, downscale_factor=2),
        **UNCHECKED,
    )


def _sdxl_adapter() -> DiffusionPipeline:
    return StableDiffusionXLAdapterPipeline(
        **sdxl_parts(),
        # Four feature maps for three levels: the U-Net adds the last one after its mid block.
        adapter=T2IAdapter(
            channels=[8, 16, 16, 16],
            num_res_blocks=1,
            downscale_factor=4,
            adapter_type="full_adapter_xl",
        ),
    )


def _superresolution() -> DiffusionPipeline:
    # The decoder puts the nearest of its codes in the place of what the U-Net has made: with the
    # few small ones of a fresh model, most changes of the latents would leave the picture as it is.
    decoder = VQModel.from_config(vqvae().config, num_vq_embeddings=1024)
    torch.nn.init.normal_(decoder.quantize.embedding.weight, std=3.0)
    return LDMSuperResolutionPipeline(
        vqvae=decoder, unet=unet2d(in_channels=6, layers_per_block=3), scheduler=sd_scheduler()
    )


#: Width of Kolors' text embeddings, which the U-Net projects to its own.
_KOLORS_WIDTH = 24


def _kolors() -> DiffusionPipeline:
    words = tokenizer()
    words.padding_side = "left"
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=len(words),
        hidden_size=_KOLORS_WIDTH,
        ffn_hidden_size=2 * _KOLORS_WIDTH,
        kv_channels=_KOLORS_WIDTH // 2,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
        seq_length=256,
    )
    text_encoder = ChatGLMModel(config, empty_init=False)
    for name, parameter in text_encoder.named_parameters():
        if name.endswith("layernorm.weight"):
            # Made without values, even so.
            torch.nn.init.ones_(parameter)
    unet = unet2d_condition(
        **SDXL | {"projection_class_embeddings_input_dim": _KOLORS_WIDTH + 6 * 4},
        encoder_hid_dim=_KOLORS_WIDTH,
        encoder_hid_dim_type="text_proj",
    )
    return KolorsPipeline(
        vae=vae(),
        text_encoder=text_encoder,
        tokenizer=words,
        unet=unet,
        scheduler=sd_scheduler(),
    )


class _Positioned:
    """CLIP's tokenizer in the part of ChatGLM's, which cannot be made without sentencepiece."""

    def __init__(self, words: CLIPTokenizer) -> None:
        self.words = words

    def __call__(self, *args: Any, **options: Any) -> BatchEncoding:
        inputs = self.words(*args, **options)
        # Padded on the left.
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return inputs


def _load_kolors(pipeline: type[DiffusionPipeline]) -> DiffusionPipeline:
    pipe = load_pipeline(pipeline, _kolors)
    pipe.tokenizer = _Positioned(pipe.tokenizer)
    return pipe


# --- runs -------------------------------------------------------------------------------------


def _run_ledits(
    pipe: DiffusionPipeline, *, steps: int = 5, seed: int = 0, **overrides: Any
) -> torch.Tensor:
    """Inverts the picture, with the arguments that `invert` has, and edits it, with the others."""
    arguments: dict[str, Any] = {
        "image": picture(2 * SIDE),
        "num_inversion_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "editing_prompt": ["a circle", "blue"],
        "output_type": "np",
        **overrides,
    }
    for_inversion = set(inspect.signature(pipe.invert).parameters) & set(arguments)
    pipe.invert(**{name: arguments.pop(name) for name in for_inversion})
    # Takes the noise that the inversion has found: there is nothing left to draw.
    return as_tensor(pipe(**arguments)[0])


def _kolors_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    others: Mapping[str, Mapping[str, Any]],
    **defaults: Any,
) -> Case:
    return Case(
        name=name,
        pipeline=pipeline,
        load=functools.partial(_load_kolors, pipeline),
        run=functools.partial(run_pipeline, defaults=PROMPT | defaults),
        others=others,
    )


# --- cases ------------------------------------------------------------------------------------


def _others(*more: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Another seed and another number of steps, and what else is given."""
    others: dict[str, Mapping[str, Any]] = {"seed": {"seed": 1}, "steps": {"steps": 7}}
    for other in more:
        others.update(other)
    return others


_PAIR: dict[str, Mapping[str, Any]] = {"batch": {"num_images_per_prompt": 2}}
#: For pipelines which repeat one picture themselves. (`run_pipeline` repeats its default one.)
_PAIR_OF_ONE: dict[str, Mapping[str, Any]] = {
    "batch": {"num_images_per_prompt": 2, "image": picture()}
}
_TWO_PICTURES: dict[str, Mapping[str, Any]] = {"batch": {"image": [picture(), picture(seed=1)]}}
_SIZE: dict[str, Mapping[str, Any]] = {"size": {"height": 24, "width": 32}}
#: For pipelines whose picture says how large the result is.
_IMAGE_SIZE: dict[str, Mapping[str, Any]] = {"size": {"image": picture(24)}}
_UNGUIDED: dict[str, Mapping[str, Any]] = {"no-guidance": {"guidance_scale": 1.0}}


def _strength(strength: float) -> dict[str, Mapping[str, Any]]:
    return {"strength": {"strength": strength}}


def _marigold(
    name: str, pipeline: type[DiffusionPipeline], build: Callable[[], DiffusionPipeline]
) -> Case:
    return make_case(
        name,
        pipeline,
        build,
        # Pictures, and the members of an ensemble, have a whole loop each, unless `batch_size`
        # says otherwise; `set_timesteps` is called for each loop.
        others=_others(
            _TWO_PICTURES,
            {
                "together": {"image": [picture(), picture(seed=1)], "batch_size": 2},
                "ensemble": {"ensemble_size": 3},
                "size": {"processing_resolution": 24},
            },
        ),
        image=picture(),
    )


def _ledits_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    batch: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Case:
    return Case(
        name=name,
        pipeline=pipeline,
        load=functools.partial(load_pipeline, pipeline, build),
        run=functools.partial(_run_ledits, **defaults),
        others=_others(
            {
                "batch": {
                    "image": [picture(2 * SIDE), picture(2 * SIDE, seed=1)],
                    **(batch or {}),
                },
                "size": {"height": 2 * SIDE, "width": 4 * SIDE},
                # Two calls in each step of the inversion (SD), or a batch twice as large (SDXL).
                "source-prompt": {"source_prompt": "a red square"},
                "no-guidance": {"editing_prompt": None},
                # What others call strength: nearer to the picture's end of the schedule.
                "strength": {"skip": 0.6},
            }
        ),
    )


def _all() -> Iterable[Case]:
    yield make_case(
        "sd",
        StableDiffusionPipeline,
        MODELS["sd"],
        others=_others(_PAIR, _SIZE, _UNGUIDED),
        **PROMPT,
    )
    yield make_case(
        "sd-img2img",
        StableDiffusionImg2ImgPipeline,
        MODELS["sd"],
        others=_others(_PAIR, _IMAGE_SIZE, _UNGUIDED, _strength(0.6)),
        **EDIT,
    )
    # Four input channels: what is kept is pasted into the latents of each step.
    yield make_case(
        "sd-inpaint",
        StableDiffusionInpaintPipeline,
        MODELS["sd"],
        others=_others(_PAIR, _SIZE, _UNGUIDED, _strength(0.6)),
        **PAINT,
    )
    # Nine: the mask and the kept part are inputs of the U-Net.
    yield make_case(
        "sd-inpaint-9",
        StableDiffusionInpaintPipeline,
        MODELS["sd-inpaint-9"],
        others=_others(_PAIR, _SIZE, _UNGUIDED, _strength(0.6)),
        **PAINT,
    )
    yield make_case(
        "sd-depth2img",
        StableDiffusionDepth2ImgPipeline,
        MODELS["sd-depth2img"],
        others=_others(_PAIR, _IMAGE_SIZE, _UNGUIDED, _strength(0.6)),
        **EDIT,
    )
    yield make_case(
        "sd-image-variation",
        StableDiffusionImageVariationPipeline,
        _image_variation,
        others=_others(_PAIR_OF_ONE, _SIZE, _UNGUIDED),
        image=picture(),
    )
    yield make_case(
        "sd-instruct-pix2pix",
        StableDiffusionInstructPix2PixPipeline,
        MODELS["sd-instruct-pix2pix"],
        others=_others(_PAIR, _IMAGE_SIZE, _UNGUIDED),
        **EDIT,
    )
    yield make_case(
        "sd-latent-upscale",
        StableDiffusionLatentUpscalePipeline,
        _latent_upscale,
        others=_others(
            {"batch": {"prompt": ["a circle", "a square"], "image": [picture()] * 2}},
            _IMAGE_SIZE,
            _UNGUIDED,
        ),
        **EDIT,
    )
    yield make_case(
        "sd-upscale",
        StableDiffusionUpscalePipeline,
        _upscale,
        others=_others(_PAIR_OF_ONE, _IMAGE_SIZE, _UNGUIDED, {"noise-level": {"noise_level": 100}}),
        **EDIT,
    )
    yield make_case(
        "sd-unclip",
        StableUnCLIPPipeline,
        _unclip,
        others=_others(_PAIR, _SIZE, _UNGUIDED, {"noise-level": {"noise_level": 100}}),
        prior_num_inference_steps=2,
        **PROMPT,
    )
    yield make_case(
        "sd-unclip-img2img",
        StableUnCLIPImg2ImgPipeline,
        _unclip_img2img,
        others=_others(_PAIR_OF_ONE, _SIZE, _UNGUIDED, {"noise-level": {"noise_level": 100}}),
        **EDIT,
    )
    yield make_case(
        "sdxl",
        StableDiffusionXLPipeline,
        MODELS["sdxl"],
        others=_others(_PAIR, _SIZE, _UNGUIDED, {"denoising-end": {"denoising_end": 0.6}}),
        **PROMPT,
    )
    yield make_case(
        "sdxl-img2img",
        StableDiffusionXLImg2ImgPipeline,
        MODELS["sdxl"],
        others=_others(_PAIR, _IMAGE_SIZE, _UNGUIDED, _strength(0.6)),
        strength=0.8,
        **EDIT,
    )
    # Takes over after part of the steps, from latents; adds no noise of its own.
    yield make_case(
        "sdxl-refiner",
        StableDiffusionXLImg2ImgPipeline,
        MODELS["sdxl-refiner"],
        others=_others(_PAIR, _UNGUIDED, {"denoising-start": {"denoising_start": 0.3}}),
        denoising_start=0.6,
        image=latents,
        **PROMPT,
    )
    yield make_case(
        "sdxl-inpaint",
        StableDiffusionXLInpaintPipeline,
        MODELS["sdxl"],
        others=_others(_PAIR, _SIZE, _UNGUIDED, _strength(0.4)),
        **PAINT,
    )
    yield make_case(
        "sdxl-instruct-pix2pix",
        StableDiffusionXLInstructPix2PixPipeline,
        _sdxl_instruct_pix2pix,
        others=_others(
            _PAIR,
            {"size": {"height": 24, "width": 24, "image": picture(24)}},
            _UNGUIDED,
            {"denoising-end": {"denoising_end": 0.6}},
        ),
        **EDIT,
    )
    # Without classifier-free guidance at any `guidance_scale`.
    yield make_case(
        "lcm",
        LatentConsistencyModelPipeline,
        _lcm,
        others=_others(_PAIR, _SIZE, {"guidance": {"guidance_scale": 2.0}}),
        **PROMPT,
    )
    # As many steps at every strength: it says where in the schedule they lie.
    yield make_case(
        "lcm-img2img",
        LatentConsistencyModelImg2ImgPipeline,
        _lcm,
        others=_others(_PAIR, _IMAGE_SIZE, _strength(0.6), {"guidance": {"guidance_scale": 2.0}}),
        **EDIT,
    )
    # By default with masks made of the attention maps of the very step.
    yield _ledits_case("ledits", LEditsPPPipelineStableDiffusion, _ledits)
    yield _ledits_case(
        "ledits-unmasked", LEditsPPPipelineStableDiffusion, _ledits, use_intersect_mask=False
    )
    # Edits no more than one picture: it repeats the time ids of the edits too often.
    yield _ledits_case(
        "ledits-sdxl",
        LEditsPPPipelineStableDiffusionXL,
        _ledits_sdxl,
        batch={"editing_prompt": None},
    )
    yield _marigold("marigold-depth", MarigoldDepthPipeline, _marigold_depth)
    yield _marigold("marigold-intrinsics", MarigoldIntrinsicsPipeline, _marigold_intrinsics)
    yield _marigold("marigold-normals", MarigoldNormalsPipeline, _marigold_normals)
    yield make_case(
        "sd-adapter",
        StableDiffusionAdapterPipeline,
        _adapter,
        others=_others(
            _PAIR_OF_ONE, _SIZE, _UNGUIDED, {"scale": {"adapter_conditioning_scale": 0.3}}
        ),
        # Its way to pictures is deprecated, and warns.
        output_type="latent",
        **EDIT,
    )
    yield make_case(
        "sdxl-adapter",
        StableDiffusionXLAdapterPipeline,
        _sdxl_adapter,
        others=_others(
            _PAIR_OF_ONE,
            _SIZE,
            _UNGUIDED,
            # The adapter's part of the steps: the U-Net gets nothing from it in the others.
            {"factor": {"adapter_conditioning_factor": 0.5}},
        ),
        **EDIT,
    )
    # Two calls in a step when guided.
    yield make_case(
        "ldm-text2img",
        LDMTextToImagePipeline,
        MODELS["ldm-text2img"],
        others=_others(
            {"batch": {"prompt": ["a circle", "a square"]}},
            {"size": {"height": 64, "width": 96}, "guidance": {"guidance_scale": 5.0}},
        ),
        **PROMPT,
    )
    generator = torch.Generator().manual_seed(0)
    small, wide = (
        torch.rand(shape, generator=generator) * 2 - 1 for shape in ((2, 3, 8, 8), (1, 3, 8, 12))
    )
    yield make_case(
        "ldm-superresolution",
        LDMSuperResolutionPipeline,
        _superresolution,
        others=_others({"batch": {"image": small}, "size": {"image": wide}}),
        image=small[:1],
    )
    yield _kolors_case("kolors", KolorsPipeline, _others(_PAIR, _SIZE, _UNGUIDED))
    yield _kolors_case(
        "kolors-img2img",
        KolorsImg2ImgPipeline,
        _others(_PAIR, _IMAGE_SIZE, _UNGUIDED, _strength(0.6)),
        image=picture(),
        strength=0.8,
    )
    # Perturbed attention in the mid block, as a third part of the batch.
    yield _kolors_case(
        "kolors-pag",
        KolorsPAGPipeline,
        _others(_PAIR, _SIZE, _UNGUIDED, {"no-pag": {"pag_scale": 0.0}}),
    )


#: Readable id -> case.
CASES: dict[str, Case] = {case.name: case for case in _all()}
