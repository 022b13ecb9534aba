"""Trains the classifier that tells which emoji a generated picture shows.

It sees the training pictures of the model `emoji`, roughened like the shapes classifier's. Run from
the project's root: ``python -m benchmarks.train.train_emoji_classifier``.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.train.emoji import draw, load, sample_look, training_pictures
from benchmarks.train.emoji_classifier import EmojiClassifier
from benchmarks.train.shape_classifier import as_batch
from benchmarks.train.train_classifier import roughen
from benchmarks.train.train_emoji import ARTWORKS, LOOKS
from benchmarks.train.training import MODELS, drawn_rows, parser, settings_from, train

TEST_SEED = 777


def fresh_pictures(artworks: list[Image.Image]) -> torch.Tensor:
    """One picture of each artwork in a look that training never saw, as `as_batch` gives them."""
    rngs = (np.random.default_rng([TEST_SEED, index]) for index in range(len(artworks)))
    return as_batch([draw(art, sample_look(rng)) for art, rng in zip(artworks, rngs, strict=True)])


@torch.no_grad()
def features(classifier: EmojiClassifier, pictures: torch.Tensor) -> torch.Tensor:
    """The features of many pictures, floats in [0, 1] or bytes, ``(count, 3, 64, 64)``."""
    parts = torch.split(pictures, 256)
    if pictures.dtype == torch.uint8:
        return torch.cat([classifier.features(part.float() / 255) for part in parts])
    return torch.cat([classifier.features(part) for part in parts])


def main() -> None:
    """Train, save in fp16, and read fresh pictures with what was saved."""
    options = parser(
        __doc__ or "", steps=4000, batch_size=128, learning_rate=2e-3, pictures=LOOKS * ARTWORKS
    )
    options.set_defaults(checkpoint_dir=Path("build/train-emoji"))
    options.add_argument("--output", type=Path, default=MODELS / "emoji-classifier")
    chosen = options.parse_args()
    settings = settings_from(chosen)
    torch.manual_seed(settings.seed)
    emoji, artworks = load(settings.checkpoint_dir / "npm")
    pictures = training_pictures(artworks, settings.pictures, settings.checkpoint_dir)
    pictures = pictures.to(settings.device)
    classifier = EmojiClassifier(prompts=tuple(each.prompt for each in emoji))

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(pictures), settings, generator)
        batch = roughen(pictures[rows].float() / 255, generator)
        return F.cross_entropy(classifier(batch).float(), rows % len(artworks))

    averaged, final_loss = train(classifier, loss, settings, name="classifier", average=0.995)
    averaged.half().save_pretrained(chosen.output)
    saved = EmojiClassifier.from_pretrained(chosen.output)
    pairs = zip(saved.read(fresh_pictures(artworks)), emoji, strict=True)
    right = sum(read == each.prompt for read, each in pairs)
    print(f"loss {final_loss:.5f}, right on fresh pictures: {right} of {len(emoji)}")


if __name__ == "__main__":
    main()
