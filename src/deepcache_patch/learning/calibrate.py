"""Calibration on request: run the pipeline, choose by what was asked for, and see that it holds.

`DeepCacheHelper.calibrate` calls the function here. What is learned without a request, from the
first generation, is in `auto`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
from diffusers import DiffusionPipeline

from ..errors import InvalidSettingError
from ..measuring.generation import as_floats, labelled_progress
from ..measuring.loop_clock import LoopClock
from ..measuring.similarity import psnr as decibels
from ..running.components import unets_of
from ..running.face import Helper
from ..schedules.plans import number_between, whole_number
from .calibrated_schedule import Calibrated
from .study import Study, Studying

#: After so many timed runs, the first number of full steps that is fast enough is taken.
_CORRECTIONS: Final = 3

#: What a shallow call costs, as a share of a full one, before it was measured.
_FIRST_GUESS: Final = 0.1


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

    studying = Studying(whole_number("branch", branch, 0))
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
        if full_steps is not None:
            found = _solved(study, full_steps)
        elif speedup is not None:
            found = _fast_enough(helper, run, study, speedup)
        else:
            found = _good_enough(helper, run, study, _pictures(first), float(psnr or 0))
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
    found = study.solve(full_steps=full_steps)
    if found is None:
        raise InvalidSettingError(
            "nothing was recorded, or the U-Net's features are not finite: nothing can be learned"
        )
    return found


def _fast_enough(
    helper: Helper, run: Callable[[], Any], study: Study, speedup: float
) -> Calibrated:
    """The most full steps with which the denoising loop is so much faster."""

    def seconds() -> float:
        with LoopClock(next(iter(unets_of(helper.pipe).values()))) as clock:
            run()
        return clock.seconds

    with helper.paused():
        plain = seconds()
    steps = study.recording.num_steps
    share = _FIRST_GUESS
    tried: dict[int, float] = {}
    highest = steps
    while highest >= 1:
        # k full steps and the rest shallow take (k + (steps - k)·share) / steps of the time.
        count = int((steps / speedup - steps * share) / (1 - share) + 1e-9)
        count = min(max(count, 1), highest)
        if count in tried:
            break
        found = _solved(study, count)
        helper.follow(found)
        if not tried:
            run()  # the first shallow calls may compile, or choose kernels
        tried[count] = plain / seconds()
        if tried[count] >= speedup and len(tried) >= _CORRECTIONS:
            break
        if tried[count] < speedup:
            highest = count - 1
        if count < steps:
            share = (steps / tried[count] - count) / (steps - count)
            share = min(max(share, 0.0), 0.99)
    fast = [count for count, ratio in tried.items() if ratio >= speedup]
    if not fast:
        raise InvalidSettingError(
            f"speedup={speedup} is out of reach: with {min(tried)} of {steps} steps in full at "
            f"this branch it was {tried[min(tried)]:.2f}; ask for less"
        )
    return _solved(study, max(fast))


def _good_enough(
    helper: Helper,
    run: Callable[[], Any],
    study: Study,
    plain: list[np.ndarray],
    psnr: float,
) -> Calibrated:
    """The fewest full steps with which the pictures are so close to the plain ones, on average."""
    with helper.paused():
        again = _pictures(run())
    if len(again) != len(plain) or not all(map(np.array_equal, again, plain)):
        raise InvalidSettingError(
            "run() makes other pictures each time, so psnr cannot be measured: give the pipeline "
            "a seeded generator in it"
        )
    low, high = 1, study.recording.num_steps
    while low < high:
        count = (low + high) // 2
        helper.follow(_solved(study, count))
        pairs = zip(plain, _pictures(run()), strict=True)
        if float(np.mean([decibels(*pair) for pair in pairs])) >= psnr:
            high = count
        else:
            low = count + 1
    return _solved(study, high)


def _pictures(result: Any) -> list[np.ndarray]:
    """What `run` returned: pictures, a pipeline's output with pictures, or a list of those.

    Raises:
        InvalidSettingError: If there are none.
    """
    if isinstance(result, list | tuple) and any(hasattr(each, "images") for each in result):
        return [picture for each in result for picture in _pictures(each)]
    images = getattr(result, "images", result)
    try:
        found = list(as_floats(images))
    except (TypeError, ValueError):
        found = []
    if not found or found[0].ndim != 3:
        raise InvalidSettingError(
            "with psnr=, run() must return what the pipeline returned, with pictures; it returned "
            f"{type(result).__name__}"
        )
    return found
