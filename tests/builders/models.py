"""Tiny pipelines: built from their parts and saved once in a process, then loaded from there.

`load_pipeline` reads a pipeline back with `from_pretrained`, so the real loading code is what makes
it. Tests get copies of what it gave: see `copies`. How a pipeline is called is in `cases`.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import diffusers
import transformers
from diffusers import (
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
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel

from builders.parts import (
    UNCHECKED,
    depth_parts,
    refiner_parts,
    sd_parts,
    sdxl_parts,
    text_config,
    tokenizer,
    vae,
    vqvae,
)
from builders.schedulers import sd_scheduler
from builders.unets import SIDE, seeded, unet2d, unet2d_condition

# Bars for loading and saving only: `load_pipeline` switches off the bar of the pipeline itself.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

#: Random weights take no noise away: with the usual betas, up to 0.02, most pixels of the pictures
#: would end clamped to black or white, and their equality would prove little.
_PIXEL_BETA_END = 0.002

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
        **depth_parts(),
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


def load_pipeline(
    pipeline: type[DiffusionPipeline], build: Callable[[], DiffusionPipeline]
) -> DiffusionPipeline:
    """A fresh pipeline of the class, from the folder where what `build` makes is saved."""
    pipe = pipeline.from_pretrained(model_folder(build), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
