"""How many bytes the cache keeps, and what the helper adds to the peak of the plain pipeline.

Ours by default, which keeps outputs; at branch 0 with one feature (`replay="reuse"`) and with two
(`"extrapolate"`); and DeepCache 0.1.1 at branch 0. All at interval 2: at branch 0 either keeps the
most. Three figures for each:

- `cache`: what it says itself, `helper.stats.cache_nbytes`; for DeepCache 0.1.1 the tensors in its
  `cached_output`, memory that several share counted once.
- `kept`: the most bytes alive between two calls of the U-Net, less those of the plain pipeline at
  the same place. So it holds whatever is kept, whether or not anybody counts it.
- `peak`: the most bytes alive at all, less the plain pipeline's most.

On CUDA the pipeline runs and torch's allocator is asked. Elsewhere the bytes are counted on the
device "meta" at the true sizes, where no tensor has values (what is kept does not depend on them),
and a small network is both counted and run on the CPU, to see that the counts agree. Run from the
project's root: ``python -m benchmarks.cost.memory``.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler

from benchmarks.cost.allocations import CudaBytes, FusedAttention, LiveBytes, Meter, storage_bytes
from benchmarks.deepcache import deepcache
from benchmarks.networks.catalogue import build
from benchmarks.networks.loop_pipeline import LoopPipeline
from benchmarks.provenance import options, prepare, write
from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.schedules.noise import adds_noise

INTERVAL = 2
#: Enough for full steps while two features are kept, and for four cut calls of a ControlNet, which
#: is how many are remembered.
STEPS = 10
#: Networks and numbers of pictures; guidance doubles the batch where there is guidance.
CASES = (("sd15", 1), ("sd15", 2), ("sd15", 4), ("sd21", 1), ("sdxl", 1), ("sd15-controlnet", 1),
         ("svd", 1), ("animatediff", 1), ("ldm4-imagenet", 1), ("ddpm-lsun", 1))  # fmt: skip
QUICK = (("sd15", 1), ("sd15-controlnet", 1))


class CountedDDIM(DDIMScheduler):  # type: ignore[misc]
    """DDIM that asks a meter before each call of the U-Net, and whose timesteps have values."""

    meter: Meter | None = None

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        on_meta = torch.device(device or "cpu").type == "meta"
        super().set_timesteps(num_inference_steps, "cpu" if on_meta else device)
        self.census: list[int] = []

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        if self.meter is not None:
            self.census.append(self.meter.now)
        return sample


def main() -> None:
    """Count and write."""
    parser = options("cost.memory", __doc__, repeats=1)
    parser.set_defaults(dtype="float16")
    parser.add_argument("--quick", action="store_true", help="fewer networks")
    arguments = parser.parse_args()
    device, dtype = prepare(arguments)
    where = device if device.type == "cuda" else torch.device("meta")
    figures: dict[str, Any] = {"interval": INTERVAL, "steps": STEPS}
    figures["measured_on"] = where.type
    if where.type == "meta":
        figures["check"] = check(arguments)
    cases = QUICK if arguments.quick else CASES
    figures["rows"] = [
        {
            "network": name,
            **row(build(name, device=where, dtype=dtype, seed=arguments.seed), pictures),
        }
        for name, pictures in cases
    ]
    write("cost.memory", arguments, device, figures)


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same small network counted on "meta" and run on the CPU."""
    rows = {
        where: row(build("sd15", width=0.1, device=where, seed=arguments.seed), 1, size=16)
        for where in ("meta", "cpu")
    }
    return {"agree": rows["meta"]["contestants"] == rows["cpu"]["contestants"], **rows}


def row(pipe: LoopPipeline, pictures: int, size: int | None = None) -> dict[str, Any]:
    """All contestants on one network.

    Args:
        pipe: Of the network.
        pictures: How many; with guidance, each is in a call twice.
        size: Of the latents; the network's own by default.
    """
    pipe.scheduler = CountedDDIM.from_config(pipe.scheduler.config)
    # The helper finds this once, on a copy, of whose memory the meter would miss the end.
    adds_noise(pipe.scheduler)
    contestants: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "default": lambda: DeepCacheHelper(pipe, interval=INTERVAL),
        "reuse": lambda: DeepCacheHelper(pipe, schedule=Uniform(INTERVAL), replay="reuse"),
        "extrapolate": lambda: DeepCacheHelper(pipe, schedule=Uniform(INTERVAL)),
        "deepcache": lambda: deepcache(pipe, INTERVAL, 0),
    }
    if pipe.device.type == "cuda":
        pipe(1, batch=pictures, size=size)  # for what libraries take at the first call and keep
    plain_kept, plain_peak, _ = _generation(pipe, nullcontext(), pictures, size)
    found: dict[str, Any] = {}
    for contestant, around in contestants.items():
        try:
            kept, peak, cache = _generation(pipe, around(), pictures, size)
        except Exception as error:
            if contestant != "deepcache":  # which does not run everywhere
                raise
            found[contestant] = {"failed": f"{type(error).__name__}: {error}"}
            continue
        more = (ours - plain for ours, plain in zip(kept, plain_kept, strict=True))
        found[contestant] = {"cache": cache, "kept": max(more), "peak": peak - plain_peak}
    height, width = (size, size) if size else pipe.network.size
    return {
        "title": pipe.network.title,
        "pictures": pictures,
        "batch": pictures * pipe.copies,
        "latents": [height, width],
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "plain_peak": plain_peak,
        "contestants": found,
    }


def _generation(
    pipe: LoopPipeline, around: AbstractContextManager[Any], pictures: int, size: int | None
) -> tuple[list[int], int, int]:
    """Bytes alive before each call of the U-Net, the most at all, and the cache's own account."""
    with ExitStack() as stack:
        helper = stack.enter_context(around)
        meter: Meter = (
            CudaBytes(pipe.device) if pipe.device.type == "cuda" else LiveBytes(pipe.device)
        )
        if pipe.device.type == "meta":
            stack.enter_context(FusedAttention())
            # What a helper notes of a call's shapes is on "meta" itself and takes no memory; here
            # it could not be told from the tensors that stand for real ones.
            stack.enter_context(
                patch("deepcache_patch.running.unet.example_of", lambda arguments: None)
            )
        stack.enter_context(meter)
        pipe.scheduler.meter = meter
        pipe(STEPS, batch=pictures, size=size)
        return pipe.scheduler.census, meter.peak, _account(helper)


def _account(helper: Any) -> int:
    if helper is None:
        return 0
    if isinstance(helper, DeepCacheHelper):
        return helper.stats.cache_nbytes
    return storage_bytes(list(helper.cached_output.values()))


if __name__ == "__main__":
    main()
