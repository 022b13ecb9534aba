"""The plan of a generation that has not been: it is what then runs, whatever the scheduler."""

import copy
from functools import partial

import pytest
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.unets import unet2d_condition
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from deepcache_patch import (
    FULL,
    OUTPUT,
    Adaptive,
    Auto,
    Centred,
    DeepCacheHelper,
    Explicit,
    InvalidSettingError,
    NoiseAware,
    Plan,
    Uniform,
)
from deepcache_patch.settings.preview import num_steps

pytestmark = pytest.mark.usefixtures("kept_tables")

SD = CASES["sd"]

DPM = DPMSolverMultistepScheduler
SCHEDULERS = {
    "ddim": (DDIMScheduler, {}),
    "dpm leading": (DPM, {"timestep_spacing": "leading", "steps_offset": 1}),
    "dpm linspace": (DPM, {"timestep_spacing": "linspace"}),
    "dpm trailing": (DPM, {"timestep_spacing": "trailing"}),
    "dpm karras": (DPM, {"use_karras_sigmas": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}


def scheduled(name, case=SD):
    pipe = case.load()
    kind, options = SCHEDULERS[name]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    return pipe


def ran(helper):
    (generation,) = helper.last_generations.values()
    return generation.plan


@pytest.mark.parametrize("name", mostly_slow(SCHEDULERS, ["heun", "dpm linspace", "ddim"]))
def test_what_is_planned_is_what_runs(name):
    pipe = scheduled(name)
    scheduler = copy.deepcopy(vars(pipe.scheduler))
    with DeepCacheHelper(pipe) as helper:
        planned = helper.plan(14)
        assert str(vars(pipe.scheduler)) == str(scheduler)
        SD.run(pipe, steps=14)
        assert planned == ran(helper)
        assert isinstance(planned, Plan)
        assert planned.branches == (OUTPUT,)
        # And again, while the scheduler is set to something else.
        assert helper.plan(20) != planned
        assert helper.plan(14) == planned


def test_noise_levels_make_different_plans_of_as_many_steps():
    plans = {name: DeepCacheHelper(scheduled(name)).plan(25) for name in SCHEDULERS}
    assert {name: len(plan) for name, plan in plans.items()} == {
        name: 49 if name == "heun" else 25 for name in SCHEDULERS
    }
    assert {len(plan.full_steps) for name, plan in plans.items() if name != "heun"} == {11}
    assert plans["dpm karras"] != plans["dpm leading"] != plans["ddim"]


@pytest.mark.parametrize("window", [{}, {"first": 2, "last": 0.2}])
@pytest.mark.parametrize(
    "schedule",
    [NoiseAware(3), NoiseAware(2.5, branch=1), Uniform(4), Centred(3, center=4), Uniform(1)],
    ids=str,
)
def test_every_schedule_with_a_plan_tells_it_with_its_window(schedule, window):
    pipe = scheduled("euler")
    with DeepCacheHelper(pipe, schedule=schedule, **window) as helper:
        planned = helper.plan(12)
        SD.run(pipe, steps=12)
        assert planned == ran(helper)


def test_the_timesteps_may_be_given():
    pipe = scheduled("ddim")
    pipe.scheduler = DPM.from_config(pipe.scheduler.config)
    timesteps = [999, 990, 980, 970, 960, 950, 940, 930, 600, 300, 90, 5]
    with DeepCacheHelper(pipe) as helper:
        planned = helper.plan(timesteps=timesteps)
        SD.run(pipe, steps=None, timesteps=timesteps)
        assert planned == ran(helper)
    assert len(planned) == 12
    assert planned != DeepCacheHelper(pipe).plan(12)


@pytest.mark.parametrize(
    "name", mostly_slow(["ddim", "dpm karras", "euler", "heun"], ["ddim", "heun"])
)
@pytest.mark.parametrize("strength", [0.5, 0.73])
def test_a_generation_that_begins_later_is_planned_from_there(name, strength):
    case = CASES["sd-img2img"]
    pipe = scheduled(name, case)
    with DeepCacheHelper(pipe) as helper:
        planned = helper.plan(24, strength=strength)
        case.run(pipe, steps=24, strength=strength)
        assert planned == ran(helper)
    assert len(planned) < len(helper.plan(24))


def test_the_number_of_steps_is_the_pipelines_own_by_default():
    helper = DeepCacheHelper(scheduled("euler"))
    assert helper.plan() == helper.plan(50)
    assert len(helper.plan()) == 50


def test_few_steps_are_all_full_and_nothing_is_said_before_they_run():
    pipe = scheduled("euler")
    assert DeepCacheHelper(pipe).plan(8) == (FULL,) * 8
    assert "  plan      FFFFFFFF (of 8 steps)\n" in str(after(pipe, 8))


def after(pipe, steps):
    """A helper that has not run, of a pipeline whose scheduler is set."""
    pipe.scheduler.set_timesteps(steps)
    return DeepCacheHelper(pipe)


def test_a_bare_unet_has_the_plan_of_a_loop_without_a_scheduler():
    helper = DeepCacheHelper(unet2d_condition())
    plan = helper.plan(25)
    assert plan.full_steps == NoiseAware().plan(25).full_steps
    assert plan.branches == (0,)  # nothing says what its output means
    with pytest.raises(InvalidSettingError) as caught:
        helper.plan()
    assert str(caught.value) == "num_inference_steps must be an integer of at least 1, not None"


@pytest.mark.parametrize(
    ("interval", "first", "steps", "most"),
    [(1.5, 0, 20, 13), (2, 0, 20, 10), (30, 3, 20, 3), (2, 4, 20, 12), (2, 0, 8, 8)],
)
def test_what_decides_as_it_goes_has_a_budget_and_no_plan(interval, first, steps, most):
    helper = DeepCacheHelper(SD.load(), schedule=Adaptive(0, interval=interval), first=first)
    with pytest.raises(InvalidSettingError) as caught:
        helper.plan(steps)
    assert str(caught.value) == (
        f"Adaptive decides while a generation runs, at most {most} of {steps} steps in full: there "
        "is no plan before it; `compare` and `last_generations` tell what ran"
    )
    with helper:
        SD.run(helper.pipe, steps=steps)
    assert len(ran(helper).full_steps) == most


def test_the_plan_of_auto_is_what_runs_once_it_has_learned():
    pipe = scheduled("ddim")
    with DeepCacheHelper(pipe, schedule=Auto(3)) as helper:
        planned = helper.plan(14)
        SD.run(pipe, steps=14)
        assert ran(helper) == (FULL,) * 14
        SD.run(pipe, steps=14)
        assert ran(helper) == planned == helper.plan(14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(DeepCacheHelper.plan, num_inference_steps=0), "num_inference_steps must be an "),
        (partial(DeepCacheHelper.plan, num_inference_steps=2.5), "num_inference_steps must be an "),
        (
            partial(DeepCacheHelper.plan, num_inference_steps=9, strength=1.5),
            "strength must be a number from 0 to 1, not 1.5",
        ),
        (
            partial(DeepCacheHelper.plan, num_inference_steps=9, strength=0.1),
            "with strength=0.1, none of the steps would run",
        ),
        (
            partial(DeepCacheHelper.plan, num_inference_steps=9, betas=[1]),
            "DDIMScheduler.set_timesteps refuses this: ",
        ),
        (
            partial(DeepCacheHelper.plan, num_inference_steps=2000),
            "DDIMScheduler.set_timesteps refuses this: ",
        ),
    ],
)
def test_what_no_generation_can_be_is_refused(call, message):
    with pytest.raises(InvalidSettingError) as caught:
        call(DeepCacheHelper(scheduled("ddim")))
    assert str(caught.value).startswith(message)


def test_the_first_step_of_what_will_run_is_full_whatever_is_written():
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, schedule=Explicit([0] * 5))
    assert str(helper.plan(5)) == "F····"
    with helper:
        CASES["sd"].run(pipe, steps=5)
        assert helper.last_generations["unet"].plan == helper.plan(5)


def test_a_written_plan_is_for_its_own_number_of_steps():
    helper = DeepCacheHelper(SD.load(), schedule=Explicit([FULL, 0, 0]))
    assert helper.plan(3) == (FULL, 0, 0)
    with pytest.raises(InvalidSettingError, match="this plan is written for 3 steps"):
        helper.plan(4)


def test_of_second_order_there_are_more_steps_than_are_asked_for():
    assert num_steps(scheduled("heun"), 10) == 19
    assert num_steps(scheduled("euler"), 10) == 10
    assert num_steps(scheduled("euler"), None) is None


def test_noise_levels_make_as_many_steps_as_the_scheduler_takes_them_for():
    # The level at the end is among those of Euler.
    assert num_steps(scheduled("euler"), None, sigmas=[9.0, 3.0, 1.0, 0.0]) == 3
    assert num_steps(scheduled("ddim"), None, sigmas=[9.0, 3.0, 1.0, 0.0]) is None
