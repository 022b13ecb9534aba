"""The U-Net by torch.compile: one graph for full calls and one for shallow calls.

For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`. On a CPU the default
backend needs a compiler of C++, and minutes; `--backend eager` needs neither, and gains nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--backend", default="inductor", help="of torch.compile")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)

# Any options of torch.compile, such as mode="reduce-overhead" for CUDA graphs.
helper = DeepCacheHelper(pipe).enable().compile(backend=options.backend)

pictures = []
for seed in range(2):
    start = time.perf_counter()
    pictures += pipe(
        "a small red circle above a large blue square",
        num_inference_steps=options.steps,
        guidance_scale=4,  # 7.5 for Stable Diffusion
        generator=torch.manual_seed(seed),
    ).images
    print(f"picture {seed}: {time.perf_counter() - start:.2f} s")  # the first one compiles

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "compile.png"
make_image_grid(pictures, rows=1, cols=2).save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"2 pictures by {options.backend}, {full} full and {shallow} shallow calls: {file}")
