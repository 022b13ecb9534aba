"""A short video by AnimateDiff, and how much the cache holds: the deep feature of all frames.

For a real one: `--model stable-diffusion-v1-5/stable-diffusion-v1-5 --adapter
guoyww/animatediff-motion-adapter-v1-5-2 --frames 16`, and your prompt below.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNet2DConditionModel
from diffusers.utils import export_to_gif

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--adapter", help="the same, of a motion adapter for the model")
parser.add_argument("--frames", type=int, default=8)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)

if options.adapter:
    adapter = MotionAdapter.from_pretrained(options.adapter, dtype=dtype)
else:  # stands in for a trained one: it adds nothing, so each frame is a picture of its own
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet")
    adapter = MotionAdapter(
        block_out_channels=unet.config.block_out_channels,
        motion_layers_per_block=unet.config.layers_per_block,
        motion_norm_num_groups=unet.config.norm_num_groups,
    )
    for name, weight in adapter.named_parameters():
        if ".proj_out." in name:  # the last layer of each of its modules
            torch.nn.init.zeros_(weight)

pipe = AnimateDiffPipeline.from_pretrained(options.model, motion_adapter=adapter, dtype=dtype)
pipe.to(device)
helper = DeepCacheHelper(pipe).enable()

prompt = "a small red circle above a large blue square"
call = {"num_inference_steps": options.steps, "guidance_scale": 4}  # 7.5 for Stable Diffusion
call["generator"] = torch.manual_seed(0)
frames = pipe(prompt, num_frames=options.frames, **call).frames[0]

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "video.gif"
export_to_gif(frames, str(file))
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"the cache held {helper.stats.cache_nbytes / 2**20:.2f} MiB")  # half by replay="reuse"
print(f"{len(frames)} frames, {full} full and {shallow} shallow calls: {file}")
