"""One generation of a pipeline that makes pictures: these, how long it took, and where it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deepcache_patch.measuring.generation import Timing, timed_call
from deepcache_patch.measuring.media import made_by


@dataclass(frozen=True)
class Generation:
    """What one generation made, and how long it took.

    Attributes:
        pictures: (pictures, height, width, channels), float32 in 0..1.
        timing: Seconds and calls.
        device: Where the U-Net ran.
    """

    pictures: np.ndarray
    timing: Timing
    device: torch.device


def generate(
    pipe: Any,
    denoiser: torch.nn.Module,
    call: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    label: str,
) -> Generation:
    """Runs the pipeline once as `timed_call` does, with a generator for each seed.

    Args:
        pipe: The pipeline.
        denoiser: The module that makes its denoising loop.
        call: Arguments as `batched_call` completed them.
        seeds: One for each picture.
        label: Stands before the progress bar.

    Raises:
        TypeError: The pipeline makes something else than a picture for each seed.
    """
    output, timing, device = timed_call(pipe, [denoiser], call, seeds, label=label)
    made = made_by(pipe, output, len(seeds))
    if made.kind != "pictures":
        raise TypeError(f"{type(pipe).__name__} makes {made.kind}: only pictures are measured here")
    return Generation(np.stack(made.arrays), timing, device)
