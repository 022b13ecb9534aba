"""Schedules are arithmetic: exact plans, and errors that name value and range."""

import numpy as np
import pytest

from deepcache_patch import FULL, InvalidSettingError, Schedule, Uniform


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


def test_integers_of_other_libraries_become_python_integers():
    schedule = Uniform(np.int64(2), np.int32(1))
    assert (type(schedule.interval), type(schedule.branch)) == (int, int)


@pytest.mark.parametrize("interval", [0, -1, 2.0, "3", None, True])
def test_an_interval_that_is_no_positive_integer_is_refused(interval):
    with pytest.raises(InvalidSettingError, match=rf"interval .* at least 1, not {interval!r}"):
        Uniform(interval=interval)


@pytest.mark.parametrize("branch", [-1, 0.5, None, False])
def test_a_branch_that_is_no_natural_number_is_refused(branch):
    with pytest.raises(InvalidSettingError, match=rf"branch .* at least 0, not {branch!r}"):
        Uniform(branch=branch)


def test_a_generation_has_at_least_one_step():
    with pytest.raises(InvalidSettingError, match="num_steps"):
        Uniform().plan(0)


def test_anything_with_plan_is_a_schedule():
    class Mine:
        def plan(self, num_steps):
            return [FULL] * num_steps

    assert isinstance(Mine(), Schedule)
    assert isinstance(Uniform(), Schedule)
    assert not isinstance([FULL, 0], Schedule)
