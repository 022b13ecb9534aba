"""Prompts shared out over the GPUs of a machine: each process has a pipeline and a helper.

Start it with `accelerate launch --num_processes 4 examples/many_gpus.py`; by `python` it is one
process. For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`, and your prompts.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

prompts = [
    "a small red circle above a large blue square",
    "a large green triangle left of a small yellow circle",
    "a large red star above a small blue triangle",
    "a small white square below a large purple star",
]

state = PartialState(cpu=not torch.cuda.is_available())
dtype = torch.float16 if state.device.type == "cuda" else torch.float32
pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(state.device)
helper = DeepCacheHelper(pipe).enable()

options.output.mkdir(parents=True, exist_ok=True)
with state.split_between_processes(list(enumerate(prompts))) as mine:
    for number, prompt in mine:
        picture = pipe(
            prompt,
            num_inference_steps=options.steps,
            guidance_scale=4,  # 7.5 for Stable Diffusion
            # By the prompt's number: the pictures do not depend on how many processes there are.
            generator=torch.manual_seed(number),
        ).images[0]
        picture.save(options.output / f"many_gpus-{number}.png")

full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
who = f"process {state.process_index} of {state.num_processes}"
print(f"{who}: {len(mine)} pictures, {full} full and {shallow} shallow calls: {options.output}")
state.destroy_process_group()
