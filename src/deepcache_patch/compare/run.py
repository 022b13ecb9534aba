"""A/B comparison: the same results without and with the helper, timed, measured, and what ran seen
call by call. What comes out is a `Comparison`. How a command line or a notebook asks for one is no
business of this file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..learning.auto import Auto
from ..measuring.environment import device_name
from ..measuring.generation import Timing, accepted_arguments, calls_of, timed_call
from ..measuring.media import Made, made_by
from ..measuring.similarity import SMALLEST_FOR_LPIPS, lpips, psnr, require_metrics, snr, ssim
from ..running.components import schedulers_of, unets_of
from ..running.face import Helper
from ..schedules.plans import Uniform
from .outcome import Comparison

#: With one of these, the number of steps is not `num_inference_steps` alone.
_STEP_ARGUMENTS = ("strength", "timesteps", "sigmas", "denoising_start", "denoising_end")
#: Enough for a full and a shallow step, whatever the interval, and for multistep solvers.
_WARM_UP_STEPS = 4
#: What a calibration's seeds are apart from those of the comparison.
CALIBRATION_SEEDS = 1_000_000


def compare(
    pipe: Any,
    helper: Helper,
    *,
    seeds: Sequence[int] | None = None,
    repeats: int = 1,
    **call: Any,
) -> Comparison:
    """Generates the same results without and with `helper`, after a short warm-up.

    With `schedule="auto"` the calibration comes first, from other seeds. All pictures are one
    batch; videos and sounds are made one by one. The helper is left enabled or disabled as it was
    found.

    Args:
        pipe: A pipeline that makes pictures, videos or sounds.
        helper: A helper of this pipeline.
        seeds: One for each result; several prompts share them out evenly, in order. By default 0,
            or 0, 1, 2, … for as many prompts.
        repeats: Timed runs of each kind, taken in turn; the figures are their medians. The
            results are those of the first.
        call: Arguments of the pipeline's `__call__`, such as `prompt` or `num_inference_steps`.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: An argument that this pipeline does not know, or one that it lacks; or it is a
            bare U-Net, or returns nothing that can be compared.
        ValueError: No seeds, `repeats` below 1, or a number of seeds that the prompts do not share.

    Example:
        >>> outcome = compare(pipe, DeepCacheHelper(pipe), prompt="a fox", seeds=range(4))
        >>> print(outcome.table())
        >>> outcome.save("foxes.html")
    """
    require_metrics()
    if seeds is None:
        prompts = call.get("prompt")
        seeds = range(len(prompts) if isinstance(prompts, list | tuple) else 1)
    seeds = _whole_numbers(seeds)
    if not seeds:
        raise ValueError("seeds is empty: give one seed for each picture")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: at least 1 run of each kind is needed")
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"a comparison calls a pipeline; {type(pipe).__name__} is none")
    calls, unets, perceptual = calls_of(pipe, call, seeds), unets_of(pipe), lpips()
    run = partial(_generate, pipe, unets.values())
    plain, cached = [], []
    was_enabled, schedule = helper.enabled, helper.schedule
    try:
        helper.enable()
        branch = min(getattr(schedule, "branches", ()), default=0)
        helper.follow(Uniform(2, branch))  # one that does not mind how few steps there are
        run([(shortened(arguments), some) for arguments, some in calls[:1]], label="warm-up")
        helper.follow(schedule)
        if isinstance(schedule, Auto):  # its first generation runs in full, to learn
            others = [
                (arguments, [seed + CALIBRATION_SEEDS for seed in some])
                for arguments, some in calls[:1]
            ]
            run(others, label="calibration")
        for _ in range(repeats):
            helper.disable()
            plain.append(run(calls, label="plain"))
            helper.enable()  # counts from here: its stats are those of this run alone
            cached.append(run(calls, label="cached"))
            stats, last = helper.stats, helper.last_generations
    finally:
        helper.follow(schedule)
        if was_enabled:
            helper.enable()
        else:
            helper.disable()

    (made, _, device), (made_cached, _, _) = plain[0], cached[0]
    denoiser = next(iter(unets.values()))
    about = {
        "model": getattr(pipe, "name_or_path", None) or type(pipe).__name__,
        "pipeline": type(pipe).__name__,
        "scheduler": _scheduler_name(pipe, next(iter(unets))),
        "device": {"type": str(device), "name": device_name(device)},
        "dtype": str(getattr(denoiser, "dtype", "unknown")).removeprefix("torch."),
        "steps": _steps(pipe, call),
        "interval": getattr(helper.schedule, "interval", None),
        "branch": getattr(helper.schedule, "branch", None),
        "first": helper.first,
        "last": helper.last,
        "schedule": str(helper.schedule),
        "replay": None if getattr(schedule, "own_replay", False) else str(helper.replay),
        "seeds": list(seeds),
        "repeats": repeats,
        "call": dict(call),
    }
    return Comparison(
        plain=made.shown(),
        cached=made_cached.shown(),
        plain_times=tuple(timing for _, timing, _ in plain),
        cached_times=tuple(timing for _, timing, _ in cached),
        **_measured(made, made_cached, perceptual),
        full_calls=stats.full_calls,
        shallow_calls=stats.shallow_calls,
        cache_nbytes=stats.cache_nbytes,
        about=about,
        plans={name: each.plan for name, each in last.items()},
    )


def _generate(
    pipe: Any,
    denoisers: Iterable[torch.nn.Module],
    calls: Sequence[tuple[dict[str, Any], Sequence[int]]],
    *,
    label: str,
) -> tuple[Made, Timing, torch.device]:
    """Makes the results of all calls, one call after the other."""
    made, timings, device = [], [], torch.device("cpu")
    for number, (arguments, seeds) in enumerate(calls, 1):
        which = label if len(calls) == 1 else f"{label} {number}/{len(calls)}"
        output, timing, device = timed_call(pipe, denoisers, arguments, seeds, label=which)
        made.append(made_by(pipe, output, len(seeds)))
        timings.append(timing)
    return reduce(operator.add, made), reduce(operator.add, timings), device


def _measured(
    plain: Made, cached: Made, perceptual: Callable[[np.ndarray, np.ndarray], float] | None
) -> dict[str, tuple[float, ...] | None]:
    """How alike the results are, by the measures of their kind."""
    pairs = list(zip(plain.arrays, cached.arrays, strict=True))
    if plain.kind == "sounds":
        return {"psnr": None, "ssim": None, "snr": tuple(snr(*pair) for pair in pairs)}
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"psnr": psnr, "ssim": ssim}
    if perceptual and min(plain.arrays[0].shape[-3:-1]) >= SMALLEST_FOR_LPIPS:
        measures["lpips"] = perceptual
    if plain.kind == "videos":
        measures = {name: partial(_by_frame, measure) for name, measure in measures.items()}
    return {name: tuple(of(*pair) for pair in pairs) for name, of in measures.items()}


def _by_frame(
    measure: Callable[[np.ndarray, np.ndarray], float], plain: np.ndarray, cached: np.ndarray
) -> float:
    """The mean over the frames, without those that are identical to a PSNR that is infinite."""
    values = [measure(*frames) for frames in zip(plain, cached, strict=True)]
    different = [value for value in values if value != float("inf")]
    return fmean(different) if different else float("inf")


def _whole_numbers(seeds: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(seed) for seed in seeds)
    except TypeError as error:
        raise TypeError(f"seeds must be a list of integers, not {seeds!r}") from error


def shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the warm-up: few steps, where their number is told plainly."""
    short = dict(arguments)
    if "num_inference_steps" in short and not any(name in short for name in _STEP_ARGUMENTS):
        short["num_inference_steps"] = min(short["num_inference_steps"], _WARM_UP_STEPS)
    return short


def _steps(pipe: Any, call: Mapping[str, Any]) -> Any:
    parameter = accepted_arguments(pipe).get("num_inference_steps")
    return call.get("num_inference_steps", parameter.default if parameter else None)


def _scheduler_name(pipe: Any, unet: str) -> str:
    schedulers = schedulers_of(pipe, unet)()
    return type(schedulers[0]).__name__.removesuffix("Scheduler") if schedulers else ""
