"""Tiny diffusers pipelines and U-Nets with seeded random weights, for every test to share.

A pipeline is built from its parts and saved once in a session; every `load()` then reads it back
with `from_pretrained`, so each test has fresh objects with equal weights, and the real loading
code is what runs. Nothing here knows of the package under test. One generation of five steps takes
well under a second on one core.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase, digits
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    PNDMPipeline,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)
from versions_needed import require

Tokenizer = TypeVar("Tokenizer")

# Bars for loading and saving only: a pipeline's own bar is another one, switched off in `_load`.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

#: Side of the pictures that every text-guided case makes by default, in pixels.
SIDE = 16

#: Width of the text embeddings, and the `cross_attention_dim` of U-Nets with one text encoder.
TEXT_WIDTH = 16


def deprecated(module: str) -> ModuleType:
    """A module of diffusers' pipelines; newer versions have it among the deprecated ones."""
    try:
        return importlib.import_module(f"diffusers.pipelines.deprecated.{module}")
    except ModuleNotFoundError:
        return importlib.import_module(f"diffusers.pipelines.{module}")


# --- U-Nets -----------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator inside, and puts its CPU state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def unet2d(*, seed: int = 0, **overrides: Any) -> UNet2DModel:
    """A small `UNet2DModel` in eval mode: by default two levels of one layer, 8×8 pixels.

    `down_block_types` and `up_block_types` follow `block_out_channels`, without attention, unless
    they are given.
    """
    channels = overrides.get("block_out_channels", (8, 16))
    config = {
        "sample_size": 8,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D",) * len(channels),
        "up_block_types": ("UpBlock2D",) * len(channels),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    with seeded(seed):
        return UNet2DModel(**(config | overrides)).eval()


def unet2d_condition(*, seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    """A small `UNet2DConditionModel` in eval mode: by default SD's layout, three levels of two.

    `down_block_types` and `up_block_types` follow `block_out_channels`, with cross-attention in
    all but the deepest, unless they are given.
    """
    channels = overrides.get("block_out_channels", (8, 16, 16))
    deeper = len(channels) - 1
    config = {
        "sample_size": 8,
        "block_out_channels": channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * deeper + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deeper,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
    }
    with seeded(seed):
        return UNet2DConditionModel(**(config | overrides)).eval()


def inputs2d(
    *, seed: int = 0, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: int = 500
) -> dict[str, Any]:
    """The keyword arguments of one `UNet2DModel.forward`, seeded."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 3, *size, generator=generator),
        "timestep": torch.tensor(timestep),
    }


def inputs2d_condition(
    *, seed: int = 0, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: int = 500
) -> dict[str, Any]:
    """The keyword arguments of one `UNet2DConditionModel.forward`, seeded."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 4, *size, generator=generator),
        "timestep": torch.tensor(timestep),
        "encoder_hidden_states": torch.randn(batch, 7, TEXT_WIDTH, generator=generator),
    }


class TinyUNet(NamedTuple):
    """How to build a bare U-Net and the keyword arguments of its forward.

    `inputs` takes `seed`, `batch` and `timestep` (and `size`, unless the layout fixes it).
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[..., dict[str, Any]]


def _plain(**config: Any) -> TinyUNet:
    return TinyUNet(functools.partial(unet2d, **config), inputs2d)


def _conditional(**config: Any) -> TinyUNet:
    return TinyUNet(functools.partial(unet2d_condition, **config), inputs2d_condition)


def _class_labels(inputs: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def with_labels(*, batch: int = 2, **options: Any) -> dict[str, Any]:
        return inputs(batch=batch, **options) | {"class_labels": torch.arange(batch) % 3}

    return with_labels


def _sdxl_inputs(*, seed: int = 0, batch: int = 2, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + 1)
    return inputs2d_condition(seed=seed, batch=batch, **options) | {
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch, TEXT_WIDTH, generator=generator),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]).repeat(batch, 1),
        }
    }


SDXL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 4,
}

#: Bare U-Nets of many layouts: readable id -> (build, inputs).
UNETS: dict[str, TinyUNet] = {
    "2d-1-layer": _plain(),
    "2d-2-layers": _plain(layers_per_block=2, block_out_channels=(8, 8, 16)),
    "2d-3-layers": _plain(layers_per_block=3),
    "2d-1-level": _plain(block_out_channels=(8,), layers_per_block=2),
    "2d-4-levels": _plain(block_out_channels=(8, 8, 8, 16)),
    "2d-attention-everywhere": _plain(
        layers_per_block=2,
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
    ),
    "2d-attention-inside": _plain(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
    "2d-resnet-samplers": _plain(
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
    ),
    # Only the attention blocks read `downsample_type` and `upsample_type`.
    "2d-attention-resnet-samplers": _plain(
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
        downsample_type="resnet",
        upsample_type="resnet",
    ),
    "2d-no-mid-block": _plain(mid_block_type=None),
    "2d-mid-without-attention": _plain(add_attention=False, resnet_time_scale_shift="scale_shift"),
    "2d-class-labels": TinyUNet(
        functools.partial(unet2d, num_class_embeds=3), _class_labels(inputs2d)
    ),
    "condition-1-layer": _conditional(layers_per_block=1),
    "condition-2-layers": _conditional(),
    "condition-3-layers": _conditional(layers_per_block=3, block_out_channels=(8, 16)),
    "condition-layers-1-2-3": _conditional(layers_per_block=(1, 2, 3)),
    "condition-1-level": _conditional(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ),
    "condition-4-levels": _conditional(block_out_channels=(8, 8, 16, 16), layers_per_block=1),
    "condition-transformer-layers": _conditional(
        transformer_layers_per_block=[1, 2, 3],
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    ),
    "condition-reverse-transformer-layers": _conditional(
        transformer_layers_per_block=[[1, 2], [2, 1], [1, 1]],
        reverse_transformer_layers_per_block=[[1, 1, 1], [1, 2, 1], [2, 1, 1]],
        # With nested lists the mid block cannot read its depth off the last level.
        mid_block_type=None,
    ),
    "condition-no-attention": _conditional(
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
    ),
    "condition-self-attention": _conditional(
        down_block_types=("AttnDownBlock2D",) * 3, up_block_types=("AttnUpBlock2D",) * 3
    ),
    # DeepFloyd IF's blocks.
    "condition-simple-attention": _conditional(
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=4,
    ),
    # SSD-1B's.
    "condition-no-mid-block": _conditional(mid_block_type=None),
    "condition-class-labels": TinyUNet(
        functools.partial(unet2d_condition, num_class_embeds=3, layers_per_block=1),
        _class_labels(inputs2d_condition),
    ),
    "condition-sdxl": TinyUNet(functools.partial(unet2d_condition, **SDXL), _sdxl_inputs),
    # The U-Net reads the shape of a skip for each upsampling here. `UNet2DModel` has no such code.
    "condition-odd-size": TinyUNet(
        unet2d_condition, functools.partial(inputs2d_condition, size=(9, 11))
    ),
}


# --- schedulers -------------------------------------------------------------------------------


def _from_config(
    cls: type[SchedulerMixin], **options: Any
) -> Callable[[Mapping[str, Any]], SchedulerMixin]:
    return lambda config: cls.from_config(config, **options)


#: Name -> scheduler from another one's config. All cases but the pixel ones have SD's config.
SCHEDULERS: dict[str, Callable[[Mapping[str, Any]], SchedulerMixin]] = {
    "ddim": _from_config(diffusers.DDIMScheduler),
    "ddpm": _from_config(diffusers.DDPMScheduler),
    "pndm": _from_config(diffusers.PNDMScheduler, skip_prk_steps=True),
    "euler": _from_config(diffusers.EulerDiscreteScheduler),
    "euler-ancestral": _from_config(diffusers.EulerAncestralDiscreteScheduler),
    "heun": _from_config(diffusers.HeunDiscreteScheduler),
    "kdpm2": _from_config(diffusers.KDPM2DiscreteScheduler),
    "lms": _from_config(diffusers.LMSDiscreteScheduler),
    "dpm-multistep": _from_config(diffusers.DPMSolverMultistepScheduler),
    "dpm-singlestep": _from_config(
        # Otherwise it changes itself at an odd number of steps, and logs that it does.
        diffusers.DPMSolverSinglestepScheduler,
        lower_order_final=True,
    ),
    "unipc": _from_config(diffusers.UniPCMultistepScheduler),
    "lcm": _from_config(diffusers.LCMScheduler),
}


def with_scheduler(pipe: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """Gives `pipe` the scheduler of that name, made from the one that it has; returns `pipe`."""
    pipe.scheduler = SCHEDULERS[name](pipe.scheduler.config)
    return pipe


# --- the parts of a pipeline ------------------------------------------------------------------


def sd_scheduler(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **options,
    )


#: Random weights take no noise away: with the usual betas, up to 0.02, most pixels of the pictures
#: would end clamped to black or white, and their equality would prove little.
_PIXEL_BETA_END = 0.002


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


def _depth_parts() -> dict[str, Any]:
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


#: What is saved: folder name -> a pipeline of fresh parts. Their U-Nets' layouts differ on purpose.
MODELS: dict[str, Callable[[], DiffusionPipeline]] = {
    # Three levels of two layers: nine skips, branches 0 to 8.
    "sd": lambda: StableDiffusionPipeline(**sd_parts(), **UNCHECKED),
    "sd-inpaint-9": lambda: StableDiffusionInpaintPipeline(
        **sd_parts(in_channels=9, block_out_channels=(8, 8, 16, 16), layers_per_block=1),
        **UNCHECKED,
    ),
    "sd-depth2img": lambda: StableDiffusionDepth2ImgPipeline(
        **sd_parts(in_channels=5, block_out_channels=(8, 16), layers_per_block=3),
        **_depth_parts(),
    ),
    "sd-instruct-pix2pix": lambda: StableDiffusionInstructPix2PixPipeline(
        **sd_parts(in_channels=8, layers_per_block=1), **UNCHECKED
    ),
    "sdxl": lambda: StableDiffusionXLPipeline(**sdxl_parts(), add_watermarker=False),
    "sdxl-refiner": lambda: StableDiffusionXLImg2ImgPipeline(
        **refiner_parts(), add_watermarker=False
    ),
    "ldm": lambda: LDMPipeline(
        vqvae=vqvae(),
        unet=unet2d(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        ),
        # The pipeline reads `init_noise_sigma` before `set_timesteps`. With another spacing, that
        # is the last generation's: a second one would differ from the first, at the same seed.
        scheduler=sd_scheduler(timestep_spacing="linspace"),
    ),
    "ldm-text2img": lambda: LDMTextToImagePipeline(
        # The pipeline takes latents to be an eighth of the picture, whatever its autoencoder.
        vqvae=vae((4, 4, 4, 8)),
        bert=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        unet=unet2d_condition(
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        ),
        scheduler=sd_scheduler(),
    ),
    "ldm-superresolution": lambda: LDMSuperResolutionPipeline(
        vqvae=vqvae(),
        unet=unet2d(in_channels=6, layers_per_block=3),
        scheduler=sd_scheduler(),
    ),
    "ddpm": lambda: DDPMPipeline(
        unet=unet2d(layers_per_block=2, block_out_channels=(8, 8, 16), sample_size=SIDE),
        scheduler=DDPMScheduler(beta_end=_PIXEL_BETA_END),
    ),
    "ddim": lambda: DDIMPipeline(
        unet=unet2d(
            block_out_channels=(8, 8, 8, 16),
            down_block_types=("AttnDownBlock2D",) * 4,
            up_block_types=("AttnUpBlock2D",) * 4,
            sample_size=SIDE,
        ),
        scheduler=DDIMScheduler(beta_end=_PIXEL_BETA_END),
    ),
    # Runs Runge-Kutta steps first: four calls for each of three steps, at repeated timesteps.
    "pndm": lambda: PNDMPipeline(
        unet=unet2d(layers_per_block=3, sample_size=SIDE),
        scheduler=PNDMScheduler(beta_end=_PIXEL_BETA_END),
    ),
}


@functools.cache
def _session_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-pipelines-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def model_folder(build: Callable[[], DiffusionPipeline]) -> Path:
    """The folder in which the pipeline that `build` makes is saved, once, when first asked for."""
    folder = Path(tempfile.mkdtemp(dir=_session_folder()))
    with seeded(0):
        build().save_pretrained(folder)
    return folder


# --- cases ------------------------------------------------------------------------------------


def picture(side: int = SIDE, *, seed: int = 0) -> Image.Image:
    """A seeded picture of noise, RGB, `side` × `side` pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(side: int = SIDE) -> Image.Image:
    """A mask whose right half is to be painted."""
    pixels = np.zeros((side, side), dtype=np.uint8)
    pixels[:, side // 2 :] = 255
    return Image.fromarray(pixels)


def latents(seed: int = 0) -> torch.Tensor:
    """What a base pipeline hands its refiner: `(1, 4, SIDE // 2, SIDE // 2)`, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=generator)


@dataclass(frozen=True)
class Case:
    """One pipeline class, how to load it and how to run it."""

    #: Readable id, the key in `CASES`.
    name: str
    #: The pipeline's class.
    pipeline: type[DiffusionPipeline]
    #: A fresh pipeline; equal weights each time.
    load: Callable[[], DiffusionPipeline]
    #: `run(pipe, *, steps=5, seed=0, **overrides)` calls the pipeline and returns its pictures
    #: (or latents) as a tensor. `overrides` go to `__call__`; no `output_type="pil"`.
    run: Callable[..., torch.Tensor]
    #: Names of the schedulers that the pipeline can drive.
    schedulers: tuple[str, ...] = ()
    #: The components that are U-Nets, in the order in which they run.
    unets: tuple[str, ...] = ("unet",)
    #: Other generations, by what differs: overrides of `run`. They are what makes a stale start
    #: show, so strengths and steps are no multiples of the interval 3 apart.
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def unet(self, pipe: DiffusionPipeline) -> torch.nn.Module:
        """The pipeline's only U-Net, or the first of several."""
        return pipe.components[self.unets[0]]


def load_pipeline(
    pipeline: type[DiffusionPipeline], build: Callable[[], DiffusionPipeline]
) -> DiffusionPipeline:
    """A fresh pipeline of the class, from the folder where what `build` makes is saved."""
    pipe = pipeline.from_pretrained(model_folder(build), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_pipeline(
    pipe: DiffusionPipeline,
    *,
    defaults: Mapping[str, Any],
    steps: int = 5,
    seed: int = 0,
    **overrides: Any,
) -> torch.Tensor:
    """Calls the pipeline with `defaults` and what overrides them.

    A default that can be called gets `seed`. One that is `ABSENT` is left out, for pipelines whose
    `__call__` has no such argument.
    """
    arguments = {
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
        **{name: value(seed) if callable(value) else value for name, value in defaults.items()},
        **overrides,
    }
    arguments = {name: value for name, value in arguments.items() if value is not ABSENT}
    # Fewer pictures than are to be made are deprecated: repeat the default ones.
    prompt = arguments.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) else 1
    count = prompts * arguments.get("num_images_per_prompt", 1)
    for name in ("image", "mask_image"):
        if count > 1 and name in defaults and name not in overrides:
            copies = [arguments[name]] * count
            arguments[name] = torch.cat(copies) if torch.is_tensor(copies[0]) else copies
    # Seeded too because the LDM pipelines give no generator to `scheduler.step`.
    with seeded(seed):
        return as_tensor(pipe(**arguments)[0])


#: See `run_pipeline`.
ABSENT: Any = object()


def as_tensor(outputs: Any) -> torch.Tensor:
    """What a pipeline returned first, pictures or frames or sound or latents, as one tensor."""
    if isinstance(outputs, list | tuple):
        return torch.stack([as_tensor(output) for output in outputs])
    return torch.as_tensor(np.asarray(outputs) if isinstance(outputs, Image.Image) else outputs)


def make_case(
    name: str,
    pipeline: type[DiffusionPipeline],
    build: Callable[[], DiffusionPipeline],
    schedulers: tuple[str, ...] = (),
    *,
    unets: tuple[str, ...] = ("unet",),
    others: Mapping[str, Mapping[str, Any]] | None = None,
    **defaults: Any,
) -> Case:
    """A case whose pipeline is loaded from what `build` makes, and called with `defaults`."""
    return Case(
        name=name,
        pipeline=pipeline,
        load=functools.partial(load_pipeline, pipeline, build),
        run=functools.partial(run_pipeline, defaults=defaults),
        schedulers=schedulers,
        unets=unets,
        others=others or {},
    )


PROMPT: dict[str, Any] = {"prompt": "a small red circle"}
EDIT = {**PROMPT, "image": picture()}
PAINT = {**EDIT, "mask_image": mask()}

#: Schedulers that take the latents as they are: for pipelines without `scale_model_input`.
UNSCALED = ("ddim", "ddpm", "pndm", "dpm-multistep", "dpm-singlestep", "unipc", "lcm")

#: All schedulers.
EVERY = tuple(SCHEDULERS)

#: Pipelines that are run with every scheduler that they can drive, by readable id.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        make_case("sd", StableDiffusionPipeline, MODELS["sd"], EVERY, **PROMPT),
        make_case("sd-img2img", StableDiffusionImg2ImgPipeline, MODELS["sd"], EVERY, **EDIT),
        make_case("sd-inpaint", StableDiffusionInpaintPipeline, MODELS["sd"], EVERY, **PAINT),
        make_case(
            "sd-inpaint-9", StableDiffusionInpaintPipeline, MODELS["sd-inpaint-9"], EVERY, **PAINT
        ),
        make_case(
            "sd-depth2img", StableDiffusionDepth2ImgPipeline, MODELS["sd-depth2img"], EVERY, **EDIT
        ),
        make_case(
            "sd-instruct-pix2pix",
            StableDiffusionInstructPix2PixPipeline,
            MODELS["sd-instruct-pix2pix"],
            EVERY,
            **EDIT,
        ),
        make_case("sdxl", StableDiffusionXLPipeline, MODELS["sdxl"], EVERY, **PROMPT),
        # The base's latents after three fifths of the steps, and what finishes them.
        make_case(
            "sdxl-denoising-end",
            StableDiffusionXLPipeline,
            MODELS["sdxl"],
            EVERY,
            denoising_end=0.6,
            output_type="latent",
            **PROMPT,
        ),
        make_case(
            "sdxl-refiner",
            StableDiffusionXLImg2ImgPipeline,
            MODELS["sdxl-refiner"],
            EVERY,
            denoising_start=0.6,
            # A refiner adds no noise of its own: without this, `seed` would change nothing.
            image=latents,
            **PROMPT,
        ),
        make_case(
            "sdxl-img2img",
            StableDiffusionXLImg2ImgPipeline,
            MODELS["sdxl"],
            EVERY,
            strength=0.8,
            **EDIT,
        ),
        make_case("sdxl-inpaint", StableDiffusionXLInpaintPipeline, MODELS["sdxl"], EVERY, **PAINT),
        make_case("ldm", LDMPipeline, MODELS["ldm"], EVERY),
        make_case(
            "ldm-text2img", LDMTextToImagePipeline, MODELS["ldm-text2img"], UNSCALED, **PROMPT
        ),
        make_case(
            "ldm-superresolution",
            LDMSuperResolutionPipeline,
            MODELS["ldm-superresolution"],
            EVERY,
            image=torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        ),
        make_case(
            "ddpm",
            DDPMPipeline,
            MODELS["ddpm"],
            ("ddpm", "ddim", "dpm-multistep", "dpm-singlestep", "lcm"),
        ),
        make_case("ddim", DDIMPipeline, MODELS["ddim"], ("ddim",)),
        make_case("pndm", PNDMPipeline, MODELS["pndm"], UNSCALED),
    )
}
