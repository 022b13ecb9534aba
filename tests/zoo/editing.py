"""Pipelines of SD's family that take a text (or an example picture) and do more than sample.

They call `unet(sample, t, encoder_hidden_states=…)`: the timestep by position. What differs is how
often, in what order, and what else than the U-Net's output they read. aMUSEd is here for its name
only: its `transformer` has neither skips nor timesteps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from string import ascii_lowercase
from typing import Any

import torch
from builders.cases import (
    EDIT,
    PAINT,
    PROMPT,
    Case,
    as_tensor,
    make_case,
    mask,
    picture,
    run_pipeline,
)
from builders.models import MODELS, load_pipeline, model_folder
from builders.parts import UNCHECKED, from_vocabulary, sd_parts, text_config, tokenizer, vae
from builders.schedulers import sd_scheduler
from builders.unets import SIDE, TEXT_WIDTH, unet2d_condition
from builders.versions_needed import deprecated
from diffusers import (
    AltDiffusionImg2ImgPipeline,
    AltDiffusionPipeline,
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    AmusedPipeline,
    AmusedScheduler,
    AutoencoderKL,
    CycleDiffusionPipeline,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DiffusionPipeline,
    PaintByExamplePipeline,
    SemanticStableDiffusionPipeline,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionDiffEditPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionGLIGENTextImagePipeline,
    StableDiffusionInpaintPipelineLegacy,
    StableDiffusionLDM3DPipeline,
    StableDiffusionModelEditingPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionParadigmsPipeline,
    StableDiffusionPipelineSafe,
    StableDiffusionPix2PixZeroPipeline,
    StableDiffusionSAGPipeline,
    UVit2DModel,
    VersatileDiffusionImageVariationPipeline,
    VersatileDiffusionPipeline,
    VersatileDiffusionTextToImagePipeline,
    VQModel,
)
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import (
    UNetFlatConditionModel,
)
from diffusers.pipelines.stable_diffusion import CLIPImageProjection
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    XLMRobertaTokenizer,
)

from zoo.pixels import quietly

PaintByExampleImageEncoder = deprecated("paint_by_example.image_encoder").PaintByExampleImageEncoder

# --- parts ------------------------------------------------------------------------------------


def vision_config(**overrides: Any) -> CLIPVisionConfig:
    config = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    return CLIPVisionConfig(**(config | overrides))


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def roberta_parts() -> dict[str, Any]:
    """A multilingual text encoder, and its tokenizer, which spells."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [*special, "▁", *ascii_lowercase]
    config = RobertaSeriesConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
        project_dim=TEXT_WIDTH,
        has_pre_transformation=True,
    )
    vocab = [(word, 0.0 if word in special else -1.0) for word in words]
    return {
        "text_encoder": RobertaSeriesModelWithTransformation(config).eval(),
        "tokenizer": from_vocabulary(XLMRobertaTokenizer, vocab=vocab, model_max_length=77),
    }


def amused_parts() -> dict[str, Any]:
    codes = 16
    return {
        "vqvae": VQModel(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            num_vq_embeddings=codes,
            norm_num_groups=2,
            sample_size=SIDE,
            # The pipeline decodes indices into the codebook.
            lookup_from_codebook=True,
        ),
        "tokenizer": tokenizer(),
        "text_encoder": CLIPTextModelWithProjection(text_config()),
        "transformer": randomised(
            UVit2DModel(
                hidden_size=16,
                cond_embed_dim=TEXT_WIDTH,
                micro_cond_encode_dim=4,
                micro_cond_embed_dim=5 * 4,
                encoder_hidden_size=TEXT_WIDTH,
                # One more for the mask.
                vocab_size=codes + 1,
                codebook_size=codes,
                in_channels=8,
                block_out_channels=8,
                num_res_blocks=1,
                downsample=True,
                upsample=True,
                block_num_heads=2,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                sample_size=SIDE // 2,
            )
        ).eval(),
        "scheduler": AmusedScheduler(mask_token_id=codes),
    }


def randomised(model: torch.nn.Module, *, scale: float = 0.3) -> torch.nn.Module:
    """Gives the parameters that start as zeros random values, unless they are biases."""
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=scale)
    return model


# --- builders ---------------------------------------------------------------------------------


def attend_and_excite() -> StableDiffusionAttendAndExcitePipeline:
    unet = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    }
    return StableDiffusionAttendAndExcitePipeline(**sd_parts(**unet), **UNCHECKED)


def alt_diffusion() -> AltDiffusionPipeline:
    return AltDiffusionPipeline(**sd_parts() | roberta_parts(), **UNCHECKED)


def amused() -> AmusedPipeline:
    return AmusedPipeline(**amused_parts())


def diffedit() -> StableDiffusionDiffEditPipeline:
    inverse = DDIMInverseScheduler.from_config(sd_scheduler().config)
    return StableDiffusionDiffEditPipeline(
        **sd_parts(layers_per_block=1), inverse_scheduler=inverse, **UNCHECKED
    )


def gligen(**unet: Any) -> StableDiffusionGLIGENPipeline:
    parts = sd_parts(attention_type="gated", layers_per_block=1, **unet)
    # The gates of the grounding, which start closed.
    randomised(parts["unet"])
    return StableDiffusionGLIGENPipeline(**parts, **UNCHECKED)


def gligen_inpaint() -> StableDiffusionGLIGENPipeline:
    return gligen(in_channels=9, out_channels=4)


def gligen_text_image() -> StableDiffusionGLIGENTextImagePipeline:
    parts = sd_parts(
        attention_type="gated-text-image", layers_per_block=1, block_out_channels=(8, 16)
    )
    randomised(parts["unet"])
    return StableDiffusionGLIGENTextImagePipeline(
        **parts,
        processor=CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer()),
        image_encoder=CLIPVisionModelWithProjection(vision_config()),
        image_project=CLIPImageProjection(hidden_size=TEXT_WIDTH),
        **UNCHECKED,
    )


def inpaint_legacy() -> StableDiffusionInpaintPipelineLegacy:
    return StableDiffusionInpaintPipelineLegacy(
        **sd_parts(layers_per_block=1, block_out_channels=(8, 16, 16, 16)), **UNCHECKED
    )


def ldm3d() -> StableDiffusionLDM3DPipeline:
    parts = sd_parts(block_out_channels=(8, 8, 16, 16), layers_per_block=1)
    parts["vae"] = AutoencoderKL(
        # Three channels of colour and three that spell the depth.
        in_channels=6,
        out_channels=6,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIDE,
    )
    return StableDiffusionLDM3DPipeline(**parts, image_encoder=None, **UNCHECKED)


def panorama() -> StableDiffusionPanoramaPipeline:
    parts = sd_parts(block_out_channels=(8, 16), layers_per_block=1)
    # The views are cut as if latents were an eighth of the picture, whatever the autoencoder.
    parts["vae"] = vae((4, 4, 4, 8))
    return StableDiffusionPanoramaPipeline(**parts, **UNCHECKED)


def paradigms() -> StableDiffusionParadigmsPipeline:
    parts = sd_parts(block_out_channels=(8, 16), layers_per_block=3)
    parts["scheduler"] = DDIMParallelScheduler.from_config(parts["scheduler"].config)
    return StableDiffusionParadigmsPipeline(**parts, **UNCHECKED)


def pix2pix_zero() -> StableDiffusionPix2PixZeroPipeline:
    return StableDiffusionPix2PixZeroPipeline(
        **sd_parts(block_out_channels=(8, 16), layers_per_block=1),
        inverse_scheduler=DDIMInverseScheduler.from_config(sd_scheduler().config),
        # They would only write a caption for the picture.
        caption_generator=None,
        caption_processor=None,
        **UNCHECKED,
    )


def paint_by_example() -> PaintByExamplePipeline:
    parts = sd_parts(in_channels=9, block_out_channels=(8, 8, 16, 16), layers_per_block=1)
    del parts["text_encoder"], parts["tokenizer"]
    return PaintByExamplePipeline(
        **parts,
        # The mapper has a layer for every five of the encoder, less one.
        image_encoder=PaintByExampleImageEncoder(vision_config(num_hidden_layers=4)).eval(),
        feature_extractor=image_processor(),
        safety_checker=None,
    )


def versatile_parts() -> dict[str, Any]:
    layout = {
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
    }
    return {
        "tokenizer": tokenizer(),
        "image_feature_extractor": image_processor(),
        "text_encoder": CLIPTextModelWithProjection(text_config()),
        "image_encoder": CLIPVisionModelWithProjection(vision_config()),
        "image_unet": unet2d_condition(**layout),
        "text_unet": UNetFlatConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlockFlat", "DownBlockFlat"),
            up_block_types=("UpBlockFlat", "CrossAttnUpBlockFlat"),
            **layout,
        ).eval(),
        "vae": vae(),
        "scheduler": sd_scheduler(),
    }


def versatile() -> VersatileDiffusionPipeline:
    return VersatileDiffusionPipeline(**versatile_parts())


# --- loading ----------------------------------------------------------------------------------


def load_with(
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    parts: Mapping[str, type | None],
) -> DiffusionPipeline:
    """Loads a pipeline of which `from_pretrained` does not find every part.

    Some parts' classes came with pipelines that diffusers has moved below `deprecated`: nothing
    that a `model_index.json` could say leads to them any more, and while it names them, giving
    them to `from_pretrained` does not help either. So they are taken out of it, and given.
    """
    folder = model_folder(build)
    index = folder / "model_index.json"
    named = json.loads(index.read_text())
    index.write_text(json.dumps({name: part for name, part in named.items() if name not in parts}))
    given = {name: cls and cls.from_pretrained(folder / name) for name, cls in parts.items()}
    pipe = pipeline.from_pretrained(folder, local_files_only=True, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def given_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    parts: Mapping[str, type | None],
    **options: Any,
) -> Case:
    """`make_case` for `load_with`."""
    case = make_case(name, pipeline, build, **options)
    return replace(case, load=partial(load_with, pipeline, build, parts))


# --- running ----------------------------------------------------------------------------------

CAPTION = "a big blue square"


def run_diffedit(
    pipe: StableDiffusionDiffEditPipeline,
    *,
    steps: int = 5,
    seed: int = 0,
    image: Image.Image = EDIT["image"],
    inpaint_strength: float = 0.8,
    **overrides: Any,
) -> torch.Tensor:
    """Finds what is to change, goes back to noisy latents, and paints the change."""
    generator = torch.Generator().manual_seed(seed)
    common = {"num_inference_steps": steps, "generator": generator}
    where = pipe.generate_mask(
        image=image,
        source_prompt=CAPTION,
        target_prompt=PROMPT["prompt"],
        num_maps_per_mask=2,
        # Random weights see little difference anywhere.
        mask_thresholding_ratio=1.5,
        **common,
    )
    noisy = pipe.invert(prompt=CAPTION, image=image, inpaint_strength=inpaint_strength, **common)
    arguments = {"output_type": "np", "negative_prompt": CAPTION, **PROMPT, **common, **overrides}
    return as_tensor(
        pipe(
            mask_image=where,
            image_latents=noisy.latents,
            inpaint_strength=inpaint_strength,
            **arguments,
        )[0]
    )


def run_pix2pix_zero(
    pipe: StableDiffusionPix2PixZeroPipeline,
    *,
    image: Image.Image | None = None,
    steps: int = 5,
    seed: int = 0,
    **overrides: Any,
) -> torch.Tensor:
    """Turns what the caption makes, or the picture, from one concept towards another."""
    defaults = {
        **PROMPT,
        "source_embeds": pipe.get_embeds(["a red circle", "the red circle"]),
        "target_embeds": pipe.get_embeds(["a blue square", "the blue square"]),
    }
    if image is not None:
        defaults["latents"] = pipe.invert(
            **PROMPT,
            image=image,
            num_inference_steps=steps,
            num_reg_steps=1,
            generator=torch.Generator().manual_seed(seed),
        ).latents
    return run_pipeline(pipe, defaults=defaults, steps=steps, seed=seed, **overrides)


def run_method(pipe: DiffusionPipeline, *, method: str, **options: Any) -> torch.Tensor:
    """`run_pipeline` for a pipeline without `__call__`."""
    return run_pipeline(getattr(pipe, method), **options)


# --- cases ------------------------------------------------------------------------------------

BASIC = {"seed": {"seed": 1}, "steps": {"steps": 7}}
UNGUIDED = {"no-guidance": {"guidance_scale": 1.0}}
STRENGTH = {"strength": {"strength": 0.6}}
TEXT = {
    **BASIC,
    **UNGUIDED,
    "batch": {"num_images_per_prompt": 2},
    "size": {"height": 32, "width": 16},
}
#: For those that take the size from the picture.
IMAGE = {**TEXT, "size": {"image": picture(2 * SIDE)}}
MASKED = {**TEXT, "size": {"image": picture(2 * SIDE), "mask_image": mask(2 * SIDE)}}
#: One picture serves for the whole batch.
ONE_PICTURE = {"batch": {"num_images_per_prompt": 2, "image": picture()}}
ONE_MASK = {"batch": {"num_images_per_prompt": 2, "image": picture(), "mask_image": mask()}}

#: What the grounding is given.
BOXES = {
    "gligen_phrases": ["a circle", "a square"],
    "gligen_boxes": [[0.1, 0.1, 0.6, 0.7], [0.5, 0.3, 0.9, 0.9]],
}

ROBERTA = {"text_encoder": RobertaSeriesModelWithTransformation}
FLAT = {"text_unet": UNetFlatConditionModel}

#: Pipelines of SD's family that edit or guide, by readable id.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        given_case(
            "alt-diffusion",
            AltDiffusionPipeline,
            alt_diffusion,
            ROBERTA,
            others=TEXT,
            **PROMPT,
        ),
        given_case(
            "alt-diffusion-img2img",
            AltDiffusionImg2ImgPipeline,
            alt_diffusion,
            ROBERTA,
            others=IMAGE | STRENGTH,
            **EDIT,
        ),
        make_case("amused", AmusedPipeline, amused, unets=("transformer",), others=TEXT, **PROMPT),
        make_case(
            "amused-img2img",
            AmusedImg2ImgPipeline,
            amused,
            unets=("transformer",),
            others=IMAGE | ONE_PICTURE | {"strength": {"strength": 0.7}},
            # With all the steps, it would start from a whole picture.
            strength=0.9,
            **EDIT,
        ),
        make_case(
            "amused-inpaint",
            AmusedInpaintPipeline,
            amused,
            unets=("transformer",),
            others=MASKED | ONE_MASK | STRENGTH,
            **PAINT,
        ),
        given_case(
            "paint-by-example",
            PaintByExamplePipeline,
            paint_by_example,
            {"image_encoder": PaintByExampleImageEncoder},
            others=MASKED | ONE_MASK,
            example_image=picture(32, seed=1),
            image=picture(),
            mask_image=mask(),
        ),
        # A concept more in each batch: unconditional, prompt, two edits.
        make_case(
            "semantic",
            SemanticStableDiffusionPipeline,
            MODELS["sd"],
            others=TEXT,
            editing_prompt=["round", "blue"],
            edit_warmup_steps=[1, 3],
            edit_threshold=0.7,
            **PROMPT,
        ),
        # In each step, a call with gradients for the attention maps, whose layers it counts, then
        # the usual one. At the steps that `thresholds` names, as many more as the maps need.
        quietly(
            make_case(
                "attend-and-excite",
                StableDiffusionAttendAndExcitePipeline,
                attend_and_excite,
                others=TEXT | {"size": {"height": 32, "width": 16, "attn_res": (8, 4)}},
                token_indices=[2, 5],
                attn_res=(4, 4),
                thresholds={1: 0.05},
                **PROMPT,
            )
        ),
        Case(
            name="diffedit",
            pipeline=StableDiffusionDiffEditPipeline,
            load=partial(load_pipeline, StableDiffusionDiffEditPipeline, diffedit),
            run=run_diffedit,
            others=IMAGE | {"strength": {"inpaint_strength": 0.6}},
        ),
        # The grounding is switched off inside the U-Net after some steps.
        make_case(
            "gligen",
            StableDiffusionGLIGENPipeline,
            gligen,
            others=TEXT | {"grounding": {"gligen_scheduled_sampling_beta": 1.0}},
            **PROMPT,
            **BOXES,
        ),
        quietly(
            make_case(
                "gligen-inpaint",
                StableDiffusionGLIGENPipeline,
                gligen_inpaint,
                others=BASIC | UNGUIDED,
                gligen_inpaint_image=picture(),
                **PROMPT,
                **BOXES,
            )
        ),
        # Two calls in each step: grounded, then not.
        make_case(
            "gligen-text-image",
            StableDiffusionGLIGENTextImagePipeline,
            gligen_text_image,
            others=TEXT,
            gligen_images=[picture(32), picture(32, seed=1)],
            **PROMPT,
            **BOXES,
        ),
        # The picture only: its depth comes out of the same latents.
        make_case("ldm3d", StableDiffusionLDM3DPipeline, ldm3d, others=TEXT, **PROMPT),
        # A call for each view (or batch of views) in each step, all of one shape: here three.
        make_case(
            "panorama",
            StableDiffusionPanoramaPipeline,
            panorama,
            others=TEXT
            | {
                "size": {"width": 704},
                "views": {"view_batch_size": 2},
                "circular": {"circular_padding": True, "view_batch_size": 4},
            },
            height=16,
            width=640,
            output_type="latent",
            **PROMPT,
        ),
        # The batch has a third part, for what is to be avoided.
        quietly(
            make_case(
                "safe",
                StableDiffusionPipelineSafe,
                MODELS["sd"],
                others=TEXT | {"no-safety": {"sld_guidance_scale": 0.0}},
                sld_warmup_steps=2,
                **PROMPT,
            )
        ),
        # Two calls in each step: the second, of half the batch, is for latents blurred where the
        # first one's attention in the middle block was.
        make_case(
            "sag",
            StableDiffusionSAGPipeline,
            MODELS["sd"],
            others=TEXT | {"no-sag": {"sag_scale": 0.0}},
            **PROMPT,
        ),
        # The source and the target go through the U-Net in one batch.
        make_case(
            "cycle-diffusion",
            CycleDiffusionPipeline,
            MODELS["sd"],
            others={**BASIC, **UNGUIDED, **STRENGTH, "size": {"image": picture(2 * SIDE)}},
            source_prompt=CAPTION,
            **EDIT,
        ),
        quietly(
            given_case(
                "inpaint-legacy",
                StableDiffusionInpaintPipelineLegacy,
                inpaint_legacy,
                # It wants to be told that there is none.
                {"safety_checker": None},
                others=MASKED | ONE_MASK | STRENGTH,
                **PAINT,
            )
        ),
        # `edit_model` would change nothing: it looks for a class that diffusers has no more.
        make_case(
            "model-editing",
            StableDiffusionModelEditingPipeline,
            MODELS["sd"],
            others=TEXT,
            **PROMPT,
        ),
        # A batch has several timesteps, and most steps are in several batches.
        make_case(
            "paradigms",
            StableDiffusionParadigmsPipeline,
            paradigms,
            others=TEXT | {"tolerance": {"tolerance": 2.0}},
            parallel=4,
            **PROMPT,
        ),
        # A whole generation that stores the attention maps, then another one of two calls in each
        # step, the first with gradients. It leaves its attention processors behind.
        Case(
            name="pix2pix-zero",
            pipeline=StableDiffusionPix2PixZeroPipeline,
            load=partial(load_pipeline, StableDiffusionPix2PixZeroPipeline, pix2pix_zero),
            run=run_pix2pix_zero,
            others=TEXT,
        ),
        Case(
            name="pix2pix-zero-inversion",
            pipeline=StableDiffusionPix2PixZeroPipeline,
            load=partial(load_pipeline, StableDiffusionPix2PixZeroPipeline, pix2pix_zero),
            run=partial(run_pix2pix_zero, image=picture()),
            others={**BASIC, "size": {"image": picture(2 * SIDE)}},
        ),
        make_case(
            "versatile-image-variation",
            VersatileDiffusionImageVariationPipeline,
            versatile,
            unets=("image_unet",),
            others=TEXT | {"batch": {"num_images_per_prompt": 2, "image": picture(32)}},
            image=picture(32),
        ),
        given_case(
            "versatile-text-to-image",
            VersatileDiffusionTextToImagePipeline,
            versatile,
            FLAT,
            unets=("image_unet",),
            others=TEXT,
            **PROMPT,
        ),
        # The same as methods, which build those pipelines: this one has no `__call__`. The second
        # swaps the two U-Nets' attention blocks, and swaps them back at the end.
        replace(
            given_case(
                "versatile-variation-method",
                VersatileDiffusionPipeline,
                versatile,
                FLAT,
                unets=("image_unet",),
                others=BASIC | UNGUIDED,
            ),
            run=partial(run_method, method="image_variation", defaults={"image": picture(32)}),
        ),
        replace(
            given_case(
                "versatile-text-method",
                VersatileDiffusionPipeline,
                versatile,
                FLAT,
                unets=("image_unet",),
                others=BASIC | UNGUIDED,
            ),
            run=partial(run_method, method="text_to_image", defaults=PROMPT),
        ),
        # `VersatileDiffusionDualGuidedPipeline`, and the method `dual_guided`, cannot run: in
        # diffusers 0.42, the U-Net's blocks call their `DualTransformer2DModel` with an
        # `encoder_attention_mask`, which its `forward` does not take.
    )
}
