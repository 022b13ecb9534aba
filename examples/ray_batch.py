"""Pictures of many prompts with Ray Data: each worker has a pipeline and a helper of its own.

Start it with `python examples/ray_batch.py`, or on a cluster, where `--output` is a folder that all
machines see. One task learns how to go on from full steps, before any worker starts, and writes a
file that all of them read. Pictures that are there are not made again: after a crash, start it once
more. For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`, and your prompts, one
in each line: `--prompts FILE`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ray
import torch
from diffusers import DiffusionPipeline

from deepcache_patch import Auto, DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"
PROMPTS = [
    "a small red circle above a large blue square",
    "a large green triangle left of a small yellow circle",
    "a large red star above a small blue triangle",
    "a small white square below a large purple star",
]


class Painter:
    """A pipeline whose helper goes by the file; Ray makes one of these in each worker."""

    def __init__(self, model: str, steps: int, output: Path) -> None:
        on_gpu = torch.cuda.is_available()  # Ray hides those that are not this worker's
        device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
        self.pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        # Reads the file. Where there is none, the first generation runs in full, and writes it.
        self.helper = DeepCacheHelper(self.pipe, schedule=Auto(file=output / "learned.json"))
        self.helper.enable()
        self.steps, self.output = steps, output

    def paint(self, numbers: list[int], prompts: list[str]) -> list[Any]:
        """The pictures of some prompts. A prompt's number is its seed, whoever draws it."""
        return self.pipe(
            prompts,
            num_inference_steps=self.steps,
            guidance_scale=4,  # 7.5 for Stable Diffusion
            generator=[torch.Generator().manual_seed(number) for number in numbers],
        ).images

    def __call__(self, batch: dict[str, Any]) -> dict[str, int]:
        """Makes the files of a batch; returns how."""
        numbers, before = [int(number) for number in batch["numbers"]], self.helper.stats
        pictures = self.paint(numbers, list(batch["prompts"]))
        for number, picture in zip(numbers, pictures, strict=True):
            # It gets its name when it is whole: who is killed leaves no half of a picture.
            picture.save(partial := self.output / f".{number}.{os.getpid()}.partial", "png")
            partial.replace(file_of(self.output, number))
        full = self.helper.stats.full_calls - before.full_calls
        shallow = self.helper.stats.shallow_calls - before.shallow_calls
        return {"pictures": len(numbers), "full": full, "shallow": shallow}


def file_of(output: Path, number: int) -> Path:
    """Where the picture of a prompt is."""
    return output / f"ray_batch-{number}.png"


@ray.remote
def learn(prompt: str, *settings: Any) -> str | None:
    """Runs one generation, so that the file is there; says what was learned, if it was not yet."""
    painter = Painter(*settings)
    painter.paint([0], [prompt])
    return painter.helper.last_generations["unet"].calibration


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(SHAPES), help="a folder, or a name on the hub")
    parser.add_argument("--prompts", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    here = int(torch.cuda.is_available())
    parser.add_argument("--gpus", type=float, default=here, help="for each worker")
    parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
    options = parser.parse_args()
    prompts = options.prompts.read_text().splitlines() if options.prompts else PROMPTS
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)

    # A picture may depend, by a bit, on those beside it, so a batch is always the same, and whole.
    numbers, size = range(len(prompts)), options.batch_size
    batches = [numbers[first : first + size] for first in numbers[::size]]
    left = [
        {"numbers": list(batch), "prompts": [prompts[number] for number in batch]}
        for batch in batches
        if not all(file_of(output, number).exists() for number in batch)
    ]
    made = []
    if left:
        settings = (options.model, options.steps, output)
        learned = ray.get(learn.options(num_gpus=options.gpus).remote(prompts[0], *settings))
        print(f"learned: {learned or 'nothing new'}", flush=True)
        made = (
            ray.data.from_items(left, override_num_blocks=len(left))  # each batch is a task
            .map(
                Painter,
                fn_constructor_args=settings,
                num_gpus=options.gpus,
                compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(left))),
            )
            .take_all()
        )
    names = ("pictures", "full", "shallow")
    pictures, full, shallow = (sum(each[name] for each in made) for name in names)
    print(f"{pictures} pictures, {full} full and {shallow} shallow calls: {options.output}")
