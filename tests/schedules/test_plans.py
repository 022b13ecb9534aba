"""Schedules are arithmetic: exact plans, and errors that name value and range."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest

import deepcache_patch.schedules.plans
from deepcache_patch import (
    FULL,
    Centred,
    Explicit,
    InvalidSettingError,
    Plan,
    Schedule,
    Uniform,
)
from deepcache_patch.schedules.plans import number_between, schedule_text, whole_number


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (
            "NoiseAware(interval=1.7391304347826086, branch=0)",
            "NoiseAware(interval=1.73913, branch=0)",
        ),
        ("Auto(interval=3.0, branch=-1)", "Auto(interval=3, branch=-1)"),
        (Uniform(3), "Uniform(interval=3, branch=0)"),
        # The interval stands in the name and in the value of another parameter.
        ("Own(max_interval=3.05, interval=3.0)", "Own(max_interval=3.05, interval=3)"),
        ("Own(interval=3.05, x=3.0)", "Own(interval=3.05, x=3.0)"),
    ],
    ids=str,
)
def test_an_interval_is_shown_rounded_and_nothing_else_is(schedule, text):
    assert schedule_text(schedule) == text


@pytest.mark.parametrize(
    ("interval", "branch", "steps", "plan"),
    [
        (1, 0, 3, (FULL, FULL, FULL)),
        (2, 0, 5, (FULL, 0, FULL, 0, FULL)),
        (3, 4, 5, (FULL, 4, 4, FULL, 4)),
        (10, 1, 3, (FULL, 1, 1)),
        (3, 0, 1, (FULL,)),
    ],
)
def test_uniform_runs_every_nth_step_in_full(interval, branch, steps, plan):
    assert Uniform(interval, branch).plan(steps) == plan


def test_the_default_is_the_papers_one_in_three_at_branch_0():
    assert Uniform() == Uniform(interval=3, branch=0)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (Uniform, (np.int64(2), np.int32(1))),
        (Centred, (np.int64(2), np.int16(3), np.float32(1.5), np.int32(1))),
    ],
)
def test_numbers_of_other_libraries_become_pythons(kind, numbers):
    types = {name: type(value) for name, value in vars(kind(*numbers)).items()}
    assert types == {name: float if name == "power" else int for name in types}


@pytest.mark.parametrize("interval", [0, -1, 2.0, "3", None, True, np.True_])
def test_an_interval_that_is_no_positive_integer_is_refused(interval):
    with pytest.raises(InvalidSettingError, match=rf"interval .* at least 1, not {interval!r}"):
        Uniform(interval=interval)


@pytest.mark.parametrize("branch", [-2, 0.5, None, False, np.False_])
def test_a_branch_that_is_no_integer_from_minus_1_is_refused(branch):
    with pytest.raises(InvalidSettingError, match=rf"branch .* at least -1, not {branch!r}"):
        Uniform(branch=branch)


@pytest.mark.parametrize("schedule", [Uniform(), Centred()], ids=repr)
@pytest.mark.parametrize("steps", [0, -1, 2.5, None])
def test_a_generation_has_at_least_one_step(schedule, steps):
    with pytest.raises(InvalidSettingError, match="num_steps must be an integer of at least 1"):
        schedule.plan(steps)


def test_centred_gives_the_published_list():
    # T = 50, 10 full steps, centre 15, power 1.4. A signed real root gives other steps.
    published = (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)
    assert Centred(interval=5, center=15, power=1.4).plan(50).full_steps == published


@pytest.mark.parametrize("interval", [2, 3, 5, 10])
@pytest.mark.parametrize("steps", [20, 25, 50, 100, 250])
@pytest.mark.parametrize("center", [0, 5, 10, 15])
def test_centred_has_as_many_full_steps_as_uniform(interval, steps, center):
    plan = Centred(interval, center, power=1.4, branch=2).plan(steps)
    assert len(plan) == steps
    assert len(plan.full_steps) == len(Uniform(interval).plan(steps).full_steps)
    assert plan[0] == FULL
    assert plan.branches == (2,)


def test_a_list_of_one_full_step_is_the_first():
    assert Centred(interval=10).plan(5) == (FULL, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (Centred(interval=1, power=2), 2),  # by the formula, the second of two would be step 2
        (Centred(interval=5, power=1), 50),  # evenly spaced lists are those of `Uniform`
    ],
    ids=["beyond-the-end", "power-1"],
)
def test_there_is_no_list_beyond_the_end_and_none_for_power_1(schedule, steps):
    with pytest.raises(InvalidSettingError, match="there is no list of"):
        schedule.plan(steps)


def test_where_no_list_exists_centred_says_so():
    with pytest.raises(InvalidSettingError) as caught:
        Centred(interval=2, center=25).plan(50)
    assert str(caught.value) == (
        "there is no list of 25 full steps in 50 round step 25 for power 1.4: lower center or "
        "power, or raise interval"
    )


def test_explicit_is_what_is_written():
    schedule = Explicit([FULL, 0, np.int64(3), FULL])
    assert schedule.plan(4) == (FULL, 0, 3, FULL)
    assert schedule.branches == (0, 3)
    with pytest.raises(InvalidSettingError) as caught:
        schedule.plan(5)
    assert str(caught.value) == (
        "this plan is written for 4 steps, the generation has 5: write one with 5 entries"
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "a plan needs at least one entry, such as 'full'"),
        (["F"], "entry 0 must be an integer of at least -1, not 'F'"),
        ([FULL, -2], "entry 1 must be an integer of at least -1, not -2"),
        ([FULL, 0, 0.5], "entry 2 must be an integer of at least -1, not 0.5"),
        ([FULL, True], "entry 1 must be an integer of at least -1, not True"),
    ],
)
def test_entries_that_are_neither_full_nor_a_branch_are_refused(entries, message):
    with pytest.raises(InvalidSettingError) as caught:
        Explicit(entries)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Centred(interval=0), "interval must be an integer of at least 1, not 0"),
        (lambda: Centred(center=-1), "center must be an integer of at least 0, not -1"),
        (lambda: Centred(power=0.9), "power must be a number from 1 to 10, not 0.9"),
        (lambda: Centred(power="2"), "power must be a number from 1 to 10, not '2'"),
        (lambda: Centred(power=float("nan")), "power must be a number from 1 to 10, not nan"),
        (lambda: Centred(branch=-2), "branch must be an integer of at least -1, not -2"),
        (lambda: Centred(power=11), "power must be a number from 1 to 10, not 11"),
        (lambda: Centred(branch=None), "branch must be an integer of at least -1, not None"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(InvalidSettingError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("entries", "strip"),
    [
        ([FULL, 0, 0, FULL], "F··F"),
        ([FULL, 4, 4], "F··"),
        ([FULL, 0, 3, 11, FULL], "F03[11]F"),
        ([FULL], "F"),
        ([], ""),
    ],
)
def test_a_plan_is_printed_as_a_strip(entries, strip):
    assert str(Plan(entries)) == strip


def test_the_examples_in_the_docstrings_hold():
    outcome = doctest.testmod(deepcache_patch.schedules.plans)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_anything_with_plan_is_a_schedule():
    class Mine:
        def plan(self, num_steps):
            return [FULL] * num_steps

    assert isinstance(Mine(), Schedule)
    assert isinstance(Uniform(), Schedule)
    assert not isinstance([FULL, 0], Schedule)


@pytest.mark.parametrize("value", [True, np.True_], ids=["Python's", "numpy's"])
def test_a_bool_is_no_number_whatever_it_may_stand_for(value, monkeypatch):
    """An old numpy takes its bools for indices, with a warning that is not the user's to mend."""
    old = SimpleNamespace(index=int)
    monkeypatch.setattr(deepcache_patch.schedules.plans, "operator", old)
    with pytest.raises(InvalidSettingError) as caught:
        whole_number("steps", value, 0)
    assert str(caught.value) == f"steps must be an integer of at least 0, not {value!r}"
    with pytest.raises(InvalidSettingError) as caught:
        number_between("power", value, 0, 1)
    assert str(caught.value) == f"power must be a number from 0 to 1, not {value!r}"


@pytest.mark.parametrize(
    ("plan", "shown"),
    [
        (Plan(["full", 0, 0, "full"]), "Plan(F··F, branch 0)"),
        (Plan(["full", -1]), "Plan(F·, branch -1)"),
        (Plan(["full", 0, 3, 11]), "Plan(F03[11])"),
        (Plan(["full"] * 3), "Plan(FFF)"),
        (Plan(), "Plan()"),
        (Plan(["full", *[0] * 999]), f"Plan(F{'·' * 239}…, branch 0)"),
    ],
)
def test_a_plan_is_shown_by_its_strip(plan: Plan, shown: str) -> None:
    assert repr(plan) == shown


def test_a_notebook_gets_the_strip_and_what_is_counted_in_it() -> None:
    html = Plan(["full", -1, -1, "full"])._repr_html_()
    assert html.startswith("<table><caption>Plan</caption>")
    assert ">F··F</td>" in html
    assert ">2 of 4 steps in full, the others forecast</td>" in html
    assert html.count("<tr>") == 2
