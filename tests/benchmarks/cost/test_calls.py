"""A loop call by call: which calls it makes, whose time they are, and which functions they run."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cost import calls
from benchmarks.cost.calls import SteppedLoop, function_calls
from benchmarks.networks.toys import tiny
from deepcache_patch import DeepCacheHelper, Uniform


@pytest.fixture
def pipe():
    return tiny("cpu", torch.float32)


def heard(pipe):
    """The timesteps of all calls of the U-Net from now on."""
    timesteps = []
    pipe.unet.register_forward_pre_hook(lambda _, args: timesteps.append(args[1]))
    return timesteps


def test_each_step_has_its_slots_and_after_the_last_comes_the_first(pipe):
    timesteps = heard(pipe)
    loop = SteppedLoop(pipe, 2, slots=2)
    for _ in range(5):
        loop.seconds()
    assert [int(each) for each in timesteps] == [500, 500, 0, 0, 500]
    assert all(isinstance(each, torch.Tensor) for each in timesteps)


def test_timesteps_can_be_numbers(pipe):
    timesteps = heard(pipe)
    SteppedLoop(pipe, 2, by_value=True).seconds()
    assert timesteps == [500]
    assert type(timesteps[0]) is int


def test_a_loop_is_a_generation_to_the_helper(pipe):
    with DeepCacheHelper(pipe, schedule=Uniform(3)) as helper:
        loop = SteppedLoop(pipe, 6)
        for _ in range(12):
            loop.seconds()
    stats = helper.stats
    assert (stats.generations, stats.full_calls, stats.shallow_calls) == (2, 4, 8)


def test_own_time_is_what_lies_outside_forward(pipe, monkeypatch):
    # A clock that goes on by one each time it is read.
    monkeypatch.setattr(calls, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    loop = SteppedLoop(pipe, 6)
    with loop.clocked():
        inside = loop.split()
        assert len(pipe.unet._forward_hooks) == 1
    outside = loop.split()
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
    # Read at the start, twice by hooks, when the call returns, and when the device has finished.
    assert inside == (4, 3 - 1)
    assert outside == (2, 1)


def test_only_functions_of_the_package_are_counted(pipe):
    assert function_calls(SteppedLoop(pipe, 2).seconds) == 0
    assert function_calls(lambda: sorted([2, 1], key=lambda each: each)) == 0
    uniform = Uniform(4)
    # `plan`, `whole_number`, `plan_with`, and a generator's eight entries and its end.
    assert function_calls(lambda: uniform.plan(8)) == 3 + 8 + 1
