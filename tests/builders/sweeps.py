"""What a sweep has found, made by hand: three settings on a bent curve, and one beaten by them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders.outcomes import flat
from deepcache_patch import Plan
from deepcache_patch.measuring.generation import Timing
from deepcache_patch.sweep.outcome import Row, Sweep
from deepcache_patch.sweep.settings import SweepSetting

ABOUT = {
    "model": "a/model",
    "pipeline": "StableDiffusionPipeline",
    "scheduler": "DDIM",
    "device": {"type": "cpu", "name": "x86_64"},
    "dtype": "float32",
    "scheduler_settings": None,
    "loras": [],
    "offload": None,
    "steps": 24,
    "first": 0,
    "last": 0,
    "seeds": [0, 1],
    "repeats": 2,
    "call": {"prompt": "a fox", "num_inference_steps": 24},
    "replay": None,
    "settings": 4,
}


def row(speed: float, quality: float, setting: SweepSetting | None = None, **changes: Any) -> Row:
    """Two pictures, the second 2 dB worse; timed at `speed` and at 1/1.1 of it."""
    fields: dict[str, Any] = {
        "setting": setting,
        "steps": 24,
        "results": (flat((102, 51, 0)), flat((9, 9, 9))),
        "times": (Timing(12 / speed, 13.0, 24), Timing(12.1 / speed, 13.0, 24)),
        "plain_times": (Timing(12.0, 26.0, 24), Timing(11.0, 26.0, 24)),
        "worth": 24 / speed,
        "reference_calls": 24,
        "psnr": (quality + 1, quality - 1),
        "ssim": (0.5, 0.75),
        "full_calls": 12,
        "shallow_calls": 12,
        "plan": Plan(["full", -1] * 12),
    }
    return Row(**{**fields, **changes})


def made(**changes: Any) -> Sweep:
    """Settings 1, 3 and 4 are on the curve; the knee is the second of them."""
    plain = row(1, 0, psnr=(float("inf"),) * 2, plan=Plan())
    plain = replace(plain, times=plain.plain_times)
    settings = (
        row(1.5, 40, SweepSetting(interval=1.5, steps=24), fewer=16),
        row(2, 30, SweepSetting("uniform", 2, 0, steps=24), fewer_left_out="it has no steps"),
        row(2.5, 38, SweepSetting("auto", 2.2, steps=24)),
        row(3.5, 20, SweepSetting("auto", 3, steps=24)),
    )
    fewer = (row(1.5, 25, steps=16, plan=Plan()),)
    fields: dict[str, Any] = {
        "plain": plain,
        "settings": settings,
        "fewer": fewer,
        "about": ABOUT,
    }
    return Sweep(**{**fields, **changes})
