"""What a model is asked to draw, and what reads its pictures: a `Subject` for each kind of drawing.

Prompts come from a seed that training does not use, those of a calibration are others. The reader
is a classifier of the project's own: it says which prompts are found in the pictures, and its
features tell how far two sets of pictures are apart. Nothing here generates.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.fidelity.frechet import FeatureSpace, described
from benchmarks.train.emoji import PACKAGES, Emoji
from benchmarks.train.emoji_classifier import EmojiClassifier
from benchmarks.train.evaluate import fresh_scenes, read_back
from benchmarks.train.evaluate_emoji import drawn_prompts
from benchmarks.train.shape_classifier import ShapeClassifier, as_batch
from benchmarks.train.shapes import caption, draw, training_scene
from benchmarks.train.training import MODELS

CALIBRATION_SEED = 6502
CALIBRATION_PICTURES = 8
DRAWINGS_SEED = 8080
DRAWINGS = 2000


@dataclass(frozen=True)
class Subject:
    """What is drawn and read in a run.

    Attributes:
        prompts: One for each picture.
        calibration: Other prompts.
        space: Of the features whose distances are measured.
        read_back: The share of the prompts that is found in their pictures, which are floats in
            0..1 of shape (pictures, 3, height, width), in the order of the prompts; `None` where
            nothing was asked for.
        drawings: Features in `space` of what the model learned to draw, seen at a height and width
            of so many pixels; `None` where it is not at hand.
    """

    prompts: list[str]
    calibration: list[str]
    space: FeatureSpace
    read_back: Callable[[torch.Tensor], float | None]
    drawings: Callable[[int], np.ndarray | None]


@cache
def shapes(images: int) -> Subject:
    """Scenes of shapes, and the classifier that learned from such drawings.

    Args:
        images: How many pictures are drawn.
    """
    reader = ShapeClassifier.from_pretrained(MODELS / "shapes-classifier")
    scenes = fresh_scenes(images)
    drawn = as_batch([draw(training_scene(DRAWINGS_SEED, index)) for index in range(DRAWINGS)])
    space = FeatureSpace(reader.features, described(reader.features, drawn), _dimensions(images))

    def found(pictures: torch.Tensor) -> float:
        return read_back(reader.read(pictures), scenes)["strict"]

    @cache
    def drawings(size: int) -> np.ndarray:
        # The unconditional model learned from drawings that were shrunk in the same way.
        return space.describe(F.interpolate(drawn, (size, size), mode="area"))

    return Subject(*shape_prompts(images), space, found, drawings)


def unasked_shapes(images: int) -> Subject:
    """The same for a model that takes no prompts: there are as many as pictures all the same."""
    return replace(shapes(images), read_back=lambda pictures: None)


@cache
def emoji(images: int) -> Subject:
    """Emoji in two styles, and the classifier that learned from the same artwork.

    The artwork is no part of the project. The classifier's prototypes, one for each emoji, stand
    for its spread; they are weights, no features of pictures, so nothing is at a distance from
    them.

    Args:
        images: How many pictures are drawn.

    Raises:
        ValueError: There are not as many emoji.
    """
    prompts, calibration = emoji_prompts(images)
    reader = EmojiClassifier.from_pretrained(MODELS / "emoji-classifier")
    prototypes = F.normalize(reader.prototypes.detach().double(), dim=1).numpy()
    space = FeatureSpace(reader.features, prototypes, _dimensions(images))

    def found(pictures: torch.Tensor) -> float:
        pairs = zip(reader.read(pictures), prompts, strict=True)
        return round(float(np.mean([read == prompt for read, prompt in pairs])), 4)

    return Subject(prompts, calibration, space, found, drawings=lambda size: None)


def shape_prompts(images: int) -> tuple[list[str], list[str]]:
    """Captions of fresh scenes, and a few others for a calibration."""
    captions = [caption(scene) for scene in fresh_scenes(images)]
    series = (caption(training_scene(CALIBRATION_SEED, index)) for index in itertools.count())
    others = (each for each in series if each not in captions)
    return captions, list(itertools.islice(others, CALIBRATION_PICTURES))


def emoji_prompts(images: int) -> tuple[list[str], list[str]]:
    """Names and styles of emoji, none twice, and a few others for a calibration.

    Raises:
        ValueError: There are not as many emoji.
    """
    names = (MODELS / "emoji" / "names.txt").read_text(encoding="utf-8").splitlines()
    # In the order of the artwork; of its files, which are not here, nothing is asked.
    known = [Emoji(name, package.style, image="") for package in PACKAGES for name in names]
    most = len(known) - CALIBRATION_PICTURES
    if images > most:
        raise ValueError(f"--images {images}: the model emoji has no more than {most} prompts")
    drawn = drawn_prompts(known, images, CALIBRATION_PICTURES)
    prompts, others = ([each.prompt for each in part] for part in drawn)
    return prompts, others


def _dimensions(images: int) -> int:
    """Half as many as there are pictures, so that their covariance is far from singular."""
    return images // 2


#: By the folder of the model in `benchmarks/models`.
SUBJECTS: dict[str, Callable[[int], Subject]] = {
    "shapes": shapes,
    "shapes-ddpm": unasked_shapes,
    "emoji": emoji,
}
