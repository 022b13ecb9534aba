"""What the helper costs where it saves nothing, and what its own work is in a call.

Four things are measured. (1) Calls of equal work, one after the other in an order that is drawn
anew for each turn: plain, disabled after it was enabled, paused, enabled at interval 1, and full
calls that record; "plain again" is a second plain U-Net, whose ratio to the first is the noise.
Each has modules of its own with the same weights in the same memory. The figure is the median of
the ratios to the plain call of the same turn, with a 95 % bootstrap interval. (2) What `enable` and
`disable` themselves take on a U-Net of SDXL's structure. (3) The seconds that the host spends
outside the `forward` of the networks, less those of the plain pipeline, in each kind of call: the
patch's own work, the extrapolation of the feature included. (4) How many of the package's functions
run in such a call. Run from the project's root: ``python -m benchmarks.cost.overhead``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from benchmarks.cost.calls import Split, SteppedLoop, function_calls
from benchmarks.networks.catalogue import build
from benchmarks.networks.loop_pipeline import LoopPipeline, twin
from benchmarks.provenance import options, prepare, write
from benchmarks.timing import in_turns
from deepcache_patch import FULL, DeepCacheHelper, Uniform
from deepcache_patch.schedules.plans import Explicit
from deepcache_patch.schedules.replay import REPLAYS

#: The kinds of the calls of one generation at interval 4. The first full call looks at the
#: timesteps and makes the plan, the first shallow one looks for observers.
GENERATION = ("first", "first shallow", "shallow", "shallow", "full", "shallow", "shallow")
INTERVAL = 4
STEPS = 50


def main() -> None:
    """Measure and write."""
    parser = options("cost.overhead", __doc__, repeats=400)
    parser.add_argument("--quick", action="store_true", help="small networks, few repeats")
    parser.add_argument("--width", type=float, help="of (1)'s U-Net, part of SD 1.5's; 1 on cuda")
    parser.add_argument("--size", type=int, help="of (1)'s latents; 64 on cuda")
    parser.add_argument("--own-width", type=float, help="of (3)'s networks; default 1")
    parser.add_argument("--own-size", type=int, help="of (3)'s latents; 64 on cuda")
    parser.add_argument("--generations", type=int, default=3, help="of each replay in (3)")
    arguments = parser.parse_args()
    device, dtype = prepare(arguments)
    _complete(arguments, device)
    pipe = build("sd15", width=arguments.width, device=device, dtype=dtype, seed=arguments.seed)
    ratios = call_ratios(pipe, arguments)
    del pipe
    own: dict[str, Any] = {}
    for name in ("sd15", "sd15-controlnet"):
        pipe = build(
            name, width=arguments.own_width, device=device, dtype=dtype, seed=arguments.seed
        )
        own[name] = own_work(pipe, arguments)
    figures = {"batch": 2, "call_ratios": ratios, "switching": switching(arguments), "own": own}
    write("cost.overhead", arguments, device, figures)


def _complete(arguments: argparse.Namespace, device: torch.device) -> None:
    """Fill in what was not given."""
    small = arguments.quick or device.type != "cuda"
    arguments.width = arguments.width or (0.25 if small else 1.0)
    arguments.size = arguments.size or (16 if small else 64)
    arguments.own_width = arguments.own_width or (0.1 if arguments.quick else 1.0)
    arguments.own_size = arguments.own_size or (16 if arguments.quick else 32 if small else 64)
    if arguments.quick:
        arguments.repeats = min(arguments.repeats, 40)


def call_ratios(pipe: LoopPipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """Calls that do a plain call's work, relative to the plain call of the same turn."""
    # Where all steps are full, nothing is recorded; so the last of these is not.
    recording = Explicit([FULL if step + 1 < STEPS else 0 for step in range(STEPS)])
    with ExitStack() as stack:

        def disabled(pipe: LoopPipeline) -> None:
            with DeepCacheHelper(pipe, schedule=Uniform()):
                SteppedLoop(pipe, STEPS, size=arguments.size).seconds()

        def paused(pipe: LoopPipeline) -> None:
            helper = stack.enter_context(DeepCacheHelper(pipe, schedule=Uniform()))
            stack.enter_context(helper.paused())

        def enabled(pipe: LoopPipeline, **settings: Any) -> None:
            stack.enter_context(DeepCacheHelper(pipe, **settings))

        contestants: dict[str, Callable[[LoopPipeline], Any]] = {
            "plain": lambda pipe: None,
            "plain again": lambda pipe: None,
            "disabled": disabled,
            "paused": paused,
            "interval 1": lambda pipe: enabled(pipe, schedule=Uniform(1)),
            "recording": lambda pipe: enabled(pipe, schedule=recording),
        }
        runs: dict[str, Callable[[], float]] = {}
        for name, make_ready in contestants.items():
            own = twin(pipe)
            make_ready(own)
            runs[name] = SteppedLoop(own, STEPS, size=arguments.size).seconds
        seconds = in_turns(runs, arguments.repeats, warm_up=5)
    plain = seconds.pop("plain")
    return {
        "plain_ms": 1e3 * statistics.median(plain),
        "turns": len(plain),
        "ratios": {name: ratio(plain, each) for name, each in seconds.items()},
    }


def ratio(plain: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The median of the ratios of each turn, and where 95 % of resampled ones lie."""
    ratios = np.asarray(other) / np.asarray(plain)
    chosen = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[chosen], axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def switching(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds to make, enable and disable a helper of SDXL, of which only structure counts."""
    pipe = build("sdxl", device="meta")
    found: dict[str, list[float]] = {"construct": [], "enable": [], "disable": []}
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        helper = DeepCacheHelper(pipe)
        made = time.perf_counter()
        helper.enable()
        enabled = time.perf_counter()
        helper.disable()
        disabled = time.perf_counter()
        for name, took in zip(
            found, (made - start, enabled - made, disabled - enabled), strict=True
        ):
            found[name].append(1e3 * took)
    return {
        name: {"first_ms": each[0], "median_ms": statistics.median(each)}
        for name, each in found.items()
    }


def own_work(pipe: LoopPipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """The helper's own work in each kind of call: microseconds, share of the call, functions."""
    plain = _calls(pipe, arguments)
    with DeepCacheHelper(pipe) as helper, helper.paused():
        paused = _calls(pipe, arguments)
        functions = function_calls(SteppedLoop(pipe, STEPS, size=8).split)
    nothing = statistics.median(each.own_seconds for each in plain)
    rows: dict[str, Any] = {"paused": _row(paused, nothing, functions)}
    for name, replay in REPLAYS.items():
        with DeepCacheHelper(pipe, schedule=Uniform(INTERVAL), replay=replay()):
            kinds = _kinds(pipe, arguments)
            loop = SteppedLoop(pipe, len(GENERATION), size=8)
            counts = {kind: function_calls(loop.split) for kind in GENERATION}
        for kind, calls in kinds.items():
            rows[f"{kind}, {name}"] = _row(calls, nothing, counts[kind])
    seconds = statistics.median(each.seconds for each in plain)
    return {"plain_call_ms": 1e3 * seconds, "outside_of_plain_us": 1e6 * nothing, "calls": rows}


def _row(calls: Sequence[Split], nothing: float, functions: int) -> dict[str, float]:
    seconds = statistics.median(each.seconds for each in calls)
    own = statistics.median(each.own_seconds for each in calls) - nothing
    return {
        "call_ms": 1e3 * seconds,
        "own_us": 1e6 * own,
        "share": own / seconds,
        "functions": functions,
    }


def _calls(pipe: LoopPipeline, arguments: argparse.Namespace) -> list[Split]:
    """Some calls that are all alike; one before them is to warm up."""
    loop = SteppedLoop(pipe, STEPS, size=arguments.own_size)
    with loop.clocked():
        return [loop.split() for _ in range(1 + arguments.generations)][1:]


def _kinds(pipe: LoopPipeline, arguments: argparse.Namespace) -> dict[str, list[Split]]:
    """The calls of some generations by kind."""
    loop = SteppedLoop(pipe, len(GENERATION), size=arguments.own_size)
    found: dict[str, list[Split]] = {kind: [] for kind in GENERATION}
    with loop.clocked():
        for kind in GENERATION * arguments.generations:
            found[kind].append(loop.split())
    return found


if __name__ == "__main__":
    main()
