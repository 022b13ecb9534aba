"""Draws `pictures.png`: what a person sees first of the README.

The same prompts and seeds plainly, faster, and with fewer steps of as much work. The prompts are
the first ones that the fidelity benchmark draws on the model `emoji`; none is picked. Run from the
project's root: ``python -m docs.figures.pictures``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.fidelity.run import Batch, batch_of
from benchmarks.fidelity.subjects import emoji_prompts
from benchmarks.generating import generate
from benchmarks.train.training import MODELS
from deepcache_patch import DeepCacheHelper
from deepcache_patch.cli.loading import load_pipeline, use_scheduler
from deepcache_patch.measuring.similarity import psnr

STEPS = 25
PICTURES = 8
#: Settings, and how a reader calls them; work is that above the output: full steps alone.
FASTER = {
    "2×": {"speedup": 2},
    "3×": {"speedup": 3},
    '2×, "auto"': {"speedup": 2, "schedule": "auto"},
}


def main() -> None:
    """Generate, and draw."""
    pipe = load_pipeline(str(MODELS / "emoji"), torch.device("cpu"), torch.float32)
    use_scheduler(pipe, "dpm-solver++")
    pipe.set_progress_bar_config(disable=True)
    prompts, others = emoji_prompts(PICTURES)
    batch = batch_of(pipe, prompts, 0, 4.0)

    def made(batch: Batch, steps: int = STEPS) -> np.ndarray:
        call = batch.call | {"num_inference_steps": steps}
        return generate(pipe, pipe.unet, call, batch.seeds, label="").pictures

    plain = made(batch)
    rows = {f"plain, {STEPS} steps": plain}
    for title, settings in FASTER.items():
        with DeepCacheHelper(pipe, **settings):
            if settings.get("schedule") == "auto":  # its first generation is the calibration
                made(batch_of(pipe, others[:1], PICTURES, 4.0))
            rows[title] = made(batch)
    fewer = len(DeepCacheHelper(pipe, speedup=2).plan(STEPS).full_steps)
    rows[f"no helper, {fewer} steps: 2×"] = made(batch, fewer)

    size = 1.2 * PICTURES + 1.8, 1.3 * len(rows)
    figure, axes = plt.subplots(len(rows), PICTURES, figsize=size)
    for line, (title, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture, original in zip(line, pictures, plain, strict=True):
            axis.imshow(picture, interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            if pictures is not plain:
                axis.set_xlabel(f"{psnr(original, picture):.0f} dB", fontsize=8, labelpad=2)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
