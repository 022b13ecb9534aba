"""A picture with a LoRA and one without it: the helper stays enabled while LoRAs come and go.

For a real one: `--model stabilityai/stable-diffusion-xl-base-1.0 --lora nerijs/pixel-art-xl
--weights pixel-art-xl.safetensors`, and your prompt below.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import make_image_grid
from peft import LoraConfig, get_peft_model_state_dict

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--lora", help="the same, of a LoRA for the model")
parser.add_argument("--weights", help="the file in it, if there are several")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)
prompt = "a small red circle above a large blue square"
call = {"num_inference_steps": options.steps, "guidance_scale": 4}  # 5 for SDXL

helper = DeepCacheHelper(pipe).enable()

if options.lora:
    pipe.load_lora_weights(options.lora, weight_name=options.weights)
else:  # stands in for a trained LoRA: weights drawn at random, which change the picture, no more
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet")
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_v"], init_lora_weights=False))
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_lora_weights(folder, get_peft_model_state_dict(unet))
        pipe.load_lora_weights(folder)

pictures = pipe(prompt, generator=torch.manual_seed(0), **call).images
pipe.unload_lora_weights()
pictures += pipe(prompt, generator=torch.manual_seed(0), **call).images

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "sdxl_lora.png"
make_image_grid(pictures, rows=1, cols=2).save(file)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"{len(pictures)} pictures, {full} full and {shallow} shallow calls: {file}")
