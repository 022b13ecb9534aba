"""What the helper holds, until when, and what becomes of one that nobody refers to any more.

Bytes are those of all tensors that the garbage collector knows, whoever holds them: the same run
without a helper says how many there are to be.
"""

import contextvars
import gc
import threading
import weakref
from contextlib import suppress
from functools import partial

import pytest
import torch
from builders.cases import CASES as TINY
from builders.unets import TEXT_WIDTH, inputs2d_condition, unet2d_condition
from conftest import trace
from zoo import CASES as ZOO

from benchmarks import calls, lifetime
from benchmarks.lifetime import live_tensors
from deepcache_patch import (
    Adaptive,
    Auto,
    Calibrated,
    DeepCacheHelper,
    UnsupportedModelError,
)
from deepcache_patch.patching.call import CallPatch
from deepcache_patch.schedules.plans import Explicit

CASES = {**TINY, **ZOO}
SD, CONTROLNET = CASES["sd"], CASES["sd-controlnet"]
slow = partial(pytest.param, marks=pytest.mark.slow)
#: A feature of SD at branch 0: (batch, channels, height, width) in float32.
FEATURE = 2 * 8 * 8 * 8 * 4

#: Loops that do not run the last of the timesteps that they go by, or go by none that are listed
#: anywhere. Where they end is known when the next one begins.
OPEN_END = {
    "karras-ve": "computes its noise levels itself",
    "score-sde-ve": "computes its noise levels itself",
    "sd-latent-upscale": "computes its noise levels itself",
    "sdxl-denoising-end": "leaves the rest to a refiner",
    "stable-cascade-combined": "lists one timestep more than it runs",
    "stable-cascade-decoder": "lists one timestep more than it runs",
    "stable-cascade-prior": "lists one timestep more than it runs",
    "wuerstchen-combined": "lists one timestep more than it runs",
    "wuerstchen-decoder": "lists one timestep more than it runs",
    "unclip": "its last step is another U-Net's",
    "unclip-image-variation": "its last step is another U-Net's",
}


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    # What the libraries are made of need not be looked at in each collection.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def recorded(monkeypatch):
    """Weak references to all deep features that are recorded in the test."""
    from deepcache_patch.cutting.features import FeatureCache

    seen, put = [], FeatureCache.put

    def noted(cache, slot, branch, recorded, **options):
        seen.append(weakref.ref(recorded.feature))
        put(cache, slot, branch, recorded, **options)

    monkeypatch.setattr(FeatureCache, "put", noted)
    return seen


@pytest.fixture
def no_collections():
    """Only reference counts free anything in the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(references):
    return sum(each() is not None for each in references)


def bytes_left(run, *arguments, **options):
    """The bytes of all tensors that there are after a run; its output is gone by then."""
    run(*arguments, **options)
    gc.collect()  # a pipeline's own cycles
    return live_tensors().nbytes


def cache_bytes(helper):
    return [sum(each.cache.nbytes for each in one._sessions) for one in helper._attached]


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


# --- the end of a generation ----------------------------------------------------------------------

#: The others are run where the test is slow.
LOOPS = [
    "sd-img2img",
    "ddpm",
    "sd-controlnet-two",
    "stable-video-diffusion",
]
#: What is left where the pipeline gave its U-Net another list of timesteps than the one that its
#: scheduler has in the end: that list, of five whole numbers.
LISTS = {"panorama": 40, "text-to-video-zero": 40, "text-to-video-zero-sdxl": 40}


def assert_nothing_is_left(case):
    pipe = case.load()
    case.run(pipe)  # what libraries make in the first generation and keep
    plain = bytes_left(case.run, pipe)
    with DeepCacheHelper(pipe) as helper:
        held = bytes_left(case.run, pipe)
        assert sum(cache_bytes(helper)) == 0
    assert held == plain
    assert helper.stats.cache_nbytes > 0


@pytest.mark.parametrize("name", LOOPS)
def test_nothing_that_was_recorded_is_held_after_the_last_step(name):
    assert_nothing_is_left(CASES[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::deepcache_patch.DeepCacheWarning")
@pytest.mark.parametrize("name", sorted(CASES))
def test_what_every_pipeline_leaves_after_its_loop(name):
    case = CASES[name]
    pipe = case.load()
    case.run(pipe)
    plain = bytes_left(case.run, pipe)
    try:
        helper = DeepCacheHelper(pipe).enable()
    except UnsupportedModelError:
        pytest.skip("refused")
    first, second = bytes_left(case.run, pipe), bytes_left(case.run, pipe)
    assert first == second
    assert (sum(cache_bytes(helper)) > 0) == (name in OPEN_END)
    if name not in OPEN_END:
        assert first == plain + LISTS.get(name, 0)
    helper.reset()
    assert bytes_left(lambda: (case.run(pipe), helper.reset())) == plain


SCHEDULES = {
    "reuse": {"replay": "reuse"},
    "extrapolate": {},
    "explicit, two branches": {"schedule": Explicit(["full", 1, 0, "full", 1, 0, 1, 0])},
    "the last step in full": {"schedule": Explicit([*("full", 0, 0) * 2, 0, "full"])},
    "adaptive": {"schedule": Adaptive(0.5, (0, 1))},
}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_no_schedule_holds_anything_after_the_last_step(options):
    pipe = lifetime.smallest("cpu", torch.float32)
    pipe(8)
    plain = bytes_left(pipe, 8)
    with DeepCacheHelper(pipe, **options) as helper:
        held = bytes_left(pipe, 8)
        assert helper.stats.shallow_calls > 0
    assert held == plain


def test_the_study_of_auto_is_over_with_its_generation():
    pipe = lifetime.smallest("cpu", torch.float32)
    pipe(8)
    plain = bytes_left(pipe, 8)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        assert bytes_left(pipe, 8) == plain  # what it learned is in numpy
        assert len(helper.schedule.learned) == 1
        learned = bytes_left(pipe, 8)
        assert helper.stats.shallow_calls == 5
        coefficients = 3 * 5 * 8 * 4  # of 5 shallow steps and 8 channels, in float32
        assert learned == plain + coefficients
        helper.reset()
        gc.collect()
        assert live_tensors().nbytes == plain
    with DeepCacheHelper(pipe, schedule=helper.schedule.learned[0]) as helper:
        assert isinstance(helper.schedule, Calibrated)
        assert bytes_left(pipe, 8) == plain + coefficients


@pytest.mark.parametrize("full", [True, False], ids=["full", "shallow"])
def test_the_last_step_also_releases_slots_that_ended_before_it(full):
    # Guidance in two calls that was cut off midway: the second slot's features, and with them the
    # text embeddings and the last calls of the ControlNet, were kept until the next generation.
    unet, timesteps = unet2d_condition(), torch.arange(5, 0, -1) * 100
    schedule = Explicit(["full", 0, 0, 0, "full" if full else 0])
    with DeepCacheHelper(unet, schedule=schedule) as helper:
        loop(unet, slots=2, timesteps=timesteps, stop=4)
        assert cache_bytes(helper) == [2 * FEATURE]
        loop(unet, slots=2, last_slots=1, timesteps=timesteps)
        assert cache_bytes(helper) == [0]
        [session] = helper._attached[0]._sessions
        assert session._conditionings == {}


# --- generations that end before their last step --------------------------------------------------

BROKEN_OFF = {
    "exception": stop_by_exception,
    "interrupt": stop_by_interrupt,
    "denoising_end": lambda case, pipe: case.run(pipe, steps=8, denoising_end=0.5),
}


@pytest.mark.parametrize("how", ["exception", *map(slow, ("interrupt", "denoising_end"))])
def test_a_loop_that_is_broken_off_holds_one_cache_until_it_is_released(how, recorded):
    case = CASES["sdxl"]
    pipe = case.load()
    case.run(pipe)
    plain = bytes_left(BROKEN_OFF[how], case, pipe)
    feature = 8 * 8 * 8 * 4  # the tiny SDXL's guidance is 5, in a batch of 2
    embeddings = 2 * 77 * 2 * TEXT_WIDTH * 4
    with DeepCacheHelper(pipe) as helper:
        held = 2 * 2 * feature + embeddings
        for _ in range(2):  # no more after two
            assert bytes_left(BROKEN_OFF[how], case, pipe) == plain + held
            assert cache_bytes(helper) == [2 * 2 * feature]
        seen = []

        def ended(_pipe, _step, _timestep, kwargs, seen=seen):
            seen.append(alive(recorded))
            return kwargs

        recorded.clear()
        BROKEN_OFF[how](case, pipe)
        assert alive(recorded) == 2
        # From the first call of the next generation on, only its own features.
        case.run(pipe, steps=5, callback_on_step_end=ended)
        assert seen == [1, 1, 1, 2, 0]
        BROKEN_OFF[how](case, pipe)
        helper.reset()
        assert alive(recorded) == 0
        BROKEN_OFF[how](case, pipe)
    assert alive(recorded) == 0
    del seen, helper
    assert bytes_left(BROKEN_OFF[how], case, pipe) == plain


def test_an_error_within_a_call_releases_everything_at_once(recorded, monkeypatch):
    pipe = CONTROLNET.load()
    with DeepCacheHelper(pipe) as helper:
        stop_by_exception(CONTROLNET, pipe)
        assert alive(recorded) == 2
        with pytest.raises(RuntimeError), torch.no_grad():
            pipe.unet(**inputs2d_condition() | {"encoder_hidden_states": torch.zeros(2, 7, 3)})
        assert alive(recorded) == 0
        assert cache_bytes(helper) == [0]


def test_a_loop_without_a_list_of_timesteps_ends_when_the_next_begins(recorded):
    unet, seen = unet2d_condition(), []
    with DeepCacheHelper(unet) as helper:
        for _ in range(2):
            for timestep in (500, 400, 300, 200, 100):
                loop(unet, timesteps=torch.tensor([timestep]))
                seen.append(alive(recorded))
        assert seen == [1, 1, 1, 2, 2] * 2
        helper.reset()
        assert alive(recorded) == 0


def test_a_loop_that_leaves_timesteps_out_ends_when_the_next_begins(recorded):
    unet, timesteps = unet2d_condition(), torch.arange(10, 0, -1) * 100
    with DeepCacheHelper(unet) as helper:
        loop(unet, timesteps=timesteps[::2])
        assert alive(recorded) == 2
        loop(unet, timesteps=timesteps)
        assert alive(recorded) == 0
        assert helper.stats.generations == 2


def test_auto_lets_go_of_an_unfinished_study_when_the_next_generation_begins():
    pipe = SD.load()
    SD.run(pipe, steps=8)
    plain = bytes_left(SD.run, pipe, steps=8)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        stop_by_interrupt(SD, pipe, after=3)  # too short to teach anything
        gc.collect()
        assert live_tensors().nbytes > plain + 3 * FEATURE
        assert bytes_left(SD.run, pipe, steps=8) == plain
        assert len(helper.schedule.learned) == 1


def test_adaptive_holds_no_more_than_the_cache_where_a_loop_is_broken_off(recorded):
    pipe = SD.load()
    with DeepCacheHelper(pipe, schedule=Adaptive(0.5, (0, 1))) as helper:
        stop_by_interrupt(SD, pipe, after=6)
        references, bytes_held = alive(recorded), cache_bytes(helper)
        assert references > 0
        helper._attached[0].reset()
        assert alive(recorded) == 0
        assert sum(bytes_held) >= references * FEATURE / 2


# --- what threads leave ---------------------------------------------------------------------------


def test_a_thread_that_ends_takes_what_it_had_recorded_with_it(recorded, no_collections):
    pipe = CONTROLNET.load()
    with DeepCacheHelper(pipe) as helper:
        for _ in range(3):
            thread = threading.Thread(target=stop_by_interrupt, args=(CONTROLNET, pipe))
            thread.start()
            thread.join()
            assert alive(recorded) == 0
        assert len(helper._attached[0]._sessions) == 0
        assert len(recorded) == 3 * 2


def test_disable_releases_what_other_threads_hold(recorded):
    pipe, wait, done = SD.load(), threading.Event(), threading.Event()

    def work():
        stop_by_interrupt(SD, pipe)
        done.set()
        wait.wait()

    thread = threading.Thread(target=work)
    with DeepCacheHelper(pipe):
        thread.start()
        done.wait()
        assert alive(recorded) == 2
    assert alive(recorded) == 0
    wait.set()
    thread.join()


# --- a helper that goes out of scope --------------------------------------------------------------


def left_enabled(pipe, run=lambda: None, **options):
    """Enables a helper, runs, and forgets the helper; a weak reference to it is returned."""
    helper = DeepCacheHelper(pipe, **options).enable()
    run()
    return weakref.ref(helper)


OF_EACH_KIND = [None, "auto", slow(Adaptive(0.5), id="adaptive")]


def counted_middle(unet):
    counted = []
    unet.mid_block.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("schedule", OF_EACH_KIND)
def test_a_helper_that_nobody_refers_to_is_freed_and_stays_in_force(schedule, no_collections):
    pipe = CONTROLNET.load()
    with DeepCacheHelper(pipe, schedule=Auto() if schedule == "auto" else schedule):
        CONTROLNET.run(pipe, steps=8)
        expected = CONTROLNET.run(pipe, steps=8)
    fresh = Auto() if schedule == "auto" else schedule
    gone = left_enabled(pipe, lambda: CONTROLNET.run(pipe, steps=8), schedule=fresh)
    assert gone() is None
    calls = counted_middle(pipe.unet)
    assert torch.equal(CONTROLNET.run(pipe, steps=8), expected)
    assert len(calls) < 8
    DeepCacheHelper(pipe).disable()


def test_a_helper_deleted_amid_a_generation_leads_it_to_its_end(recorded):
    pipe = SD.load()
    with DeepCacheHelper(pipe):
        expected = SD.run(pipe, steps=8)
    holder = [DeepCacheHelper(pipe).enable()]

    def delete(_pipe, step, _timestep, kwargs):
        if step == 4:
            holder.clear()
        return kwargs

    assert torch.equal(SD.run(pipe, steps=8, callback_on_step_end=delete), expected)
    assert alive(recorded) == 0
    DeepCacheHelper(pipe).disable()


@pytest.mark.parametrize("way", ["enable", "disable"])
def test_the_next_helper_releases_at_once_what_a_deleted_one_holds(way, recorded, no_collections):
    pipe = CONTROLNET.load()
    before = trace(pipe.unet), trace(pipe.controlnet)
    left_enabled(pipe, lambda: stop_by_interrupt(CONTROLNET, pipe))
    assert alive(recorded) == 2
    helper = getattr(DeepCacheHelper(pipe), way)()
    assert alive(recorded) == 0
    if helper is not None:
        helper.disable()
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before


def test_a_helper_of_the_unet_alone_takes_over_and_the_controlnet_runs_whole(recorded):
    # The deleted one had a ControlNet, which the next does not know: its patch stays, asks nobody,
    # and kept the whole of what the deleted one held.
    pipe = CONTROLNET.load()
    left_enabled(pipe, lambda: stop_by_interrupt(CONTROLNET, pipe))
    with DeepCacheHelper(pipe.unet, interval=2):
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
    with DeepCacheHelper(first):
        expected = SD.run(first)
    with DeepCacheHelper(first.unet):
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
    DeepCacheHelper(second).disable()
    SD.run(second)
    assert len(calls) == 2 * 2 + 5
    second.unet.mid_block._forward_pre_hooks.clear()
    assert trace(second.unet) == before


# --- nothing keeps the pipeline -------------------------------------------------------------------


def test_an_enabled_helper_and_its_pipeline_are_freed_by_reference_count(no_collections):
    pipe = CONTROLNET.load()
    helper = DeepCacheHelper(pipe).enable()
    CONTROLNET.run(pipe)
    gone = weakref.ref(pipe), weakref.ref(helper)
    del pipe, helper
    assert alive(gone) == 0


@pytest.mark.parametrize("schedule", OF_EACH_KIND)
def test_a_unet_that_is_still_patched_is_freed_with_its_pipeline_by_the_collector(schedule):
    pipe = CONTROLNET.load()
    left_enabled(pipe, partial(stop_by_interrupt, CONTROLNET, pipe), schedule=schedule)
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
    with DeepCacheHelper(again) as helper:
        calls = counted_middle(controlnet)
        CONTROLNET.run(again)
        assert len(calls) == helper.stats.full_calls == 2


def test_the_unet_works_on_when_its_pipeline_is_gone(recorded):
    pipe = SD.load()
    with DeepCacheHelper(pipe.unet):
        loop(pipe.unet)
    left_enabled(pipe)
    unet, gone = pipe.unet, weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None
    calls = counted_middle(unet)
    loop(unet)
    assert len(calls) == 2
    assert alive(recorded) == 0


# --- nothing grows --------------------------------------------------------------------------------


def assert_flat(found, resident=True):
    for name in ("tensors", "nbytes", "threads", "graphs"):
        assert lifetime.is_flat(found[name]), (name, found[name], found["grown"])
    # Only what may hold objects is listed, and of tuples and dictionaries Python finds out whether
    # they do at some collection or other. Of a leak there would be one in each turn.
    turns = found["places"][-1] - found["places"][0]
    bounds = dict.fromkeys(("builtins.tuple", "builtins.dict"), turns)
    grown = {name: count for name, count in found["grown"].items() if count > 0}
    assert {name: count for name, count in grown.items() if count >= bounds.get(name, 1)} == {}
    assert max(found["objects"]) - found["objects"][0] < turns
    if resident:
        more = max(found["resident_mib"]) - found["resident_mib"][0]
        assert more <= lifetime.RESIDENT_BOUND


def test_what_there_is_does_not_grow_with_generations(monkeypatch):
    small = ((6, 1, 8), (4, 2, 8), (6, 2, 8), (5, 1, 8), (8, 1, 8))
    monkeypatch.setattr(lifetime, "GENERATIONS", small)
    pipe = calls.tiny("cpu", torch.float32)
    for name, found in lifetime.of_generations(pipe, 15).items():
        assert_flat(found, resident=False)
        assert found["shallow_calls"] > 0, name


def test_what_there_is_does_not_grow_with_switching_on_and_off():
    pipe = lifetime.smallest("cpu", torch.float32)
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
    pipe = lifetime.smallest("cpu", torch.float32)
    for found in lifetime.of_generations(pipe, 200).values():
        assert_flat(found)
    for found in lifetime.of_cycles(pipe, 1000).values():
        assert_flat(found)
    assert_flat(lifetime.of_compiled(pipe, 1000))


# --- compiled networks ----------------------------------------------------------------------------


def test_room_for_graphs_leaves_nothing_in_the_context(monkeypatch):
    # dynamo's limit of graphs was raised with `torch._dynamo.config.patch` for the length of each
    # call of a compiled U-Net. In torch 2.13 that makes a context variable each time, which the
    # thread's context keeps: a leak with every call, for as long as the process lives.
    monkeypatch.setattr(CallPatch, "compiled", True)
    patch = CallPatch(torch.nn.Identity(), list, tag=None)
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
