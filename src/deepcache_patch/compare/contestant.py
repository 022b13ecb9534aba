"""`Contestant`: what is said of any, with the helper or with fewer steps, against the plain runs
beside it: how fast, how alike, and how far that is to be trusted. A figure is put into words here
alone, so that table, page, picture and `repr` of a comparison and of a sweep have the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from ..measuring.generation import Timing
from ..measuring.speed import WIDEST, Speed
from ..schedules.plans import Plan
from ..schedules.remarks import if_short
from .measures import SAME, Measured

#: What stands beside "plain": its column, its label, its progress bar. In JSON, fields and classes
#: of CSS it is "cached", as ever: programs and pages that were kept read these.
HELPER: Final = "helper"

#: How a speed can be measured above what the saved work allows.
WHY_BEYOND: Final = "timings vary, or something else slowed the plain run"

#: So many contestants are named in one sentence.
_NAMED: Final = 3


class Contestant(Measured):
    """The figures of one contestant; whoever inherits has its runs, round by round."""

    if TYPE_CHECKING:  # else they would be in the way of fields
        # ruff: noqa: D102 - what each is does whoever inherits say

        @property
        def times(self) -> tuple[Timing, ...]: ...
        @property
        def plain_times(self) -> tuple[Timing, ...]: ...
        @property
        def work(self) -> float | None: ...

    @property
    def speeds(self) -> Speed:
        """The speed of the denoising loop, round by round."""
        return Speed.of(self.plain_times, self.times)

    @property
    def call_speeds(self) -> Speed:
        """The speed of the whole call: text encoder, loop and decoder."""
        return Speed.of(self.plain_times, self.times, "call_seconds")

    @property
    def speedup(self) -> float:
        """Plain over own seconds of the denoising loop, the median of the rounds: see `Speed`."""
        return self.speeds.median

    @property
    def call_speedup(self) -> float:
        """The same for the whole call."""
        return self.call_speeds.median

    @property
    def work_speedup(self) -> float | None:
        """The most that the saved work allows for `speedup`: 1 / `work`."""
        return None if self.work is None else 1 / self.work


def times_text(speedup: float) -> str:
    """A speedup as it is written everywhere."""
    return f"{speedup:.2f}×"


def range_text(speed: Speed) -> str:
    """The least and the greatest of the rounds, "2.55–2.68×"; empty for a single one."""
    ratios = speed.ratios
    return f"{min(ratios):.2f}–{times_text(max(ratios))}" if len(ratios) > 1 else ""


def speed_text(speed: Speed, most: float | None = None) -> str:
    """A speedup with its range and the most that the work allows, as far as they are known."""
    more = [range_text(speed), "" if most is None else f"by work at most {times_text(most)}"]
    said = "; ".join(part for part in more if part)
    return times_text(speed.median) + (f" ({said})" if said else "")


def doubts(contestants: Mapping[str, Contestant]) -> list[str]:
    """How far speeds are to be trusted, in words; nothing where nothing speaks against them.

    Args:
        contestants: The contestants by their names.
    """
    unsteady, beyond, found = [], [], []
    for name, each in contestants.items():
        speed, most = each.speeds, each.work_speedup
        if not speed.is_steady:
            unsteady.append(f"{name} {range_text(speed)}")
        if most is not None and speed.is_beyond(most):
            beyond.append(f"{name} {times_text(speed.median)} of at most {times_text(most)}")
    if any(len(each.times) == 1 for each in contestants.values()):
        by = " go by work, or" if all(each.work for each in contestants.values()) else ""
        found.append(f"speeds from one run prove little:{by} take repeats=5 (--repeats 5)")
    if unsteady:
        rule = f"half of the speeds differ by more than {WIDEST:.0%} of their median"
        found.append(f"{rule}: {_few(unsteady)}; they are rough")
    if beyond:
        found.append(
            f"measured faster than the saved work allows: {_few(beyond, 1)}; timings vary: believe "
            "the work"
        )
    return found


def looks_lines(contestants: Mapping[str, Contestant]) -> list[str]:
    """For each contestant, by its name, the verdict in words and the worst; nothing for sounds."""
    lines = []
    for name, each in contestants.items():
        if each.looks is not None:
            worst = "; ".join(f"{one.name} {one.worst_text()}" for one in each.measures[:2])
            least = "worst " if len(each.measures[0].values) > 1 else ""
            lines.append(f"{name}: {each.looks} ({least}{worst})")
    return lines


def _few(names: Sequence[str], named: int = _NAMED) -> str:
    more = len(names) - named
    return "; ".join(names[:named]) + (f"; and {more} more" if more > 0 else "")


def only_one_full(plans: Mapping[str, Plan]) -> list[str]:
    """A remark on those whose first step alone ran in full, in words.

    Args:
        plans: What ran of each contestant, by its name.
    """
    named = [name for name, plan in plans.items() if len(plan.full_steps) == 1 < len(plan)]
    told = f"only the first step ran in full: {'; '.join(named)}; a smaller interval comes closer"
    return [told] if named else []


def few_steps(each: Measured, plan: Plan) -> list[str]:
    """A remark on pictures that so few steps have moved, in words, unless one step alone was full.

    Args:
        each: A contestant; nothing is said of sounds, nor where no difference is visible.
        plan: What ran of it.
    """
    full = len(plan.full_steps)
    if each.looks in (None, SAME) or full == 1:
        return []
    told = if_short(len(plan), full)
    return [told] if told else []


def figures_of(each: Contestant) -> dict[str, Any]:
    """Speed, work and likeness by their names, for JSON."""
    measures = each.measures
    means: dict[str, Any] = dict.fromkeys(("psnr", "ssim", "lpips", "snr"))
    return {
        "loop_speedup": each.speedup,
        "call_speedup": each.call_speedup,
        "loop_speedup_each": each.speeds.ratios,
        "call_speedup_each": each.call_speeds.ratios,
        "work": each.work,
        "work_speedup": each.work_speedup,
        **means,
        **{measure.name.lower(): measure.mean for measure in measures},
        **{f"{measure.name.lower()}_each": measure.values for measure in measures},
        "worst": measures[0].worst + 1,  # the number that table and page give it
        "looks": each.looks,
    }


def seconds_of(times: Sequence[Timing]) -> dict[str, Any]:
    """Seconds and calls by their names, for JSON: medians, and each."""
    loops, calls = zip(*((each.loop_seconds, each.call_seconds) for each in times), strict=True)
    return {
        "loop_seconds": median(loops),
        "call_seconds": median(calls),
        "loop_seconds_each": loops,
        "call_seconds_each": calls,
        "calls": times[0].calls,
    }
