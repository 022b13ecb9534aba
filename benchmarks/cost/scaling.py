"""How the helper's own time and memory grow with steps, resolution, batch and slots.

- `steps`: the helper's own work in a call (see `overhead`) by the number of steps, with
  the timestep as a view into the scheduler's list, as a number, and with a plan that `Auto` has
  learned; of a tiny U-Net, because this work does not depend on the network.
- `slots`: the same by the number of calls in a step.
- `sizes`: a full and a shallow call, and the own work, by resolution and batch.
- `cache`: bytes of the cache of SD 1.5 in half precision by resolution, batch and slots; counted on
  the device "meta", at the true size.
- `plans`: what making a plan takes.
- `learning`: what `Auto` does in the generation from which it learns, with samples of SD 1.5's
  shape: time and memory of the record and of the fit.

Run from the project's root: ``python -m benchmarks.cost.scaling``.
"""

import statistics
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler

from benchmarks.cost.allocations import LiveBytes, storage_bytes
from benchmarks.cost.calls import Split, SteppedLoop, function_calls
from benchmarks.networks.catalogue import build
from benchmarks.networks.loop_pipeline import LoopPipeline
from benchmarks.networks.toys import tiny
from benchmarks.provenance import options, prepare, write
from benchmarks.timing import seconds
from deepcache_patch import OUTPUT, Auto, Centred, DeepCacheHelper, NoiseAware, Schedule, Uniform
from deepcache_patch.learning.study import Study
from deepcache_patch.schedules.context import Context, FinishedCall, Position
from deepcache_patch.schedules.guide import planned

INTERVAL = 3
STEPS = (10, 50, 100, 1000)
SLOTS = (1, 2, 4, 16, 64)
LATENTS = (32, 64, 128)
PICTURES = (1, 2, 4)


def main() -> None:
    """Measure and write."""
    parser = options("cost.scaling", __doc__, repeats=5)
    parser.add_argument("--quick", action="store_true", help="fewer calls, smaller features")
    parser.add_argument("--width", type=float, help="of `sizes`'s U-Net; 1 on cuda")
    parser.add_argument("--calls", type=int, help="measured for each number of steps and slots")
    arguments = parser.parse_args()
    device, dtype = prepare(arguments)
    small = arguments.quick or device.type != "cuda"
    arguments.width = arguments.width or (0.25 if small else 1.0)
    arguments.calls = arguments.calls or (60 if arguments.quick else 300)
    nothing = tiny(device, dtype)
    unet = build("sd15", width=arguments.width, device=device, dtype=dtype, seed=arguments.seed)
    sizes = (8, 16, 32) if small else LATENTS
    steps = STEPS[:-1] if arguments.quick else STEPS
    feature_size = 16 if arguments.quick else 64
    figures = {
        "interval": INTERVAL,
        "steps": by_steps(nothing, steps, arguments.calls),
        "slots": [by_slots(nothing, slots, arguments.calls) for slots in SLOTS],
        "sizes": [
            by_size(unet, size, 2 * pictures, arguments.repeats)
            for size, pictures in [(size, 1) for size in sizes] + [(sizes[1], n) for n in (2, 4)]
        ],
        "cache": cache(),
        "plans": [plan_times(number, arguments.repeats) for number in steps],
        "learning": [learning(number, feature_size, device) for number in steps],
    }
    write("cost.scaling", arguments, device, figures)


def by_steps(
    pipe: LoopPipeline, numbers: Sequence[int], calls: int
) -> dict[str, list[dict[str, float]]]:
    """The own work in a call, for each number of steps."""
    kinds: dict[str, tuple[Callable[[], Any], bool]] = {
        "plan": (lambda: Uniform(INTERVAL), False),
        "plan, timestep as a number": (lambda: Uniform(INTERVAL), True),
        "auto": (lambda: Auto(INTERVAL), False),
    }
    return {
        kind: [_of_steps(pipe, steps, calls, schedule(), by_value) for steps in numbers]
        for kind, (schedule, by_value) in kinds.items()
    }


def _of_steps(
    pipe: LoopPipeline, steps: int, calls: int, schedule: Any, by_value: bool
) -> dict[str, float]:
    loop = SteppedLoop(pipe, steps, by_value=by_value)
    with DeepCacheHelper(pipe, schedule=schedule) as helper, loop.clocked():
        for _ in range(steps):  # to warm up, and for `Auto` to learn
            loop.split()
        made = [[loop.split() for _ in range(steps)] for _ in range(max(1, round(calls / steps)))]
        held = helper.stats.cache_nbytes
    return {
        "steps": steps,
        "call_us": _own([call for generation in made for call in generation]),
        "first_call_us": _own([generation[0] for generation in made]),
        # The second fifth and the last: whether calls become slower as a generation goes on.
        "early_us": _own([each for its in made for each in its[steps // 5 : 2 * steps // 5]]),
        "late_us": _own([each for its in made for each in its[-(steps // 5) :]]),
        "cache_nbytes": held,
    }


def by_slots(pipe: LoopPipeline, slots: int, calls: int) -> dict[str, float]:
    """The own work in a call, and the cache, where each step has so many calls."""
    steps = 2 * INTERVAL
    loop = SteppedLoop(pipe, steps, slots=slots)
    kinds: dict[bool, list[Split]] = {True: [], False: []}
    with DeepCacheHelper(pipe, schedule=Uniform(INTERVAL)) as helper, loop.clocked():
        for generation in range(1 + max(1, round(calls / (steps * slots)))):
            for call in range(steps * slots):
                made = loop.split()
                if generation:  # the first is to warm up
                    kinds[call // slots % INTERVAL == 0].append(made)
        held = helper.stats.cache_nbytes
    with DeepCacheHelper(pipe, schedule=Uniform(INTERVAL)):
        # Up to the last slot of the shallow step after the second full one.
        loop = SteppedLoop(pipe, steps, slots=slots)
        functions = [function_calls(loop.split) for _ in range((INTERVAL + 2) * slots)]
    return {
        "slots": slots,
        "full_us": _own(kinds[True]),
        "shallow_us": _own(kinds[False]),
        "full_functions": functions[-1 - slots],
        "shallow_functions": functions[-1],
        "cache_nbytes": held,
    }


def by_size(pipe: LoopPipeline, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Calls of a U-Net at one size and batch."""
    steps = 1 + repeats
    loop = SteppedLoop(pipe, 2 * steps, batch=batch, size=size)
    with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper, loop.clocked():
        made = [loop.split() for _ in range(2 * steps)][2:]
        held = helper.stats.cache_nbytes
    full, shallow = made[::2], made[1::2]
    return {
        "size": size,
        "batch": batch,
        "full_ms": 1e3 * statistics.median(each.seconds for each in full),
        "shallow_ms": 1e3 * statistics.median(each.seconds for each in shallow),
        "full_own_us": _own(full),
        "shallow_own_us": _own(shallow),
        "cache_nbytes": held,
    }


def cache() -> dict[str, list[dict[str, int]]]:
    """Bytes of SD 1.5's cache; two features are kept."""
    pipe = build("sd15", device="meta", dtype=torch.float16)

    def held(*, size: int = 64, batch: int = 2, slots: int = 1) -> int:
        loop = SteppedLoop(pipe, 5, batch=batch, size=size, slots=slots)
        with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper:
            for _ in range(3 * slots):
                loop.split()
            return helper.stats.cache_nbytes

    return {
        "size": [{"size": size, "nbytes": held(size=size)} for size in LATENTS],
        "batch": [{"batch": 2 * n, "nbytes": held(batch=2 * n)} for n in PICTURES],
        "slots": [{"slots": slots, "nbytes": held(slots=slots)} for slots in SLOTS[:3]],
    }


def plan_times(steps: int, repeats: int) -> dict[str, float]:
    """Microseconds of making one plan of each kind."""
    schedules: dict[str, Schedule] = {
        "uniform": Uniform(INTERVAL),
        "centred": Centred(INTERVAL, center=steps // 3),
    }
    return {
        "steps": steps,
        **{
            f"{name}_us": 1e6 * _least(partial(each.plan, steps), 4 * repeats)
            for name, each in schedules.items()
        },
    }


def learning(steps: int, size: int, device: torch.device) -> dict[str, float]:
    """What `Auto` costs in the generation from which it learns: the record, and the fit."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    timesteps = tuple(map(float, scheduler.timesteps.tolist()))
    context = Context(steps, timesteps, scheduler)
    study = Study(context, OUTPUT)
    generator = torch.Generator().manual_seed(0)
    first, last, output = (
        torch.randn((2, 4, size, size), generator=generator).to(device) for _ in range(3)
    )
    generation, taken = study.begin(), []
    for step in range(steps):
        sample = torch.lerp(first, last, step / steps)
        call = FinishedCall(Position(0, step, 0, steps), sample, output, {OUTPUT: output})
        taken.append(seconds(partial(study.add, generation, call), device))
    plan = planned(NoiseAware(INTERVAL), context)
    fitting = _least(partial(study.learn, plan), 1)
    # Once more, for this makes it slow: tensors are seen by the one, arrays by the other.
    tracemalloc.start()
    with LiveBytes(torch.device("cpu")) as tensors:
        study.learn(plan)
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "steps": steps,
        "record_us": 1e6 * statistics.median(taken),
        "record_nbytes": storage_bytes(generation.denoised),
        "fit_ms": 1e3 * fitting,
        "fit_nbytes": tensors.peak + arrays,
    }


def _own(calls: Iterable[Split]) -> float:
    return 1e6 * statistics.median(each.own_seconds for each in calls)


def _least(run: Callable[[], Any], times: int) -> float:
    """The shortest of so many, in seconds."""
    return min(seconds(run, torch.device("cpu")) for _ in range(times))


if __name__ == "__main__":
    main()
