"""Trains the unconditional diffusion model: the same drawings at 32x32 pixels, without captions.

Run from the project's root: ``python -m benchmarks.train.train_ddpm``.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

from benchmarks.train.noise import noise_scheduler, weighted_noise_loss
from benchmarks.train.training import (
    MODELS,
    as_input,
    cached_pictures,
    drawn_rows,
    parser,
    settings_from,
    train,
)

PIXELS = 32


def build_unet() -> UNet2DModel:
    """An untrained U-Net without a text input: three levels, two layers in each block."""
    return UNet2DModel(
        sample_size=PIXELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        attention_head_dim=48,
        norm_num_groups=16,
    )


def save_pipeline(model: nn.Module, folder: Path) -> None:
    """Save the pipeline in fp16, the model's own weights left alone."""
    unet = build_unet()
    unet.load_state_dict(model.state_dict())
    scheduler = DDPMScheduler.from_config(noise_scheduler().config, clip_sample=True)
    pipeline = DDPMPipeline(unet=unet.half(), scheduler=scheduler)
    pipeline.save_pretrained(folder, safe_serialization=True)


def main() -> None:
    """Train on pixels, then save the pipeline."""
    options = parser(__doc__ or "", steps=1600, batch_size=32, learning_rate=1e-3)
    options.add_argument("--output", type=Path, default=MODELS / "shapes-ddpm")
    chosen = options.parse_args()
    settings = settings_from(chosen)
    torch.manual_seed(settings.seed)
    pictures = cached_pictures(settings.pictures, settings.checkpoint_dir).to(settings.device)
    scheduler = noise_scheduler()
    unet = build_unet()

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(pictures), settings, generator)
        clean = as_input(pictures[rows], settings.device)
        small = F.interpolate(clean, (PIXELS, PIXELS), mode="area")
        # No caption follows from the picture here: its mirror image is as good an example.
        chances = torch.rand(len(small), 1, 1, 1, generator=generator, device=small.device)
        mirrored = chances < 0.5
        return weighted_noise_loss(
            lambda noisy, steps: unet(noisy, steps, return_dict=False)[0],
            torch.where(mirrored, small.flip(-1), small),
            scheduler,
            generator,
        )

    averaged, final_loss = train(unet, loss, settings, name="ddpm")
    save_pipeline(averaged, chosen.output)
    parameters = sum(weight.numel() for weight in unet.parameters())
    print(f"loss {final_loss:.5f}, parameters {parameters}")


if __name__ == "__main__":
    main()
