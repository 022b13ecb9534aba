"""What is held in memory, by whom, and loops that end before their last step.

Bytes are those of all tensors that the garbage collector knows, whoever holds them: the same run
without a helper says how many there are to be.
"""

import gc
from contextlib import suppress

import torch
from zoo import CASES as ZOO

from benchmarks.cost.lifetime import live_tensors
from builders.cases import CASES as TINY
from builders.unets import inputs2d_condition

CASES = {**TINY, **ZOO}
SD, CONTROLNET = CASES["sd"], CASES["sd-controlnet"]


def alive(references):
    return sum(each() is not None for each in references)


def bytes_left(run, *arguments, **options):
    """The bytes of all tensors that there are after a run; its output is gone by then."""
    run(*arguments, **options)
    gc.collect()  # a pipeline's own cycles
    return live_tensors().nbytes


def cache_bytes(helper):
    return [sum(each.cache.nbytes for each in one._sessions) for one in helper._attachment.unets]


def loop(unet, steps=5, stop=None, slots=1, last_slots=None, timesteps=None, inputs=None):
    """A hand-written loop, with several calls in each step; fewer in the last `last_slots` says."""
    timesteps = torch.arange(steps, 0, -1) * 100 if timesteps is None else timesteps
    calls = [inputs2d_condition(seed=slot) | (inputs or {}) for slot in range(slots)]
    with torch.no_grad():
        for timestep in timesteps[:stop]:
            last = last_slots is not None and timestep is not timesteps[0] and timestep <= 200
            for each in calls[: last_slots if last else slots]:
                unet(**each | {"timestep": timestep})


class StoppedError(Exception):
    """What a user's callback raises."""


def stop_by_exception(case, pipe, after=4, steps=8):
    def stop(_pipe, step, _timestep, kwargs):
        if step + 1 == after:
            raise StoppedError
        return kwargs

    with suppress(StoppedError):
        case.run(pipe, steps=steps, callback_on_step_end=stop)


def stop_by_interrupt(case, pipe, after=4, steps=8):
    def stop(pipe, step, _timestep, kwargs):
        pipe._interrupt = step + 1 >= after
        return kwargs

    case.run(pipe, steps=steps, callback_on_step_end=stop)
