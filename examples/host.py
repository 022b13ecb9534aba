"""A host that takes over the U-Net for one picture at a time, as InvokeAI's extensions do.

For a real model: `--model google/ddpm-cat-256`. `--check` draws with diffusers' pipeline, too.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

from deepcache_patch import DeepCacheHelper

# The smallest trained model of this repository: it draws two or three shapes, without words.
SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes-ddpm"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
parser.add_argument("--check", action="store_true", help="compare with the pipeline's picture")
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
parts = DDPMPipeline.from_pretrained(options.model)
pipe = DDIMPipeline(parts.unet, DDIMScheduler.from_config(parts.scheduler.config)).to(device)
unet, scheduler, side = pipe.unet, pipe.scheduler, pipe.unet.config.sample_size


@contextmanager
def accelerated(unet: torch.nn.Module, scheduler: Any) -> Iterator[DeepCacheHelper]:
    """The patch goes on, one generation runs, and the patch comes off: whatever happens in it."""
    with DeepCacheHelper(unet) as helper, helper.generation(scheduler=scheduler):
        yield helper


scheduler.set_timesteps(options.steps)
sample = torch.randn(1, 3, side, side, generator=torch.manual_seed(0)).to(device)
with torch.no_grad(), accelerated(unet, scheduler) as helper:
    for timestep in scheduler.timesteps:
        predicted = unet(sample, timestep).sample
        sample = scheduler.step(predicted, timestep, sample).prev_sample

picture = (sample / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
if options.check:
    with DeepCacheHelper(pipe):
        call = {"num_inference_steps": options.steps, "output_type": "np"}
        theirs = pipe(generator=torch.manual_seed(0), **call).images
    print("the pictures are", "equal" if (picture == theirs).all() else "different")

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "host.png"
pipe.numpy_to_pil(picture)[0].save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"1 picture, {full} full and {shallow} shallow calls: {file}")
