"""How much faster a pipeline with a ControlNet is, with and without cutting the ControlNet.

A U-Net and a ControlNet of the true size of SD 1.5 with random weights (the work does not depend
on them), run by `StableDiffusionControlNetPipeline` itself on given text embeddings, up to the
latents. The plain pipeline, a helper of the pipeline, a helper of the U-Net alone (which knows no
ControlNet) and DeepCache 0.1.1 take turns in one process; the figures are medians. Run from the
project's root: ``python -m benchmarks.controlnet_speed``.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)

from benchmarks.contestants import deepcache
from deepcache_patch import DeepCacheHelper
from deepcache_patch.environment import device_name, versions

RESULTS = Path(__file__).resolve().parent / "results" / "controlnet_speed.json"


def main() -> None:
    """Time, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intervals", type=int, nargs="*", default=[3, 5])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--size", type=int, default=128, help="of the picture, in pixels")
    parser.add_argument(
        "--width", type=float, default=1.0, help="of the networks, part of SD 1.5's"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    pipe = pipeline(arguments.width).to(device)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.controlnet_speed", *sys.argv[1:]]),
        "device": device_name(device),
        "versions": versions(),
        **vars(arguments),
        "rows": [_row(pipe, interval, arguments) for interval in arguments.intervals],
    }
    print(json.dumps(report["rows"], indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def pipeline(width: float) -> StableDiffusionControlNetPipeline:
    """The pipeline without what the loop does not need."""
    channels = tuple(int(each * width) for each in (320, 640, 1280, 1280))
    unet = UNet2DConditionModel(
        block_out_channels=channels, cross_attention_dim=768, attention_head_dim=8
    )
    pipe = StableDiffusionControlNetPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8,) * 4,
            norm_num_groups=8,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        controlnet=ControlNetModel.from_unet(unet).eval(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _row(pipe: Any, interval: int, arguments: argparse.Namespace) -> dict[str, Any]:
    contestants: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "plain": nullcontext,
        "ours": lambda: DeepCacheHelper(pipe, interval=interval),
        "ours, ControlNet whole": lambda: DeepCacheHelper(pipe.unet, interval=interval),
        "DeepCache 0.1.1": lambda: deepcache(pipe, interval, 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(arguments.repeats + 1):
        for name, around in contestants.items():
            with around():
                took = _time(pipe, arguments)
            if repeat:  # the first is to warm up
                seconds[name].append(took)
    plain = statistics.median(seconds["plain"])
    return {
        "interval": interval,
        "speedup": {n: round(plain / statistics.median(s), 3) for n, s in seconds.items()},
        "spread": {
            n: round((max(s) - min(s)) / statistics.median(s), 3) for n, s in seconds.items()
        },
    }


def _time(pipe: Any, arguments: argparse.Namespace) -> float:
    generator = torch.Generator().manual_seed(arguments.seed)
    embeds = torch.randn(1, 77, 768, generator=generator).to(pipe.device)
    image = torch.rand(1, 3, arguments.size, arguments.size, generator=generator)
    _wait(pipe.device)
    start = time.perf_counter()
    pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=embeds.flip(1),
        image=image,
        num_inference_steps=arguments.steps,
        generator=generator,
        output_type="latent",
    )
    _wait(pipe.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
