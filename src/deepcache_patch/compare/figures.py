"""The figures of a comparison as rows and lines of text. What is said of one contestant stands in
`contestant`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .contestant import range_text, times_text

if TYPE_CHECKING:
    from .outcome import Comparison


def looks_lines(comparison: Comparison) -> list[str]:
    """For the helper, and the fewer steps if there are any, the verdict in words and the worst."""
    lines = []
    for name, each in comparison.contestants.items():
        if each.looks is not None:
            worst = "; ".join(f"{one.name} {one.worst_text()}" for one in each.measures[:2])
            lines.append(f"{name}: {each.looks} (worst {worst})")
    return lines


def rows_of(comparison: Comparison) -> list[tuple[str, ...]]:
    """See `Comparison.rows`."""
    fewer, plain = comparison.fewer, comparison.plain_times
    others = [*comparison.contestants.values()]
    several, worked = len(plain) > 1, comparison.work is not None

    def timed(what: str, field: str, speeds: str) -> Iterator[tuple[str, ...]]:
        """Seconds, speedups and their ranges, of the loop or of the whole call."""
        all_times = (plain, *(each.times for each in others))
        medians = (statistics.median(getattr(one, field) for one in each) for each in all_times)
        found = [getattr(each, speeds) for each in others]
        yield (
            {"loop": "denoising loop", "call": "whole call"}[what],
            *(f"{s:.3f} s" for s in medians),
        )
        yield f"{what} speedup", "", *(times_text(each.median) for each in found)
        if several:
            yield f"{what} range", "", *(range_text(each) for each in found)

    def likeness() -> Iterator[tuple[str, ...]]:
        for place, each in enumerate(zip(*(each.measures for each in others), strict=True)):
            yield each[0].name, "", *(one.text() for one in each)
            if place == 0 and len(each[0].values) > 1:
                yield f"worst {each[0].name}", "", *(one.worst_text() for one in each)

    known = [each.work for each in others if each.work is not None]
    rows = [*timed("loop", "loop_seconds", "speeds")]
    rows += [("by work at most", "", *(times_text(1 / each) for each in known))] if worked else []
    rows += timed("call", "call_seconds", "call_speeds")
    rows += [("U-Net work", "100.0%", *(f"{each:.1%}" for each in known))] if worked else []
    full, shallow = str(comparison.full_calls), str(comparison.shallow_calls)
    return [
        *rows,
        ("full calls", str(plain[0].calls), full, *([str(fewer.times[0].calls)] if fewer else [])),
        ("shallow calls", "0", shallow, *(["0"] if fewer else [])),
        *likeness(),
        (
            *("feature cache", "", f"{comparison.cache_nbytes / 2**20:.2f} MiB"),
            *([""] if fewer else []),
        ),
    ]
