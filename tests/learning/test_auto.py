"""The first generation is plain and teaches; from the second on what was learned runs."""

import copy
import gc
import threading
import weakref
from functools import partial

import pytest
import torch
from builders.cases import CASES
from builders.learning import LDM, SD, counted, equal, loaded, stop_after
from builders.patched import slowly
from builders.schedulers import SCHEDULERS
from builders.unets import inputs2d_condition
from conftest import trace

from deepcache_patch import (
    Auto,
    DeepCacheHelper,
    Extrapolate,
    InvalidSettingError,
    Stats,
)
from deepcache_patch.learning import auto
from deepcache_patch.learning.auto import FEW_FULL_STEPS as LEAST  # as it is without conftest

#: Text and none, latents and pixels.
QUICK = ("sd", "ldm", "ddpm")

# --- two generations ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", slowly(SCHEDULERS, ["heun"]))
def test_the_first_is_plain_and_the_second_fast_with_every_scheduler(scheduler, monkeypatch):
    pipe = loaded("sd")
    monkeypatch.setattr(pipe, "scheduler", SCHEDULERS[scheduler](pipe.scheduler.config))
    plain = SD.run(pipe, steps=10)
    with DeepCacheHelper(pipe) as helper:
        expected = counted(helper, partial(SD.run, pipe, steps=10))
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        assert torch.equal(SD.run(pipe, steps=10), plain)
        assert helper.stats.shallow_calls == 0
        assert counted(helper, partial(SD.run, pipe, steps=10, seed=1)) == expected


@pytest.mark.parametrize("name", slowly(CASES, QUICK))
def test_every_pipeline_learns_and_leaves_no_trace(name):
    case = CASES[name]
    pipe = case.load()
    before = trace(case.unet(pipe))
    with DeepCacheHelper(pipe) as helper:
        expected = counted(helper, partial(case.run, pipe, steps=24))
    helper = DeepCacheHelper(pipe, schedule="auto").enable()
    case.run(pipe, steps=24)
    if helper.stats.shallow_calls == 0:
        assert helper.stats == Stats(1, sum(expected), 0, helper.stats.cache_nbytes)
    else:  # nothing can be forecast there, and the default runs at once
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == expected
    assert counted(helper, partial(case.run, pipe, steps=24)) == expected
    assert helper.stats.generations == 2
    helper.disable()
    assert trace(case.unet(pipe)) == before


@pytest.mark.parametrize("interval", slowly([1.3, 2, 2.2, 5, 10], [2.2]))
@pytest.mark.parametrize(
    "window",
    slowly([{}, {"first": 2, "last": 1}], [{"first": 2, "last": 1}]),
    ids=["all", "window"],
)
def test_the_plan_is_that_of_the_default(interval, window):
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, interval=interval, **window) as helper:
        expected = counted(helper, partial(LDM.run, pipe, steps=10))
        strip = plan_of(helper)
    with DeepCacheHelper(pipe, schedule="auto", interval=interval, **window) as helper:
        LDM.run(pipe, steps=10)
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == expected
        (learned,) = helper.schedule.learned
        assert str(learned.entries) == plan_of(helper) == strip


def plan_of(helper):
    (last,) = helper.last_generations.values()
    return str(last.plan)


def test_the_picture_is_another_than_the_defaults():
    pipe = loaded("sd")
    with DeepCacheHelper(pipe):
        default = SD.run(pipe, steps=10, seed=1)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        SD.run(pipe, steps=10)
        assert not torch.equal(SD.run(pipe, steps=10, seed=1), default)
        assert len(helper.schedule.learned[0].weights) > 0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"branch": 0}, 10), ({"branch": 2}, 10), ({"interval": 1}, 10), ({}, 8)],
    ids=["branch 0", "branch 2", "all in full", "few steps"],
)
@pytest.mark.filterwarnings("ignore:the generation has 8 steps:deepcache_patch.DeepCacheWarning")
def test_where_there_is_nothing_to_learn_the_first_is_the_defaults(settings, steps):
    pipe = loaded("ldm")
    pictures, counts = [], []
    for given in (settings, {"schedule": "auto", **settings}):
        with DeepCacheHelper(pipe, **given) as helper:
            pictures.append(LDM.run(pipe, steps=steps))
            counts.append((helper.stats.full_calls, helper.stats.shallow_calls))
    assert torch.equal(*pictures)
    assert counts[0] == counts[1]
    assert helper.schedule.learned == ()


@pytest.mark.parametrize(("interval", "learns"), [(2, True), (2.2, False)])
def test_it_learns_from_8_full_steps_on(interval, learns, monkeypatch):
    monkeypatch.setattr(auto, "FEW_FULL_STEPS", LEAST)
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, interval=interval) as helper:
        assert counted(helper, lambda: LDM.run(pipe, steps=16)) == ((8, 8) if learns else (7, 9))
    with DeepCacheHelper(pipe, interval=interval, schedule="auto") as helper:
        LDM.run(pipe, steps=16)
    assert len(helper.schedule.learned) == learns


def test_two_fresh_helpers_learn_and_make_the_same():
    pictures, learned = [], []
    for _ in range(2):
        pipe = LDM.load()
        with DeepCacheHelper(pipe, schedule="auto") as helper:
            LDM.run(pipe, steps=12)
            pictures.append(LDM.run(pipe, steps=12, seed=1))
        learned.extend(helper.schedule.learned)
    assert learned[0].plan(12) == learned[1].plan(12)
    assert equal(*learned)
    assert torch.equal(*pictures)


def test_what_is_made_does_not_depend_on_what_was_made_before():
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto"):
        LDM.run(pipe, steps=12)
        expected = LDM.run(pipe, steps=12, seed=1)
        LDM.run(pipe, steps=12, seed=2)
        assert torch.equal(LDM.run(pipe, steps=12, seed=1), expected)


@pytest.mark.parametrize(
    "change",
    slowly([{"num_images_per_prompt": 2}, {"height": 24, "width": 32}, {"guidance_scale": 1.0}], 1),
    ids=["batch", "size", "no-guidance"],
)
def test_pictures_of_another_shape_go_by_what_was_learned(change):
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        SD.run(pipe, steps=9)
        assert counted(helper, partial(SD.run, pipe, steps=9, **change)) == (4, 5)
        assert counted(helper, partial(SD.run, pipe, steps=9)) == (4, 5)
        assert len(helper.schedule.learned) == 1


def test_of_several_calls_in_a_step_the_first_teaches_and_all_are_fast():
    # Guidance in two calls, in a loop of one's own over the timesteps of the pipeline's scheduler.
    pipe = loaded("ldm")
    samples = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(calls):
        pipe.scheduler.set_timesteps(9)
        with torch.no_grad():
            for timestep in pipe.scheduler.timesteps:
                for sample in samples[:calls]:
                    pipe.unet(sample * timestep / 1000, timestep)

    learned = []
    for calls in (1, 2):
        with DeepCacheHelper(pipe, schedule="auto") as helper:
            assert counted(helper, partial(run, calls)) == (calls * 9, 0)
            assert counted(helper, partial(run, calls)) == (calls * 4, calls * 5)
            learned.extend(helper.schedule.learned)
    assert equal(*learned)


def test_guidance_dropped_while_it_learns_teaches_up_to_there():
    pipe = loaded("sd")

    def cut_off(pipe, step, _timestep, kwargs):
        if step == 7:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    with DeepCacheHelper(pipe, schedule="auto") as helper:
        SD.run(
            pipe,
            steps=12,
            callback_on_step_end=cut_off,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
        (learned,) = helper.schedule.learned
    shallow = {step for step, *_ in learned.weights}
    assert shallow
    assert max(shallow) <= 7


# --- settings -----------------------------------------------------------------------------------


def test_each_number_of_steps_is_learned_once():
    pipe = loaded("ldm")
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for steps in (10, 9, 10, 9, 11):
            runs.append(counted(helper, partial(LDM.run, pipe, steps=steps)))
        lengths = [len(each.setting.timesteps) for each in helper.schedule.learned]
    assert runs == [(10, 0), (9, 0), (4, 6), (4, 5), (11, 0)]
    assert lengths == [10, 9, 11]


def test_each_strength_is_learned_once():
    case = CASES["sd-img2img"]
    pipe = case.load()
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for strength in (0.5, 0.45, 0.5, 0.45):
            run = partial(case.run, pipe, steps=20, strength=strength)
            runs.append(counted(helper, run))
    assert runs == [(10, 0), (9, 0), (4, 6), (4, 5)]


def test_each_scheduler_is_learned_once():
    pipe = LDM.load()
    first = pipe.scheduler
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for scheduler in ("ddim", "euler", "ddim", "euler"):
            pipe.scheduler = SCHEDULERS[scheduler](first.config)  # another object each time
            runs.append(counted(helper, partial(LDM.run, pipe, steps=10)))
        pipe.scheduler = type(first).from_config(first.config, timestep_spacing="trailing")
        runs.append(counted(helper, partial(LDM.run, pipe, steps=10)))
    assert runs == [(10, 0), (10, 0), (4, 6), (4, 6), (10, 0)]


def test_a_replaced_unet_is_learned_if_its_config_differs():
    pipe, other = loaded("sd"), CASES["sd-instruct-pix2pix"].load()
    unets = pipe.unet, other.unet
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        run = partial(SD.run, pipe, steps=10)
        runs.append(counted(helper, run))
        assert [each.setting.unet["in_channels"] for each in helper.schedule.learned] == [4]
    with DeepCacheHelper(other, schedule=helper.schedule) as second:
        run = partial(CASES["sd-instruct-pix2pix"].run, other, steps=10)
        runs.append(counted(second, run))
        runs.append(counted(second, run))
    assert runs == [(10, 0), (10, 0), (4, 6)]
    assert unets[0] is pipe.unet
    assert [each.setting.unet["in_channels"] for each in helper.schedule.learned] == [4, 8]


def test_no_more_than_so_many_settings_are_remembered(monkeypatch):
    monkeypatch.setattr("deepcache_patch.learning.auto._REMEMBERED", 2)
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for steps in (9, 10, 11, 10):
            LDM.run(pipe, steps=steps)
        assert [len(each.setting.timesteps) for each in helper.schedule.learned] == [10, 11]
        assert counted(helper, partial(LDM.run, pipe, steps=9)) == (9, 0)


# --- the helper's life --------------------------------------------------------------------------


def test_disable_and_enable_keep_what_was_learned():
    pipe = loaded("ldm")
    helper = DeepCacheHelper(pipe, schedule="auto")
    with helper:
        LDM.run(pipe, steps=10)
    plain = LDM.run(pipe, steps=10, seed=1)
    with helper:
        assert counted(helper, partial(LDM.run, pipe, steps=10, seed=1)) == (4, 6)
    assert torch.equal(LDM.run(pipe, steps=10, seed=1), plain)


def test_a_paused_generation_is_plain_and_teaches_nothing():
    pipe = loaded("ldm")
    plain = LDM.run(pipe, steps=10)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        with helper.paused():
            assert torch.equal(LDM.run(pipe, steps=10), plain)
        assert helper.schedule.learned == ()
        assert helper.stats == Stats()
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (10, 0)
        with helper.paused():
            assert torch.equal(LDM.run(pipe, steps=10), plain)
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)
        assert len(helper.schedule.learned) == 1


@pytest.mark.parametrize("learning", slowly([True, False], [True]), ids=["learning", "learned"])
def test_nothing_keeps_the_pipeline_alive(learning):
    auto, pipe = Auto(), SD.load()
    alive = weakref.ref(pipe), weakref.ref(pipe.unet), weakref.ref(pipe.scheduler)
    helper = DeepCacheHelper(pipe, schedule=auto).enable()
    if learning:
        stop_after(pipe, 3, steps=10)
    else:
        SD.run(pipe, steps=10)
        SD.run(pipe, steps=10)
    helper.disable()
    del pipe, helper
    gc.collect()
    assert [each() for each in alive] == [None, None, None]


def test_after_disable_the_unet_is_freed_by_reference_count():
    pipe = LDM.load()
    helper = DeepCacheHelper(pipe, schedule="auto").enable()
    LDM.run(pipe, steps=10)
    LDM.run(pipe, steps=10)
    helper.disable()
    auto, alive = helper.schedule, weakref.ref(pipe.unet)
    del helper
    gc.disable()
    try:
        del pipe
        assert alive() is None
    finally:
        gc.enable()
    assert len(auto.learned) == 1


def test_one_schedule_may_serve_several_pipelines_each_learns_for_itself():
    auto = Auto()
    first, second = LDM.load(), LDM.load()
    with DeepCacheHelper(first, schedule=auto), DeepCacheHelper(second, schedule=auto) as helper:
        LDM.run(first, steps=10)
        assert counted(helper, partial(LDM.run, second, steps=10)) == (10, 0)
        assert counted(helper, partial(LDM.run, second, steps=10)) == (4, 6)


# --- where it cannot learn ----------------------------------------------------------------------


def loop(unet, steps=9):
    with torch.no_grad():
        for timestep in torch.arange(steps, 0, -1) * 100:
            unet(**(inputs2d_condition() | {"timestep": timestep}))


def test_a_bare_unet_runs_as_by_default():
    unet = loaded("sd").unet
    counts = []
    for schedule in ("noise-aware", "auto"):
        with DeepCacheHelper(unet, schedule=schedule) as helper:
            loop(unet)
            counts.append((helper.stats.full_calls, helper.stats.shallow_calls))
    assert counts[0] == counts[1]
    assert counts[0][1] > 0


def test_outputs_that_are_not_finite_give_no_weights():
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        handle = pipe.unet.mid_block.register_forward_hook(lambda _m, _a, output: output / 0)
        LDM.run(pipe, steps=10)
        handle.remove()
        assert [each.weights for each in helper.schedule.learned] == [{}]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", ["reuse", Extrapolate(0.5)])
@pytest.mark.parametrize("schedule", ["auto", Auto()], ids=["auto", "Auto"])
def test_a_replay_is_refused_because_it_brings_its_own(schedule, replay):
    pipe = loaded("ldm")
    before = trace(pipe.unet)
    with pytest.raises(InvalidSettingError, match="Auto brings its own replay: leave replay="):
        DeepCacheHelper(pipe, schedule=schedule, replay=replay)
    assert trace(pipe.unet) == before


def test_the_name_of_the_default_replay_asks_for_nothing():
    # Given once more with `set`, it was refused: the default may be named.
    helper = DeepCacheHelper(loaded("ldm"), schedule="auto", replay="extrapolate")
    assert isinstance(helper.schedule, Auto)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be a number from 1 to 1000, not 0"),
        ({"branch": -2}, "branch must be an integer of at least -1, not -2"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidSettingError, match=message):
        Auto(**options)


def test_its_name_says_its_settings(tmp_path):
    assert repr(Auto()) == "Auto(interval=2.2, branch=-1)"
    file = tmp_path / "a.json"
    assert repr(Auto(5, 1, file=file)) == f"Auto(interval=5.0, branch=1, file={str(file)!r})"


@pytest.mark.parametrize("kind", slowly(["a function in the place of a method", "a lock"], 1))
def test_a_scheduler_that_cannot_be_followed_is_left_alone_and_teaches_nothing(kind, monkeypatch):
    pipe = loaded("sd")
    monkeypatch.setattr(pipe, "scheduler", copy.deepcopy(pipe.scheduler))
    if kind == "a lock":
        pipe.scheduler.lock = threading.Lock()
    else:
        step, taken = pipe.scheduler.step, []
        pipe.scheduler.step = lambda *args, **kwargs: taken.append(1) or step(*args, **kwargs)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        SD.run(pipe, steps=10)
        (learned,) = helper.schedule.learned
    assert learned.weights == {}
    if kind != "a lock":
        assert len(taken) == 10
