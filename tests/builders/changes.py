"""Changes to a pipeline between generations, told as a story while a helper is enabled.

After each change, the pipeline whose helper has been enabled from the start generates what one does
that took the changes without, and has a fresh one.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from conftest import layout
from zoo import CASES

from builders.adapters import lora
from builders.marks import mostly_slow
from deepcache_patch import DeepCacheHelper, Uniform

SD, SDXL = CASES["sd"], CASES["sdxl"]


BOTH = mostly_slow([pytest.param(case, id=case.name) for case in (SD, SDXL)], 1)

#: With interval 3, these are 0 and 3 in full, and three shallow ones.
STEPS, FULL, SHALLOW = 5, 2, 3


class Change(NamedTuple):
    """One change to a pipeline, and what its generations are called with from then on."""

    name: str
    make: Callable[[Any], Any]
    overrides: Mapping[str, Any] = {}


def tell(case, story, branch=0):
    """Run a story; return the plain pictures, one for each change."""
    pipe, fresh = case.load(), case.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform(branch=branch)).enable()
    plains = []
    for change in story:
        change.make(fresh)
        run = functools.partial(case.run, steps=STEPS, **change.overrides)
        plains.append(run(fresh))
        with DeepCacheHelper(fresh, schedule=Uniform(branch=branch)) as its:
            expected = run(fresh)
        assert (its.stats.full_calls, its.stats.shallow_calls) == (FULL, SHALLOW), change.name
        assert not torch.equal(expected, plains[-1]), change.name

        change.make(pipe)
        before = helper.stats
        assert torch.equal(run(pipe), expected), change.name
        assert helper.stats.full_calls - before.full_calls == FULL, change.name
        assert helper.stats.shallow_calls - before.shallow_calls == SHALLOW, change.name
    assert helper.enabled
    helper.disable()
    assert torch.equal(run(pipe), plains[-1])
    assert layout(case.unet(pipe)) == layout(case.unet(fresh))
    return plains


def all_differ(pictures):
    return not any(torch.equal(*pair) for pair in itertools.combinations(pictures, 2))


def load(name, *, seed):
    return lambda pipe: pipe.load_lora_weights(lora(pipe.unet, seed=seed), adapter_name=name)
