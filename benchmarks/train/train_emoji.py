"""Trains the text-to-image pipeline `emoji`: autoencoder, text encoder and U-Net, in this order.

All begin from, or are built like, those of `shapes`, and the loops are those of its scripts. What
differs is the data, and how the text encoder starts: here it learns what each name looks like, not
which colour belongs to which noun, and then stays as it is. Run from the project's root:
``python -m benchmarks.train.train_emoji``.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.train.emoji import load, training_pictures
from benchmarks.train.own_cell import look_at_own_cell
from benchmarks.train.train_text_to_image import (
    TEXT_WIDTH,
    TOKENS,
    add_snapshot_options,
    build_text_encoder,
    build_unet,
    cached_latents,
    kept_tokenizer,
    prompted_loss,
    save_pipeline,
    token_ids,
)
from benchmarks.train.train_vae import build_vae, train_decoder, train_whole
from benchmarks.train.training import (
    MODELS,
    Settings,
    drawn_rows,
    own_part,
    parser,
    saves,
    settings_from,
    train,
)

PARTS = ("vae", "decoder", "reading", "unet")
#: Pictures that are drawn from each artwork.
LOOKS = 16
ARTWORKS = 1714
#: A 16x16 latent is described in cells of 4x4, one for each of the last tokens of a prompt.
CELL = 4
CELLS = (16 // CELL) ** 2


def as_cells(latents: torch.Tensor) -> torch.Tensor:
    """Latents ``(batch, 4, 16, 16)`` cut into cells, row by row: ``(batch, 16, 64)``."""
    return F.unfold(latents, CELL, stride=CELL).transpose(1, 2)


def typical_latents(latents: torch.Tensor, artworks: int) -> torch.Tensor:
    """For each artwork the mean latent of its pictures, and at the end the mean of them all.

    Args:
        latents: Of picture ``r``, which shows artwork ``r % artworks``, in row ``r``.
        artworks: How many there are.

    Returns:
        Shape ``(artworks + 1, 4, 16, 16)``, dtype of the latents.
    """
    looks = len(latents) // artworks
    means = latents[: looks * artworks].unflatten(0, (looks, artworks)).mean(0)
    return torch.cat([means, means.mean(0, keepdim=True)])


def checked_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token numbers of prompts, of which none reaches into the tokens that describe cells."""
    ids = token_ids(tokenizer, texts)
    longest = max(len(tokens) for tokens in tokenizer(texts).input_ids)
    if longest > TOKENS - CELLS:
        raise RuntimeError(f"a prompt has {longest} tokens; at most {TOKENS - CELLS} fit")
    return ids


@torch.no_grad()
def start_embeddings(text_encoder: CLIPTextModel, ids: torch.Tensor, latents: torch.Tensor) -> None:
    """Let each token's embedding begin as its share in what its prompts' pictures look like.

    A ridge regression, from which tokens a prompt has to the principal components of its typical
    latent. What is left to learn is how tokens together are more than their sum.

    Args:
        text_encoder: Its token embeddings are changed in place, those of bytes and pieces that no
            prompt has excepted.
        ids: Token numbers of all prompts, ``(prompts, tokens)``.
        latents: The typical latents in the same order.
    """
    table = text_encoder.get_input_embeddings().weight
    has = torch.zeros(len(ids), len(table)).scatter_(1, ids, 1.0)
    # What every prompt has, the beginning and the end, says nothing.
    used = (has.any(0) & ~has.all(0)).nonzero().flatten()
    has = has[:, used]
    left, scales, _ = torch.linalg.svd((latents - latents[-1]).flatten(1), full_matrices=False)
    # Scaled by a root, so that the first components do not drown the others.
    codes = left[:, : table.shape[1]] * scales[: table.shape[1]].sqrt()
    shares = torch.linalg.solve(has.T @ has + 0.3 * torch.eye(len(used)), has.T @ codes)
    table[used] = 0.1 * shares / shares.std()


def teach_looks(
    text_encoder: CLIPTextModel, ids: torch.Tensor, latents: torch.Tensor, settings: Settings
) -> tuple[CLIPTextModel, float]:
    """Teach the text encoder what each prompt's picture looks like, roughly.

    The states of the last 16 tokens give, through one linear layer, the 16 cells of the prompt's
    typical latent. So what the U-Net is to draw stands in the states it attends to, and where.

    Args:
        text_encoder: Trained in place.
        ids: Token numbers of all prompts, the empty one last.
        latents: The typical latents in the same order.
        settings: How to train.

    Returns:
        The text encoder with averaged weights, and the share of the latents' variance that it
        explains, at most 1.
    """
    start_embeddings(text_encoder, ids, latents)
    head = nn.Linear(TEXT_WIDTH, latents.shape[1] * CELL**2)
    model = nn.ModuleDict({"text_encoder": text_encoder, "head": head})
    target, part = as_cells(latents).to(settings.device), own_part()
    ids = ids.to(settings.device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(ids), settings, generator)[part]
        states = text_encoder(ids[rows])[0]
        return F.mse_loss(head(states[:, -CELLS:]).float(), target[rows])

    averaged, _ = train(model, loss, settings, name="reading", average=0.995)
    states = all_states(averaged["text_encoder"], ids, settings.device)
    with torch.no_grad():
        error = F.mse_loss(averaged["head"](states[:, -CELLS:]), target)
    variance = (latents[:-1] - latents[-1]).square().mean()
    return averaged["text_encoder"], 1 - (error.cpu() / variance).item()


@torch.no_grad()
def all_states(text_encoder: CLIPTextModel, ids: torch.Tensor, device: str) -> torch.Tensor:
    """The text encoder's states for all prompts, float32 of shape ``(prompts, tokens, width)``."""
    return torch.cat([text_encoder(part.to(device))[0] for part in torch.split(ids, 256)])


def train_autoencoder(
    pictures: torch.Tensor, settings: Settings, chosen: argparse.Namespace
) -> None:
    """Train a saved autoencoder on, and then its decoder."""
    settings = dataclasses.replace(settings, batch_size=256, learning_rate=1.5e-3)
    if "vae" in chosen.parts:
        vae = build_vae()
        vae.load_state_dict(AutoencoderKL.from_pretrained(chosen.start_vae).state_dict())
        steps = dataclasses.replace(settings, steps=chosen.vae_steps)
        train_whole(vae, pictures, steps)
    if "decoder" in chosen.parts:
        steps = dataclasses.replace(settings, steps=chosen.decoder_steps)
        train_decoder(settings.checkpoint_dir / "vae", pictures, steps)


def train_unet(
    unet: UNet2DConditionModel,
    states: torch.Tensor,
    latents: torch.Tensor,
    settings: Settings,
    save: Callable[[nn.Module, Path], None],
    chosen: argparse.Namespace,
) -> None:
    """Train the U-Net with finished states, those of the empty prompt last, and save the pipeline.

    Args:
        unet: The beginning; trained in place.
        states: Of all prompts, ``(prompts + 1, tokens, width)``.
        latents: Row ``r`` belongs to prompt ``r % prompts``.
        settings: How to train.
        save: Saves the pipeline with this U-Net in this folder.
        chosen: The options.
    """
    empty = len(states) - 1
    unet.to(memory_format=torch.channels_last)

    def states_of(rows: torch.Tensor, emptied: torch.Tensor) -> torch.Tensor:
        return states[torch.where(emptied, empty, rows % empty)]

    averaged, final_loss = train(
        unet,
        prompted_loss(unet, latents, states_of, settings),
        settings,
        name="unet",
        snapshot=lambda averaged, _step: save(averaged, chosen.snapshot_dir),
        snapshot_every=chosen.snapshot_every if chosen.snapshot_dir else 0,
        compiled=[unet],
    )
    if saves():
        save(averaged, chosen.output)
    print(f"loss {final_loss:.5f}")


def main() -> None:
    """Train what is asked for and not trained yet, then save the whole pipeline."""
    options = parser(
        __doc__ or "", steps=1839, batch_size=512, learning_rate=1e-3, pictures=LOOKS * ARTWORKS
    )
    options.set_defaults(checkpoint_dir=Path("build/train-emoji"))
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to train")
    options.add_argument(
        "--start-vae", type=Path, default=MODELS / "shapes/vae", help="autoencoder to train on"
    )
    options.add_argument("--vae-steps", type=int, default=1000)
    options.add_argument("--decoder-steps", type=int, default=948, help="for the decoder alone")
    options.add_argument("--reading-steps", type=int, default=1800, help="for the text encoder")
    options.add_argument(
        "--start-from",
        type=Path,
        help="train the U-Net of a saved pipeline on, and nothing else; --parts does not count",
    )
    options.add_argument("--output", type=Path, default=MODELS / "emoji")
    add_snapshot_options(options)
    chosen = options.parse_args()
    settings = settings_from(chosen)
    torch.manual_seed(settings.seed)
    emoji, artworks = load(settings.checkpoint_dir / "npm")
    pictures = training_pictures(artworks, settings.pictures, settings.checkpoint_dir)
    texts = [each.prompt for each in emoji]
    start: Path | None = chosen.start_from
    if start is None:
        train_autoencoder(pictures, settings, chosen)
        if not {"reading", "unet"} & set(chosen.parts):
            return
        tokenizer = kept_tokenizer(texts, settings.checkpoint_dir, vocabulary_size=3000)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
    vae_folder = (start or settings.checkpoint_dir) / "vae"
    ids = checked_ids(tokenizer, [*texts, ""])
    latents = cached_latents(vae_folder, pictures, settings)
    text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    if start is None:
        text_encoder, explained = teach_looks(
            text_encoder,
            ids,
            typical_latents(latents, len(emoji)),
            dataclasses.replace(
                settings, steps=chosen.reading_steps, batch_size=512, learning_rate=2e-3
            ),
        )
        print(f"the text encoder explains {explained:.3f} of the latents' variance")
        if "unet" not in chosen.parts:
            return
    else:
        trained = CLIPTextModel.from_pretrained(start / "text_encoder")
        text_encoder.load_state_dict(trained.state_dict())
        text_encoder.to(settings.device)
    trained = UNet2DConditionModel.from_pretrained((start or MODELS / "shapes") / "unet")
    unet.load_state_dict(trained.state_dict())
    states = all_states(text_encoder.eval(), ids, settings.device)
    if start is None:
        rows = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(settings.seed))
        look_at_own_cell(unet, latents[rows[:48]], states[rows[:48]].cpu(), CELLS)

    def save(averaged: nn.Module, folder: Path) -> None:
        parts = nn.ModuleDict({"unet": averaged, "text_encoder": text_encoder})
        save_pipeline(parts, vae_folder, tokenizer, folder)
        names = "\n".join(dict.fromkeys(each.name for each in emoji))
        (folder / "names.txt").write_text(f"{names}\n", encoding="utf-8")

    train_unet(unet, states, latents, settings, save, chosen)


if __name__ == "__main__":
    main()
