"""A sampler of k-diffusion round the U-Net of a pipeline, as web UIs run it.

For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`, and your prompt below.
Needs k-diffusion, 0.1.1.post1.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from k_diffusion.external import DiscreteEpsDDPMDenoiser
from k_diffusion.sampling import get_sigmas_karras, sample_dpmpp_2m

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--output", type=Path, default=Path("out"), help="a folder")
options = parser.parse_args()

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)
unet, vae = pipe.unet, pipe.vae
words, none = pipe.encode_prompt("a small red circle above a large blue square", device, 1, True)


def guided(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The noise in the sample, moved away from what is drawn without words."""
    both, twice = torch.cat([sample, sample]).to(dtype), torch.cat([timestep, timestep])
    plain, told = unet(both, twice, torch.cat([none, words])).sample.float().chunk(2)
    return plain + 4 * (told - plain)  # 7.5 for Stable Diffusion


model = DiscreteEpsDDPMDenoiser(guided, pipe.scheduler.alphas_cumprod.to(device), quantize=False)
ends = float(model.sigma_min), float(model.sigma_max)
sigmas = get_sigmas_karras(options.steps, *ends, device=device)
noise = torch.randn(
    (1, 4, unet.config.sample_size, unet.config.sample_size), generator=torch.manual_seed(0)
)

helper = DeepCacheHelper(unet).enable()
with torch.no_grad(), helper.generation(sigmas=sigmas, prediction_type="epsilon"):
    latents = sample_dpmpp_2m(model, noise.to(device) * sigmas[0], sigmas, disable=True)

with torch.no_grad():
    picture = vae.decode(latents.to(dtype) / vae.config.scaling_factor).sample
options.output.mkdir(parents=True, exist_ok=True)
file = options.output / "k_diffusion_loop.png"
pipe.image_processor.postprocess(picture)[0].save(file)
print(helper.last_generations["unet"].plan)
full, shallow = helper.stats.full_calls, helper.stats.shallow_calls
print(f"1 picture, {full} full and {shallow} shallow calls: {file}")
