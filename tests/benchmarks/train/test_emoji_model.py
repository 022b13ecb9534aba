"""The trained model `emoji`: it loads, it draws, its sizes, and whose artwork it learned from."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.train.emoji import NAMES, PACKAGES
from benchmarks.train.emoji_classifier import EmojiClassifier
from benchmarks.train.noise import noise_scheduler
from benchmarks.train.shape_classifier import as_batch

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "benchmarks" / "models"
NOTICES = [ROOT / "NOTICE", MODELS / "emoji/README.md", MODELS / "emoji-classifier/README.md"]
PROMPTS = ["crescent moon, noto", "crescent moon, twemoji"]


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "emoji", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def classifier():
    return EmojiClassifier.from_pretrained(MODELS / "emoji-classifier")


def drawn(pipe, prompts):
    generators = [torch.Generator().manual_seed(3) for _ in prompts]
    images = pipe(prompts, num_inference_steps=2, guidance_scale=3.0, generator=generators).images
    return as_batch(images)


def test_a_prompt_and_a_seed_draw_one_picture_and_the_style_another(pipe):
    pictures = drawn(pipe, PROMPTS)
    assert pictures.shape == (2, 3, 64, 64)
    assert torch.equal(drawn(pipe, PROMPTS), pictures)
    assert not torch.equal(pictures[0], pictures[1])


def test_the_layout_and_the_noise_are_those_of_stable_diffusion(pipe):
    assert pipe.unet.config.sample_size == 16
    assert pipe.vae.config.latent_channels == 4
    assert torch.equal(pipe.scheduler.alphas_cumprod, noise_scheduler().alphas_cumprod)
    assert pipe.tokenizer.model_max_length == pipe.text_encoder.config.max_position_embeddings


def test_the_names_are_those_that_the_classifier_tells_apart(classifier):
    names = (MODELS / "emoji" / "names.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(names)) == len(names) == NAMES
    styles = [package.style for package in PACKAGES]
    assert classifier.config.prompts == [f"{name}, {style}" for style in styles for name in names]


def test_the_classifier_describes_a_picture_by_a_direction(classifier):
    features = classifier.features(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, classifier.config.size)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    prototype = classifier.prototypes[5].detach()
    logits = classifier(torch.rand(1, 3, 64, 64))
    assert logits.shape == (1, 2 * NAMES)
    assert prototype.shape == features[0].shape


@pytest.mark.parametrize("path", NOTICES, ids=["notice", "card", "classifier-card"])
def test_whose_artwork_it_is_is_said(path):
    text = " ".join(path.read_text(encoding="utf-8").split())
    for said in (
        "Noto Emoji",
        "Google LLC",
        "Apache License, Version 2.0",
        "Twemoji",
        "Copyright Twitter, Inc and other contributors",
        "CC-BY 4.0",
        "https://creativecommons.org/licenses/by/4.0/",
        *(package.name for package in PACKAGES),
    ):
        assert said in text


def test_all_models_together_stay_small():
    sizes = [path.stat().st_size for path in MODELS.rglob("*") if path.is_file()]
    assert sum(sizes) < 45_000_000


def test_no_artwork_is_kept_here():
    pictures = [path.name for path in MODELS.rglob("*.png")]
    assert pictures in ([], ["sheet.png"])
