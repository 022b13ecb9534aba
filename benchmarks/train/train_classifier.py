"""Trains the classifier that reads generated pictures back.

It sees the generators' own scenes and cluttered ones (none to four shapes, kinds repeated),
blurred, noisy and slightly off in colour, so that a decoder's softness is no surprise to it. Run
from the project's root: ``python -m benchmarks.train.train_classifier``.
"""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.train.shape_classifier import ShapeClassifier, as_batch
from benchmarks.train.shapes import (
    COLOUR_NAMES,
    KINDS,
    SIZES,
    Scene,
    draw,
    sample_clutter,
    sample_scene,
    training_scene,
)
from benchmarks.train.training import (
    MODELS,
    TRAINING_SEED,
    cached_pictures,
    drawn_rows,
    parser,
    settings_from,
    train,
)

IGNORED = -100
CLUTTER_SEED = 555
TEST_SEED = 777
TEST_PICTURES = 2000


def labels(scene: Scene) -> list[int]:
    """Colour for each kind (0: absent), size for each kind, and the number of shapes.

    A kind that appears twice has no one colour: its entries are ignored in the loss.
    """
    colours, sizes = [0] * len(KINDS), [IGNORED] * len(KINDS)
    for shape in scene.shapes:
        kind = KINDS.index(shape.kind)
        seen = colours[kind] != 0
        colours[kind] = IGNORED if seen else 1 + COLOUR_NAMES.index(shape.colour)
        sizes[kind] = IGNORED if seen else SIZES.index(shape.size)
    return [*colours, *sizes, len(scene.shapes)]


def roughen(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur half of the pictures, shift the colours of all a little, and add noise.

    Args:
        pictures: Floats in [0, 1] of shape ``(batch, 3, 64, 64)``.
        generator: Source of everything random here, on the pictures' device.
    """
    count = len(pictures)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    half = F.interpolate(pictures, scale_factor=0.5, mode="area")
    coarse = F.interpolate(half, scale_factor=2, mode="bilinear")
    share = uniform(count, 1, 1, 1) * (uniform(count, 1, 1, 1) < 0.5)
    pictures = pictures.lerp(coarse, share)
    gain = 1 + 0.1 * (uniform(count, 3, 1, 1) - 0.5)
    shift = 0.08 * (uniform(count, 3, 1, 1) - 0.5)
    noise = torch.randn(pictures.shape, generator=generator, device=generator.device)
    noise = noise * 0.06 * uniform(count, 1, 1, 1)
    return (pictures * gain + shift + noise).clamp(0, 1)


def main() -> None:
    """Train, save in fp16, and read fresh drawings with what was saved."""
    options = parser(__doc__ or "", steps=1200, batch_size=64, learning_rate=2e-3)
    settings = settings_from(options.parse_args())
    torch.manual_seed(settings.seed)
    pictures = cached_pictures(settings.pictures, settings.checkpoint_dir)
    scenes = [training_scene(TRAINING_SEED, index) for index in range(settings.pictures)]
    clutter = [
        sample_clutter(np.random.default_rng([CLUTTER_SEED, index]))
        for index in range(settings.pictures // 2)
    ]
    drawn = [np.asarray(draw(scene)).transpose(2, 0, 1) for scene in clutter]
    pictures = torch.cat([pictures, torch.from_numpy(np.stack(drawn))]).to(settings.device)
    truth = torch.tensor([labels(each) for each in [*scenes, *clutter]], device=settings.device)
    classifier = ShapeClassifier()
    kinds = len(KINDS)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = drawn_rows(len(pictures), settings, generator)
        batch = roughen(pictures[rows].float() / 255, generator)
        target = truth[rows]
        colours, sizes, counts = (logits.float() for logits in classifier(batch))
        return (
            F.cross_entropy(colours.flatten(0, 1), target[:, :kinds].flatten())
            + 0.3 * F.cross_entropy(sizes.flatten(0, 1), target[:, kinds:-1].flatten())
            + 0.3 * F.cross_entropy(counts, target[:, -1])
        )

    averaged, final_loss = train(classifier, loss, settings, name="classifier", average=0.995)
    folder = MODELS / "shapes-classifier"
    averaged.half().save_pretrained(folder)
    saved = ShapeClassifier.from_pretrained(folder)
    print(f"loss {final_loss:.5f}, strictly right on fresh drawings: {test(saved)}")


def test(classifier: ShapeClassifier) -> dict[str, float]:
    """Share of fresh drawings that are read without any mistake, size included, at two sizes."""
    scenes = [
        sample_scene(np.random.default_rng([TEST_SEED, index])) for index in range(TEST_PICTURES)
    ]
    shares = {}
    for size in (64, 32):
        right = 0
        for first in range(0, len(scenes), 200):
            part = scenes[first : first + 200]
            readings = classifier.read(as_batch([draw(scene, size) for scene in part]))
            right += sum(
                reading.matches_with_sizes(scene)
                for reading, scene in zip(readings, part, strict=True)
            )
        shares[f"{size}x{size}"] = right / len(scenes)
    return shares


if __name__ == "__main__":
    main()
