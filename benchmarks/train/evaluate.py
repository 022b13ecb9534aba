"""Measures the finished models: are the prompts to be read back from the generated pictures?

Fresh captions, which training never saw as scenes, go through the plain pipeline, and the
classifier reads the pictures. Figures go to ``benchmarks/results/models.json``; contact sheets, for
the eye, to ``--sheet``. Run from the project's root: ``python -m benchmarks.train.evaluate``.
"""

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.train.shape_classifier import Reading, ShapeClassifier, as_batch
from benchmarks.train.shapes import Scene, caption, sample_scene
from benchmarks.train.train_classifier import test as test_classifier
from benchmarks.train.training import MODELS, gathered, own_part

RESULTS = Path(__file__).resolve().parents[1] / "results" / "models.json"
EVALUATION_SEED = 31337
SAMPLERS: dict[str, tuple[Any, int]] = {
    "ddim": (DDIMScheduler, 50),
    "ddpm": (DDPMScheduler, 50),
    "pndm": (PNDMScheduler, 50),
    "euler": (EulerDiscreteScheduler, 50),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, 50),
    "heun": (HeunDiscreteScheduler, 25),
    "dpm-solver++": (DPMSolverMultistepScheduler, 25),
    "unipc": (UniPCMultistepScheduler, 20),
}


def fresh_scenes(count: int) -> list[Scene]:
    """Scenes for evaluation, from a seed that training does not use."""
    return [sample_scene(np.random.default_rng([EVALUATION_SEED, index])) for index in range(count)]


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    batch_size: int,
) -> list[Image.Image]:
    """One picture for each prompt, each from a seed of its own (the prompt's place in the list).

    Processes that `own_part` knows of share the work; each returns all pictures.
    """
    places = range(len(prompts))[own_part()]
    pictures: list[Image.Image] = []
    for first in tqdm(range(0, len(places), batch_size), "generating"):
        seeds = places[first : first + batch_size]
        pictures += pipeline(
            [prompts[seed] for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
    return gathered(pictures)


def read_back(readings: list[Reading], scenes: list[Scene]) -> dict[str, float]:
    """How many of the prompts, and of the shapes that they name, are found in the pictures."""
    pairs = list(zip(readings, scenes, strict=True))
    shares = {
        "strict": [reading.matches(scene) for reading, scene in pairs],
        "strict_with_sizes": [reading.matches_with_sizes(scene) for reading, scene in pairs],
    }
    for number in (2, 3):
        part = [pair for pair in pairs if len(pair[1].shapes) == number]
        shares[f"strict_{number}_shapes"] = [reading.matches(scene) for reading, scene in part]
    figures = {name: round(float(np.mean(hits)), 4) for name, hits in shares.items() if hits}
    named = sum(len(scene.shapes) for scene in scenes)
    figures["each_shape"] = round(sum(r.hits(s) for r, s in pairs) / named, 4)
    return figures


def contact_sheet(pictures: list[Image.Image], path: Path, *, columns: int) -> None:
    """Save the pictures as one, row by row."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def sampler_sheets(
    pipeline: StableDiffusionPipeline,
    classifier: ShapeClassifier,
    scenes: list[Scene],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """A contact sheet and the read-back for each sampler, all on the same prompts and seeds."""
    figures: dict[str, Any] = {}
    original = pipeline.scheduler
    for name, (scheduler, steps) in SAMPLERS.items():
        pipeline.scheduler = scheduler.from_config(original.config)
        pictures = generate(
            pipeline,
            [caption(scene) for scene in scenes],
            steps=steps,
            guidance=options.guidance_scale,
            batch_size=options.batch_size,
        )
        contact_sheet(pictures, options.sheet / f"shapes-{name}.png", columns=8)
        found = read_back(classifier.read(as_batch(pictures)), scenes)
        figures[name] = {"steps": steps, "pictures": len(pictures), "read_back": found}
    pipeline.scheduler = original
    return figures


def unconditional(classifier: ShapeClassifier, options: argparse.Namespace) -> dict[str, Any]:
    """What the DDPM draws: how many pictures hold two or three shapes of different kinds."""
    pipeline = DDPMPipeline.from_pretrained(options.models / "shapes-ddpm", dtype=torch.float32).to(
        options.device
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        batch_size=options.ddpm_pictures,
        num_inference_steps=50,
        generator=torch.Generator().manual_seed(0),
    ).images
    readings = classifier.read(as_batch(pictures))
    proper = [
        reading.count in (2, 3)
        and len(reading.shapes) == reading.count
        and len({colour for colour, _ in reading.shapes.values()}) == reading.count
        for reading in readings
    ]
    if options.sheet:
        contact_sheet(pictures, options.sheet / "shapes-ddpm-model.png", columns=8)
    return {
        "pictures": len(pictures),
        "steps": 50,
        "scheduler": "DDIMScheduler",
        "two_or_three_shapes_of_different_kind_and_colour": round(float(np.mean(proper)), 4),
    }


def provenance(module: str, device: str) -> dict[str, Any]:
    """What a results file says of how it was made: command, device, dtype and versions."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "device": device,
        "dtype": "float32",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    """Generate, read back, write the figures, and draw contact sheets if asked to."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--models", type=Path, default=MODELS, help="folder of the models")
    options.add_argument("--prompts", type=int, default=100, help="fresh captions to read back")
    options.add_argument("--steps", type=int, default=50, help="DDIM steps")
    options.add_argument("--guidance-scale", type=float, default=4.0)
    options.add_argument("--batch-size", type=int, default=20)
    options.add_argument("--device", default="cpu")
    options.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write")
    options.add_argument(
        "--sheet", type=Path, help="folder for contact sheets; none are drawn without it"
    )
    options.add_argument("--sampler-pictures", type=int, default=16, help="for each sampler")
    options.add_argument("--ddpm-pictures", type=int, default=64)
    chosen = options.parse_args()

    classifier = ShapeClassifier.from_pretrained(chosen.models / "shapes-classifier")
    pipeline = StableDiffusionPipeline.from_pretrained(
        chosen.models / "shapes", dtype=torch.float32
    ).to(chosen.device)
    pipeline.set_progress_bar_config(disable=True)
    scenes = fresh_scenes(chosen.prompts)
    pictures = generate(
        pipeline,
        [caption(scene) for scene in scenes],
        steps=chosen.steps,
        guidance=chosen.guidance_scale,
        batch_size=chosen.batch_size,
    )
    readings = classifier.read(as_batch(pictures))
    report: dict[str, Any] = provenance("benchmarks.train.evaluate", chosen.device) | {
        "shapes": {
            "prompts": len(scenes),
            "scene_seed": EVALUATION_SEED,
            "picture_seeds": f"0 to {len(scenes) - 1}",
            "scheduler": type(pipeline.scheduler).__name__,
            "steps": chosen.steps,
            "guidance_scale": chosen.guidance_scale,
            "read_back": read_back(readings, scenes),
        },
    }
    if chosen.sheet:
        contact_sheet(pictures[:64], chosen.sheet / "shapes-64.png", columns=8)
        part = scenes[: chosen.sampler_pictures]
        report["shapes"]["samplers"] = sampler_sheets(pipeline, classifier, part, chosen)
    report["shapes-ddpm"] = unconditional(classifier, chosen)
    report["shapes-classifier"] = {"strictly_right_on_fresh_drawings": test_classifier(classifier)}
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    chosen.results.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
