"""Three pictures from words: one denoising step in three runs in full, the others are forecast.

For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`, and your prompts below.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid

from deepcache_patch import DeepCacheHelper

# The small trained pipeline of this repository; it draws two or three shapes.
SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
# Before diffusers 0.40: torch_dtype=dtype.
pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)

helper = DeepCacheHelper(pipe, interval=3).enable()

prompts = [
    "a small red circle above a large blue square",
    "a large green triangle left of a small yellow circle",
    "a large red star above a small blue triangle",
]
pictures = pipe(
    prompts,
    num_inference_steps=options.steps,
    guidance_scale=4,  # 7.5 for Stable Diffusion
    generator=torch.manual_seed(0),
).images

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "first_picture.png"
make_image_grid(pictures, rows=1, cols=len(pictures)).save(file)

print(helper)  # the plan that ran, the cache, the speed
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"{len(pictures)} pictures, {full} full and {shallow} shallow calls: {file}")
