"""The figures of a comparison: rows of text and one line for people, a dictionary for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measuring.generation import Timing
from .measures import Measure

if TYPE_CHECKING:
    from .fewer import FewerSteps
    from .outcome import Comparison


def times_text(speedup: float) -> str:
    """A speedup as it is written everywhere."""
    return f"{speedup:.2f}×"


def speedup(plain: Sequence[Timing], other: Sequence[Timing], name: str) -> float:
    """Plain over other seconds, medians; `name` is the field of `Timing`."""
    return _median(plain, name) / _median(other, name)


def verdict(comparison: Comparison) -> str | None:
    """See `Comparison.verdict`."""
    fewer = comparison.fewer
    if fewer is None:
        reason = comparison.fewer_left_out
        return None if reason is None else f"fewer steps at equal work: left out, {reason}"
    theirs, ours = fewer.measures[0].text(), comparison.measures[0].text()
    steps = f"{fewer.steps} of {comparison.about['steps']}"
    return f"fewer steps at equal work ({steps}): {theirs}, helper: {ours}"


def rows_of(comparison: Comparison) -> list[tuple[str, ...]]:
    """See `Comparison.rows`."""
    fewer, plain = comparison.fewer, comparison.plain_times
    others = [comparison.cached_times, *([fewer.times] if fewer else [])]
    works = [comparison.work, *([fewer.work] if fewer else [])]
    measures = zip(comparison.measures, *([fewer.measures] if fewer else []), strict=True)

    def seconds(name: str) -> list[str]:
        return [f"{_median(each, name):.3f} s" for each in (plain, *others)]

    def speedups(name: str) -> list[str]:
        return ["", *(times_text(speedup(plain, each, name)) for each in others)]

    def with_fewer(*values: str, fewer_steps: str = "") -> list[str]:
        return [*values, *([fewer_steps] if fewer else [])]

    rows = [
        ("denoising loop", *seconds("loop_seconds")),
        ("loop speedup", *speedups("loop_seconds")),
        ("whole call", *seconds("call_seconds")),
        ("call speedup", *speedups("call_seconds")),
    ]
    if comparison.work is not None:
        known = [work for work in works if work is not None]
        rows += [
            ("U-Net work", "100.0%", *(f"{work:.1%}" for work in known)),
            ("by work at most", "", *(times_text(1 / work) for work in known)),
        ]
    calls = str(fewer.times[0].calls) if fewer else ""
    full, shallow = str(comparison.full_calls), str(comparison.shallow_calls)
    rows += [
        ("full calls", *with_fewer(str(plain[0].calls), full, fewer_steps=calls)),
        ("shallow calls", *with_fewer("0", shallow, fewer_steps="0")),
        *((each[0].name, "", *(one.text() for one in each)) for each in measures),
        ("feature cache", *with_fewer("", f"{comparison.cache_nbytes / 2**20:.2f} MiB")),
    ]
    return rows


def figures_of(comparison: Comparison) -> dict[str, Any]:
    """The figures as JSON takes them; what is not finite is `None`."""
    fewer = comparison.fewer
    return {
        "kind": comparison.kind,
        "loop_speedup": comparison.speedup,
        "call_speedup": comparison.call_speedup,
        "work": comparison.work,
        "work_speedup": comparison.work_speedup,
        "plain": _times(comparison.plain_times),
        "cached": _times(comparison.cached_times),
        "full_calls": comparison.full_calls,
        "shallow_calls": comparison.shallow_calls,
        "cache_nbytes": comparison.cache_nbytes,
        "plans": {name: str(plan) for name, plan in comparison.plans.items()},
        "identical": comparison.identical,
        **_measured(comparison.measures),
        "fewer_steps": None if fewer is None else _fewer(comparison.plain_times, fewer),
        "fewer_steps_left_out": comparison.fewer_left_out,
    }


def _fewer(plain: Sequence[Timing], fewer: FewerSteps) -> dict[str, Any]:
    return {
        "steps": fewer.steps,
        "loop_speedup": speedup(plain, fewer.times, "loop_seconds"),
        "call_speedup": speedup(plain, fewer.times, "call_seconds"),
        "work": fewer.work,
        "work_speedup": 1 / fewer.work,
        **_times(fewer.times),
        **_measured(fewer.measures),
    }


def _measured(measures: Sequence[Measure]) -> Mapping[str, Any]:
    """The mean of each measure, and its values."""
    named = {each.name.lower(): each for each in measures}
    means: dict[str, float | None] = dict.fromkeys(("psnr", "ssim", "lpips", "snr"))
    means |= {name: _finite(each.mean) for name, each in named.items()}
    each_value = {
        f"{name}_each": [_finite(value) for value in each.values] for name, each in named.items()
    }
    return {**means, **each_value}


def _times(times: Sequence[Timing]) -> dict[str, Any]:
    return {
        "loop_seconds": _median(times, "loop_seconds"),
        "call_seconds": _median(times, "call_seconds"),
        "loop_seconds_each": [time.loop_seconds for time in times],
        "call_seconds_each": [time.call_seconds for time in times],
        "calls": times[0].calls,
    }


def _median(times: Sequence[Timing], name: str) -> float:
    return float(statistics.median(getattr(time, name) for time in times))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
