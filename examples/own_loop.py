"""A denoising loop written by hand round a bare U-Net, without any pipeline.

For a real model: `--model google/ddpm-cat-256`, or the U-Net and scheduler that your loop has.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import make_image_grid

from deepcache_patch import DeepCacheHelper

# The smallest trained model of this repository: it draws two or three shapes, without words.
SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes-ddpm"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
parts = DDPMPipeline.from_pretrained(options.model)
unet = parts.unet.to(device)
scheduler = DDIMScheduler.from_config(parts.scheduler.config)

helper = DeepCacheHelper(unet).enable()


@torch.no_grad()  # else every call runs in full, with a warning
def draw(seed: int) -> torch.Tensor:
    """One picture of (1, 3, side, side), from -1 to 1."""
    side = unet.config.sample_size
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    sample = noise.to(device)
    scheduler.set_timesteps(options.steps)
    with helper.generation(scheduler=scheduler):  # what a pipeline would tell the helper
        for timestep in scheduler.timesteps:
            predicted = unet(sample, timestep).sample
            sample = scheduler.step(predicted, timestep, sample).prev_sample
    return sample


pictures = torch.cat([draw(seed) for seed in range(4)])

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "own_loop.png"
images = VaeImageProcessor().postprocess(pictures.cpu())
make_image_grid(images, rows=1, cols=len(images)).save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"{len(images)} pictures, {full} full and {shallow} shallow calls: {file}")
