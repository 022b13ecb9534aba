"""Tiny pipelines that steer a denoiser from the side: ControlNets of all kinds, BLIP diffusion,
perturbed-attention guidance (PAG), and HunyuanDiT with each of them. The builders of ControlNets
are for other tests too: `wake`, `controlnet`, `controlnet_union`, `controlnet_xs` and
`controlnet_hunyuan`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from string import ascii_lowercase, digits
from typing import Any, TypeVar

import torch
from builders.cases import EDIT, PAINT, PROMPT, Case, make_case, picture, run_pipeline
from builders.models import model_folder
from builders.parts import UNCHECKED, from_vocabulary, sd_parts, sdxl_parts, text_config, vae
from builders.schedulers import sd_scheduler
from builders.unets import SDXL, SIDE, TEXT_WIDTH, seeded, unet2d_condition
from builders.versions_needed import deprecated, require
from diffusers import (
    AnimateDiffPAGPipeline,
    BlipDiffusionControlNetPipeline,
    BlipDiffusionPipeline,
    ConfigMixin,
    ControlNetModel,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    DiffusionPipeline,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    ModelMixin,
    MotionAdapter,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPAGImg2ImgPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLControlNetXSPipeline,
    StableDiffusionXLPAGImg2ImgPipeline,
    StableDiffusionXLPAGInpaintPipeline,
    StableDiffusionXLPAGPipeline,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import register_to_config
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BlipImageProcessor = deprecated("blip_diffusion.blip_image_processing").BlipImageProcessor
ContextCLIPTextModel = deprecated("blip_diffusion.modeling_ctx_clip").ContextCLIPTextModel

# --- ControlNets ------------------------------------------------------------------------------

_Module = TypeVar("_Module", bound=torch.nn.Module)

#: The control picture's embedding halves the side once, as `tiny.vae` does: one channel count for
#: each resolution. With diffusers' four, it would not fit these latents.
_HINT_CHANNELS = (4, 8)


def wake(module: _Module, *, seed: int = 0, scale: float = 0.2) -> _Module:
    """Gives every convolution and linear layer whose weight is zero a random one; returns `module`.

    Such layers are how ControlNets are made to change nothing before training. `scale` is the
    standard deviation of the new weights and biases.
    """
    layers = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    with seeded(seed), torch.no_grad():
        for part in module.modules():
            if isinstance(part, layers) and not part.weight.any():
                for parameter in part.parameters(recurse=False):
                    parameter.normal_(std=scale)
    return module


def controlnet(unet: UNet2DConditionModel, *, seed: int = 0) -> ControlNetModel:
    """A ControlNet with the U-Net's layout and weights, whose zero convolutions are random.

    For a control picture that is twice as wide and high as the latents, as `tiny.vae`'s pictures
    are. In eval mode.
    """
    with seeded(seed):
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_HINT_CHANNELS)
    return wake(net, seed=seed).eval()


def controlnet_union(
    unet: UNet2DConditionModel, *, seed: int = 0, kinds: int = 3
) -> ControlNetUnionModel:
    """A ControlNet for several kinds of control pictures, for a U-Net with SDXL's embeddings.

    As `controlnet` otherwise. `ControlNetUnionModel.from_unet` has no way to give the width of the
    transformer that mixes the kinds, which has to be the first level's.
    """
    names = inspect.signature(ControlNetUnionModel.__init__).parameters
    width = unet.config.block_out_channels[0]
    config = {name: value for name, value in unet.config.items() if name in names} | {
        "conditioning_embedding_out_channels": _HINT_CHANNELS,
        "num_control_type": kinds,
        "num_trans_channel": width,
        "num_proj_channel": width,
        "num_trans_head": 2,
    }
    with seeded(seed):
        net = ControlNetUnionModel(**config)
    net.load_state_dict(unet.state_dict(), strict=False)
    return wake(net, seed=seed).eval()


def controlnet_xs(unet: UNet2DConditionModel, *, seed: int = 0) -> ControlNetXSAdapter:
    """A ControlNet-XS of half the U-Net's channels, whose zero convolutions are random.

    The U-Net must have two layers per level and attention in its mid block. In eval mode.
    """
    with seeded(seed):
        net = ControlNetXSAdapter.from_unet(
            unet, size_ratio=0.5, conditioning_embedding_out_channels=_HINT_CHANNELS
        )
    return wake(net, seed=seed).eval()


def controlnet_hunyuan(
    transformer: HunyuanDiT2DModel, *, seed: int = 0
) -> HunyuanDiT2DControlNetModel:
    """A ControlNet with the weights of the transformer's first half, and random zero layers.

    In eval mode.
    """
    names = inspect.signature(HunyuanDiT2DControlNetModel.__init__).parameters
    config = {name: value for name, value in transformer.config.items() if name in names}
    with seeded(seed):
        net = HunyuanDiT2DControlNetModel(
            **config, transformer_num_layers=transformer.config.num_layers
        )
    net.load_state_dict(transformer.state_dict(), strict=False)
    return wake(net, seed=seed).eval()


# --- loading ----------------------------------------------------------------------------------


def _load(
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    options: Callable[[], dict[str, Any]],
) -> DiffusionPipeline:
    """As `tiny.load_pipeline`, with options of the pipeline's that are not saved with it."""
    pipe = pipeline.from_pretrained(model_folder(build), local_files_only=True, **options())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pag_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    layers: list[str],
    **more: Any,
) -> Case:
    """A case whose pipeline perturbs the self-attention of those layers; else of "mid" alone."""
    load = functools.partial(_load, pipeline, build, lambda: {"pag_applied_layers": layers})
    return dataclasses.replace(make_case(name, pipeline, build, **more), load=load)


# --- Stable Diffusion and SDXL ----------------------------------------------------------------

#: Layouts of SD's U-Nets, levels × layers, besides the default 3×2 with nine skips.
_2X1 = {"block_out_channels": (8, 16), "layers_per_block": 1}
_2X2 = {"block_out_channels": (8, 16), "layers_per_block": 2}
_3X1 = {"layers_per_block": 1}
_4X1 = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1}

#: The same for SDXL's, besides `tiny.SDXL` with 3×2: no attention in the first level either.
_XL_2X2 = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
}
_XL_3X1 = {"layers_per_block": 1}

#: Another size than `tiny.SIDE`, not square.
_SIZE = {"height": 24, "width": 32}


def _sd(
    pipeline: type[DiffusionPipeline],
    control: Callable[[UNet2DConditionModel], Any] | None = None,
    layout: Mapping[str, Any] | None = None,
) -> Callable[[], DiffusionPipeline]:
    """Builds `pipeline` of SD's parts: a U-Net of that layout, what `control` makes of it."""

    def build() -> DiffusionPipeline:
        parts = sd_parts(**layout or {})
        if control:
            parts["controlnet"] = control(parts["unet"])
        return pipeline(**parts, **UNCHECKED)

    return build


def _sdxl(
    pipeline: type[DiffusionPipeline],
    control: Callable[[UNet2DConditionModel], Any] | None = None,
    layout: Mapping[str, Any] | None = None,
) -> Callable[[], DiffusionPipeline]:
    """As `_sd`, of SDXL's parts."""

    def build() -> DiffusionPipeline:
        unet = SDXL | {"cross_attention_dim": 2 * TEXT_WIDTH} | (layout or {})
        parts = sdxl_parts() | {"unet": unet2d_condition(**unet)}
        if control:
            parts["controlnet"] = control(parts["unet"])
        return pipeline(**parts, add_watermarker=False)

    return build


def _two_controlnets(unet: UNet2DConditionModel) -> MultiControlNetModel:
    return MultiControlNetModel([controlnet(unet), controlnet(unet, seed=1)])


def _controlnet_of_four_channels(unet: UNet2DConditionModel) -> ControlNetModel:
    """For an inpainting U-Net, whose five other channels the pipelines do not give a ControlNet."""
    plain = {"block_out_channels", "layers_per_block"}
    return controlnet(unet2d_condition(**{name: unet.config[name] for name in plain}))


def _animatediff_pag() -> DiffusionPipeline:
    with seeded(0):
        adapter = MotionAdapter(
            block_out_channels=(8, 16, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
        )
    return AnimateDiffPAGPipeline(**sd_parts(**_3X1), motion_adapter=adapter)


# --- BLIP diffusion ---------------------------------------------------------------------------


class _QueryFormer(ModelMixin, ConfigMixin):
    """Turns a picture and a subject into a few embeddings, as BLIP diffusion's Q-Former does.

    diffusers' `Blip2QFormerModel` does not run with transformers 5: it calls
    `invert_attention_mask`, which is gone.
    """

    @register_to_config
    def __init__(self, num_query_tokens: int = 7, width: int = TEXT_WIDTH) -> None:
        super().__init__()
        self.queries = torch.nn.Linear(3, num_query_tokens * width)

    def forward(
        self, image_input: torch.Tensor, text_input: list[str], return_dict: bool
    ) -> torch.Tensor:
        words = torch.tensor([[float(len(word))] for word in text_input])
        queries = self.queries(image_input.mean((2, 3)) + words / 10)
        return queries.unflatten(1, (self.config.num_query_tokens, self.config.width))


def _blip_extras() -> dict[str, Any]:
    """The parts that are given to `from_pretrained`, fresh ones with equal weights.

    No `model_index.json` can name them: diffusers no longer exports BLIP diffusion's own classes,
    and the Q-Former's is of this file.
    """
    require("transformers", "5", "BLIP-Diffusion")  # it passes CLIP arguments that 4 does not take
    with seeded(0):
        return {
            "text_encoder": ContextCLIPTextModel(text_config()).eval(),
            "image_processor": BlipImageProcessor(size={"height": SIDE, "width": SIDE}),
            "qformer": _QueryFormer().eval(),
        }


def _blip_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    control: Callable[[UNet2DConditionModel], Any] | None,
    layout: Mapping[str, Any],
    **defaults: Any,
) -> Case:
    def build() -> DiffusionPipeline:
        # The pipelines take the latents' size off the U-Net's levels: two fit `vae`.
        parts = sd_parts(**layout) | dict.fromkeys(_blip_extras())
        if control:
            parts["controlnet"] = control(parts["unet"])
        return pipeline(**parts)

    words = {
        "prompt": ["a red circle"],
        "source_subject_category": ["dog"],
        "target_subject_category": ["cat"],
    }
    rest = {"reference_image": picture(), "height": SIDE, "width": SIDE}
    return Case(
        name=name,
        pipeline=pipeline,
        load=functools.partial(_load, pipeline, build, _blip_extras),
        run=functools.partial(run_pipeline, defaults=words | rest | defaults),
        others={
            "seed": {"seed": 1},
            "steps": {"steps": 7},
            "batch": {name: values * 2 for name, values in words.items()},
            "size": _SIZE,
            "no-guidance": {"guidance_scale": 1.0},
        },
    )


# --- HunyuanDiT -------------------------------------------------------------------------------


def _bert_tokenizer() -> BertTokenizer:
    """Spells, as `tiny.tokenizer` does."""
    letters = ascii_lowercase + digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    return from_vocabulary(BertTokenizer, vocab={word: index for index, word in enumerate(words)})


def _t5_tokenizer() -> T5Tokenizer:
    words = ["<pad>", "</s>", "<unk>", "▁", *ascii_lowercase, *digits]
    vocab = [(word, -float(i)) for i, word in enumerate(words)]
    return from_vocabulary(T5Tokenizer, vocab=vocab, extra_ids=0)


def hunyuan_transformer(*, layers: int = 8, seed: int = 0) -> HunyuanDiT2DModel:
    """A tiny HunyuanDiT for latents of 8×8, with `layers // 2 - 1` long skips; in eval mode.

    `layers` is even: with an odd number, the model takes one skip more than it puts by.
    """
    with seeded(seed):
        return HunyuanDiT2DModel(
            sample_size=8,
            in_channels=4,
            patch_size=2,
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=8,
            hidden_size=16,
            mlp_ratio=2.0,
            cross_attention_dim=TEXT_WIDTH,
            cross_attention_dim_t5=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
        ).eval()


def _hunyuan_parts(layers: int) -> dict[str, Any]:
    words, words_2 = _bert_tokenizer(), _t5_tokenizer()
    bert = BertConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    t5 = T5Config(
        vocab_size=len(words_2),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=2,
    )
    return {
        # The pipelines take latents to be an eighth of the picture, whatever their autoencoder.
        "vae": vae((4, 4, 4, 8)),
        "text_encoder": BertModel(bert),
        "tokenizer": words,
        "text_encoder_2": T5EncoderModel(t5),
        "tokenizer_2": words_2,
        "transformer": hunyuan_transformer(layers=layers),
        "scheduler": sd_scheduler(),
        **UNCHECKED,
    }


def _hunyuan_control() -> DiffusionPipeline:
    parts = _hunyuan_parts(10)
    return HunyuanDiTControlNetPipeline(
        **parts, controlnet=controlnet_hunyuan(parts["transformer"])
    )


# --- cases ------------------------------------------------------------------------------------

#: A control picture.
HINT = picture(seed=1)

_CONTROLLED = {**PROMPT, "image": HINT}
_CONTROLLED_EDIT = {**EDIT, "control_image": HINT}
_CONTROLLED_PAINT = {**PAINT, "control_image": HINT}
#: The union's pipelines name the kinds of their control pictures, two of three here.
_UNION: dict[str, Any] = {"control_image": [HINT, picture(seed=2)], "control_mode": [0, 2]}
#: Without the last, 64 pixels would become 1024.
_HUNYUAN: dict[str, Any] = {**PROMPT, "use_resolution_binning": False}


def _others(**more: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What every pipeline here can vary, and `more`, with dashes for its underscores."""
    return {
        "seed": {"seed": 1},
        "steps": {"steps": 7},
        "batch": {"num_images_per_prompt": 2},
        "size": _SIZE,
        "no-guidance": {"guidance_scale": 1.0},
        **{name.replace("_", "-"): overrides for name, overrides in more.items()},
    }


#: For pipelines that generate with a control picture: one, however many pictures are made.
_CONTROL_BATCH = {"num_images_per_prompt": 2, "image": HINT}

#: Where the weights are random, to perturb attention changes little: ten times the usual scale.
_PAG = {"pag_scale": 30.0}
_NO_PAG = {"pag_scale": 0.0}
_STRENGTH = {"strength": 0.6}
#: From a start one step in, as diffusers' default of 0.9999 makes it.
_PAINT_STRENGTH = {"strength": 0.7}

_SD_CONTROL = _sd(StableDiffusionControlNetPipeline, controlnet)
_SDXL_CONTROL = _sdxl(StableDiffusionXLControlNetPipeline, controlnet)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        make_case(
            "sd-controlnet",
            StableDiffusionControlNetPipeline,
            _SD_CONTROL,
            others=_others(
                batch=_CONTROL_BATCH,
                guess_mode={"guess_mode": True},
                control_end={"control_guidance_end": 0.5},
            ),
            **_CONTROLLED,
        ),
        make_case(
            "sd-controlnet-two",
            StableDiffusionControlNetPipeline,
            _sd(StableDiffusionControlNetPipeline, _two_controlnets, _2X2),
            others=_others(
                batch={"num_images_per_prompt": 2, "image": [HINT, picture(seed=2)]},
                control_end={"control_guidance_end": [0.5, 1.0]},
            ),
            **PROMPT,
            image=[HINT, picture(seed=2)],
            controlnet_conditioning_scale=[1.0, 0.5],
        ),
        make_case(
            "sd-controlnet-img2img",
            StableDiffusionControlNetImg2ImgPipeline,
            _sd(StableDiffusionControlNetImg2ImgPipeline, controlnet, _4X1),
            others=_others(strength=_STRENGTH),
            **_CONTROLLED_EDIT,
        ),
        make_case(
            "sd-controlnet-inpaint",
            StableDiffusionControlNetInpaintPipeline,
            _sd(StableDiffusionControlNetInpaintPipeline, controlnet, _2X1),
            others=_others(strength=_STRENGTH),
            **_CONTROLLED_PAINT,
        ),
        make_case(
            "sdxl-controlnet",
            StableDiffusionXLControlNetPipeline,
            _SDXL_CONTROL,
            others=_others(batch=_CONTROL_BATCH, guess_mode={"guess_mode": True}),
            **_CONTROLLED,
        ),
        make_case(
            "sdxl-controlnet-img2img",
            StableDiffusionXLControlNetImg2ImgPipeline,
            _sdxl(StableDiffusionXLControlNetImg2ImgPipeline, controlnet, _XL_2X2),
            others=_others(strength=_STRENGTH),
            **_CONTROLLED_EDIT,
        ),
        make_case(
            "sdxl-controlnet-inpaint",
            StableDiffusionXLControlNetInpaintPipeline,
            _sdxl(StableDiffusionXLControlNetInpaintPipeline, controlnet, _XL_3X1),
            others=_others(strength=_PAINT_STRENGTH),
            **_CONTROLLED_PAINT,
        ),
        make_case(
            "sdxl-controlnet-union",
            StableDiffusionXLControlNetUnionPipeline,
            _sdxl(StableDiffusionXLControlNetUnionPipeline, controlnet_union, _XL_3X1),
            others=_others(kind={"control_image": [HINT], "control_mode": [1]}),
            **PROMPT,
            **_UNION,
        ),
        make_case(
            "sdxl-controlnet-union-img2img",
            StableDiffusionXLControlNetUnionImg2ImgPipeline,
            _sdxl(StableDiffusionXLControlNetUnionImg2ImgPipeline, controlnet_union),
            others=_others(strength=_STRENGTH),
            **EDIT,
            **_UNION,
        ),
        make_case(
            "sdxl-controlnet-union-inpaint",
            StableDiffusionXLControlNetUnionInpaintPipeline,
            _sdxl(StableDiffusionXLControlNetUnionInpaintPipeline, controlnet_union, _XL_2X2),
            others=_others(strength=_PAINT_STRENGTH),
            **PAINT,
            **_UNION,
        ),
        _blip_case("blip", BlipDiffusionPipeline, None, _2X2),
        _blip_case(
            "blip-controlnet",
            BlipDiffusionControlNetPipeline,
            controlnet,
            _2X1,
            # The pipeline's spelling.
            condtioning_image=HINT,
        ),
        make_case(
            "sd-controlnet-xs",
            StableDiffusionControlNetXSPipeline,
            _sd(StableDiffusionControlNetXSPipeline, controlnet_xs),
            others=_others(batch=_CONTROL_BATCH, control_end={"control_guidance_end": 0.5}),
            **_CONTROLLED,
        ),
        make_case(
            "sdxl-controlnet-xs",
            StableDiffusionXLControlNetXSPipeline,
            _sdxl(StableDiffusionXLControlNetXSPipeline, controlnet_xs, _XL_2X2),
            others=_others(batch=_CONTROL_BATCH),
            **_CONTROLLED,
        ),
        make_case(
            "hunyuandit",
            HunyuanDiTPipeline,
            lambda: HunyuanDiTPipeline(**_hunyuan_parts(8)),
            unets=("transformer",),
            others=_others(size={"height": 64, "width": 96}),
            **_HUNYUAN,
        ),
        make_case(
            "hunyuandit-controlnet",
            HunyuanDiTControlNetPipeline,
            _hunyuan_control,
            unets=("transformer",),
            others=_others(size={"height": 64, "width": 96}),
            **_HUNYUAN,
            control_image=picture(64, seed=1),
        ),
        _pag_case(
            "hunyuandit-pag",
            HunyuanDiTPAGPipeline,
            lambda: HunyuanDiTPAGPipeline(**_hunyuan_parts(12)),
            ["blocks.5"],
            unets=("transformer",),
            others=_others(
                size={"height": 64, "width": 96},
                # Without classifier-free guidance the pipeline fails unless PAG is off too: it
                # makes three time ids for two samples.
                no_guidance={"guidance_scale": 1.0, **_NO_PAG},
                no_pag=_NO_PAG,
            ),
            **_HUNYUAN,
        ),
        make_case(
            "sd-controlnet-pag",
            StableDiffusionControlNetPAGPipeline,
            _SD_CONTROL,
            others=_others(batch=_CONTROL_BATCH, no_pag=_NO_PAG),
            **_CONTROLLED,
            **_PAG,
        ),
        make_case(
            "sd-controlnet-pag-inpaint",
            StableDiffusionControlNetPAGInpaintPipeline,
            _sd(
                StableDiffusionControlNetPAGInpaintPipeline,
                _controlnet_of_four_channels,
                _2X2 | {"in_channels": 9},
            ),
            others=_others(strength=_STRENGTH, no_pag=_NO_PAG),
            **_CONTROLLED_PAINT,
            **_PAG,
        ),
        make_case(
            "sdxl-controlnet-pag",
            StableDiffusionXLControlNetPAGPipeline,
            _SDXL_CONTROL,
            others=_others(batch=_CONTROL_BATCH, no_pag=_NO_PAG),
            **_CONTROLLED,
            **_PAG,
        ),
        make_case(
            "sdxl-controlnet-pag-img2img",
            StableDiffusionXLControlNetPAGImg2ImgPipeline,
            _sdxl(StableDiffusionXLControlNetPAGImg2ImgPipeline, controlnet, _XL_3X1),
            others=_others(strength=_STRENGTH, no_pag=_NO_PAG),
            **_CONTROLLED_EDIT,
            **_PAG,
        ),
        make_case(
            "sd-pag",
            StableDiffusionPAGPipeline,
            _sd(StableDiffusionPAGPipeline, None, _3X1),
            others=_others(no_pag=_NO_PAG, adaptive={"pag_adaptive_scale": 0.03}),
            **PROMPT,
            **_PAG,
        ),
        _pag_case(
            "sd-pag-img2img",
            StableDiffusionPAGImg2ImgPipeline,
            _sd(StableDiffusionPAGImg2ImgPipeline, None, _4X1),
            # The shallowest level. The mid block has one position here: nothing to perturb.
            ["down_blocks.0", "up_blocks.3"],
            others=_others(size={"image": picture(24)}, strength=_STRENGTH, no_pag=_NO_PAG),
            **EDIT,
            **_PAG,
        ),
        make_case(
            "sd-pag-inpaint",
            StableDiffusionPAGInpaintPipeline,
            _sd(StableDiffusionPAGInpaintPipeline, None, _2X1),
            others=_others(strength=_PAINT_STRENGTH, no_pag=_NO_PAG),
            **PAINT,
            **_PAG,
        ),
        make_case(
            "sdxl-pag",
            StableDiffusionXLPAGPipeline,
            _sdxl(StableDiffusionXLPAGPipeline, None, _XL_2X2),
            others=_others(no_pag=_NO_PAG),
            **PROMPT,
            **_PAG,
        ),
        _pag_case(
            "sdxl-pag-img2img",
            StableDiffusionXLPAGImg2ImgPipeline,
            _sdxl(StableDiffusionXLPAGImg2ImgPipeline, None, _XL_3X1),
            ["down_blocks.1", "up_blocks.1"],
            others=_others(size={"image": picture(24)}, strength=_STRENGTH, no_pag=_NO_PAG),
            **EDIT,
            **_PAG,
            strength=0.8,
        ),
        make_case(
            "sdxl-pag-inpaint",
            StableDiffusionXLPAGInpaintPipeline,
            _sdxl(StableDiffusionXLPAGInpaintPipeline),
            others=_others(strength=_PAINT_STRENGTH, no_pag=_NO_PAG),
            **PAINT,
            **_PAG,
        ),
        make_case(
            "animatediff-pag",
            AnimateDiffPAGPipeline,
            _animatediff_pag,
            others=_others(
                # The pipeline sets its `num_videos_per_prompt` to 1.
                batch={"prompt": ["a small red circle", "a dog"]},
                frames={"num_frames": 6},
                no_pag=_NO_PAG,
            ),
            **PROMPT,
            **_PAG,
            num_frames=4,
        ),
    )
}
