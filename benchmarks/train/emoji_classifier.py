"""Reads a generated picture back: which emoji is it, and in which style?

A small convolutional network that was trained on the same artwork as the model `emoji`. Its
features tell how near two pictures are; one prototype for each emoji lets it name a picture where
the artwork itself is not at hand. Training it is the business of ``train_emoji_classifier.py``.
"""

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from benchmarks.train.convolutions import halvings, pooled

#: Cosines times this are the logits.
SHARPNESS = 20.0


class EmojiClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Gives features of pictures, and the prompt of the emoji that each shows.

    Load it with ``EmojiClassifier.from_pretrained("benchmarks/models/emoji-classifier")``.

    Args:
        prompts: Of the emoji that it tells apart, as in "crescent moon, noto".
        widths: Channels after each of the three halvings.
        size: Length of a feature.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        prompts: tuple[str, ...],
        widths: tuple[int, int, int] = (16, 48, 96),
        size: int = 96,
    ) -> None:
        """Build an untrained classifier."""
        super().__init__()
        self.body = halvings(widths)
        self.feature_head = nn.Linear(2 * widths[-1], size)
        self.prototypes = nn.Parameter(torch.randn(len(prompts), size))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the network sees in pictures, as directions: near pictures have a high dot product.

        Args:
            pictures: Floats in [0, 1] of shape ``(batch, 3, 64, 64)``.

        Returns:
            Shape ``(batch, size)``, length 1, dtype of the classifier.
        """
        maps = self.body(pictures.to(self.dtype) * 2 - 1)
        return F.normalize(self.feature_head(pooled(maps)), dim=1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, prompts)`` for pictures as in ``features``."""
        return SHARPNESS * self.features(pictures) @ F.normalize(self.prototypes, dim=1).T

    @torch.no_grad()
    def read(self, pictures: torch.Tensor) -> list[str]:
        """The prompt of the emoji that each picture shows, pictures as in ``features``."""
        return [self.config.prompts[index] for index in self(pictures).argmax(1).tolist()]
