"""The first generation is plain and teaches; from the second on what was learned runs."""

import gc
import math
import warnings
import weakref
from functools import partial

import pytest
import torch
from builders.cases import CASES
from builders.learning import LDM, SD, counted, equal, loaded, stop_after
from builders.schedulers import SCHEDULERS
from builders.unets import inputs2d_condition
from conftest import trace

from deepcache_patch import (
    FULL,
    Auto,
    DeepCacheHelper,
    DeepCacheWarning,
    Extrapolate,
    InvalidSettingError,
    Stats,
)

# --- two generations ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_first_is_plain_and_the_second_fast_with_every_scheduler(scheduler, monkeypatch):
    pipe = loaded("sd")
    monkeypatch.setattr(pipe, "scheduler", SCHEDULERS[scheduler](pipe.scheduler.config))
    plain = SD.run(pipe, steps=4)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        assert torch.equal(SD.run(pipe, steps=4), plain)
        calls, shallow = helper.stats.full_calls, helper.stats.shallow_calls
        assert shallow == 0
        full = math.ceil(calls / 3)
        assert counted(helper, partial(SD.run, pipe, steps=4, seed=1)) == (full, calls - full)


@pytest.mark.parametrize("name", CASES)
def test_every_pipeline_learns_and_leaves_no_trace(name):
    case = CASES[name]
    pipe = case.load()
    before = trace(case.unet(pipe))
    helper = DeepCacheHelper(pipe, schedule="auto").enable()
    case.run(pipe, steps=4)
    calls, full = helper.stats.full_calls, math.ceil(helper.stats.full_calls / 3)
    assert helper.stats == Stats(1, calls, 0, helper.stats.cache_nbytes)
    assert counted(helper, partial(case.run, pipe, steps=4)) == (full, calls - full)
    assert helper.stats.generations == 2
    helper.disable()
    assert trace(case.unet(pipe)) == before


@pytest.mark.parametrize(
    ("interval", "full"), [(1, 8), (2, 4), (3, 3), (5, 2), (8, 1), (100, 1)], ids=str
)
def test_the_budget_is_that_of_uniform(interval, full):
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto", interval=interval) as helper:
        LDM.run(pipe, steps=8)
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (full, 8 - full)
        (learned,) = helper.schedule.learned
    assert len(learned.plan(8).full_steps) == full
    assert learned.interval == interval


def test_the_plan_that_was_learned_runs():
    pipe = loaded("ldm")
    kinds = []
    with DeepCacheHelper(pipe, schedule=Auto()) as helper:
        LDM.run(pipe, steps=12)
        handles = [
            pipe.unet.register_forward_pre_hook(lambda *_: kinds.append(0)),
            pipe.unet.mid_block.register_forward_pre_hook(lambda *_: kinds.append(FULL)),
        ]
        LDM.run(pipe, steps=12)
        (learned,) = helper.schedule.learned
    for handle in handles:
        handle.remove()
    # The middle block, if it runs, runs after the hook of its U-Net.
    steps = [
        kind
        for kind, following in zip(kinds, [*kinds[1:], 0], strict=True)
        if kind == FULL or following != FULL
    ]
    assert steps == list(learned.plan(12))


def test_the_branch_is_the_one_that_was_asked_for():
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto", branch=4) as helper:
        LDM.run(pipe, steps=8)
        LDM.run(pipe, steps=8)
    assert helper.schedule.learned[0].branches == (4,)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (8 + 3, 5)


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
    [{"num_images_per_prompt": 2}, {"height": 24, "width": 32}, {"guidance_scale": 1.0}],
    ids=["batch", "size", "no-guidance"],
)
def test_pictures_of_another_shape_go_by_what_was_learned(change):
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        SD.run(pipe, steps=6)
        assert counted(helper, partial(SD.run, pipe, steps=6, **change)) == (2, 4)
        assert counted(helper, partial(SD.run, pipe, steps=6)) == (2, 4)
        assert len(helper.schedule.learned) == 1


def test_of_several_calls_in_a_step_the_first_teaches_and_all_are_fast():
    # Guidance in two calls, in a loop of one's own over the timesteps of the pipeline's scheduler.
    pipe = loaded("ldm")
    samples = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(calls):
        pipe.scheduler.set_timesteps(6)
        with torch.no_grad():
            for timestep in pipe.scheduler.timesteps:
                for sample in samples[:calls]:
                    pipe.unet(sample * timestep / 1000, timestep)

    learned = []
    for calls in (1, 2):
        with DeepCacheHelper(pipe, schedule="auto") as helper:
            assert counted(helper, partial(run, calls)) == (calls * 6, 0)
            assert counted(helper, partial(run, calls)) == (calls * 2, calls * 4)
            learned.extend(helper.schedule.learned)
    assert equal(*learned)


def test_guidance_dropped_while_it_learns_teaches_up_to_there():
    # From then on the features are of another batch; the rest of the plan is full.
    pipe = loaded("sd")

    def cut_off(pipe, step, _timestep, kwargs):
        if step == 5:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    with DeepCacheHelper(pipe, schedule="auto") as helper:
        SD.run(
            pipe,
            steps=9,
            callback_on_step_end=cut_off,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
        (learned,) = helper.schedule.learned
    plan = learned.plan(9)
    assert plan[6:] == (FULL,) * 3
    assert len([entry for entry in plan[:6] if entry == FULL]) == 2


# --- settings -----------------------------------------------------------------------------------


def test_each_number_of_steps_is_learned_once():
    pipe = loaded("ldm")
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for steps in (8, 6, 8, 6, 9):
            runs.append(counted(helper, partial(LDM.run, pipe, steps=steps)))
        lengths = [len(each.setting.timesteps) for each in helper.schedule.learned]
    assert runs == [(8, 0), (6, 0), (3, 5), (2, 4), (9, 0)]
    assert lengths == [8, 6, 9]


def test_each_strength_is_learned_once():
    case = CASES["sd-img2img"]
    pipe = case.load()
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for strength in (0.8, 0.6, 0.8, 0.6):
            run = partial(case.run, pipe, steps=10, strength=strength)
            runs.append(counted(helper, run))
    assert runs == [(8, 0), (6, 0), (3, 5), (2, 4)]


def test_each_scheduler_is_learned_once():
    pipe = LDM.load()
    first = pipe.scheduler
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for scheduler in ("ddim", "euler", "ddim", "euler"):
            pipe.scheduler = SCHEDULERS[scheduler](first.config)  # another object each time
            runs.append(counted(helper, partial(LDM.run, pipe, steps=8)))
        pipe.scheduler = type(first).from_config(first.config, timestep_spacing="trailing")
        runs.append(counted(helper, partial(LDM.run, pipe, steps=8)))
    assert runs == [(8, 0), (8, 0), (3, 5), (3, 5), (8, 0)]


def test_a_replaced_unet_is_learned_if_its_config_differs():
    pipe, other = loaded("sd"), CASES["sd-instruct-pix2pix"].load()
    unets = pipe.unet, other.unet
    runs = []
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        run = partial(SD.run, pipe, steps=8)
        runs.append(counted(helper, run))
        assert [each.setting.unet["in_channels"] for each in helper.schedule.learned] == [4]
    with DeepCacheHelper(other, schedule=helper.schedule) as second:
        run = partial(CASES["sd-instruct-pix2pix"].run, other, steps=8)
        runs.append(counted(second, run))
        runs.append(counted(second, run))
    assert runs == [(8, 0), (8, 0), (3, 5)]
    assert unets[0] is pipe.unet
    assert [each.setting.unet["in_channels"] for each in helper.schedule.learned] == [4, 8]


def test_no_more_than_so_many_settings_are_remembered(monkeypatch):
    monkeypatch.setattr("deepcache_patch.learning.auto._REMEMBERED", 2)
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        for steps in (3, 4, 5, 4):
            LDM.run(pipe, steps=steps)
        assert [len(each.setting.timesteps) for each in helper.schedule.learned] == [4, 5]
        assert counted(helper, partial(LDM.run, pipe, steps=3)) == (3, 0)


# --- the helper's life --------------------------------------------------------------------------


def test_disable_and_enable_keep_what_was_learned():
    pipe = loaded("ldm")
    helper = DeepCacheHelper(pipe, schedule="auto")
    with helper:
        LDM.run(pipe, steps=8)
    plain = LDM.run(pipe, steps=8, seed=1)
    with helper:
        assert counted(helper, partial(LDM.run, pipe, steps=8, seed=1)) == (3, 5)
    assert torch.equal(LDM.run(pipe, steps=8, seed=1), plain)


def test_a_paused_generation_is_plain_and_teaches_nothing():
    pipe = loaded("ldm")
    plain = LDM.run(pipe, steps=8)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        with helper.paused():
            assert torch.equal(LDM.run(pipe, steps=8), plain)
        assert helper.schedule.learned == ()
        assert helper.stats == Stats()
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (8, 0)
        with helper.paused():
            assert torch.equal(LDM.run(pipe, steps=8), plain)
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (3, 5)
        assert len(helper.schedule.learned) == 1


@pytest.mark.parametrize("learning", [True, False], ids=["learning", "learned"])
def test_nothing_keeps_the_pipeline_alive(learning):
    auto, pipe = Auto(), SD.load()
    alive = weakref.ref(pipe), weakref.ref(pipe.unet), weakref.ref(pipe.scheduler)
    helper = DeepCacheHelper(pipe, schedule=auto).enable()
    if learning:
        stop_after(pipe, 3, steps=8)
    else:
        SD.run(pipe, steps=8)
        SD.run(pipe, steps=8)
    helper.disable()
    del pipe, helper
    gc.collect()
    assert [each() for each in alive] == [None, None, None]


def test_after_disable_the_unet_is_freed_by_reference_count():
    pipe = LDM.load()
    helper = DeepCacheHelper(pipe, schedule="auto").enable()
    LDM.run(pipe)
    LDM.run(pipe)
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
        LDM.run(first, steps=8)
        assert counted(helper, partial(LDM.run, second, steps=8)) == (8, 0)
        assert counted(helper, partial(LDM.run, second, steps=8)) == (3, 5)


# --- where it cannot learn ----------------------------------------------------------------------


def loop(unet, steps=7):
    with torch.no_grad():
        for timestep in torch.arange(steps, 0, -1) * 100:
            unet(**(inputs2d_condition() | {"timestep": timestep}))


def test_a_bare_unet_runs_in_full_and_says_why():
    unet = loaded("sd").unet
    with DeepCacheHelper(unet, schedule="auto") as helper:
        with pytest.warns(DeepCacheWarning, match="schedule='auto' needs a pipeline") as caught:
            loop(unet)
        assert len(caught) == 1
    assert helper.stats == Stats(1, 7, 0, 0)


def test_a_bare_unet_says_so_once():
    unet = loaded("sd").unet
    with (
        DeepCacheHelper(unet, schedule="auto"),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        loop(unet)
        loop(unet, steps=5)
    assert [each.category for each in caught] == [DeepCacheWarning]


def test_features_that_are_not_finite_teach_nothing():
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        handle = pipe.unet.mid_block.register_forward_hook(lambda _m, _a, output: output / 0)
        LDM.run(pipe, steps=4)
        handle.remove()
        assert helper.schedule.learned == ()
        # The next generation learns in its place.
        assert counted(helper, partial(LDM.run, pipe, steps=4)) == (4, 0)
        assert counted(helper, partial(LDM.run, pipe, steps=4)) == (2, 2)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", ["reuse", "extrapolate", Extrapolate(0.5)])
@pytest.mark.parametrize("schedule", ["auto", Auto()], ids=["auto", "Auto"])
def test_a_replay_is_refused_because_it_brings_its_own(schedule, replay):
    pipe = loaded("ldm")
    before = trace(pipe.unet)
    with pytest.raises(InvalidSettingError, match="Auto brings its own replay: leave replay="):
        DeepCacheHelper(pipe, schedule=schedule, replay=replay)
    assert trace(pipe.unet) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be an integer of at least 1, not 0"),
        ({"branch": -1}, "branch must be an integer of at least 0, not -1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidSettingError, match=message):
        Auto(**options)


def test_its_name_says_its_settings(tmp_path):
    assert repr(Auto()) == "Auto(interval=3, branch=0)"
    file = tmp_path / "a.json"
    assert repr(Auto(5, 1, file=file)) == f"Auto(interval=5, branch=1, file={str(file)!r})"
