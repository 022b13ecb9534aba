"""A sketch becomes a picture, twice: steps are counted from the first that runs, at any strength.

For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5 --image sketch.png`, and your
prompt below.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoPipelineForImage2Image
from diffusers.utils import load_image, make_image_grid
from PIL import Image, ImageDraw

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--image", help="a file, or an address")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = AutoPipelineForImage2Image.from_pretrained(options.model, dtype=dtype).to(device)
prompt = "a small red circle above a large blue square"
call = {"num_inference_steps": options.steps, "guidance_scale": 4}  # 7.5 for Stable Diffusion

if options.image:
    image = load_image(options.image)
else:  # stands in for a sketch of yours: a circle above a square
    image = Image.new("RGB", (64, 64), "gray")
    ImageDraw.Draw(image).ellipse((24, 6, 40, 22), fill="red")
    ImageDraw.Draw(image).rectangle((16, 32, 48, 60), fill="blue")

# A low strength runs few steps: there is less to save, and more to lose. So every second is full.
helper = DeepCacheHelper(pipe, schedule="uniform", interval=2).enable()
pictures = []
for strength in (0.5, 0.8):
    call["generator"] = torch.manual_seed(0)
    pictures += pipe(prompt, image=image, strength=strength, **call).images
    print(f"strength {strength}: {helper.last_generations['unet'].plan}")

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "image_to_image.png"
make_image_grid([image.resize(pictures[0].size), *pictures], rows=1, cols=3).save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"{len(pictures)} pictures, {full} full and {shallow} shallow calls: {file}")
