"""The first generation is plain and teaches; from the second on what was learned runs."""

import copy
import gc
import json
import math
import pickle
import threading
import warnings
import weakref
from functools import cache, partial

import pytest
import torch
from builders.cases import CASES
from builders.schedulers import SCHEDULERS
from builders.unets import inputs2d_condition
from conftest import trace

from deepcache_patch import (
    FULL,
    Auto,
    Calibrated,
    DeepCacheHelper,
    DeepCacheWarning,
    Extrapolate,
    InvalidSettingError,
    Stats,
)
from deepcache_patch.learning.learned import load_all

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
    return first.to_dict() == second.to_dict() and all(
        mine.tolist() == other.tolist()
        for step, blend in first.solution.blends.items()
        for mine, other in zip(blend[2:], second.solution.blends[step][2:], strict=True)
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


# --- generations that stop early ----------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_after(pipe, step, **arguments):
    def stop(_pipe, at, _timestep, kwargs):
        if at == step:
            raise StoppedError
        return kwargs

    with pytest.raises(StoppedError):
        SD.run(pipe, callback_on_step_end=stop, **arguments)


def test_a_generation_that_is_broken_off_teaches_as_far_as_it_went():
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule="auto", interval=2) as helper:
        stop_after(pipe, 5, steps=8)  # six steps ran
        assert helper.schedule.learned == ()
        assert counted(helper, partial(SD.run, pipe, steps=8)) == (3 + 2, 3)
        # That one went further: the next learns anew, from all steps.
        assert helper.schedule.learned == ()
        assert counted(helper, partial(SD.run, pipe, steps=8)) == (8, 0)
        assert counted(helper, partial(SD.run, pipe, steps=8)) == (4, 4)


@pytest.mark.parametrize(
    ("after", "runs"),
    [
        (0, [(6, 0), (2, 4)]),
        (1, [(6, 0), (2, 4)]),  # two steps of six: too few to learn from
        (2, [(1 + 3, 2), (6, 0), (2, 4)]),  # three, of which one is full, and three unseen
    ],
    ids=["after-1", "after-2", "after-3"],
)
def test_what_was_broken_off_is_learned_to_the_end(after, runs):
    # It once stayed full for ever: what was learned from its first steps was never added to.
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        stop_after(pipe, after, steps=6)
        assert [counted(helper, partial(SD.run, pipe, steps=6)) for _ in runs] == runs
        (learned,) = helper.schedule.learned
    assert learned.solution.seen == 6


def test_a_generation_that_failed_teaches_nothing():
    pipe = loaded("ldm")
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 5:
            raise StoppedError

    with DeepCacheHelper(pipe, schedule="auto", interval=2) as helper:
        handle = pipe.unet.conv_out.register_forward_hook(fail)
        with pytest.raises(StoppedError):
            LDM.run(pipe, steps=8)
        handle.remove()
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (8, 0)
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (4, 4)


def test_a_base_that_hands_over_to_its_refiner_learns_its_own_steps():
    base = CASES["sdxl-denoising-end"]
    pipe = base.load()
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        runs = [counted(helper, partial(base.run, pipe, steps=20)) for _ in range(3)]
        (learned,) = helper.schedule.learned
    assert runs == [(12, 0), (4, 8), (4, 8)]
    assert learned.plan(20)[12:] == (FULL,) * 8
    assert learned.solution.seen == 12


def test_a_base_that_hands_over_before_half_the_way_stays_full():
    base = CASES["sdxl-denoising-end"]
    pipe = base.load()
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        run = partial(base.run, pipe, steps=10, denoising_end=0.4)
        assert [counted(helper, run) for _ in range(3)] == [(4, 0)] * 3
        assert helper.schedule.learned == ()


# --- threads ------------------------------------------------------------------------------------


def in_turn(functions):
    """Runs each in a thread of its own and raises what they raise."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []


def test_two_threads_with_a_pipeline_each_share_what_is_learned():
    auto = Auto()
    pipes = [SD.load(), SD.load()]
    plain = SD.run(pipes[0], steps=8)
    helpers = [DeepCacheHelper(pipe, schedule=auto).enable() for pipe in pipes]
    together = threading.Barrier(2)
    pictures = {}

    def step_in_turn(_pipe, _step, _timestep, kwargs):
        together.wait(timeout=60)
        return kwargs

    def run(index):
        pictures[index] = SD.run(pipes[index], steps=8, callback_on_step_end=step_in_turn)

    # Both learn, at the same time.
    in_turn([partial(run, index) for index in range(2)])
    assert torch.equal(pictures[0], plain)
    assert torch.equal(pictures[1], plain)
    assert len(auto.learned) == 2
    in_turn([partial(run, index) for index in range(2)])
    for helper in helpers:
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (8 + 3, 5)
        helper.disable()


def test_two_threads_on_one_unet_are_two_generations():
    # Two pipelines share a U-Net, with a scheduler of the same kind each. One learned first.
    first, second = SD.load(), SD.load()
    second.unet = first.unet
    pictures = {}
    with DeepCacheHelper(first, schedule="auto") as helper:
        SD.run(first, steps=8)
        expected = [SD.run(first, steps=8, seed=seed) for seed in range(2)]
        together = threading.Barrier(2)

        def step_in_turn(_pipe, _step, _timestep, kwargs):
            together.wait(timeout=60)
            return kwargs

        def run(pipe, seed):
            pictures[seed] = SD.run(pipe, steps=8, seed=seed, callback_on_step_end=step_in_turn)

        before = helper.stats
        in_turn([partial(run, first, 0), partial(run, second, 1)])
        # The second pipeline has a list of timesteps that is not the helper's pipeline's own, but
        # equal to it: read once, and the same steps.
        assert helper.stats.full_calls - before.full_calls == 2 * 3
        assert helper.stats.shallow_calls - before.shallow_calls == 2 * 5
    assert torch.equal(pictures[0], expected[0])
    assert torch.equal(pictures[1], expected[1])


def test_a_second_thread_does_not_end_what_the_first_is_learning():
    first, second = SD.load(), SD.load()
    second.unet = first.unet

    with DeepCacheHelper(first, schedule="auto") as helper:

        def begin_another(_pipe, step, _timestep, kwargs):
            if step == 0:
                in_turn([partial(stop_after, second, 0, steps=8)])
            return kwargs

        SD.run(first, steps=8, callback_on_step_end=begin_another)
        assert counted(helper, partial(SD.run, first, steps=8)) == (3, 5)


# --- the file -----------------------------------------------------------------------------------


def test_a_file_lets_another_process_start_calibrated(tmp_path):
    file = tmp_path / "learned.json"
    pipe = LDM.load()
    with DeepCacheHelper(pipe, schedule=Auto(file=file)) as helper:
        assert not file.exists()
        LDM.run(pipe, steps=8)
        written = file.read_bytes()  # already, and not only when the second generation begins
        LDM.run(pipe, steps=8)
    assert file.read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["learned.json"]
    (learned,) = helper.schedule.learned

    pipe = LDM.load()
    with DeepCacheHelper(pipe, schedule=Auto(file=str(file))) as helper:
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (3, 5)
        (loaded,) = helper.schedule.learned
        assert loaded.to_dict() == learned.to_dict()
        assert file.read_bytes() == written
        LDM.run(pipe, steps=6)
    assert [len(each.setting.timesteps) for each in load_all(file)] == [8, 6]


def test_each_budget_and_branch_in_one_file_is_its_own(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    runs = []
    for options in ({}, {"interval": 4}, {"branch": 2}, {"interval": 1}) * 2:
        with DeepCacheHelper(pipe, schedule=Auto(**options, file=file)) as helper:
            runs.append(counted(helper, partial(LDM.run, pipe, steps=8)))
    assert runs == [(8, 0)] * 4 + [(3, 5), (2, 6), (3, 5), (8, 0)]
    assert len(json.loads(file.read_text())["schedules"]) == 4


def test_what_another_wrote_since_for_another_branch_is_kept(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    for schedule in [Auto(branch=branch, file=file) for branch in (0, 2)]:
        with DeepCacheHelper(pipe, schedule=schedule):
            LDM.run(pipe, steps=8)
    assert [each.branches for each in load_all(file)] == [(0,), (2,)]


def test_what_another_wrote_since_is_kept(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    schedules = [Auto(file=file), Auto(interval=4, file=file), Auto(file=file)]
    for schedule, steps in zip(schedules, (8, 8, 6), strict=True):
        with DeepCacheHelper(pipe, schedule=schedule):
            LDM.run(pipe, steps=steps)
    found = [(each.interval, len(each.setting.timesteps)) for each in load_all(file)]
    assert found == [(3, 8), (4, 8), (3, 6)]


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda auto: pickle.loads(pickle.dumps(auto))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_knows_what_was_learned(duplicate):
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        LDM.run(pipe, steps=6)
    with DeepCacheHelper(pipe, schedule=duplicate(helper.schedule)) as other:
        assert counted(other, partial(LDM.run, pipe, steps=6)) == (2, 4)


def test_what_was_asked_for_otherwise_is_not_for_auto(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    helper = DeepCacheHelper(pipe)
    helper.calibrate(partial(LDM.run, pipe, steps=8), full_steps=3).save(file)
    assert Calibrated.load(file).interval is None
    with DeepCacheHelper(pipe, schedule=Auto(file=file)) as helper:
        assert counted(helper, partial(LDM.run, pipe, steps=8)) == (8, 0)
    assert [each.interval for each in load_all(file)] == [None, 3]


def test_a_file_that_cannot_be_written_does_not_cost_the_picture(tmp_path):
    pipe = loaded("ldm")
    plain = LDM.run(pipe, steps=8)
    folder = tmp_path / "folder"
    folder.mkdir()
    auto = Auto(file=folder / "learned.json")
    folder.rmdir()
    with (
        DeepCacheHelper(pipe, schedule=auto),
        pytest.warns(DeepCacheWarning, match="could not learn from this generation, or not keep"),
    ):
        assert torch.equal(LDM.run(pipe, steps=8), plain)


def test_a_file_without_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match="does not exist"):
        Auto(file=tmp_path / "no-such-folder" / "learned.json")


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
