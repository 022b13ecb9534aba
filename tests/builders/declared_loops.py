"""Loops of one's own: what their calls are, and the schedulers that they go by."""

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

STEPS = 12

#: Declared of a generation of four steps; the closing zero is none.
SIGMAS = {"sigmas": [8.0, 4.0, 2.0, 1.0, 0]}


def ddim(steps=STEPS, **options):
    scheduler = DDIMScheduler(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def euler(steps=STEPS, **options):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, **betas, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def noise(scheduler=None):
    sample = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return sample * getattr(scheduler, "init_noise_sigma", 1)


def drawn(unet, scheduler, passed=lambda timestep: timestep):
    """A loop of one's own; `passed` makes what the U-Net gets."""
    sample = noise(scheduler)
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, timestep)
        output = unet(given, passed(timestep)).sample
        sample = scheduler.step(output, timestep, sample).prev_sample
    return sample


def called(helper, unet, calls, **declared):
    """A generation of single calls."""
    with helper.generation(**declared):
        for timestep in calls:
            unet(noise(), timestep)
