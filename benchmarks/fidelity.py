"""What the speed costs: pictures with the helper against those of the plain pipeline.

Every way of being faster draws the same prompts from the same seeds, batch by batch in turn with
the plain pipeline and in one process. Measured are the time of the denoising loop, PSNR and SSIM
against the plain pictures, and how many prompts the classifier reads back from the pictures. The
alternative that needs no library, simply taking fewer steps, is measured beside. Run from the
project's root: ``python -m benchmarks.fidelity``.
"""

import argparse
import json
import shlex
import statistics
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks.classifier import ShapeClassifier
from benchmarks.train.evaluate import fresh_scenes, read_back
from benchmarks.train.shapes import Scene, caption
from deepcache_patch import DeepCacheHelper
from deepcache_patch.environment import device_name, versions
from deepcache_patch.generation import Generation, generate
from deepcache_patch.loading import use_scheduler
from deepcache_patch.similarity import psnr, ssim

BENCHMARKS = Path(__file__).resolve().parent


@dataclass
class Contestant:
    """One way to make the pictures, and what it made so far."""

    name: str
    steps: int
    helper: DeepCacheHelper | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    generations: list[Generation] = field(default_factory=list)

    def enabled(self) -> AbstractContextManager[Any]:
        """The pipeline as this contestant wants it."""
        return self.helper or nullcontext()

    def figures(self, plain: "Contestant", scenes: list[Scene], reader: Any) -> dict[str, Any]:
        """Medians and means over all pictures, against those of the plain pipeline."""
        pictures = [one for each in self.generations for one in each.pictures]
        reference = [one for each in plain.generations for one in each.pictures]
        pairs = list(zip(reference, pictures, strict=True))
        ratios = [
            before.timing.loop_seconds / after.timing.loop_seconds
            for before, after in zip(plain.generations, self.generations, strict=True)
        ]
        same = self is plain
        batch = torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one in pictures])
        return {
            "name": self.name,
            "steps": self.steps,
            **self.settings,
            "speedup": statistics.median(ratios),
            "psnr": None if same else statistics.fmean(psnr(*pair) for pair in pairs),
            "ssim": 1.0 if same else statistics.fmean(ssim(*pair) for pair in pairs),
            "read_back": read_back(reader.read(batch), scenes)["strict"],
        }


def main() -> None:
    """Generate, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BENCHMARKS / "models" / "shapes"))
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--intervals", type=int, nargs="*", default=[2, 3, 5, 10])
    parser.add_argument("--branches", type=int, nargs="*", default=[0])
    parser.add_argument("--fewer-steps", type=int, nargs="*", default=[25, 17, 10])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results" / "fidelity.json")
    options = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(options.model, dtype=torch.float32)
    use_scheduler(pipe, options.scheduler)
    pipe.set_progress_bar_config(leave=False)
    contestants = [Contestant("plain", options.steps)]
    contestants += [Contestant("fewer steps", steps) for steps in options.fewer_steps]
    contestants += [
        Contestant(
            "uniform",
            options.steps,
            DeepCacheHelper(pipe, interval=interval, branch=branch),
            {"interval": interval, "branch": branch},
        )
        for branch in options.branches
        for interval in options.intervals
    ]
    scenes = fresh_scenes(options.images)
    run(pipe, contestants, scenes, options)

    reader = ShapeClassifier.from_pretrained(BENCHMARKS / "models" / "shapes-classifier")
    text = json.dumps(
        {
            "command": shlex.join(["python", "-m", "benchmarks.fidelity", *sys.argv[1:]]),
            "versions": versions(),
            "device": device_name(pipe.device),
            "threads": torch.get_num_threads(),
            "model": Path(options.model).name,
            "scheduler": type(pipe.scheduler).__name__,
            "steps": options.steps,
            "guidance_scale": options.guidance_scale,
            "images": options.images,
            "seeds": [0, options.images - 1],
            "rows": [each.figures(contestants[0], scenes, reader) for each in contestants],
        },
        indent=2,
    )
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def run(
    pipe: Any, contestants: list[Contestant], scenes: list[Scene], options: argparse.Namespace
) -> None:
    """Let every contestant draw every batch, in turn; the seed of a picture is its place."""
    for first in range(0, len(scenes), options.batch_size):
        part = scenes[first : first + options.batch_size]
        call = {
            "prompt": [caption(scene) for scene in part],
            "guidance_scale": options.guidance_scale,
            "output_type": "np",
        }
        seeds = range(first, first + len(part))
        if first == 0:  # a warm-up
            generate(pipe, pipe.unet, call | {"num_inference_steps": 2}, seeds, label="warm-up")
        for each in contestants:
            steps = {"num_inference_steps": each.steps}
            with each.enabled():
                label = f"{first + len(part)}/{len(scenes)} {each.name}"
                each.generations.append(generate(pipe, pipe.unet, call | steps, seeds, label=label))


if __name__ == "__main__":
    main()
