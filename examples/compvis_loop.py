"""A loop without a scheduler, in the manner of CompVis' `DDIMSampler`: its timesteps are numbers.

For a real model: `--model google/ddpm-cat-256`, or the U-Net and `alphas_cumprod` that you have.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline
from diffusers.image_processor import VaeImageProcessor

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
unet, side = parts.unet.to(device), parts.unet.config.sample_size
alphas_cumprod = parts.scheduler.alphas_cumprod.double().numpy()

stride = len(alphas_cumprod) // options.steps
ddim_timesteps = np.arange(0, options.steps) * stride + 1
alphas = alphas_cumprod[ddim_timesteps]
alphas_before = np.append(alphas_cumprod[0], alphas[:-1])

helper = DeepCacheHelper(unet).enable()
sample = torch.randn(2, 3, side, side, generator=torch.manual_seed(0)).to(device)
sigmas = np.sqrt((1 - alphas) / alphas)[::-1]  # the noise of each step where the data's is 1
with torch.no_grad(), helper.generation(sigmas=sigmas, prediction_type="epsilon"):
    for index, step in zip(reversed(range(options.steps)), np.flip(ddim_timesteps), strict=True):
        t = torch.full((len(sample),), step, device=device, dtype=torch.long)
        noise = unet(sample, t).sample
        a, a_before = float(alphas[index]), float(alphas_before[index])
        pred_x0 = ((sample - (1 - a) ** 0.5 * noise) / a**0.5).clamp(-1, 1)
        sample = a_before**0.5 * pred_x0 + (1 - a_before) ** 0.5 * noise

options.output.mkdir(parents=True, exist_ok=True)
files = [options.output / f"compvis_loop-{number}.png" for number in range(len(sample))]
for file, image in zip(files, VaeImageProcessor().postprocess(sample.cpu()), strict=True):
    image.save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"{len(files)} pictures, {full} full and {shallow} shallow calls: {options.output}")
