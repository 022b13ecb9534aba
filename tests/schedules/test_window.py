"""Steps at the start and at the end that run in full, whatever the schedule says."""

import doctest
import math
from functools import partial

import numpy as np
import pytest
import torch
from builders.cases import CASES
from builders.finished_calls import Told
from builders.learning import LDM, SD, counted, loaded
from builders.loops import kinds_of_steps
from builders.unets import unet2d_condition
from conftest import counted_calls, trace
from zoo import CASES as ZOO

import deepcache_patch.schedules.window
from deepcache_patch import (
    FULL,
    Adaptive,
    Auto,
    Centred,
    DeepCacheHelper,
    Explicit,
    InvalidSettingError,
    Plan,
    Reuse,
    Uniform,
)
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.guide import Guide, guide_factory, planned
from deepcache_patch.schedules.window import Window


def ran(helper):
    """The strip of the only U-Net's last generation."""
    (last,) = helper.last_generations.values()
    return str(last.plan)


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "steps", "protected"),
    [
        (0, 0, 20, []),
        (4, 2, 20, [0, 1, 2, 3, 18, 19]),
        (0.2, 0, 25, [0, 1, 2, 3, 4]),
        (0, 0.2, 25, [20, 21, 22, 23, 24]),
        (0.21, 0.01, 25, [0, 1, 2, 3, 4, 5, 24]),
        (0.0, 0.0, 25, []),
        (3, 2, 5, [0, 1, 2, 3, 4]),
        (3, 2, 4, [0, 1, 2, 3]),
        (10**30, 0, 3, [0, 1, 2]),
        (0.9, 0.9, 3, [0, 1, 2]),
    ],
)
def test_the_protected_steps(first, last, steps, protected):
    assert sorted(Window(first, last).steps(steps)) == protected


@pytest.mark.parametrize("share", [0.07, np.float32(0.07), np.float64(0.07)], ids=repr)
def test_a_share_that_is_a_whole_number_but_for_rounding_is_that_number(share):
    assert math.ceil(0.07 * 100) == 8
    assert len(Window(first=share).steps(100)) == 7
    assert len(Window(last=share).steps(100)) == 7


@pytest.mark.parametrize(
    ("window", "protected"),
    [(Window(2, 3), [0, 1]), (Window(0.2, 0.2), []), (Window(0, 5), [])],
    ids=str,
)
def test_of_a_number_of_steps_that_is_a_guess_only_the_start_is_known(window, protected):
    assert sorted(window.steps(64, is_guess=True)) == protected


@pytest.mark.parametrize("name", ["first", "last"])
@pytest.mark.parametrize(
    "value", [True, False, 1.5, 1.0, -1, -0.1, "2", "0.2", math.nan, math.inf, np.True_, [2]]
)
def test_what_is_no_number_of_steps_and_no_share_is_refused_before_anything_is_patched(name, value):
    unet = unet2d_condition()
    before = trace(unet)
    for made in (Window, partial(DeepCacheHelper, unet)):
        with pytest.raises(InvalidSettingError) as caught:
            made(**{name: value})
        assert str(caught.value) == (
            f"{name} must be a number of steps, an integer of at least 0, or a share of them, a "
            f"float from 0 to below 1, not {value!r}"
        )
    assert trace(unet) == before


def test_numbers_of_other_libraries_become_pythons():
    window = Window(np.int64(2), np.float64(0.25))
    assert (window.first, window.last) == (2, 0.25)
    assert (type(window.first), type(window.last)) == (int, float)


def test_the_example_is_right():
    result = doctest.testmod(deepcache_patch.schedules.window)
    assert result.attempted > 0
    assert result.failed == 0


# --- plans ----------------------------------------------------------------------------------------


def context(steps, window, **more):
    return Context(steps, None, None, window=window, **more)


def test_a_plan_is_made_with_its_window():
    plan = planned(Uniform(3), context(20, Window(first=4, last=2)))
    assert isinstance(plan, Plan)
    assert plan.full_steps == (0, 1, 2, 3, 6, 9, 12, 15, 18, 19)
    assert str(plan) == "FFFF··F··F··F··F··FF"
    share = planned(Uniform(5), context(25, Window(first=0.2, last=0.1)))
    assert share.full_steps == (0, 1, 2, 3, 4, 5, 10, 15, 20, 22, 23, 24)
    written = planned(Explicit([FULL, 3, 0, 1, 0]), context(5, Window(2, 1)))
    assert written == (FULL, FULL, 0, 1, FULL)
    assert planned(Uniform(3), context(20, Window())) == Uniform(3).plan(20)
    assert str(planned(Uniform(3), context(8, Window(2, 2), is_guess=True))) == "FF·F··F·"


def test_a_schedule_that_plans_for_a_context_is_given_the_window():
    class Within:
        def plan(self, num_steps):
            raise AssertionError("it plans for a context")

        def plan_for(self, context):
            seen.append(context)
            return [0] * context.num_steps

    seen, begun = [], context(6, Window())
    guide = guide_factory(Within(), Reuse(), Window(2, 1))(begun)
    assert [guide.entry(step) for step in range(6)] == [FULL, FULL, 0, 0, 0, FULL]
    assert [(each.num_steps, each.window) for each in seen] == [(6, Window(2, 1))]
    assert seen[0].protected == {0, 1, 5}


class Heedless:
    """A schedule of somebody's own: its guide looks at no window, and names no full step."""

    def __init__(self):
        self.begun, self.asked = [], []

    def begin(self, context, replay):
        self.begun.append(context)
        asked = self.asked

        class Shallow(Guide):
            def entry(self, step):
                asked.append(step)
                return 0

        return Shallow(context.num_steps, (0,))


def test_a_schedule_that_guides_is_given_the_window():
    schedule = Heedless()
    guide_factory(schedule, Reuse(), Window(2, 1))(context(6, Window()))
    assert [each.protected for each in schedule.begun] == [{0, 1, 5}]


# --- what runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "strip"),
    [
        (Uniform(3), "FFFF··F··FFF"),
        (Centred(4, 5, 1.2), "FFFFF··F··FF"),  # steps 0, 4 and 7 of its own
        (Explicit([0] * 12), "FFFF······FF"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_calls_that_run_in_full(schedule, strip):
    pipe = loaded("ldm")
    with (
        counted_calls(pipe.unet) as calls,
        DeepCacheHelper(pipe, schedule=schedule, first=4, last=2) as helper,
    ):
        LDM.run(pipe, steps=12)
        assert ran(helper) == strip
    assert (calls["mid_block"], calls[""]) == (strip.count("F"), 12)


def test_a_guide_that_heeds_no_window_runs_in_full_what_is_protected():
    pipe, schedule = loaded("ldm"), Heedless()
    with (
        counted_calls(pipe.unet) as calls,
        DeepCacheHelper(pipe, schedule=schedule, first=4, last=2) as helper,
    ):
        LDM.run(pipe, steps=12)
        assert ran(helper) == "FFFF······FF"
    assert (calls["mid_block"], calls[""]) == (6, 12)
    assert schedule.asked == [*range(12)]  # it knows of every step


def test_adaptive_runs_in_full_what_is_protected():
    pipe = loaded("ldm")
    with (
        counted_calls(pipe.unet) as calls,
        DeepCacheHelper(pipe, schedule=Adaptive(1.0, (0,)), first=4, last=2) as helper,
    ):
        LDM.run(pipe, steps=12)
        strip = ran(helper)
    assert (strip[:4], strip[-2:]) == ("FFFF", "FF")
    assert "·" in strip
    assert (calls["mid_block"], calls[""]) == (strip.count("F"), 12)


def test_adaptive_counts_from_the_last_protected_step():
    # Nothing changes: but for the window, every fourth step is full.
    guides = guide_factory(Adaptive(1, longest=4), Reuse(), Window(first=5, last=2))
    guide, entries = guides(context(13, Window())), []
    told = Told(guide)
    for step in range(13):
        entries.append(guide.entry(step))
        features = {0: torch.ones(1, 1)} if entries[-1] == FULL else {}
        told.call(step, features, torch.zeros(1, 1), num_steps=13)
    assert str(Plan(entries)) == "FFFFF···F··FF"


def test_without_a_window_nothing_changes():
    pipe = loaded("ldm")
    for schedule in (Uniform(3), Adaptive(0.2)):
        with DeepCacheHelper(pipe, schedule=schedule) as helper:
            expected, strip = LDM.run(pipe, steps=8), ran(helper)
        assert "·" in strip
        with DeepCacheHelper(pipe, schedule=schedule, first=0, last=0.0) as helper:
            assert torch.equal(LDM.run(pipe, steps=8), expected)
            assert ran(helper) == strip


def test_a_window_of_all_steps_is_the_plain_picture():
    pipe = loaded("ldm")
    plain = LDM.run(pipe, steps=6)
    for window in ({"first": 6}, {"last": 9}, {"first": 3, "last": 3}, {"first": 0.99}):
        with DeepCacheHelper(pipe, schedule=Uniform(), **window) as helper:
            assert torch.equal(LDM.run(pipe, steps=6), plain)
            assert ran(helper) == "FFFFFF"


def test_the_picture_is_that_of_the_plan_written_down():
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule=Uniform(), first=2, last=2) as helper:
        picture = LDM.run(pipe, steps=9)
        plan = next(iter(helper.last_generations.values())).plan
    assert str(plan) == "FF·F··FFF"
    with DeepCacheHelper(pipe, schedule=Explicit(plan)):
        assert torch.equal(LDM.run(pipe, steps=9), picture)


def test_the_window_is_counted_from_the_steps_that_run():
    case = CASES["sd-img2img"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform(9), first=0.25, last=1) as helper:
        case.run(pipe, steps=10, strength=0.8)  # runs eight
        assert ran(helper) == "FF·····F"


def test_the_end_of_a_loop_without_a_list_of_timesteps_is_not_known():
    unet = unet2d_condition()
    values = [float(value) for value in range(900, 200, -100)]
    with DeepCacheHelper(unet, schedule=Uniform(9), first=2, last=2):
        assert kinds_of_steps(unet, timesteps=values) == "FFsssss"
    with DeepCacheHelper(unet, schedule=Uniform(9), first=0.5, last=0.5):
        assert kinds_of_steps(unet, timesteps=values) == "Fssssss"
    with DeepCacheHelper(unet, schedule=Uniform(9), first=2, last=2):
        assert kinds_of_steps(unet) == "FFsssFF"


def test_the_window_stays_when_another_schedule_is_followed():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(9), first=1, last=2) as helper:
        assert kinds_of_steps(unet) == "FssssFF"
        helper.follow(Uniform(2))
        assert kinds_of_steps(unet) == "FsFsFFF"
        helper.set(interval=4)
        assert kinds_of_steps(unet) == "FsssFFF"
        assert (helper.first, helper.last) == (1, 2)


def test_a_controlnet_foresees_what_is_protected():
    case = ZOO["sd-controlnet"]
    pipe = case.load()
    with (
        counted_calls(pipe.controlnet) as calls,
        counted_calls(pipe.unet) as unet_calls,
        DeepCacheHelper(pipe, schedule=Uniform(4), first=2, last=2) as helper,
    ):
        case.run(pipe, steps=8)
        assert ran(helper) == "FF··F·FF"
    assert (calls["mid_block"], calls[""]) == (5, 8)  # none of them runs again
    assert (unet_calls["mid_block"], unet_calls[""]) == (5, 8)


# --- what is learned ------------------------------------------------------------------------------


def test_auto_learns_with_the_window():
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto", interval=4, first=3, last=2) as helper:
        assert counted(helper, partial(LDM.run, pipe, steps=12)) == (12, 0)
        assert counted(helper, partial(LDM.run, pipe, steps=12)) == (6, 6)
        (learned,) = helper.schedule.learned
        strip = ran(helper)
    assert str(learned.entries) == strip
    assert (strip[:3], strip[-2:]) == ("FFF", "FF")
    # They are of the full steps that run before: what is protected is known to them.
    full = learned.entries.full_steps
    assert len(learned.weights) == 6
    for step, *before in learned.weights:
        assert before == [each for each in reversed(full) if each < step][:3]


def test_auto_learns_anew_for_another_window_and_remembers_both():
    pipe = loaded("ldm")
    auto = Auto(4)
    windows = [{}, {"first": 3, "last": 2}, {"last": 1}]
    kinds = []
    for window in [*windows, *windows]:
        with DeepCacheHelper(pipe, schedule=auto, **window) as helper:
            kinds.append(counted(helper, partial(LDM.run, pipe, steps=12)))
    assert kinds == [(12, 0)] * 3 + [(3, 9), (6, 6), (3, 9)]
    assert len(auto.learned) == 3


def test_a_calibrated_schedule_runs_what_is_protected_in_full_on_top(tmp_path):
    pipe = loaded("sd")
    auto = Auto(4)
    with DeepCacheHelper(pipe, schedule=auto):
        SD.run(pipe, steps=10)
    (learned,) = auto.learned
    learned.save(tmp_path / "schedule.json")
    calibrated = type(learned).load(tmp_path / "schedule.json")
    expected = set(learned.entries.full_steps) | {0, 1, 2, 9}
    with DeepCacheHelper(pipe, schedule=calibrated, first=3, last=1) as helper:
        assert "F" * 3 in str(helper)
        SD.run(pipe, steps=10)
        (last,) = helper.last_generations.values()
        assert set(last.plan.full_steps) == expected
        assert last.full_calls == len(expected)


def test_what_is_calibrated_on_request_has_the_protected_steps_in_its_plan():
    pipe = loaded("ldm")
    run = partial(LDM.run, pipe, steps=10)
    helper = DeepCacheHelper(pipe, schedule=Uniform(), first=2, last=2)
    plan = helper.calibrate(run, full_steps=6).entries
    assert len(plan.full_steps) == 6
    assert {0, 1, 8, 9} <= set(plan.full_steps)
    assert helper.calibrate(run, full_steps=4).entries.full_steps == (0, 1, 8, 9)


# --- what is shown --------------------------------------------------------------------------------


def test_a_helper_tells_its_window_and_the_plan_with_it():
    helper = DeepCacheHelper(unet2d_condition(), schedule=Uniform(10), first=3, last=0.04)
    assert (helper.first, helper.last) == (3, 0.04)
    assert repr(helper) == (
        "DeepCacheHelper(UNet2DConditionModel, Uniform(interval=10, branch=0), first=3, last=0.04, "
        "disabled)"
    )
    assert str(helper) == (
        "DeepCacheHelper\n"
        "  pipeline  UNet2DConditionModel, not enabled: calls run plainly and are not counted\n"
        "  schedule  Uniform(interval=10, branch=0)\n"
        "  in full   first=3, last=0.04\n"
        "  replay    Extrapolate(strength=1.0)\n"
        "  plan      FFF·······F·········F·········F·········F·······FF (of 50 steps, "
        "for example)\n"
        "            9 of 50 steps in full, the others at branch 0: 27% of the U-Net's work, "
        "at most 3.67×\n"
        "  calls     0 in full, 0 shallow, in 0 generations\n"
        "  cache     0.00 MiB at most"
    )
