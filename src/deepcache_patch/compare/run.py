"""A/B comparison: the same results without the helper, with it, and with fewer steps; timed,
measured, and what ran seen call by call. What comes out is a `Comparison`. How a command line or a
notebook asks for one is no business of this file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import torch

from ..errors import first_line
from ..inspection.branches import Branches
from ..learning.auto import Auto
from ..measuring.environment import device_name
from ..measuring.generation import Timing, accepted_arguments, calls_of, timed_call
from ..measuring.media import Made, made_by
from ..measuring.similarity import SMALLEST_FOR_LPIPS, lpips, psnr, require_metrics, snr, ssim
from ..running.components import is_pipeline, schedulers_of, unets_of
from ..running.face import Helper
from ..running.stats import LastGeneration, Stats
from ..schedules.plans import Uniform
from .fewer import FewerSteps, LeftOutError, full_calls_worth, nothing_saved, steps_of_equal_work
from .outcome import Comparison

#: With one of these, the number of steps is not `num_inference_steps` alone.
_STEP_ARGUMENTS = ("strength", "timesteps", "sigmas", "denoising_start", "denoising_end")
#: Enough for a full and a shallow step, whatever the interval, and for multistep solvers.
_WARM_UP_STEPS = 4
#: Arguments of one call of a pipeline, and its seeds.
_Call: TypeAlias = tuple[dict[str, Any], Sequence[int]]
#: What all calls made.
_Run: TypeAlias = tuple[Made, Timing, torch.device]
_Distance: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
#: What a calibration's seeds are apart from those of the comparison.
CALIBRATION_SEEDS = 1_000_000


def compare(
    pipe: Any,
    helper: Helper,
    *,
    seeds: Sequence[int] | None = None,
    repeats: int = 1,
    fewer_steps: bool = True,
    **call: Any,
) -> Comparison:
    """Generates the same results without and with `helper`, after a short warm-up.

    And once more without it, with so few steps that the U-Net's work is the same, or barely more.

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
        fewer_steps: Whether fewer steps at equal work are measured, too. They are left out where
            they cannot be told; `Comparison.fewer_left_out` says why.
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
    if not is_pipeline(pipe):
        raise TypeError(f"a comparison calls a pipeline; {type(pipe).__name__} is none")
    calls, unets, perceptual = calls_of(pipe, call, seeds), unets_of(pipe), lpips()
    run = partial(_generate, pipe, unets.values())
    plain, cached, fewer = [], [], _Fewer(pipe, call, run, calls)
    was_enabled, schedule, branches = helper.enabled, helper.schedule, None
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
            branches = branches or helper.branches
            work = _work(branches, stats, last)
            if fewer_steps:
                helper.disable()
                fewer.follow(plain[-1][1], work)
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
        work=None if work is None else work / plain[0][1].calls,
        fewer=fewer.outcome(made, plain[0][1], perceptual),
        fewer_left_out=fewer.left_out,
    )


class _Fewer:
    """The runs with fewer steps; how many steps is known once plain and cached have run."""

    def __init__(
        self, pipe: Any, call: Mapping[str, Any], run: Callable[..., _Run], calls: Sequence[_Call]
    ) -> None:
        self.left_out: str | None = None
        self._pipe, self._call, self._run, self._calls = pipe, call, run, calls
        self._steps: int | None = None
        self._runs: list[_Run] = []

    def follow(self, plain: Timing, work: float | None) -> None:
        """One run, after the plain one, and the cached one whose work is given in full calls."""
        if self.left_out is not None:
            return
        steps = _steps(self._pipe, self._call)
        try:
            if self._steps is None:
                self._steps = steps_of_equal_work(
                    self._pipe, self._call, steps=steps, calls=plain.calls, work=work
                )
            fewer = self._run_once()
            # How `strength` and its like round is the pipeline's own business.
            while not self._runs and work is not None and fewer[1].calls < work:
                self._steps += 1
                if self._steps >= steps:
                    raise nothing_saved(steps)
                fewer = self._run_once()
        except LeftOutError as reason:
            self.left_out = str(reason)
        except Exception as error:  # as many steps may be what a sampler refuses
            self.left_out = f"{self._steps} steps failed: {first_line(error)}"
            self._runs.clear()
        else:
            self._runs.append(fewer)

    def _run_once(self) -> _Run:
        steps = {"num_inference_steps": self._steps}
        calls = [({**arguments, **steps}, seeds) for arguments, seeds in self._calls]
        return self._run(calls, label="fewer steps")

    def outcome(self, plain: Made, time: Timing, perceptual: _Distance | None) -> FewerSteps | None:
        """What they made, against the results of the first plain run."""
        if not self._runs or self._steps is None:
            return None
        made = self._runs[0][0]
        return FewerSteps(
            steps=self._steps,
            results=made.shown(),
            times=tuple(timing for _, timing, _ in self._runs),
            work=self._runs[0][1].calls / time.calls,
            **_measured(plain, made, perceptual),
        )


def _work(branches: Any, stats: Stats, last: Mapping[str, LastGeneration]) -> float | None:
    """What ran with the helper, in full calls; `None` where it is not known."""
    if not isinstance(branches, Branches) or len(last) != 1:
        return None
    return full_calls_worth(stats, next(iter(last.values())).plan, branches)


def _generate(
    pipe: Any,
    denoisers: Iterable[torch.nn.Module],
    calls: Sequence[_Call],
    *,
    label: str,
) -> _Run:
    """Makes the results of all calls, one call after the other."""
    made, timings, device = [], [], torch.device("cpu")
    for number, (arguments, seeds) in enumerate(calls, 1):
        which = label if len(calls) == 1 else f"{label} {number}/{len(calls)}"
        output, timing, device = timed_call(pipe, denoisers, arguments, seeds, label=which)
        made.append(made_by(pipe, output, len(seeds)))
        timings.append(timing)
    return reduce(operator.add, made), reduce(operator.add, timings), device


def _measured(
    plain: Made, other: Made, perceptual: _Distance | None
) -> dict[str, tuple[float, ...] | None]:
    """How alike the results are, by the measures of their kind."""
    pairs = list(zip(plain.arrays, other.arrays, strict=True))
    if plain.kind == "sounds":
        return {"psnr": None, "ssim": None, "snr": tuple(snr(*pair) for pair in pairs)}
    measures: dict[str, _Distance] = {"psnr": psnr, "ssim": ssim}
    if perceptual and min(plain.arrays[0].shape[-3:-1]) >= SMALLEST_FOR_LPIPS:
        measures["lpips"] = perceptual
    if plain.kind == "videos":
        measures = {name: partial(_by_frame, measure) for name, measure in measures.items()}
    return {name: tuple(of(*pair) for pair in pairs) for name, of in measures.items()}


def _by_frame(measure: _Distance, plain: np.ndarray, cached: np.ndarray) -> float:
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
