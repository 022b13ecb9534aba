"""What a comparison has found, made by hand: its figures and pictures are known."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from deepcache_patch.compare.outcome import Comparison
from deepcache_patch.measuring.generation import Timing

ABOUT = {
    "model": "a/model",
    "pipeline": "StableDiffusionPipeline",
    "scheduler": "DDIM",
    "device": {"type": "cpu", "name": "x86_64"},
    "dtype": "float32",
    "steps": 6,
    "interval": 3,
    "branch": 0,
    "schedule": "Uniform(interval=3, branch=0)",
    "replay": "Extrapolate(strength=1.0)",
    "seeds": [0, 1],
    "repeats": 1,
    "call": {"prompt": "a fox"},
}


def flat(colour: tuple[int, int, int], side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def outcome(**changes: Any) -> Comparison:
    """Two pictures, one of them identical, the other darker by (2, 1, 0)."""
    fields: dict[str, Any] = {
        "plain": (flat((102, 51, 0)), flat((9, 9, 9))),
        "cached": (flat((100, 50, 0)), flat((9, 9, 9))),
        "plain_times": (Timing(4.0, 5.0, 6), Timing(6.0, 9.0, 6), Timing(5.0, 6.0, 6)),
        "cached_times": (Timing(2.0, 4.0, 6), Timing(9.0, 9.0, 6), Timing(2.0, 3.0, 6)),
        "psnr": (20.0, math.inf),
        "ssim": (0.5, 1.0),
        "full_calls": 2,
        "shallow_calls": 4,
        "cache_nbytes": 3 * 2**20,
        "about": ABOUT,
    }
    return Comparison(**{**fields, **changes})
