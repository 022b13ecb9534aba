"""What models are asked to draw, and what reads it: which prompts, and what is found."""

import numpy as np
import pytest
import torch

from benchmarks.fidelity import subjects
from benchmarks.fidelity.contestants import SAMPLERS
from benchmarks.fidelity.subjects import (
    CALIBRATION_PICTURES,
    SUBJECTS,
    emoji_prompts,
    shape_prompts,
)
from benchmarks.train.emoji_classifier import EmojiClassifier
from benchmarks.train.evaluate import EVALUATION_SEED, fresh_scenes
from benchmarks.train.shape_classifier import as_batch
from benchmarks.train.shapes import caption, draw, training_scene
from benchmarks.train.training import MODELS


def made(subject, images):
    """A new one, past what is kept of those made before."""
    return subject.__wrapped__(images)


def test_every_model_of_a_sampler_has_a_subject():
    assert {sampler.model for sampler in SAMPLERS.values()} <= set(SUBJECTS)


@pytest.mark.parametrize("prompts_of", [shape_prompts, emoji_prompts])
def test_calibration_prompts_are_not_those_of_the_pictures(prompts_of):
    prompts, others = prompts_of(64)
    assert (len(prompts), len(set(others))) == (64, CALIBRATION_PICTURES)
    assert set(others).isdisjoint(prompts)


def test_a_caption_that_is_drawn_is_no_calibration_prompt(monkeypatch):
    count = CALIBRATION_PICTURES + 2
    series = [training_scene(subjects.CALIBRATION_SEED, index) for index in range(count)]
    monkeypatch.setattr(subjects, "fresh_scenes", lambda images: [series[0], series[3]])
    _, others = shape_prompts(2)
    assert others == [caption(series[index]) for index in range(count) if index not in (0, 3)]


def test_emoji_are_drawn_with_the_seed_of_the_evaluation():
    known = EmojiClassifier.from_pretrained(MODELS / "emoji-classifier").config.prompts
    order = np.random.default_rng(EVALUATION_SEED).permutation(len(known))
    prompts, others = emoji_prompts(9)
    assert [*prompts, *others] == [known[index] for index in order[: 9 + CALIBRATION_PICTURES]]


def test_no_emoji_is_asked_for_twice():
    most = 1714 - CALIBRATION_PICTURES  # of 857 emoji in two styles
    prompts, others = emoji_prompts(most)
    assert len({*prompts, *others}) == 1714
    with pytest.raises(ValueError, match=rf"--images {most + 1}: .* no more than {most} prompts"):
        emoji_prompts(most + 1)


def test_an_emoji_is_found_where_the_classifier_reads_its_prompt(monkeypatch):
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    read = EmojiClassifier.from_pretrained(MODELS / "emoji-classifier").read(pictures)
    name, style = read[0].split(", ")
    other = f"{name}, {'noto' if style == 'twemoji' else 'twemoji'}"
    prompts = [other, "hot pepper, no style", read[2], "nothing"]
    monkeypatch.setattr(subjects, "emoji_prompts", lambda images: (prompts, []))
    assert made(subjects.emoji, 4).read_back(pictures) == 0.25


def test_prototypes_give_emoji_their_axes_and_no_drawings():
    few, many = (made(subjects.emoji, images) for images in (4, 400))
    assert (few.space.dimensions, many.space.dimensions) == (2, 96)
    assert few.space.share < 0.1
    assert many.space.share == pytest.approx(1)
    pictures = torch.rand(2, 3, 64, 64)
    lengths = np.linalg.norm(many.space.describe(pictures), axis=1)
    assert lengths == pytest.approx([1, 1], abs=1e-6)  # features are directions, in float32
    assert many.drawings(64) is None


@pytest.fixture
def few_drawings(monkeypatch):
    monkeypatch.setattr(subjects, "DRAWINGS", 8)


@pytest.mark.usefixtures("few_drawings")
def test_shapes_are_found_in_their_own_drawings():
    subject = made(subjects.shapes, 4)
    scenes = fresh_scenes(4)
    pictures = as_batch([draw(scene) for scene in scenes])
    assert subject.prompts == [caption(scene) for scene in scenes]
    assert subject.read_back(pictures) == 1.0
    assert subject.read_back(pictures.flip(0)) == 0.0
    assert subject.space.dimensions == 2
    assert subject.drawings(32).shape == (8, 2)


@pytest.mark.usefixtures("few_drawings")
def test_nothing_is_read_back_where_nothing_was_asked_for(monkeypatch):
    monkeypatch.setattr(subjects, "shapes", subjects.shapes.__wrapped__)
    subject = SUBJECTS["shapes-ddpm"](2)
    assert subject.read_back(torch.rand(2, 3, 32, 32)) is None
    assert subject.drawings(32).shape == (8, 1)
