"""Trains the text encoder and the U-Net of the text-to-image pipeline, and saves the pipeline.

The autoencoder comes first (``train_vae``): all drawings are encoded once and held in memory as
latents. The tokenizer's vocabulary is learned from the captions. Run from the project's root:
``python -m benchmarks.train.train_text_to_image``.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.train.noise import noise_scheduler, weighted_noise_loss
from benchmarks.train.shapes import COLOUR_NAMES, KINDS, SIZES, caption, training_scene
from benchmarks.train.train_vae import build_vae
from benchmarks.train.training import (
    MODELS,
    TRAINING_SEED,
    Loss,
    Settings,
    as_input,
    cached_pictures,
    drawn_rows,
    own_part,
    parser,
    settings_from,
    train,
)

TOKENS = 32
TEXT_WIDTH = 128
EMPTY_PROMPT_SHARE = 0.1
READING_STEPS, READING_BATCH = 250, 128
IGNORED = -100
START, END = "<|startoftext|>", "<|endoftext|>"

#: Gives text states for the rows of a batch and for which of them the prompt is empty.
StatesOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_tokenizer(texts: list[str], *, vocabulary_size: int = 1000) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of its own, learned from the texts.

    The vocabulary holds every byte, alone and at the end of a word: any prompt can be tokenised.

    Args:
        texts: What to learn from.
        vocabulary_size: The most tokens that are learned, bytes included.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    names = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    names += [name for name in (a + b for a, b in merges) if name not in set(names)]
    vocabulary = {name: index for index, name in enumerate([*names, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def kept_tokenizer(
    texts: list[str], directory: Path, *, vocabulary_size: int = 1000
) -> CLIPTokenizer:
    """The tokenizer that is kept with the checkpoints; if there is none yet, it is built and kept.

    Which of two equally frequent pieces comes first is not the same in each process, so a training
    that is resumed must not learn its vocabulary anew.
    """
    folder = directory / "tokenizer"
    if not folder.exists():
        partial = directory / "tokenizer.partial"
        build_tokenizer(texts, vocabulary_size=vocabulary_size).save_pretrained(partial)
        partial.replace(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer, *, layers: int = 2) -> CLIPTextModel:
    """An untrained text encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """An untrained U-Net in Stable Diffusion's layout: three levels, two layers in each block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96, 128),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(1, 2, 2),  # numbers of heads, despite the name
        norm_num_groups=16,
    )


@torch.no_grad()
def cached_latents(vae_folder: Path, pictures: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The pictures' scaled latents, encoded once and then read from the checkpoints' folder.

    Returns:
        The posteriors' means times the scaling factor, float32 of shape ``(pictures, 4, 16, 16)``.
    """
    path = settings.checkpoint_dir / f"latents-{len(pictures)}.pt"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(vae_folder).to(settings.device)
        means = []
        for part in tqdm(torch.split(pictures, 64), "encoding"):
            with settings.autocast():
                means.append(vae.encode(as_input(part, settings.device)).latent_dist.mean.cpu())
        torch.save(torch.cat(means).float() * vae.config.scaling_factor, path)
    latents: torch.Tensor = torch.load(path, weights_only=True)
    return latents


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token numbers, int64 of shape ``(texts, TOKENS)``, padded as the pipeline pads them."""
    encoded = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = encoded.input_ids
    return ids


def noun_labels(tokenizer: CLIPTokenizer, ids: torch.Tensor) -> torch.Tensor:
    """Colour and size of the shape that each noun names.

    Returns:
        Shape ``(texts, TOKENS, 2)``, IGNORED wherever a token is no kind of shape.
    """
    labels = torch.full((*ids.shape, 2), IGNORED)
    scenes = [training_scene(TRAINING_SEED, index) for index in range(len(ids))]
    nouns = torch.tensor([_only_token(tokenizer, kind) for kind in KINDS])
    for row, scene in enumerate(scenes):
        places = torch.isin(ids[row], nouns).nonzero().flatten().tolist()
        for place, shape in zip(places, scene.shapes, strict=True):
            labels[row, place, 0] = COLOUR_NAMES.index(shape.colour)
            labels[row, place, 1] = SIZES.index(shape.size)
    return labels


def _only_token(tokenizer: CLIPTokenizer, word: str) -> int:
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise RuntimeError(f"{word!r} is {len(ids)} tokens; train with more pictures (--pictures)")
    return ids[0]


def teach_reading(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, ids: torch.Tensor, settings: Settings
) -> None:
    """Give the text encoder a start: tell each noun's colour and size from the noun's state.

    Which colour belongs to which noun is hard to learn through the U-Net alone, and easy here.
    """
    labels, ids = noun_labels(tokenizer, ids).to(settings.device), ids.to(settings.device)
    reading = dataclasses.replace(settings, steps=READING_STEPS, batch_size=READING_BATCH)
    head = nn.Linear(TEXT_WIDTH, len(COLOUR_NAMES) + len(SIZES))
    model = nn.ModuleDict({"text_encoder": text_encoder, "head": head})

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(ids), reading, generator)
        states = text_encoder(ids[rows])[0]
        target = labels[rows].flatten(0, 1)
        colours, sizes = (
            head(states).float().flatten(0, 1).split([len(COLOUR_NAMES), len(SIZES)], dim=1)
        )
        return F.cross_entropy(colours, target[:, 0]) + F.cross_entropy(sizes, target[:, 1])

    train(model, loss, reading, name="reading")


def prompted_loss(
    unet: UNet2DConditionModel, latents: torch.Tensor, states_of: StatesOf, settings: Settings
) -> Loss:
    """The loss of a U-Net that learns latents with their prompts, one prompt in ten empty.

    Args:
        unet: What learns.
        latents: Scaled, float32 of shape ``(pictures, 4, 16, 16)``.
        states_of: Gives the text encoder's states, ``(batch, tokens, width)``, for the rows of the
            batch's pictures and for which of them the prompt is empty.
        settings: How to train.
    """
    if settings.device == "cpu":  # there the plain formula trains faster than the fused kernel
        unet.set_attn_processor(AttnProcessor())
    scheduler, part = noise_scheduler(), own_part()
    latents = latents.to(settings.device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(latents), settings, generator)
        chances = torch.rand(len(rows), generator=generator, device=rows.device)
        states = states_of(rows[part], chances[part] < EMPTY_PROMPT_SHARE)
        return weighted_noise_loss(
            lambda noisy, steps: unet(noisy, steps, states, return_dict=False)[0],
            latents[rows],
            scheduler,
            generator,
            part=part,
        )

    return loss


def sampler() -> DDIMScheduler:
    """DDIM, with Stable Diffusion's settings for every sampler that is made from its config."""
    settings = noise_scheduler().config
    pndm = PNDMScheduler.from_config(
        settings, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    return DDIMScheduler.from_config(pndm.config, clip_sample=False)


def save_pipeline(
    model: nn.Module, vae_folder: Path, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Save everything that text-to-image needs in fp16, the model's own weights left alone."""
    # Read only now: the decoder may have been sharpened while the U-Net was trained.
    trained_vae = AutoencoderKL.from_pretrained(vae_folder)
    layers = model["text_encoder"].config.num_hidden_layers  # type: ignore[index]
    vae, unet = build_vae(), build_unet()
    text_encoder = build_text_encoder(tokenizer, layers=layers)
    # Parts built anew carry no trace of this machine's folders in their configs.
    vae.register_to_config(scaling_factor=trained_vae.config.scaling_factor)
    vae.load_state_dict(trained_vae.state_dict())
    unet.load_state_dict(model["unet"].state_dict())  # type: ignore[index]
    text_encoder.load_state_dict(model["text_encoder"].state_dict())  # type: ignore[index]
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),  # type: ignore[no-untyped-call]
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers would load this part in fp16 even where nobody asks for a dtype, and diffusers
    # the others in fp32.
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def add_snapshot_options(options: argparse.ArgumentParser) -> None:
    """Let a training script save its pipeline on the way, too."""
    options.add_argument("--snapshot-dir", type=Path, help="where to save the pipeline on the way")
    options.add_argument("--snapshot-every", type=int, default=0, help="steps; 0 means never")


def main() -> None:
    """Train text encoder and U-Net together on latents, then save the whole pipeline."""
    options = parser(__doc__ or "", steps=3500, batch_size=32, learning_rate=6e-4)
    options.add_argument("--output", type=Path, default=MODELS / "shapes")
    options.add_argument(
        "--start-from",
        type=Path,
        help="train a saved pipeline on: its autoencoder, tokenizer and weights are the beginning",
    )
    add_snapshot_options(options)
    chosen = options.parse_args()
    settings = settings_from(chosen)
    torch.manual_seed(settings.seed)
    start: Path | None = chosen.start_from
    vae_folder = start / "vae" if start else settings.checkpoint_dir / "vae"
    pictures = cached_pictures(settings.pictures, settings.checkpoint_dir)
    latents = cached_latents(vae_folder, pictures, settings)
    texts = [caption(training_scene(TRAINING_SEED, row)) for row in range(settings.pictures)]
    tokenizer = (
        CLIPTokenizer.from_pretrained(start / "tokenizer")
        if start
        else kept_tokenizer(texts, settings.checkpoint_dir)
    )
    ids = token_ids(tokenizer, [*texts, ""])
    text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    if start:
        weights = StableDiffusionPipeline.from_pretrained(start, dtype=torch.float32)
        text_encoder.load_state_dict(weights.text_encoder.state_dict())
        unet.load_state_dict(weights.unet.state_dict())
    else:
        teach_reading(text_encoder, tokenizer, ids[:-1], settings)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    ids = ids.to(settings.device)

    def states_of(rows: torch.Tensor, emptied: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = text_encoder(ids[torch.where(emptied, len(texts), rows)])[0]
        return states

    def snapshot(averaged: nn.Module, _step: int) -> None:
        save_pipeline(averaged, vae_folder, tokenizer, chosen.snapshot_dir)

    averaged, final_loss = train(
        model,
        prompted_loss(unet, latents, states_of, settings),
        settings,
        name="text-to-image",
        average=0.997,
        snapshot=snapshot if chosen.snapshot_dir else None,
        snapshot_every=chosen.snapshot_every,
    )
    save_pipeline(averaged, vae_folder, tokenizer, chosen.output)
    parameters = {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in (("unet", unet), ("text encoder", text_encoder))
    }
    print(f"loss {final_loss:.5f}, parameters {parameters}")


if __name__ == "__main__":
    main()
