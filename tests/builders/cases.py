"""Pipelines that the tests share: how to load each, how to call it, what differs in other calls.

Nothing here knows of the package under test. One generation of five steps takes well under a second
on one core. The pipelines that only a few tests look at are in the zoo.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DiffusionPipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    PNDMPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from builders.copies import kept
from builders.models import MODELS, load_pipeline
from builders.schedulers import EVERY, UNSCALED
from builders.unets import SIDE, seeded


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

#: Pipelines that are run with every scheduler that they can drive, by readable id.
CASES: dict[str, Case] = {
    case.name: replace(case, load=kept(case.load))
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
