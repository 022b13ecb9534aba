"""Calibration on request: run the pipeline, choose by what was asked for, and see that it holds.

`DeepCacheHelper.calibrate` calls the function here. What is learned without a request, from the
first generation, is in `auto`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from diffusers import DiffusionPipeline
from torch import nn

from ..errors import InvalidSettingError, warn
from ..measuring.generation import labelled_progress
from ..measuring.similarity import mean_of
from ..measuring.speed import FEWEST, Speed, measured_speed
from ..patching.wrappers import unwrapped
from ..running.pipeline.components import unets_of
from ..running.protocol import Helper
from ..schedules.plans import OUTPUT, number_between, whole_number
from .calibrated_schedule import Calibrated, described
from .nearest import TRIED
from .reached import Reached
from .study import Study, Studying
from .trials import Trials

#: Time may say that a shallow call is dearer than its work: twice as dear, or this share of a full
#: one where that is more. What is beyond comes from a machine that is busy.
_OVERHEAD: Final = 0.1

#: For a goal in dB nobody knows how many full steps there will be when ways are compared: one in so
#: many then.
_USUAL: Final = 2.2

#: By goal, how many runs it takes: two in full, what is tried, and what is timed. For a goal in dB
#: ways are tried three times, and between there is a run for each halving of the steps: five with
#: 17 to 32. Full steps that are taken away take more runs, so only the first is the most.
_RUNS: Final = {
    "full_steps": ("at most", 2 + TRIED),
    "speedup": ("about", 2 + TRIED + 2 * FEWEST),
    "psnr": ("about", 2 + 3 * TRIED + 5),
}


def calibrate(
    helper: Helper,
    run: Callable[[], Any],
    *,
    speedup: float | None,
    full_steps: int | None,
    psnr: float | None,
    branch: int,
) -> Calibrated:
    """See `DeepCacheHelper.calibrate`."""
    wanted = {"speedup": speedup, "full_steps": full_steps, "psnr": psnr}
    given = [name for name, value in wanted.items() if value is not None]
    if len(given) != 1:
        raise InvalidSettingError(
            f"give one of speedup, full_steps and psnr, not {' and '.join(given) or 'none'}"
        )
    if speedup is not None:
        number_between("speedup", speedup, 1, 1000)
    if full_steps is not None:
        whole_number("full_steps", full_steps, 1)
    if psnr is not None:
        number_between("psnr", psnr, 0, 200)
    if not callable(run):
        raise InvalidSettingError(f"run must be a function that calls the pipeline, not {run!r}")

    studying = Studying(whole_number("branch", branch, OUTPUT))
    run = _labelled(helper.pipe, run, *_RUNS[given[0]])
    schedule, enabled = helper.schedule, helper.enabled
    with ExitStack() as undo:
        undo.callback(helper.follow, schedule)
        if not enabled:
            undo.callback(helper.disable)
        helper.follow(studying)
        helper.enable()
        first = run()
        name, unet = _unet_of(helper, studying.study)
        share = _share(helper, name, studying.study)
        trials = Trials(helper, run, studying.study, unet, share)
        if full_steps is not None:
            found = _with_so_many(trials, full_steps, first)
        elif speedup is not None:
            found = _fast_enough(trials, speedup, first)
        else:
            found = _good_enough(trials, float(psnr or 0), first)
        helper.disable()
        helper.follow(found)
        helper.enable()  # so counts begin anew: what was tried is nothing that the user has run
        undo.pop_all()
    if not enabled:
        helper.disable()
    return found


def _labelled(pipe: Any, run: Callable[[], Any], word: str, total: int) -> Callable[[], Any]:
    """Calls `run`, with which run it is, and of how many, before the pipeline's progress bar."""
    if not isinstance(pipe, DiffusionPipeline):
        return run
    numbers = itertools.count(1)

    def labelled() -> Any:
        number = next(numbers)
        of_all = f" of {word} {total}" if number <= total else ", more than expected"
        with labelled_progress(pipe, f"calibration, run {number}{of_all}"):
            return run()

    return labelled


def _unet_of(helper: Helper, study: Study) -> tuple[str, nn.Module]:
    """The component's name, and the U-Net, that was studied: of equal ones, the first."""
    unets = unets_of(helper.pipe).items()
    kind = study.setting.unet
    return next(each for each in unets if described(unwrapped(each[1])) == kind)


def _share(helper: Helper, name: str, study: Study) -> float | None:
    """The work of a shallow call, as a part of a full one's; `None` if it cannot be counted."""
    if study.branch == OUTPUT:
        return 0.0
    branches = helper.branches
    of_unet = branches[name] if isinstance(branches, dict) else branches
    share: float | None = of_unet[study.branch].share
    return share


def _most_full_steps(speedup: float, steps: int, cost: float) -> int:
    """The most full steps that still reach `speedup`, if a shallow call costs `cost` of a full one.

    Below 1 if that is out of reach.
    """
    return math.floor((steps / speedup - steps * cost) / (1 - cost) + 1e-9)


def _with_so_many(trials: Trials, full_steps: int, first: Any) -> Calibrated:
    """So many full steps; `first` is what the studied run returned."""
    if full_steps > trials.study.seen:
        raise InvalidSettingError(
            f"full_steps={full_steps} is more than the generation has: {trials.study.seen}; "
            "give fewer"
        )
    always = trials.study.always_full
    if full_steps < always:
        raise InvalidSettingError(
            f"full_steps={full_steps} is fewer than run in full in any case, by first and last: "
            f"{always}; give {always} or more"
        )
    _tell(trials.see_plain(first))
    found = trials.nearest(full_steps)
    return replace(found, reached=trials.reached(found))


def _tell(obstacle: str | None) -> None:
    """Says why plans are not compared, if so."""
    if obstacle:
        warn(f"plans are not compared, and the default's is taken: {obstacle}")


def _fast_enough(trials: Trials, speedup: float, first: Any) -> Calibrated:
    """The most full steps with which it is so fast: by work, and then seen by time.

    Only steady timings, three of four of which are below the goal, take full steps away, and never
    more than half of them, nor more than a shallow call that is dearer than its work explains: see
    `_OVERHEAD`.

    Args:
        trials: With what is tried.
        speedup: The goal.
        first: What the studied run returned.
    """
    branch, share, steps = trials.study.branch, trials.share, trials.study.seen
    always = trials.study.always_full
    if share is None:
        raise InvalidSettingError(
            "speedup cannot be a goal here, because the work of this U-Net's shallow calls cannot "
            "be counted: give full_steps or psnr"
        )
    count = _most_full_steps(speedup, steps, share)
    if count < always:
        raise InvalidSettingError(
            f"speedup={speedup} is out of reach: at branch {branch} at most "
            f"{steps / (always + (steps - always) * share):.2f}×, with {always} of {steps} steps "
            f"in full, as a shallow call is {share:.1%} of a full one's work; ask for less"
        )
    dearest = min(max(2 * share, _OVERHEAD), 0.99)
    least = max(_most_full_steps(speedup, steps, dearest), -(-count // 2), always)

    _tell(trials.see_plain(first))  # the first calls of a kind may compile, or choose kernels
    while True:
        found = trials.nearest(count)
        trials.closeness_by(found)  # if nothing was compared, shallow calls may compile, too
        speed = measured_speed(trials.plain_seconds, trials.seconds, goal=speedup)
        too_slow = speed.is_steady and speed.quartiles[1] < speedup
        if not too_slow or count <= least:
            break
        cost = (steps / speed.median - count) / (steps - count)
        fewer = _most_full_steps(speedup, steps, min(cost, dearest))
        count = max(min(fewer, count - 1), least)
    reached = trials.reached(found, speed)
    _warn_of_time(speedup, speed, too_slow, f"{count} of {steps} steps in full", reached)
    return replace(found, reached=reached)


def _warn_of_time(
    speedup: float, speed: Speed, too_slow: bool, plan: str, reached: Reached
) -> None:
    """Says if time could not be gone by, or the goal was not reached."""
    told = str(replace(reached, psnr=None))
    unsure = speed.median < speedup and not too_slow  # three of four are not below the goal
    if unsure or not speed.is_steady:
        message = (
            f"timings vary too much to see whether speedup={speedup} is reached: {told}, with "
            f"{plan}; the plan stays, calibrate again while little else runs, or give full_steps"
        )
    elif too_slow:
        message = (
            f"speedup={speedup} is not reached: {told}, with {plan}; a shallow call takes longer "
            "here than its work says, so ask for more, or give full_steps"
        )
    else:
        return
    warn(message)


def _good_enough(trials: Trials, psnr: float, first: Any) -> Calibrated:
    """The fewest full steps with which the pictures are so close to the plain ones, on average.

    They are halved by one way to go, and then taken away one by one while the nearest of all ways
    is close enough. Closeness does not always rise with the full steps, so still fewer may do.
    """
    obstacle = trials.see_plain(first)
    if obstacle:
        raise InvalidSettingError(f"with psnr=, {obstacle}")
    low, high = 1, trials.study.seen
    way = trials.way(max(1, int(high / _USUAL)))

    def near(schedule: Calibrated) -> float:
        return mean_of(trials.closeness_by(schedule))

    while low < high:
        count = (low + high) // 2
        if near(way.schedule(trials.study, count)) >= psnr:
            high = count
        else:
            low = count + 1
    # What is nearest with as many as usual may not be with so many.
    found = max(way.schedule(trials.study, high), trials.nearest(high), key=near)
    while high > 1 and near(fewer := trials.nearest(high - 1)) >= psnr:
        high, found = high - 1, fewer
    if high == trials.study.seen > 1:
        warn(
            f"psnr={psnr:g} takes all {high} steps in full, so nothing is faster; ask for less, "
            "or give full_steps"
        )
    return replace(found, reached=trials.reached(found))
