"""Trains the autoencoder of the text-to-image pipeline: 64x64 pixels to 4x16x16 latents and back.

The whole autoencoder comes first. Once it is done the latents stay as they are, so the U-Net can be
trained on them while ``--decoder-steps`` sharpens the decoder alone. Run from the project's root:
``python -m benchmarks.train.train_vae``.
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from benchmarks.train.training import (
    Settings,
    as_input,
    cached_pictures,
    drawn_rows,
    parser,
    settings_from,
    train,
)

KL_WEIGHT = 1e-4
GRADIENT_WEIGHT = 0.5
#: Pictures on which the latents' scale and the PSNR are measured.
MEASURED = 1024


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder of the project's size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of the edges, which keeps them sharp."""
    error = output.float() - target
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.square().mean() + GRADIENT_WEIGHT * (across + down)


def main() -> None:
    """Train whatever is not trained yet, and save the autoencoder after each of the two parts."""
    options = parser(__doc__ or "", steps=850, batch_size=24, learning_rate=2e-3)
    options.add_argument("--decoder-steps", type=int, default=700, help="for the decoder alone")
    chosen = options.parse_args()
    settings = settings_from(chosen)
    torch.manual_seed(settings.seed)
    pictures = cached_pictures(settings.pictures, settings.checkpoint_dir)
    folder = train_whole(build_vae(), pictures, settings)
    if chosen.decoder_steps:
        train_decoder(folder, pictures, dataclasses.replace(settings, steps=chosen.decoder_steps))


def train_whole(
    vae: AutoencoderKL,
    pictures: torch.Tensor,
    settings: Settings,
) -> Path:
    """Train the whole autoencoder, and save it unless it is saved already.

    Args:
        vae: The beginning; trained in place.
        pictures: uint8 of shape ``(count, 3, 64, 64)``.
        settings: How to train.

    Returns:
        The folder of the saved autoencoder, among the checkpoints.
    """
    pictures = pictures.to(settings.device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(pictures), settings, generator)
        target = as_input(pictures[rows], settings.device)
        posterior = vae.encode(target).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        output = vae.decode(mean + (0.5 * logvar).exp() * noise).sample
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        value: torch.Tensor = reconstruction_loss(output, target) + KL_WEIGHT * divergence
        return value

    averaged, final_loss = train(vae, loss, settings, name="vae", average=0.995)
    folder = settings.checkpoint_dir / "vae"
    if not folder.exists():
        averaged.register_to_config(scaling_factor=scaling_factor(averaged, pictures[:MEASURED]))
        averaged.save_pretrained(folder)
        print(f"loss {final_loss:.5f}, PSNR {psnr(averaged, pictures[-MEASURED:]):.2f} dB")
    return folder


def train_decoder(folder: Path, pictures: torch.Tensor, settings: Settings) -> None:
    """Train the decoder of the saved autoencoder on the latents as they are, and save it again."""
    vae = AutoencoderKL.from_pretrained(folder)
    pictures = pictures.to(settings.device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(pictures), settings, generator)
        target = as_input(pictures[rows], settings.device)
        with torch.no_grad():
            posterior = vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=target.device)
        output = vae.decode(posterior.mean.float() + posterior.std.float() * noise).sample
        return reconstruction_loss(output, target)

    averaged, final_loss = train(vae, loss, settings, name="vae-decoder", average=0.995)
    averaged.save_pretrained(folder)
    print(f"loss {final_loss:.5f}, PSNR {psnr(averaged, pictures[-MEASURED:]):.2f} dB")


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """1 / the latents' standard deviation: what brings them to the U-Net at unit variance."""
    parts = torch.split(as_input(pictures, str(vae.device)), 128)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in parts])
    return round(1 / latents.std().item(), 5)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of pictures that went through the autoencoder, in dB."""
    parts = torch.split(as_input(pictures, str(vae.device)), 128)
    errors = [
        F.mse_loss(vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1), part)
        for part in parts
    ]
    return -10 * (torch.stack(errors).mean() / 4).log10().item()


if __name__ == "__main__":
    main()
