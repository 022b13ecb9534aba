"""A/B comparison: the same results without the helper, with it, and with fewer steps; timed,
measured, and what ran seen call by call. What comes out is a `Comparison`. How a command line or a
notebook asks for one is no business of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..measuring.generation import Timing
from ..running.protocol import Helper
from .about import about
from .call_steps import require_same_steps
from .contest import Contest, Run
from .fewer import FewerSteps, FewerStepsRival
from .outcome import Comparison


def compare(
    helper: Helper,
    *,
    seeds: Sequence[int] | None = None,
    repeats: int = 1,
    fewer_steps: bool = True,
    **call: Any,
) -> Comparison:
    """Generates the same results without and with `helper`; see `DeepCacheHelper.compare`.

    All pictures are one batch; videos and sounds are made one by one. The results are those of the
    first repeat.
    """
    contest = Contest(helper, call, seeds=seeds, repeats=repeats)
    require_same_steps(contest.pipe, call, helper.schedule)
    plain, cached, fewer = [], [], FewerStepsRival(contest, contest.plain)
    with contest.held():
        contest.warm_up([helper.schedule])
        if contest.learns(helper.schedule):
            contest.learn()
        for _ in range(repeats):
            plain.append(contest.plain())
            cached.append(contest.cached())
            if fewer_steps:
                fewer.follow(plain[-1].time, cached[-1].work)

    made = compared(contest, plain, cached)
    few = _fewer_steps(contest, plain[0], made.plain_times, fewer)
    return replace(made, fewer=few, fewer_left_out=fewer.left_out)


def compared(contest: Contest, plain: Sequence[Run], cached: Sequence[Run]) -> Comparison:
    """The comparison of runs without the helper and with it."""
    reference, first, last = plain[0], cached[0], cached[-1]
    measures: dict[str, Any] = contest.measured(reference.made, first.made)
    return Comparison(
        plain=reference.made.shown(),
        cached=first.made.shown(),
        plain_times=tuple(run.time for run in plain),
        times=tuple(run.time for run in cached),
        **measures,
        full_calls=last.stats.full_calls,
        shallow_calls=last.stats.shallow_calls,
        cache_nbytes=last.stats.cache_nbytes,
        about=about(contest, reference.device, contest.helper.schedule),
        plans=last.plans,
        work=None if last.work is None else last.work / reference.time.calls,
    )


def _fewer_steps(
    contest: Contest, plain: Run, plain_times: tuple[Timing, ...], fewer: FewerStepsRival[Run]
) -> FewerSteps | None:
    """What they made, against the results of the first plain run."""
    if not fewer.runs or fewer.steps is None:
        return None
    first = fewer.runs[0]
    return FewerSteps(
        steps=fewer.steps,
        results=first.made.shown(),
        times=tuple(run.time for run in fewer.runs),
        plain_times=plain_times,
        work=first.time.calls / plain.time.calls,
        **contest.measured(plain.made, first.made),
    )
