"""How much of the possible speedup the helper reaches, on a pipeline's own denoising loop.

The bound is N·T_full / (T_full + (N-1)·T_shallow), where T_full is a call of the U-Net and
T_shallow one of the U-Net with its deep layers taken out by hand, no helper anywhere near. Both,
the plain loop and the loop with the helper are timed in turn, in one process; the figures are
medians. Run from the project's root: ``python -m benchmarks.loop_speed``.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from deepcache_patch import FULL, DeepCacheHelper
from deepcache_patch.anatomy import dissect
from deepcache_patch.environment import device_name, versions
from deepcache_patch.features import Recorder, StandIn
from deepcache_patch.loop_clock import LoopClock

BENCHMARKS = Path(__file__).resolve().parent
PROMPT = "a small red circle above a large blue square"


def main() -> None:
    """Time, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BENCHMARKS / "models" / "shapes"))
    parser.add_argument("--interval", type=int, default=3)
    parser.add_argument("--branch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results" / "loop_speed.json")
    options = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    figures = measure(pipe, options)
    text = json.dumps(
        {
            "command": shlex.join(["python", "-m", "benchmarks.loop_speed", *sys.argv[1:]]),
            "versions": versions(),
            "device": device_name(pipe.device),
            "threads": torch.get_num_threads(),
            "seed": options.seed,
            "model": Path(options.model).name,
            "scheduler": type(pipe.scheduler).__name__,
            **{name: getattr(options, name) for name in ("steps", "images", "repeats")},
            "interval": options.interval,
            "branch": options.branch,
            **figures,
        },
        indent=2,
    )
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(pipe: Any, options: argparse.Namespace) -> dict[str, float]:
    """Medians of the four times, and what follows from them."""
    helper = DeepCacheHelper(pipe, interval=options.interval, branch=options.branch, replay="reuse")
    calls = unet_calls(pipe, options)
    kinds: dict[str, Callable[[], float]] = {
        "plain_loop": lambda: loop_seconds(pipe, options),
        "cached_loop": lambda: loop_seconds(pipe, options, helper),
        **calls,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(options.repeats + 1):
        for kind, run in kinds.items():
            measured = run()
            if repeat:  # the first is the warm-up
                seconds[kind].append(measured)
    plain, cached, full, shallow = (statistics.median(seconds[kind]) for kind in kinds)
    interval = options.interval
    plan = helper.schedule.plan(options.steps)
    full_steps = plan.count(FULL)
    speedup = plain / cached
    bound = interval * full / (full + (interval - 1) * shallow)
    return {
        "shallow_share": shallow / full,
        "speedup": speedup,
        "bound": bound,
        "speedup_over_bound": speedup / bound,
        # 50 steps hold 17 full ones at interval 3, which is more than a third.
        "bound_of_these_steps": options.steps
        * full
        / (full_steps * full + (options.steps - full_steps) * shallow),
        "full_steps": full_steps,
        "shallow_steps": options.steps - full_steps,
    }


def loop_seconds(
    pipe: Any, options: argparse.Namespace, helper: DeepCacheHelper | None = None
) -> float:
    """One generation, with the helper or without."""
    with helper or nullcontext(), LoopClock(pipe.unet) as clock:
        pipe(
            [PROMPT] * options.images,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(options.seed),
            output_type="latent",
        )
    return clock.seconds


def unet_calls(pipe: Any, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """A full call of the plain U-Net, and one with its deep layers taken out; guidance's batch."""
    unet, batch = pipe.unet, 2 * options.images
    generator = torch.Generator().manual_seed(options.seed)
    size = unet.config.sample_size
    sample = torch.randn(batch, unet.config.in_channels, size, size, generator=generator)
    embeddings, _ = pipe.encode_prompt([PROMPT] * batch, pipe.device, 1, False)
    anatomy, stand_in, recorder = dissect(unet), StandIn(), Recorder()
    timestep = torch.tensor(500)
    with torch.no_grad(), anatomy.cut(None, stand_in, {options.branch: recorder}).applied():
        unet(sample, timestep, embeddings)
    stand_in.feature = recorder.take()

    @torch.no_grad()
    def timed(calls: int) -> float:
        # The mean, for a loop's time is a sum: what disturbs the machine is in both.
        start = time.perf_counter()
        for _ in range(calls):
            unet(sample, timestep, embeddings)
        return (time.perf_counter() - start) / calls

    def shallow() -> float:
        with anatomy.cut(options.branch, stand_in, {}).applied():
            return timed(60)

    return {"full_call": lambda: timed(20), "shallow_call": shallow}


if __name__ == "__main__":
    main()
