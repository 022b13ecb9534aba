"""A helper that nobody refers to any more, and its pipeline: who is freed, and what stays in force.

What a helper holds while it is there is in `test_lifetime`.
"""

import contextvars
import gc
import weakref
from contextlib import suppress
from functools import partial

import pytest
import torch
from builders.held import CONTROLNET, SD, StoppedError, alive, loop, stop_by_interrupt
from builders.marks import mostly_slow
from conftest import trace

from benchmarks.cost import lifetime
from benchmarks.networks import toys
from deepcache_patch import (
    Adaptive,
    Auto,
    DeepCacheHelper,
    Uniform,
)
from deepcache_patch.patching.call import CallPatch

pytestmark = pytest.mark.usefixtures("quick_collections")


# --- a helper that goes out of scope ------------------------------------------------------------


def left_enabled(pipe, run=lambda: None, schedule=Uniform()):  # noqa: B008
    """Enables a helper, runs, and forgets the helper; a weak reference to it is returned."""
    helper = DeepCacheHelper(pipe, schedule=schedule).enable()
    run()
    return weakref.ref(helper)


OF_EACH_KIND = mostly_slow([Uniform(), "auto", pytest.param(Adaptive(0.5), id="adaptive")])


def counted_middle(unet):
    counted = []
    unet.mid_block.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("schedule", OF_EACH_KIND)
def test_a_helper_that_nobody_refers_to_is_freed_and_stays_in_force(schedule, no_collections):
    pipe = CONTROLNET.load()
    with DeepCacheHelper(pipe, schedule=Auto() if schedule == "auto" else schedule):
        CONTROLNET.run(pipe, steps=10)
        expected = CONTROLNET.run(pipe, steps=10)
    fresh = Auto() if schedule == "auto" else schedule
    gone = left_enabled(pipe, lambda: CONTROLNET.run(pipe, steps=10), schedule=fresh)
    assert gone() is None
    calls = counted_middle(pipe.unet)
    assert torch.equal(CONTROLNET.run(pipe, steps=10), expected)
    assert len(calls) < 10
    DeepCacheHelper(pipe, schedule=Uniform()).disable()


def test_a_helper_deleted_amid_a_generation_leads_it_to_its_end(recorded):
    pipe = SD.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = SD.run(pipe, steps=8)
    holder = [DeepCacheHelper(pipe, schedule=Uniform()).enable()]

    def delete(_pipe, step, _timestep, kwargs):
        if step == 4:
            holder.clear()
        return kwargs

    assert torch.equal(SD.run(pipe, steps=8, callback_on_step_end=delete), expected)
    assert alive(recorded) == 0
    DeepCacheHelper(pipe, schedule=Uniform()).disable()


@pytest.mark.parametrize("way", ["enable", "disable"])
def test_the_next_helper_releases_at_once_what_a_deleted_one_holds(way, recorded, no_collections):
    pipe = CONTROLNET.load()
    before = trace(pipe.unet), trace(pipe.controlnet)
    left_enabled(pipe, lambda: stop_by_interrupt(CONTROLNET, pipe))
    assert alive(recorded) == 2
    helper = getattr(DeepCacheHelper(pipe, schedule=Uniform()), way)()
    assert alive(recorded) == 0
    if helper is not None:
        helper.disable()
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before


def test_a_helper_of_the_unet_alone_takes_over_and_the_controlnet_runs_whole(recorded):
    # The deleted one had a ControlNet, which the next does not know: its patch stays, asks nobody,
    # and kept the whole of what the deleted one held.
    pipe = CONTROLNET.load()
    left_enabled(pipe, lambda: stop_by_interrupt(CONTROLNET, pipe))
    with DeepCacheHelper(pipe.unet, schedule=Uniform(2)):
        assert alive(recorded) == 0
        calls = counted_middle(pipe.controlnet)
        CONTROLNET.run(pipe, steps=4)
        assert len(calls) == 4
    calls.clear()
    plain = CONTROLNET.run(CONTROLNET.load(), steps=4)
    assert torch.equal(CONTROLNET.run(pipe, steps=4), plain)


def test_a_pipeline_that_shares_the_unet_goes_by_a_deleted_helper_of_another():
    first = SD.load()
    second = type(first)(**first.components, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    before = trace(second.unet)
    with DeepCacheHelper(first, schedule=Uniform()):
        expected = SD.run(first)
    with DeepCacheHelper(first.unet, schedule=Uniform()):
        undamped = SD.run(first)
    left_enabled(first)
    calls = counted_middle(second.unet)
    assert torch.equal(SD.run(second), expected)
    assert len(calls) == 2
    del first
    gc.collect()
    # Nobody knows the scheduler any more: as with a helper of the bare U-Net.
    assert torch.equal(SD.run(second), undamped)
    assert len(calls) == 2 * 2
    DeepCacheHelper(second, schedule=Uniform()).disable()
    SD.run(second)
    assert len(calls) == 2 * 2 + 5
    second.unet.mid_block._forward_pre_hooks.clear()
    assert trace(second.unet) == before


# --- nothing keeps the pipeline -----------------------------------------------------------------


def test_an_enabled_helper_and_its_pipeline_are_freed_by_reference_count(no_collections):
    pipe = CONTROLNET.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    CONTROLNET.run(pipe)
    gone = weakref.ref(pipe), weakref.ref(helper)
    del pipe, helper
    assert alive(gone) == 0


@pytest.mark.parametrize("schedule", OF_EACH_KIND)
def test_a_unet_that_is_still_patched_is_freed_with_its_pipeline_by_the_collector(schedule):
    pipe = CONTROLNET.load()
    left_enabled(pipe, partial(stop_by_interrupt, CONTROLNET, pipe, steps=10), schedule=schedule)
    gone = [weakref.ref(part) for part in pipe.components.values() if part is not None]
    del pipe
    gc.collect()
    assert alive(gone) == 0


def test_a_controlnet_that_lives_on_keeps_no_unet_alive():
    # The ControlNet's patch asks the U-Net's side what is coming, and held it: two gigabytes of a
    # U-Net that nobody could reach, for as long as the ControlNet was used with another.
    pipe = CONTROLNET.load()
    CONTROLNET.run(pipe)
    whole = CONTROLNET.run(pipe)
    left_enabled(pipe, partial(CONTROLNET.run, pipe))
    controlnet, gone = pipe.controlnet, weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert gone() is None
    again = CONTROLNET.load()
    again.controlnet = controlnet
    assert torch.equal(CONTROLNET.run(again), whole)
    with DeepCacheHelper(again, schedule=Uniform()) as helper:
        calls = counted_middle(controlnet)
        CONTROLNET.run(again)
        assert len(calls) == helper.stats.full_calls == 2


def test_the_unet_is_plain_when_its_pipeline_is_gone(recorded):
    # Nobody knows what its calls are then: a loop, or a loss at some timestep.
    pipe = SD.load()
    with DeepCacheHelper(pipe.unet, schedule=Uniform()):
        loop(pipe.unet)
    left_enabled(pipe, partial(stop_by_interrupt, SD, pipe))
    unet, gone = pipe.unet, weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None
    calls = counted_middle(unet)
    loop(unet)
    assert len(calls) == 5
    assert alive(recorded) == 0


# --- nothing grows ------------------------------------------------------------------------------


def assert_flat(found, resident=True):
    for name in ("tensors", "nbytes", "threads", "graphs"):
        assert lifetime.is_flat(found[name]), (name, found[name], found["grown"])
    # Only what may hold objects is listed, and of tuples and dictionaries Python finds out whether
    # they do at some collection or other. Of a leak there would be one in each turn.
    turns = found["places"][-1] - found["places"][0]
    # Nor do nodes of a context that has many variables stay the same, whoever sets one.
    bounded = ("builtins.tuple", "builtins.dict", "builtins.hamt_bitmap_node")
    bounds = dict.fromkeys(bounded, turns)
    grown = {name: count for name, count in found["grown"].items() if count > 0}
    assert {name: count for name, count in grown.items() if count >= bounds.get(name, 1)} == {}
    assert max(found["objects"]) - found["objects"][0] < turns
    if resident:
        more = max(found["resident_mib"]) - found["resident_mib"][0]
        assert more <= lifetime.RESIDENT_BOUND


def test_what_there_is_does_not_grow_with_generations(monkeypatch):
    small = ((10, 1, 8), (9, 2, 8), (10, 2, 8), (9, 1, 8), (12, 1, 8))
    monkeypatch.setattr(lifetime, "GENERATIONS", small)
    pipe = toys.tiny("cpu", torch.float32)
    for name, found in lifetime.of_generations(pipe, 15).items():
        assert_flat(found, resident=False)
        assert found["shallow_calls"] > 0, name


@pytest.mark.slow
def test_what_there_is_does_not_grow_with_switching_on_and_off():
    pipe = toys.smallest("cpu", torch.float32)
    found = lifetime.of_cycles(pipe, 15)
    assert len(found) == 5
    for each in found.values():
        assert_flat(each, resident=False)


def test_a_leak_of_one_object_in_each_turn_is_seen():
    kept = []
    found = lifetime.readings(lambda turn: kept.append(torch.zeros(turn)), 20)
    assert found["places"] == [10, 15, 20]
    assert found["tensors"][0] + 10 == found["tensors"][1] + 5 == found["tensors"][2]
    assert found["nbytes"][2] - found["nbytes"][0] == 4 * sum(range(10, 20))
    assert found["grown"]["torch.Tensor"] == 10


@pytest.mark.slow
def test_two_hundred_generations_and_a_thousand_cycles_are_flat():
    pipe = toys.smallest("cpu", torch.float32)
    for found in lifetime.of_generations(pipe, 200).values():
        assert_flat(found)
    for found in lifetime.of_cycles(pipe, 1000).values():
        assert_flat(found)
    assert_flat(lifetime.of_compiled(pipe, 1000))


# --- compiled networks --------------------------------------------------------------------------


def test_room_for_graphs_leaves_nothing_in_the_context(monkeypatch):
    # dynamo's limit of graphs was raised with `torch._dynamo.config.patch` for the length of each
    # call of a compiled U-Net. In torch 2.13 that makes a context variable each time, which the
    # thread's context keeps: a leak with every call, for as long as the process lives.
    monkeypatch.setattr(CallPatch, "compiled", True)
    patch = CallPatch(torch.nn.Identity(), list, installer=None)
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    limit = getattr(config, name)
    with patch.room_for_graphs(3):
        assert getattr(config, name) == 3 * limit
    before = len(contextvars.copy_context())
    with suppress(StoppedError), patch.room_for_graphs(3):
        raise StoppedError
    assert getattr(config, name) == limit
    assert len(contextvars.copy_context()) == before
