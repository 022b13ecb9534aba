"""Reads generated pictures back: which shapes are there, in which colour and size.

A small convolutional network that was trained on the same drawings as the generators. It answers
one question for each kind of shape ("which colour, if any?"), so that a prompt can be compared with
what was drawn. Training it is the business of ``benchmarks/train/train_classifier.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image
from torch import nn

from benchmarks.train.convolutions import halvings, pooled
from benchmarks.train.shapes import COLOUR_NAMES, KINDS, SIZES, Scene


@dataclass(frozen=True)
class Reading:
    """What the classifier sees in one picture.

    Attributes:
        shapes: For each kind that is present, its colour and its size.
        count: Shapes of any kind; more than ``len(shapes)`` when a kind appears twice.
    """

    shapes: dict[str, tuple[str, str]]
    count: int

    def hits(self, scene: Scene) -> int:
        """How many of the scene's shapes are present in the right colour."""
        return sum(
            self.shapes.get(shape.kind, ("", ""))[0] == shape.colour for shape in scene.shapes
        )

    def matches(self, scene: Scene) -> bool:
        """Every shape of the scene is present in the right colour, and nothing else is."""
        wanted = len(scene.shapes)
        return self.hits(scene) == wanted == len(self.shapes) == self.count

    def matches_with_sizes(self, scene: Scene) -> bool:
        """Like ``matches``, and every shape has the right size, too."""
        return self.matches(scene) and all(
            self.shapes[shape.kind][1] == shape.size for shape in scene.shapes
        )


class ShapeClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """For each kind of shape its colour (or none) and size, and the number of shapes in all.

    Pictures of any size are resized to 64x64 first. Load it with
    ``ShapeClassifier.from_pretrained("benchmarks/models/shapes-classifier")``.

    Args:
        widths: Channels after each of the three halvings.
        kinds: The kinds of shape it tells apart.
        colours: The colours it tells apart.
        most: The highest number of shapes that it counts to.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        widths: tuple[int, int, int] = (32, 96, 128),
        kinds: tuple[str, ...] = KINDS,
        colours: tuple[str, ...] = COLOUR_NAMES,
        most: int = 4,
    ) -> None:
        """Build an untrained classifier."""
        super().__init__()
        self.body = halvings(widths)
        self.colour_head = nn.Linear(2 * widths[-1], len(kinds) * (1 + len(colours)))
        self.size_head = nn.Linear(2 * widths[-1], len(kinds) * len(SIZES))
        self.count_head = nn.Linear(2 * widths[-1], most + 1)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """The last hidden layer, as a description of pictures for distances between sets of them.

        Args:
            pictures: Floats in [0, 1] of shape ``(batch, 3, height, width)``.

        Returns:
            Shape ``(batch, 256)`` at the default widths, dtype of the classifier: for each
            channel its mean and its maximum over the picture.
        """
        pictures = pictures.to(self.dtype)
        if pictures.shape[-2:] != (64, 64):
            pictures = F.interpolate(pictures, (64, 64), mode="bilinear", antialias=True)
        return pooled(self.body(pictures * 2 - 1))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits for pictures as in ``features``.

        Returns:
            Colours ``(batch, kinds, 1 + colours)`` with "absent" first, sizes
            ``(batch, kinds, 2)`` and numbers of shapes ``(batch, most + 1)``.
        """
        features = self.features(pictures)
        kinds = len(self.config.kinds)
        return (
            self.colour_head(features).unflatten(1, (kinds, -1)),
            self.size_head(features).unflatten(1, (kinds, -1)),
            self.count_head(features),
        )

    @torch.no_grad()
    def read(self, pictures: torch.Tensor) -> list[Reading]:
        """What is in each of the pictures, given as in ``features``."""
        colours, sizes, counts = (logits.argmax(-1).tolist() for logits in self(pictures))
        readings = []
        for colour_of, size_of, count in zip(colours, sizes, counts, strict=True):
            shapes = {
                kind: (self.config.colours[colour - 1], SIZES[size])
                for kind, colour, size in zip(self.config.kinds, colour_of, size_of, strict=True)
                if colour
            }
            readings.append(Reading(shapes, count))
        return readings


def as_batch(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as floats in [0, 1] of shape ``(batch, 3, height, width)``."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
