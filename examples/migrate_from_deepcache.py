"""From the DeepCache package, 0.1.1, to this one: `--check` makes the same pictures by both.

For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`, and your prompt below.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid, pt_to_pil

# before: from DeepCache import DeepCacheSDHelper
from deepcache_patch import DeepCacheSDHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
parser.add_argument("--check", action="store_true", help="needs: pip install DeepCache==0.1.1")
options = parser.parse_args()

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)
prompts = ["a small red circle above a large blue square"] * 2
call = {"num_inference_steps": options.steps, "guidance_scale": 4, "output_type": "pt"}

helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=3, cache_branch_id=0)
helper.enable()
ours = pipe(prompts, generator=torch.manual_seed(0), **call).images
helper.disable()

if options.check:
    import DeepCache

    helper_before = DeepCache.DeepCacheSDHelper(pipe=pipe)
    helper_before.set_params(cache_interval=3, cache_branch_id=0)
    helper_before.enable()
    theirs = pipe(prompts, generator=torch.manual_seed(0), **call).images
    helper_before.disable()
    print("the pictures are", "equal" if torch.equal(ours, theirs) else "different")

options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "migrate_from_deepcache.png"
make_image_grid(pt_to_pil(ours * 2 - 1), rows=1, cols=2).save(file)
print(f"{len(ours)} pictures: {file}")
