"""The figures of a comparison: rows and lines of text for people, a dictionary for JSON. A figure
is put into words here alone, so that table, page, picture and `repr` have the same digits.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..measuring.generation import Timing
from .measures import Measure, looks_of

if TYPE_CHECKING:
    from .fewer import FewerSteps
    from .outcome import Comparison

#: By how much runs of one kind may differ, and a speed exceed what the work allows, unmentioned.
_TOLERANCE: Final = 1.2


def times_text(speedup: float) -> str:
    """A speedup as it is written everywhere."""
    return f"{speedup:.2f}×"


def speedup(plain: Sequence[Timing], other: Sequence[Timing], name: str) -> float:
    """Plain over other seconds, medians; `name` is the field of `Timing`."""
    return _median(plain, name) / _median(other, name)


def speedups(plain: Sequence[Timing], other: Sequence[Timing], name: str) -> list[float]:
    """Plain over other seconds of each repeat, in order: two runs that followed each other."""
    pairs = zip(plain, other, strict=True)
    return [getattr(one, name) / getattr(another, name) for one, another in pairs]


def range_text(values: Sequence[float]) -> str:
    """The least and the greatest of several speedups, "2.55–2.68×"; empty for a single one."""
    if len(values) < 2:
        return ""
    return f"{min(values):.2f}–{times_text(max(values))}"


def speed_text(
    plain: Sequence[Timing], other: Sequence[Timing], name: str, work: float | None
) -> str:
    """A speedup with its range and the most that the work allows, as far as they are known."""
    more = [range_text(speedups(plain, other, name))]
    more.append("" if work is None else f"by work at most {times_text(1 / work)}")
    said = "; ".join(part for part in more if part)
    return times_text(speedup(plain, other, name)) + (f" ({said})" if said else "")


def likeness_text(measure: Measure) -> str:
    """The mean of a measure and its worst value: "33.12 dB (worst 30.60 dB, #4)"."""
    return measure.text() + (f" (worst {measure.worst_text()})" if len(measure.values) > 1 else "")


def looks_lines(comparison: Comparison) -> list[str]:
    """For the helper, and the fewer steps if there are any, the verdict in words and the worst."""
    fewer, lines = comparison.fewer, []
    contestants = [comparison.measures, *([fewer.measures] if fewer else [])]
    for name, measures in zip(comparison.columns[1:], contestants, strict=True):
        looks = looks_of(measures)
        if looks is not None:
            worst = "; ".join(f"{each.name} {each.worst_text()}" for each in measures[:2])
            lines.append(f"{name}: {looks} (worst {worst})")
    return lines


def notes(comparison: Comparison) -> tuple[str, ...]:
    """See `Comparison.notes`."""
    plain, fewer, differ, beyond = comparison.plain_times, comparison.fewer, [], []
    timed = [(plain, 1.0), (comparison.cached_times, comparison.work)]
    timed += [(fewer.times, fewer.work)] if fewer else []
    for name, (times, work) in zip(comparison.columns, timed, strict=True):
        seconds = [each.loop_seconds for each in times]
        if max(seconds) > _TOLERANCE * min(seconds):
            differ.append(f"{name} {times_text(max(seconds) / min(seconds))}")
        reached = speedup(plain, times, "loop_seconds")
        if work is not None and reached > _TOLERANCE / work:
            beyond.append(f"{name} {times_text(reached)} of at most {times_text(1 / work)}")
    found = []
    if len(plain) == 1:
        more = "repeats=5 (--repeats 5) tells how speeds vary"
        found.append(f"each ran once: one timing proves little; {more}")
    if differ:
        found.append(
            "runs of one kind differ by more than 20%, slowest over fastest: "
            f"{', '.join(differ)}; the speeds are rough"
        )
    if beyond:
        found.append(f"faster than the saved work allows: {', '.join(beyond)}; do not rely on it")
    return tuple(found)


def summary(comparison: Comparison) -> str:
    """The line that `repr` gives."""
    fewer, steps = comparison.fewer, comparison.about["steps"]
    speed = speed_text(
        comparison.plain_times, comparison.cached_times, "loop_seconds", comparison.work
    )
    first = comparison.measures[0]
    parts = [*([] if steps is None else [f"{steps} steps"]), speed]
    parts.append(f"{first.name} {likeness_text(first)}")
    line = f"Comparison of {comparison.model}: {', '.join(parts)}"
    if fewer is not None:
        line += f"; {fewer.name}: {fewer.measures[0].text()}"
    return f"<{line}>"


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

    def faster(name: str) -> list[str]:
        return ["", *(times_text(speedup(plain, each, name)) for each in others)]

    def ranges(name: str) -> list[str]:
        return ["", *(range_text(speedups(plain, each, name)) for each in others)]

    def with_fewer(*values: str, fewer_steps: str = "") -> list[str]:
        return [*values, *([fewer_steps] if fewer else [])]

    def likeness() -> Iterator[tuple[str, ...]]:
        for place, each in enumerate(measures):
            yield each[0].name, "", *(one.text() for one in each)
            if place == 0 and len(each[0].values) > 1:
                yield f"worst {each[0].name}", "", *(one.worst_text() for one in each)

    known = [work for work in works if work is not None]
    allowed = ("by work at most", "", *(times_text(1 / work) for work in known))
    several, worked = len(plain) > 1, comparison.work is not None
    rows = [("denoising loop", *seconds("loop_seconds")), ("loop speedup", *faster("loop_seconds"))]
    rows += [("loop range", *ranges("loop_seconds"))] if several else []
    rows += [allowed] if worked else []
    rows += [("whole call", *seconds("call_seconds")), ("call speedup", *faster("call_seconds"))]
    rows += [("call range", *ranges("call_seconds"))] if several else []
    rows += [("U-Net work", "100.0%", *(f"{work:.1%}" for work in known))] if worked else []
    calls = str(fewer.times[0].calls) if fewer else ""
    full, shallow = str(comparison.full_calls), str(comparison.shallow_calls)
    rows += [
        ("full calls", *with_fewer(str(plain[0].calls), full, fewer_steps=calls)),
        ("shallow calls", *with_fewer("0", shallow, fewer_steps="0")),
        *likeness(),
        ("feature cache", *with_fewer("", f"{comparison.cache_nbytes / 2**20:.2f} MiB")),
    ]
    return rows


def figures_of(comparison: Comparison) -> dict[str, Any]:
    """The figures as JSON takes them; what is not finite is `None`."""
    fewer = comparison.fewer
    return {
        "kind": comparison.kind,
        **_speedups(comparison.plain_times, comparison.cached_times),
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
        "notes": list(comparison.notes),
    }


def _fewer(plain: Sequence[Timing], fewer: FewerSteps) -> dict[str, Any]:
    return {
        "steps": fewer.steps,
        **_speedups(plain, fewer.times),
        "work": fewer.work,
        "work_speedup": 1 / fewer.work,
        **_times(fewer.times),
        **_measured(fewer.measures),
    }


def _speedups(plain: Sequence[Timing], other: Sequence[Timing]) -> dict[str, Any]:
    return {
        "loop_speedup": speedup(plain, other, "loop_seconds"),
        "call_speedup": speedup(plain, other, "call_seconds"),
        "loop_speedup_each": speedups(plain, other, "loop_seconds"),
        "call_speedup_each": speedups(plain, other, "call_seconds"),
    }


def _measured(measures: Sequence[Measure]) -> Mapping[str, Any]:
    """The mean of each measure, its values, which result is the worst, and the verdict in words."""
    named = {each.name.lower(): each for each in measures}
    means: dict[str, float | None] = dict.fromkeys(("psnr", "ssim", "lpips", "snr"))
    means |= {name: _finite(each.mean) for name, each in named.items()}
    each_value = {
        f"{name}_each": [_finite(value) for value in each.values] for name, each in named.items()
    }
    worst = measures[0].worst + 1  # the number that table and page give it
    return {**means, **each_value, "worst": worst, "looks": looks_of(measures)}


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
