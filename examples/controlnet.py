"""A picture led by the edges of another one: the ControlNet is cut along with the U-Net.

For a real one: `--model stable-diffusion-v1-5/stable-diffusion-v1-5 --controlnet
lllyasviel/control_v11p_sd15_canny --edges edges.png`, and your prompt below.
"""

import argparse
from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from diffusers.utils import load_image
from PIL import Image, ImageDraw

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--controlnet", help="the same, of a ControlNet for the model")
parser.add_argument("--edges", help="a picture's file or address")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)

if options.controlnet:
    controlnet = ControlNetModel.from_pretrained(options.controlnet, dtype=dtype)
else:  # stands in for a trained one: its residuals are zeros, the picture is the pipeline's alone
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet", dtype=dtype)
    channels = (16, 32, 64)  # two halvings, as the autoencoder has; Stable Diffusion needs none
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)

if options.edges:
    edges = load_image(options.edges)
else:  # stands in for the edges of a picture of yours: a circle above a square
    edges = Image.new("RGB", (64, 64))
    ImageDraw.Draw(edges).ellipse((24, 6, 40, 22), outline="white")
    ImageDraw.Draw(edges).rectangle((16, 32, 48, 60), outline="white")

pipe = StableDiffusionControlNetPipeline.from_pretrained(
    options.model, controlnet=controlnet, dtype=dtype
).to(device)
helper = DeepCacheHelper(pipe).enable()
print("cut:", ", ".join(helper.attached))

prompt = "a small red circle above a large blue square"
call = {"num_inference_steps": options.steps, "guidance_scale": 4}  # 7.5 for Stable Diffusion
picture = pipe(prompt, image=edges, generator=torch.manual_seed(0), **call).images[0]

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "controlnet.png"
picture.save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"1 picture, {full} full and {shallow} shallow calls: {file}")
