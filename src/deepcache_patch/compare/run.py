"""A/B comparison: the same results without the helper, with it, and with fewer steps; timed,
measured, and what ran seen call by call. What comes out is a `Comparison`. How a command line or a
notebook asks for one is no business of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..running.face import Helper
from .contest import CachedRun, Contest, Run
from .fewer import Fewer, FewerSteps
from .outcome import Comparison


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
    contest = Contest(pipe, helper, call, seeds=seeds, repeats=repeats)
    plain, cached, fewer = [], [], Fewer(pipe, call, contest.steps, contest.plain)
    with contest.held():
        contest.warm_up()
        contest.learn()
        for _ in range(repeats):
            plain.append(contest.plain())
            cached.append(contest.cached())
            if fewer_steps:
                fewer.follow(plain[-1].time, cached[-1].work)

    made = compared(contest, plain, cached)
    few = _fewer_steps(contest, plain[0], fewer)
    return replace(made, fewer=few, fewer_left_out=fewer.left_out)


def compared(contest: Contest, plain: Sequence[Run], cached: Sequence[CachedRun]) -> Comparison:
    """The comparison of runs without the helper and with it."""
    reference, first, last = plain[0], cached[0], cached[-1]
    helper, schedule = contest.helper, contest.helper.schedule
    about = {
        **contest.about(reference.device),
        "interval": getattr(schedule, "interval", None),
        "branch": getattr(schedule, "branch", None),
        "schedule": str(schedule),
        "replay": None if getattr(schedule, "own_replay", False) else str(helper.replay),
    }
    measures: dict[str, Any] = contest.measured(reference.made, first.made)
    return Comparison(
        plain=reference.made.shown(),
        cached=first.made.shown(),
        plain_times=tuple(run.time for run in plain),
        cached_times=tuple(run.time for run in cached),
        **measures,
        full_calls=last.stats.full_calls,
        shallow_calls=last.stats.shallow_calls,
        cache_nbytes=last.stats.cache_nbytes,
        about=about,
        plans={name: each.plan for name, each in last.last.items()},
        work=None if last.work is None else last.work / reference.time.calls,
    )


def _fewer_steps(contest: Contest, plain: Run, fewer: Fewer[Run]) -> FewerSteps | None:
    """What they made, against the results of the first plain run."""
    if not fewer.runs or fewer.steps is None:
        return None
    first = fewer.runs[0]
    return FewerSteps(
        steps=fewer.steps,
        results=first.made.shown(),
        times=tuple(run.time for run in fewer.runs),
        work=first.time.calls / plain.time.calls,
        **contest.measured(plain.made, first.made),
    )
