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

import numpy as np
from diffusers import DiffusionPipeline
from torch import nn

from ..errors import InvalidSettingError, warn
from ..measuring.generation import as_floats, labelled_progress
from ..measuring.loop_clock import LoopClock
from ..measuring.similarity import psnr as decibels
from ..measuring.speed import Speed, measured_speed
from ..patching.wrappers import unwrapped
from ..running.components import unets_of
from ..running.face import Helper
from ..schedules.noise_aware import cheapest, usual_levels
from ..schedules.plans import OUTPUT, number_between, plan_with, whole_number
from .calibrated_schedule import Calibrated, described
from .reached import Reached
from .study import Study, Studying

#: Time may say that a shallow call is dearer than its work: twice as dear, or this share of a full
#: one where that is more. What is beyond comes from a machine that is busy.
_OVERHEAD: Final = 0.1


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
    run = _labelled(helper.pipe, run)
    schedule, enabled = helper.schedule, helper.enabled
    with ExitStack() as undo:
        undo.callback(helper.follow, schedule)
        if not enabled:
            undo.callback(helper.disable)
        helper.follow(studying)
        helper.enable()
        first = run()
        study = studying.study
        name, unet = _unet_of(helper, study)
        share = _share(helper, name, study)
        if full_steps is not None:
            found = _solved(study, full_steps)
            found = replace(found, reached=Reached.of(_work(study, found, share)))
        elif speedup is not None:
            found = _fast_enough(helper, run, study, speedup, first, unet, share)
        else:
            found = _good_enough(helper, run, study, _pictures(first), float(psnr or 0), share)
        undo.pop_all()
    helper.follow(found)
    if not enabled:
        helper.disable()
    return found


def _labelled(pipe: Any, run: Callable[[], Any]) -> Callable[[], Any]:
    """Calls `run`, with which run it is before the pipeline's own progress bar."""
    if not isinstance(pipe, DiffusionPipeline):
        return run
    number = itertools.count(1)

    def labelled() -> Any:
        with labelled_progress(pipe, f"calibration, run {next(number)}"):
            return run()

    return labelled


def _solved(study: Study, full_steps: int) -> Calibrated:
    """The schedule with so many full steps; steps that `run` did not come to are full, too."""
    seen = study.seen
    if not seen:
        raise InvalidSettingError("nothing was recorded: nothing can be learned")
    levels = (study.levels or usual_levels(study.num_steps))[:seen]
    protected = study.protected.intersection(range(seen))
    full = (*cheapest(levels, full_steps, protected), *range(seen, study.num_steps))
    return study.learn(plan_with(full, study.num_steps, study.branch))


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


def _work(study: Study, found: Calibrated, share: float | None) -> float | None:
    """How many times less work the plan is, in the steps that a generation runs."""
    if share is None:
        return None
    steps = study.seen
    full = sum(step < steps for step in found.entries.full_steps)
    return steps / (full + (steps - full) * share)


def _most_full_steps(speedup: float, steps: int, cost: float) -> int:
    """With which it is so fast if a shallow call costs this part of a full one; may be below 1."""
    return math.floor((steps / speedup - steps * cost) / (1 - cost) + 1e-9)


def _fast_enough(
    helper: Helper,
    run: Callable[[], Any],
    study: Study,
    speedup: float,
    first: Any,
    unet: nn.Module,
    share: float | None,
) -> Calibrated:
    """The most full steps with which it is so fast: by work, and then seen by time.

    Only steady timings, three of four of which are below the goal, take full steps away, and never
    more than half of them, nor more than a shallow call that is dearer than its work explains: see
    `_OVERHEAD`.

    Args:
        helper: It is followed with what is tried.
        run: As it was given.
        study: Of the first run.
        speedup: The goal.
        first: What that run returned.
        unet: Whose loop is timed.
        share: The work of a shallow call, as a part of a full one's.
    """
    steps = study.seen
    if share is None:
        raise InvalidSettingError(
            "speedup cannot be a goal here, because the work of this U-Net's shallow calls cannot "
            "be counted: give full_steps or psnr"
        )
    count = _most_full_steps(speedup, steps, share)
    if count < 1:
        raise InvalidSettingError(
            f"speedup={speedup} is out of reach: at branch {study.branch} at most "
            f"{steps / (1 + (steps - 1) * share):.2f}×, with 1 of {steps} steps in full, as a "
            f"shallow call is {share:.1%} of a full one's work; ask for less"
        )
    dearest = min(max(2 * share, _OVERHEAD), 0.99)
    least = max(_most_full_steps(speedup, steps, dearest), -(-count // 2))

    def seconds() -> float:
        with LoopClock(unet) as clock:
            run()
        return clock.seconds

    def plain_seconds() -> float:
        with helper.paused():
            return seconds()

    with helper.paused():
        again = run()  # the first calls of a kind may compile, or choose kernels
    while True:
        found = _solved(study, count)
        helper.follow(found)
        fast = run()  # likewise
        speed = measured_speed(plain_seconds, seconds, goal=speedup)
        too_slow = speed.is_steady and speed.quartiles[1] < speedup
        if not too_slow or count <= least:
            break
        cost = (steps / speed.median - count) / (steps - count)
        fewer = _most_full_steps(speedup, steps, min(cost, dearest))
        count = max(min(fewer, count - 1), least)
    reached = Reached.of(_work(study, found, share), speed, _closeness(first, again, fast))
    _warn_of_time(speedup, speed, too_slow, f"{count} of {steps} steps in full", reached)
    return replace(found, reached=reached)


def _warn_of_time(
    speedup: float, speed: Speed, too_slow: bool, plan: str, reached: Reached
) -> None:
    """Says if time could not be gone by, or the goal was not reached."""
    told = str(replace(reached, psnr=None, worst_psnr=None))
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


def _good_enough(
    helper: Helper,
    run: Callable[[], Any],
    study: Study,
    plain: list[np.ndarray],
    psnr: float,
    share: float | None,
) -> Calibrated:
    """The fewest full steps with which the pictures are so close to the plain ones, on average."""
    with helper.paused():
        again = _pictures(run())
    if not _are_equal(plain, again):
        raise InvalidSettingError(
            "run() makes other pictures each time, so psnr cannot be measured: give the pipeline "
            "a seeded generator in it"
        )

    def tried(count: int) -> tuple[float, Calibrated]:
        found = _solved(study, count)
        helper.follow(found)
        close = [decibels(*pair) for pair in zip(plain, _pictures(run()), strict=True)]
        reached = Reached.of(_work(study, found, share), decibels=close)
        return float(np.mean(close)), replace(found, reached=reached)

    low, high = 1, study.seen
    best = None
    while low < high:
        count = (low + high) // 2
        mean, found = tried(count)
        if mean >= psnr:
            high, best = count, found
        else:
            low = count + 1
    return tried(high)[1] if best is None else best


def _are_equal(pictures: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(pictures) == len(others) and all(map(np.array_equal, pictures, others))


def _closeness(plain: Any, again: Any, fast: Any) -> list[float]:
    """The PSNR of each picture, from what plain runs and an accelerated one returned.

    There is none if they returned no pictures, or the plain ones differ; and without scikit-image.
    """
    first, second, third = map(_pictures_in, (plain, again, fast))
    # Latents have as many axes, but no colours in the last one.
    seen = first and {each.shape for each in first} == {each.shape for each in third}
    if not seen or first[0].shape[-1] not in (1, 3, 4) or not _are_equal(first, second):
        return []
    try:
        found = [decibels(*pair) for pair in zip(first, third, strict=True)]
    except ImportError:
        return []
    return [] if any(map(math.isnan, found)) else found


def _pictures(result: Any) -> list[np.ndarray]:
    """What `run` returned: pictures, a pipeline's output with pictures, or a list of those.

    Raises:
        InvalidSettingError: If there are none.
    """
    found = _pictures_in(result)
    if not found:
        raise InvalidSettingError(
            "with psnr=, run() must return what the pipeline returned, with pictures; it returned "
            f"{type(result).__name__}"
        )
    return found


def _pictures_in(result: Any) -> list[np.ndarray]:
    """The same, or none."""
    if isinstance(result, list | tuple) and any(hasattr(each, "images") for each in result):
        several = [_pictures_in(each) for each in result]
        return list(itertools.chain(*several)) if all(several) else []
    try:
        found = list(as_floats(getattr(result, "images", result)))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of tensors with gradients
        return []
    return found if found and found[0].ndim == 3 else []
