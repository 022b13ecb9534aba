"""What a comparison has found, made by hand: its figures and pictures are known."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from PIL import Image

from deepcache_patch import Plan
from deepcache_patch.compare.fewer import FewerSteps
from deepcache_patch.compare.outcome import Comparison
from deepcache_patch.measuring.generation import Timing
from deepcache_patch.measuring.media import Sound

ABOUT = {
    "model": "a/model",
    "pipeline": "StableDiffusionPipeline",
    "scheduler": "DDIM",
    "device": {"type": "cpu", "name": "x86_64"},
    "dtype": "float32",
    "scheduler_settings": None,
    "loras": [],
    "offload": None,
    "steps": 6,
    "interval": 3,
    "branch": 0,
    "schedule": "Uniform(interval=3, branch=0)",
    "replay": "Extrapolate(strength=1.0)",
    "seeds": [0, 1],
    "repeats": 1,
    "call": {"prompt": "a fox"},
}

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"&amp;' {{ 7 * 7 }}"
PLAN = Plan(["full", 0, 0, "full", 0, 0])


def flat(colour: tuple[int, int, int], side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def joined(page: str) -> str:
    """A page without the marks of what a line does not break within."""
    return re.sub(r'<span class="whole">(.*?)</span>', r"\1", page)


def outcome(**changes: Any) -> Comparison:
    """Two pictures, one of them identical, the other darker by (2, 1, 0)."""
    fields: dict[str, Any] = {
        "plain": (flat((102, 51, 0)), flat((9, 9, 9))),
        "cached": (flat((100, 50, 0)), flat((9, 9, 9))),
        "plain_times": (Timing(4.0, 5.0, 6), Timing(6.0, 9.0, 6), Timing(5.0, 6.0, 6)),
        "times": (Timing(2.0, 4.0, 6), Timing(9.0, 9.0, 6), Timing(2.0, 3.0, 6)),
        "psnr": (20.0, math.inf),
        "ssim": (0.5, 1.0),
        "full_calls": 2,
        "shallow_calls": 4,
        "cache_nbytes": 3 * 2**20,
        "about": ABOUT,
    }
    return Comparison(**{**fields, **changes})


def fewer(**changes: Any) -> FewerSteps:
    """Three steps of six; its pictures are those of `outcome`, darker by (4, 2, 0)."""
    fields: dict[str, Any] = {
        "steps": 3,
        "results": (flat((98, 49, 0)), flat((5, 7, 9))),
        "times": (Timing(2.5, 3.0, 3), Timing(4.0, 5.0, 3), Timing(1.0, 2.0, 3)),
        "plain_times": (Timing(4.0, 5.0, 6), Timing(6.0, 9.0, 6), Timing(5.0, 6.0, 6)),
        "work": 0.5,
        "psnr": (17.0, 19.0),
        "ssim": (0.25, 0.75),
    }
    return FewerSteps(**{**fields, **changes})


def pictures(**changes: Any) -> Any:
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    changed = noise.copy()
    changed[:, 20:40] //= 2
    plain, cached = ([Image.fromarray(each) for each in row] for row in (noise, changed))
    return outcome(
        **{"plain": tuple(plain), "cached": tuple(cached), "plans": {"unet": PLAN}} | changes
    )


def videos(**changes: Any) -> Any:
    plain, cached = ([flat((number, base, 0)) for number in range(5)] for base in (9, 99))
    about = {**ABOUT, "seeds": [7]}
    return outcome(
        **{"plain": (tuple(plain),), "cached": (tuple(cached),), "about": about}
        | {"psnr": (20.0,), "ssim": (0.5,)}
        | changes
    )


def sounds(**changes: Any) -> Any:
    tone = np.sin(np.arange(1600, dtype=np.float32) / 20)[None]
    return outcome(
        plain=(Sound(tone, 16000), Sound(tone, 16000)),
        cached=(Sound(0.5 * tone, 16000), Sound(tone, 16000)),
        psnr=None,
        ssim=None,
        snr=(6.0, float("inf")),
        **changes,
    )
