"""Tiny Kandinsky pipelines: 2.1, 2.2 and 3, each decoder alone and with its prior in front.

The decoders of 2.1 and 2.2 are called with seeded image embeddings in place of a prior's. What runs
a prior as well are the combined pipelines: only their decoder is a U-Net, the prior has no skips.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from string import ascii_lowercase, digits
from typing import Any

import torch
from builders.cases import EDIT, PAINT, PROMPT, Case, make_case, picture
from builders.parts import from_vocabulary, text_config, tokenizer
from builders.schedulers import sd_scheduler
from builders.unets import SIDE, TEXT_WIDTH, seeded, unet2d_condition
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    Kandinsky3Img2ImgPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyCombinedPipeline,
    KandinskyImg2ImgCombinedPipeline,
    KandinskyImg2ImgPipeline,
    KandinskyInpaintCombinedPipeline,
    KandinskyInpaintPipeline,
    KandinskyPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintCombinedPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    PriorTransformer,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

# --- parts that the other cascades share --------------------------------------------------------

#: Pieces of a Unigram tokenizer that spells, as `tiny.tokenizer` does.
_SPELLING = [("▁", -1.0), *((letter, -1.0) for letter in ascii_lowercase + digits)]


def t5_parts() -> dict[str, Any]:
    """A T5 encoder of width `TEXT_WIDTH` and its tokenizer, by their names in a pipeline."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *_SPELLING]
    config = T5Config(
        vocab_size=len(pieces),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=2,
    )
    return {
        "tokenizer": from_vocabulary(T5Tokenizer, vocab=pieces, extra_ids=0),
        "text_encoder": T5EncoderModel(config),
    }


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)


def image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=SIDE,
            patch_size=SIDE // 2,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


def prior() -> PriorTransformer:
    """The prior of unCLIP, from text to image embeddings, both of width `TEXT_WIDTH`."""
    model = PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, num_layers=1, embedding_dim=TEXT_WIDTH
    )
    # Zero by default, and with it every image embedding.
    torch.nn.init.ones_(model.clip_std)
    return model


def fill_zeros(model: torch.nn.Module, std: float = 0.1) -> torch.nn.Module:
    """Gives parameters that start as zeros random values, since with zeros a layer does nothing."""
    with seeded(1):
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=std)
    return model


def variations(
    pipeline: type[DiffusionPipeline],
    defaults: Iterable[str],
    kept: dict[str, Any] | None = None,
    **extra: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """The other generations that the arguments of a pipeline's `__call__` allow.

    `kept` is passed with several pictures for a prompt: pictures among the defaults that the
    pipeline repeats itself, which `run_pipeline` would otherwise repeat before. `extra` says what
    a pipeline has besides, or has otherwise.
    """
    arguments = inspect.signature(pipeline.__call__).parameters
    others: dict[str, dict[str, Any]] = {"seed": {"seed": 1}, "steps": {"steps": 7}}
    if "num_images_per_prompt" in arguments:
        others["batch"] = {"num_images_per_prompt": 2, **(kept or {})}
    if "height" in arguments and "height" in defaults:
        others["size"] = {"height": 2 * SIDE, "width": 2 * SIDE}
    if "guidance_scale" in arguments:
        others["no-guidance"] = {"guidance_scale": 1.0}
    if "strength" in arguments:
        # The default of these cases, 0.8, leaves six of eight steps; this leaves four.
        others["strength"] = {"strength": 0.6}
    return others | extra


# --- Kandinsky 2.1 and 2.2 ----------------------------------------------------------------------


def _movq() -> VQModel:
    """MoVQ, but with plain norms: spatial ones need 32 channels."""
    return VQModel(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=2,
        sample_size=SIDE,
    )


#: The blocks of Kandinsky 2's U-Net, of unCLIP's and of DeepFloyd IF's.
SIMPLE_BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 2),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 2, "ResnetUpsampleBlock2D"),
    "layers_per_block": 1,
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 4,
}


def _parts21(**unet: Any) -> dict[str, Any]:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *_SPELLING]
    pieces.append(("<mask>", 0.0))
    text = MCLIPConfig(
        transformerDimSize=TEXT_WIDTH,
        imageDimSize=TEXT_WIDTH,
        vocab_size=len(pieces),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
    )
    return {
        "tokenizer": from_vocabulary(XLMRobertaTokenizer, vocab=pieces, model_max_length=77),
        "text_encoder": MultilingualCLIP(text),
        "unet": unet2d_condition(
            **SIMPLE_BLOCKS,
            **unet,
            # The other half of the channels is the variance.
            out_channels=8,
            addition_embed_type="text_image",
            encoder_hid_dim_type="text_image_proj",
            encoder_hid_dim=TEXT_WIDTH,
        ),
        "scheduler": sd_scheduler(),
        "movq": _movq(),
    }


def _parts22(**unet: Any) -> dict[str, Any]:
    config = {
        **SIMPLE_BLOCKS,
        "out_channels": 8,
        "addition_embed_type": "image",
        "encoder_hid_dim_type": "image_proj",
        "encoder_hid_dim": TEXT_WIDTH,
    }
    return {
        "unet": unet2d_condition(**(config | unet)),
        # As released, with the variance from the U-Net.
        "scheduler": DDPMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            variance_type="learned_range",
            clip_sample=True,
            clip_sample_range=2.0,
        ),
        "movq": _movq(),
    }


def _prior_parts() -> dict[str, Any]:
    return {
        "prior_prior": prior(),
        "prior_image_encoder": image_encoder(),
        "prior_text_encoder": CLIPTextModelWithProjection(text_config()),
        "prior_tokenizer": tokenizer(),
        "prior_scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        "prior_image_processor": image_processor(),
    }


# Of each kind one model, saved once, for all classes whose components are the same.


def _text21() -> DiffusionPipeline:
    return KandinskyPipeline(**_parts21())


def _inpaint21() -> DiffusionPipeline:
    return KandinskyInpaintPipeline(**_parts21(in_channels=9))


def _combined21() -> DiffusionPipeline:
    return KandinskyCombinedPipeline(**_parts21(), **_prior_parts())


def _combined_inpaint21() -> DiffusionPipeline:
    return KandinskyInpaintCombinedPipeline(**_parts21(in_channels=9), **_prior_parts())


def _text22() -> DiffusionPipeline:
    return KandinskyV22Pipeline(**_parts22())


def _inpaint22() -> DiffusionPipeline:
    return KandinskyV22InpaintPipeline(**_parts22(in_channels=9))


def _controlnet22() -> DiffusionPipeline:
    # No network beside the U-Net: it reduces the hint to four channels more of its input.
    unet = {"in_channels": 8, "addition_embed_type": "image_hint"}
    return KandinskyV22ControlnetPipeline(**_parts22(**unet))


def _combined22() -> DiffusionPipeline:
    return KandinskyV22CombinedPipeline(**_parts22(), **_prior_parts())


def _combined_inpaint22() -> DiffusionPipeline:
    return KandinskyV22InpaintCombinedPipeline(**_parts22(in_channels=9), **_prior_parts())


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_SIZE = {"height": SIDE, "width": SIDE}
_EMBEDS = {
    "image_embeds": _noise(1, TEXT_WIDTH),
    "negative_image_embeds": _noise(1, TEXT_WIDTH, seed=1),
}
#: Eight times the latents' size, whatever the autoencoder's.
_HINT = {"hint": _noise(1, 3, 4 * SIDE, 4 * SIDE)}
_IMAGE = {"image": EDIT["image"]}
_MASKED = {**_IMAGE, "mask_image": PAINT["mask_image"]}
_STRENGTH = {"strength": 0.8}
_PRIOR = {"prior_num_inference_steps": 2}
#: Two of 2.2's combined pipelines pass on a deprecated argument, which warns unless it is None.
_PRIOR22 = {**_PRIOR, "callback_steps": None}


def _case(
    name: str,
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    *,
    repeats: bool = True,
    others: dict[str, dict[str, Any]] | None = None,
    **defaults: Any,
) -> Case:
    """A case with the other generations of its class; `repeats`: see `kept` of `variations`."""
    kept = {key: defaults[key] for key in _MASKED if key in defaults} if repeats else {}
    return make_case(
        name,
        pipeline,
        build,
        others=variations(pipeline, defaults, kept, **(others or {})),
        **defaults,
    )


_DOUBLE_HINT = {"hint": _noise(1, 3, 8 * SIDE, 8 * SIDE)}
_CONTROLNET = {"size": {"height": 2 * SIDE, "width": 2 * SIDE, **_DOUBLE_HINT}}

# --- Kandinsky 3 --------------------------------------------------------------------------------


def _kandinsky3() -> DiffusionPipeline:
    with seeded(0):
        unet = Kandinsky3UNet(
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=4,
            layers_per_block=2,
            # Four levels, since the class knows which have attention by their number: three skips.
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=TEXT_WIDTH,
            encoder_hid_dim=TEXT_WIDTH,
        )
    return Kandinsky3Pipeline(
        **t5_parts(),
        # Its norms start without a say of the time embedding.
        unet=fill_zeros(unet),
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=2.0
        ),
        movq=_movq(),
    )


# --- cases --------------------------------------------------------------------------------------

#: Pipelines by readable id.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _case("kandinsky", KandinskyPipeline, _text21, **PROMPT, **_EMBEDS, **_SIZE),
        _case(
            "kandinsky-img2img",
            KandinskyImg2ImgPipeline,
            _text21,
            **EDIT,
            **_EMBEDS,
            **_SIZE,
            **_STRENGTH,
        ),
        _case(
            "kandinsky-inpaint", KandinskyInpaintPipeline, _inpaint21, **PAINT, **_EMBEDS, **_SIZE
        ),
        _case(
            "kandinsky-combined",
            KandinskyCombinedPipeline,
            _combined21,
            **PROMPT,
            **_SIZE,
            **_PRIOR,
        ),
        # The combined classes want as many pictures as there are to be made.
        _case(
            "kandinsky-img2img-combined",
            KandinskyImg2ImgCombinedPipeline,
            _combined21,
            repeats=False,
            **EDIT,
            **_SIZE,
            **_STRENGTH,
            **_PRIOR,
        ),
        _case(
            "kandinsky-inpaint-combined",
            KandinskyInpaintCombinedPipeline,
            _combined_inpaint21,
            repeats=False,
            **PAINT,
            **_SIZE,
            **_PRIOR,
        ),
        _case("kandinsky-v22", KandinskyV22Pipeline, _text22, **_EMBEDS, **_SIZE),
        _case(
            "kandinsky-v22-img2img",
            KandinskyV22Img2ImgPipeline,
            _text22,
            **_IMAGE,
            **_EMBEDS,
            **_SIZE,
            **_STRENGTH,
        ),
        _case(
            "kandinsky-v22-inpaint",
            KandinskyV22InpaintPipeline,
            _inpaint22,
            **_MASKED,
            **_EMBEDS,
            **_SIZE,
        ),
        _case(
            "kandinsky-v22-controlnet",
            KandinskyV22ControlnetPipeline,
            _controlnet22,
            others=_CONTROLNET,
            **_EMBEDS,
            **_HINT,
            **_SIZE,
        ),
        _case(
            "kandinsky-v22-controlnet-img2img",
            KandinskyV22ControlnetImg2ImgPipeline,
            _controlnet22,
            others=_CONTROLNET,
            **_IMAGE,
            **_EMBEDS,
            **_HINT,
            **_SIZE,
            **_STRENGTH,
        ),
        _case(
            "kandinsky-v22-combined",
            KandinskyV22CombinedPipeline,
            _combined22,
            **PROMPT,
            **_SIZE,
            **_PRIOR22,
        ),
        _case(
            "kandinsky-v22-img2img-combined",
            KandinskyV22Img2ImgCombinedPipeline,
            _combined22,
            repeats=False,
            **EDIT,
            **_SIZE,
            **_STRENGTH,
            **_PRIOR22,
        ),
        _case(
            "kandinsky-v22-inpaint-combined",
            KandinskyV22InpaintCombinedPipeline,
            _combined_inpaint22,
            repeats=False,
            **PAINT,
            **_SIZE,
            **_PRIOR,
        ),
        # It takes latents to be an eighth of the picture, whatever its autoencoder.
        _case(
            "kandinsky3",
            Kandinsky3Pipeline,
            _kandinsky3,
            others={"size": {"height": 8 * SIDE, "width": 8 * SIDE}},
            **PROMPT,
            height=4 * SIDE,
            width=4 * SIDE,
        ),
        # The picture's size is the result's.
        _case(
            "kandinsky3-img2img",
            Kandinsky3Img2ImgPipeline,
            _kandinsky3,
            others={"size": {"image": picture(2 * SIDE)}},
            **EDIT,
            **_STRENGTH,
        ),
    )
}
