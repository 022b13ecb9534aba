"""Generations under schedule "auto": loaded with a helper, counted, broken off, compared."""

from functools import cache

import pytest

from builders.cases import CASES

SD = CASES["sd"]
#: Where neither a callback nor guidance is needed: it is quicker.
LDM = CASES["ldm"]


@cache
def loaded(name):
    """One pipeline for all tests that leave it as it was."""
    return CASES[name].load()


def counted(helper, run):
    """Full and shallow calls of one run."""
    before = helper.stats
    run()
    after = helper.stats
    return after.full_calls - before.full_calls, after.shallow_calls - before.shallow_calls


def equal(first, second):
    """Whether two learned schedules are the same to the last bit."""
    return first.to_dict() == second.to_dict() and first.weights == second.weights


class StoppedError(Exception):
    pass


def stop_after(pipe, step, **arguments):
    def stop(_pipe, at, _timestep, kwargs):
        if at == step:
            raise StoppedError
        return kwargs

    with pytest.raises(StoppedError):
        SD.run(pipe, callback_on_step_end=stop, **arguments)
