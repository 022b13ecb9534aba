"""What both classifiers look at a picture with. What they make of it stands in their own files."""

from collections.abc import Iterable

import torch
from torch import nn


def halvings(widths: Iterable[int]) -> nn.Sequential:
    """An untrained network that halves an RGB picture as often as there are widths.

    Args:
        widths: Channels after each halving, multiples of 8.
    """
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [_convolution(before, width, stride=2), _convolution(width, width, stride=1)]
        before = width
    return nn.Sequential(*layers)


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """Each channel's mean and maximum, ``(batch, 2 * channels)``, of ``(batch, channels, …)``."""
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


def _convolution(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()
    )
