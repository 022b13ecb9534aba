"""The way that comes nearest to the plain pictures: which are tried, and which is taken."""

import math
from functools import partial

import numpy as np
import pytest
from builders.cases import CASES

from deepcache_patch import Calibrated, DeepCacheHelper, Uniform
from deepcache_patch.learning.nearest import USUAL_WAY, Way, nearest_way
from deepcache_patch.learning.study import Studying
from deepcache_patch.schedules.placing import cheapest
from deepcache_patch.schedules.plans import FULL, OUTPUT

LDM = CASES["ldm"]
STEPS = 20

#: Those that plans are tried with, in their order; `None` spaces full steps evenly.
POWERS = (0.8, 0.0, 1.0, 1.5, None)


def studied(branch=OUTPUT, **settings):
    pipe, studying = LDM.load(), Studying(branch)
    helper = DeepCacheHelper(pipe, **settings)
    helper.follow(studying)
    with helper:
        LDM.run(pipe, steps=STEPS)
    return studying.study


@pytest.fixture(scope="module")
def study():
    return studied()


def choose(study, wanted, full_steps=8):
    """What is taken where this way is the nearest, and all that was tried, each once."""
    tried = []

    def error(schedule):
        if schedule not in tried:
            tried.append(schedule)
        return 0.0 if schedule == wanted.schedule(study, full_steps) else 1.0

    return nearest_way(study, full_steps, error), tried


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("going_on", [{}, {"strength": 0.5}, {"damping": 1.0}, {"damping": 8.0}])
def test_each_plan_is_found_and_each_way_to_go_on_by_it(power, going_on, study):
    way = Way(power, **going_on)
    plan = Way(power)

    def error(schedule):
        nearest = [each.schedule(study, 8) for each in (way, plan)]
        return nearest.index(schedule) if schedule in nearest else 2

    found = nearest_way(study, 8, error)
    assert found.schedule(study, 8) == way.schedule(study, 8)


def test_each_plan_is_tried_once_and_then_each_way_to_go_on_by_the_nearest(study):
    found, tried = choose(study, Way(1.5))
    assert found == Way(1.5)
    plans = [Way(power).schedule(study, 8).entries for power in POWERS]
    assert [each.entries for each in tried[:-3]] == list(dict.fromkeys(plans))
    assert not any(each.weights for each in tried[:-3])  # all by the trend
    assert [each.entries for each in tried[-3:]] == [Way(1.5).schedule(study, 8).entries] * 3
    half, closely, damped = tried[-3:]
    assert half.weights == Way(1.5, strength=0.5).schedule(study, 8).weights
    assert closely.weights == study.learn(half.entries, damping=1.0).weights
    assert damped.weights == study.learn(half.entries).weights


@pytest.mark.parametrize("going_on", [{"strength": 0.5}, {"damping": 1.0}, {"damping": 8.0}])
def test_each_can_be_kept_in_a_file(going_on, study, tmp_path):
    # Half of the trend was written, and refused when it was read.
    schedule = Way(1.0, **going_on).schedule(study, 8)
    schedule.save(tmp_path / "schedule.json")
    loaded = Calibrated.load(tmp_path / "schedule.json")
    assert loaded.entries == schedule.entries
    assert loaded.weights.keys() == schedule.weights.keys()
    for step, weights in schedule.weights.items():
        assert loaded.weights[step] == pytest.approx(weights, rel=1e-4)  # five digits are kept


def test_pictures_that_are_not_finite_are_not_near(study):
    default = Way().schedule(study, 8)
    assert nearest_way(study, 8, lambda each: math.inf if each == default else 1.0) == Way(0.0)


def test_a_plan_whose_pictures_are_not_finite_is_not_taken():
    pipe = LDM.load()
    helper = DeepCacheHelper(pipe)

    def run():
        pictures = LDM.run(pipe, steps=12)
        plan = getattr(helper.schedule, "entries", None)
        return pictures * math.nan if plan == helper_plan else pictures

    helper_plan = DeepCacheHelper(pipe, interval=12 / 5).plan(12)
    found = helper.calibrate(run, full_steps=5)
    assert len(found.entries.full_steps) == 5
    assert found.entries != helper_plan


def test_of_equally_near_ones_the_default_is_taken(study):
    assert nearest_way(study, 8, lambda _: 0.0) == Way()


def test_where_nothing_can_be_compared_the_defaults_plan_is_taken_and_fitted(study):
    found = USUAL_WAY.schedule(study, 8)
    assert found.weights
    assert found == study.learn(found.entries)
    assert found.entries.full_steps == cheapest(study.levels, 8)


def test_full_steps_are_as_many_as_asked_for_and_evenly_spaced_without_a_power(study):
    for power in POWERS:
        assert len(Way(power).schedule(study, 8).entries.full_steps) == 8
    gaps = np.diff([*Way(None).schedule(study, 8).entries.full_steps, STEPS])
    assert set(gaps.tolist()) == {2, 3}


def test_half_of_the_trend_is_half_the_weight(study):
    plan = Way(1.0).schedule(study, 8).entries
    whole = {step: study.forecast.weights_of(step[0], step[1:]) for step in half_of(study)}
    assert half_of(study) == {
        step: (weight / 2, *[0.0] * (len(step) - 3)) for step, (weight,) in whole.items()
    }
    assert {step for step, *_ in whole} == {
        step for step in range(plan.full_steps[1], STEPS) if plan[step] != FULL
    }


def half_of(study):
    return Way(1.0, strength=0.5).schedule(study, 8).weights


def test_what_is_protected_is_full_by_each_plan():
    study = studied(first=3, last=2)
    for power in POWERS:
        assert {0, 1, 2, 18, 19} <= set(Way(power).schedule(study, 8).entries.full_steps)


def test_below_the_output_only_plans_are_compared():
    study = studied(branch=0)
    found, tried = choose(study, Way(1.5))
    assert found == Way(1.5)
    assert all(each.entries.branches == (0,) for each in tried)
    assert not any(each.weights for each in tried)
    assert len(tried) == len({each.entries for each in tried})


@pytest.mark.parametrize("branch", [OUTPUT, 0])
def test_what_calibrate_takes_is_the_nearest_of_all_that_it_tried(branch, monkeypatch):
    pipe = LDM.load()
    run = partial(LDM.run, pipe, steps=12)
    plain = run().numpy()
    errors = []

    def spied(study, full_steps, error):
        def known(schedule):
            errors.append((schedule, error(schedule)))
            return errors[-1][1]

        return nearest_way(study, full_steps, known)

    monkeypatch.setattr("deepcache_patch.learning.trials.nearest_way", spied)
    found = DeepCacheHelper(pipe, schedule=Uniform()).calibrate(run, branch=branch, full_steps=5)
    schedule, least = min(errors, key=lambda each: each[1])
    assert found == schedule
    with DeepCacheHelper(pipe, schedule=found):
        square = np.mean((run().numpy() - plain) ** 2)
    # Pixels differ by a millionth, and float32, added up in any order, by a tenth of that.
    assert least == pytest.approx(10 * math.log10(square), abs=0.05)
