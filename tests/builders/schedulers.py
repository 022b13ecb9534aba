"""The schedulers that pipelines are driven with, by name; each is made from another's config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
)


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


#: Schedulers that take the latents as they are: for pipelines without `scale_model_input`.
UNSCALED = ("ddim", "ddpm", "pndm", "dpm-multistep", "dpm-singlestep", "unipc", "lcm")

#: All schedulers.
EVERY = tuple(SCHEDULERS)
