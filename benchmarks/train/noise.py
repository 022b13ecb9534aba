"""The noise that both diffusion models learn to predict: its schedule and its loss."""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler

#: Above this signal-to-noise ratio a sample counts less and less: Hang et al., "Efficient Diffusion
#: Training via Min-SNR Weighting Strategy" (2023), section 3.4, for noise prediction.
SNR_BOUND = 5.0

#: Predicts noise from noisy samples and their timesteps.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def noise_scheduler() -> DDPMScheduler:
    """Stable Diffusion's own schedule: it leaves some signal at the end, so every sampler works."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
    )


def weighted_noise_loss(
    predict: Predict,
    clean: torch.Tensor,
    scheduler: DDPMScheduler,
    generator: torch.Generator,
    *,
    part: slice = slice(None),
) -> torch.Tensor:
    """Squared error of the predicted noise, weighted by the signal-to-noise ratio (SNR).

    The weight is min(1, SNR_BOUND / SNR) * max(1, SNR ** -0.5). What is drawn where, and in which
    colour, is decided in heavy noise; the error there is small, so a plain mean neglects it.

    Args:
        predict: The model.
        clean: Samples without noise, ``(batch, channels, height, width)``.
        scheduler: Adds the noise.
        generator: Draws noise and timesteps, on the samples' device.
        part: Which of the samples count; noise is drawn for all.
    """
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    steps = torch.randint(
        scheduler.config.num_train_timesteps,
        (len(clean),),
        generator=generator,
        device=clean.device,
    )
    clean, noise, steps = clean[part], noise[part], steps[part]
    error = predict(scheduler.add_noise(clean, noise, steps), steps).float() - noise
    remaining = scheduler.alphas_cumprod.to(clean.device)[steps]
    ratio = remaining / (1 - remaining)
    weights = (SNR_BOUND / ratio).clamp(max=1) * ratio.rsqrt().clamp(min=1)
    loss: torch.Tensor = (error.square().mean((1, 2, 3)) * weights).mean()
    return loss
