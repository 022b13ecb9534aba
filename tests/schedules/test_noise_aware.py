"""Plans by noise levels: the cheapest of all, the same rule for every spacing."""

import doctest
import itertools
import math
import warnings

import pytest
from builders.schedulers import SCHEDULERS
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

import deepcache_patch.schedules.noise_aware
from deepcache_patch import DeepCacheWarning, Explicit, InvalidSettingError, NoiseAware
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.noise import adds_noise
from deepcache_patch.schedules.placing import FEW_STEPS, cheapest, usual_levels
from deepcache_patch.schedules.window import Window

#: Stable Diffusion's.
BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}

SPACINGS = {
    "dpm-leading": lambda: DPMSolverMultistepScheduler(timestep_spacing="leading", **BETAS),
    "dpm-linspace": lambda: DPMSolverMultistepScheduler(timestep_spacing="linspace", **BETAS),
    "dpm-trailing": lambda: DPMSolverMultistepScheduler(timestep_spacing="trailing", **BETAS),
    "dpm-karras": lambda: DPMSolverMultistepScheduler(use_karras_sigmas=True, **BETAS),
    "euler": lambda: EulerDiscreteScheduler(timestep_spacing="leading", **BETAS),
    "ddpm-linear": lambda: DDIMScheduler(beta_schedule="linear"),  # sigma from 128
    "euler-video": lambda: EulerDiscreteScheduler(
        sigma_min=0.002, sigma_max=700.0, use_karras_sigmas=True, timestep_type="continuous"
    ),
    "ddim": lambda: DDIMScheduler(set_alpha_to_one=False, **BETAS),
}


def context(scheduler, steps, *, strength=1.0, window=None):
    """Of a generation by this scheduler, of which the last steps run."""
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[steps - int(steps * strength) :].tolist()
    made = Context(len(timesteps), tuple(timesteps), scheduler)
    return made if window is None else Context(**{**vars(made), "window": window})


def cost(levels, full):
    """What a plan costs, as the docstring of `NoiseAware` says it."""
    used = [abs(b - a) for a, b in itertools.pairwise(levels)] + [1.0]
    last, total = 0, 0.0
    for step, level in enumerate(levels):
        if step in full:
            last = step
        else:
            drift = abs(math.log(math.exp(level) + 0.15) - math.log(math.exp(levels[last]) + 0.15))
            total += used[step] * drift * (1 + min(math.exp(level), 8)) ** 0.8
    return total


@pytest.mark.parametrize("count", range(1, 10))
def test_no_plan_with_as_many_full_steps_costs_less(count):
    levels = (2.5, 2.2, 1.1, 0.9, 0.85, 0.1, -1.0, -1.2, -3.0)
    others = itertools.combinations(range(1, len(levels)), count - 1)
    least = min(cost(levels, {0, *other}) for other in others)
    assert len(cheapest(levels, count)) == count
    assert math.isclose(cost(levels, set(cheapest(levels, count))), least, rel_tol=1e-12)


@pytest.mark.parametrize("count", [3, 5])
def test_what_is_protected_is_in_the_plan_and_in_the_budget(count):
    levels = (2.5, 2.2, 1.1, 0.9, 0.85, 0.1, -1.0, -1.2, -3.0)
    protected = frozenset({4, 8})
    others = itertools.combinations([1, 2, 3, 5, 6, 7], count - 3)
    least = min(cost(levels, {0, 4, 8, *other}) for other in others)
    found = set(cheapest(levels, count, protected))
    assert len(found) == count
    assert found >= protected
    assert math.isclose(cost(levels, found), least, rel_tol=1e-12)


def test_more_protected_steps_than_the_budget_all_run_in_full():
    assert cheapest((2.0, 1.0, 0.0, -1.0), 1, frozenset({1, 3})) == (0, 1, 3)


@pytest.mark.parametrize(
    ("steps", "count", "protected"),
    [(100, 30, range(30)), (200, 100, range(100)), (244, 40, [*range(17), *range(222, 244)])],
    ids=["nothing beside them", "half of the steps", "both ends"],
)
def test_many_protected_steps_leave_wide_gaps_and_the_budget_holds(steps, count, protected):
    """Regression: wider gaps than 64 steps were not looked for; then protected steps were missing
    and others were full in their place, so that more ran in full than the budget allows.
    """
    found = cheapest(usual_levels(steps), count, frozenset(protected))
    assert len(found) == count
    assert {*found} >= {*protected}


def test_the_plan_of_generations_that_are_alike_is_looked_for_once():
    levels = usual_levels(50)
    assert cheapest(levels, 20) is cheapest(tuple(levels), 20)
    assert cheapest(levels, 20) is not cheapest(levels, 20, power=1.5)


@pytest.mark.parametrize(
    ("scheduler", "steps", "strength", "plan"),
    [
        ("dpm-leading", 25, 1.0, "FFF·F·F·F··F···F···F··F·F"),
        ("dpm-linspace", 25, 1.0, "FFFF·F·F··F···F···F···F·F"),
        ("dpm-trailing", 25, 1.0, "FFFF·F·F··F···F···F···F·F"),
        ("dpm-karras", 25, 1.0, "F·F·F·F·F·F·F·F··F··F··F·"),
        ("euler", 30, 1.0, "FFF·F·F·F··F···F···F···F··F·FF"),
        ("ddim", 50, 1.0, "FFFFFF·F·F·F·F··F··F··F···F···F···F···F···F··F·FFF"),
        ("ddpm-linear", 50, 1.0, "FFFFFF·F·F·F·F·F·F·F··F··F···F····F····F···F··F·FF"),
        ("euler-video", 25, 1.0, "F··F·F·F·F·F·F·F·F·F·F···"),
        ("ddim", 50, 0.5, "F··F··F··F··F··F··F·F·FFF"),
    ],
)
def test_one_rule_gives_the_plan_of_every_spacing(scheduler, steps, strength, plan):
    made = context(SPACINGS[scheduler](), steps, strength=strength)
    assert str(NoiseAware().plan_for(made)) == plan


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_plan_has_an_entry_for_each_step_of_any_scheduler(name):
    made = context(SCHEDULERS[name](BETAS), 20)
    plan = NoiseAware().plan_for(made)
    assert len(plan) == made.num_steps
    assert len(plan.full_steps) == int(made.num_steps / 2.2)
    assert plan == NoiseAware().plan_for(made)


@pytest.mark.parametrize(
    ("interval", "steps", "full"),
    [(1, 20, 20), (2, 20, 10), (2.5, 20, 8), (3, 20, 6), (2.2, 25, 11), (100, 20, 1), (2, 9, 4)],
)
def test_the_interval_is_a_budget_that_need_not_be_a_whole_number(interval, steps, full):
    assert len(NoiseAware(interval).plan(steps).full_steps) == full


@pytest.mark.parametrize("steps", range(2, FEW_STEPS + 1))
def test_few_steps_run_in_full_and_say_so(steps):
    made = context(DDIMScheduler(), steps)
    with pytest.warns(DeepCacheWarning, match=f"has {steps} steps and runs in full"):
        plan = NoiseAware().plan_for(made)
    assert plan.full_steps == tuple(range(steps))


def test_all_in_full_on_request_warns_of_nothing():
    assert str(NoiseAware(1).plan_for(context(DDIMScheduler(), 4))) == "FFFF"


def test_what_a_window_protects_comes_on_top():
    plan = NoiseAware(2.5).plan_for(context(DDIMScheduler(), 20, window=Window(first=4, last=2)))
    assert {0, 1, 2, 3, 18, 19} <= set(plan.full_steps)
    assert len(plan.full_steps) == 6 + 5  # two of five of the other fourteen


def test_a_protected_generation_of_few_steps_has_nothing_to_warn_of():
    made = context(DDIMScheduler(), 6, window=Window(first=6))
    assert str(NoiseAware().plan_for(made)) == "FFFFFF"
    assert str(NoiseAware().plan_for(context(DDIMScheduler(), 1))) == "F"


def test_without_a_scheduler_the_top_of_the_unet_runs():
    unknown = Context(12, tuple(range(12, 0, -1)), None)
    assert NoiseAware().plan_for(unknown).branches == (0,)
    assert NoiseAware().plan_for(unknown).full_steps == NoiseAware().plan(12).full_steps
    assert NoiseAware(branch=3).plan_for(unknown).branches == (3,)


def test_where_the_number_of_steps_is_a_guess_full_steps_are_evenly_spaced():
    guess = Context(10, None, None, is_guess=True)
    assert str(NoiseAware(2.5).plan_for(guess)) == "F·F··F·F··"


@pytest.mark.parametrize("interval", [0.9, 0, -1, 1001, "3", None, True, float("nan")])
def test_an_interval_out_of_range_is_refused(interval):
    with pytest.raises(InvalidSettingError, match=r"interval must be a number from 1 to 1000"):
        NoiseAware(interval)


def test_a_branch_out_of_range_is_refused():
    with pytest.raises(InvalidSettingError, match="branch must be an integer of at least -1"):
        NoiseAware(branch=-2)


def test_the_examples_of_the_docstrings_are_right():
    assert doctest.testmod(deepcache_patch.schedules.noise_aware).failed == 0


def test_the_plan_is_the_same_where_noise_is_added():
    ancestral = context(EulerAncestralDiscreteScheduler(**BETAS), 30)
    plain = context(EulerDiscreteScheduler(**BETAS), 30)
    assert (adds_noise(ancestral.scheduler), adds_noise(plain.scheduler)) == (True, False)
    assert NoiseAware().plan_for(ancestral) == NoiseAware().plan_for(plain)


def test_an_interval_beyond_the_steps_is_told():
    known = context(EulerDiscreteScheduler(**BETAS), 12)
    with pytest.warns(DeepCacheWarning) as caught:
        plan = NoiseAware(100).plan_for(known)
    assert [str(each.message) for each in caught if each.category is DeepCacheWarning] == [
        "interval=100 is more than the 12 steps that the generation has: as few as possible run in "
        "full; lower the interval, or the speedup"
    ]
    assert plan.full_steps == (0,)
    said = (
        "interval=100 is more than the 12 steps that the generation has: as few as possible run in "
        "full; lower the interval, or the speedup"
    )
    assert NoiseAware(100).remark_on(plan) == said  # `plan` and `print(helper)` before it runs
    assert NoiseAware(12).remark_on(plan) is None
    assert (
        NoiseAware(100).remark_on(Explicit(["full"] * 12).entries) is None
    )  # it leaves out nothing
    assert NoiseAware(12).plan_for(known).full_steps == (0,)  # and nothing is said


@pytest.mark.parametrize(
    ("steps", "interval", "is_told"),
    [(9, 2.2, True), (15, 2.2, True), (16, 2.2, False)]
    + [(steps, 1.5, False) for steps in range(9, 16)],
)
def test_steps_so_few_that_pictures_move_are_told_once(steps, interval, is_told):
    known = context(EulerDiscreteScheduler(**BETAS), steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        NoiseAware(interval).plan_for(known)
        NoiseAware(interval).plan_for(known)
    said = [str(each.message) for each in caught if each.category is DeepCacheWarning]
    assert said == is_told * [
        f"the generation has {steps} steps; with 15 steps or fewer pictures move far from the "
        "plain ones: try the default with interval=1.5"
    ]


def test_few_steps_that_run_in_full_are_told_with_the_cure_of_either_place():
    known = context(EulerDiscreteScheduler(**BETAS), 8)
    with pytest.warns(DeepCacheWarning) as caught:
        plan = NoiseAware().plan_for(known)
    assert [str(each.message) for each in caught if each.category is DeepCacheWarning] == [
        "the generation has 8 steps and runs in full: with 8 or fewer none can be left out without "
        "harm; to leave some out all the same, give schedule=Uniform(2), or --schedule uniform on "
        "the command line"
    ]
    assert len(plan.full_steps) == 8
