"""`helper.set`: what changes, what stays, and that a refused change leaves everything as it was."""

import pytest
import torch
from builders.loops import Written, kinds_of_steps, loop
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import counted_calls, trace
from zoo import CASES as ZOO

from deepcache_patch import (
    FULL,
    Adaptive,
    Auto,
    Centred,
    DeepCacheHelper,
    Explicit,
    Extrapolate,
    InvalidSettingError,
    NoiseAware,
    Reuse,
    Uniform,
)


@pytest.fixture(scope="module")
def unet():
    return unet2d_condition()


def schedule_after(unet, before, changes):
    helper = DeepCacheHelper(unet, **before)
    assert helper.set(**changes) is helper
    return str(helper.schedule)


@pytest.mark.parametrize(
    ("before", "changes", "expected"),
    [
        # What is not given stays, and so does the kind of schedule.
        ({}, {"interval": 3}, NoiseAware(3, -1)),
        ({"branch": 0}, {"interval": 3}, NoiseAware(3, 0)),
        ({"schedule": NoiseAware(2.2, branch=0)}, {"interval": 3}, NoiseAware(3, 0)),
        ({"interval": 3}, {"branch": 1}, NoiseAware(3, 1)),
        ({"schedule": "uniform", "interval": 4}, {"branch": 2}, Uniform(4, 2)),
        ({"schedule": Uniform(4, 2)}, {"interval": 2}, Uniform(2, 2)),
        ({"schedule": Centred(5, 10, 1.2, 1)}, {"interval": 4}, Centred(4, 10, 1.2, 1)),
        ({"schedule": "auto"}, {"interval": 4}, Auto(4, -1)),
        ({"schedule": Auto(4, 0)}, {"branch": 1}, Auto(4, 1)),
        (
            {"schedule": Adaptive(0.1, (0, 2), interval=2, longest=5)},
            {"interval": 3},
            Adaptive(0.1, (0, 2), interval=3, longest=5),
        ),
        (
            {"schedule": Adaptive(0.1, (0, 2), interval=2, longest=5)},
            {"branch": 1},
            Adaptive(0.1, (1,), interval=2, longest=5),
        ),
        ({"schedule": Written(FULL)}, {"first": 1}, None),
        # A schedule by its name takes over what was given, and nothing that was not.
        ({}, {"schedule": "uniform"}, Uniform(3, 0)),
        ({"interval": 4}, {"schedule": "uniform"}, Uniform(4, 0)),
        ({"branch": 2}, {"schedule": "uniform"}, Uniform(3, 2)),
        ({"interval": 4, "branch": 2}, {"schedule": "uniform", "interval": 5}, Uniform(5, 2)),
        ({"schedule": Uniform(4, 2)}, {"schedule": "noise-aware"}, NoiseAware()),
        ({"schedule": "uniform"}, {"schedule": "noise-aware"}, NoiseAware(2.2, -1)),
        (
            {"schedule": "uniform", "interval": 3, "branch": 0},
            {"schedule": "noise-aware"},
            NoiseAware(3, 0),
        ),
        ({"interval": 4}, {"schedule": "auto"}, Auto(4, -1)),
        ({"branch": 1}, {"schedule": "adaptive"}, Adaptive(branches=(1,))),
        ({"interval": 4}, {"schedule": "centred"}, Centred(4)),
        # An object is taken as it is.
        ({"interval": 4, "branch": 2}, {"schedule": Uniform()}, Uniform(3, 0)),
        # A speedup stands in the place of the interval.
        ({"schedule": Uniform(4, 0)}, {"schedule": "noise-aware", "speedup": 1}, NoiseAware(1)),
        ({"interval": 4, "branch": 0}, {"speedup": 1}, NoiseAware(1, 0)),
        ({"speedup": 1}, {"interval": 2.5}, NoiseAware(2.5, -1)),
        ({"schedule": Uniform(4, 0)}, {"schedule": "auto", "speedup": 1}, Auto(1)),
        ({"schedule": "auto"}, {"speedup": 1}, Auto(1)),
        ({"speedup": 1}, {"schedule": "uniform"}, Uniform(3, 0)),
        ({"speedup": 1}, {"schedule": "auto"}, Auto(1)),
        ({"speedup": 1}, {"schedule": "auto", "interval": 2}, Auto(2)),
        ({"interval": 3}, {"schedule": "auto"}, Auto(3)),
    ],
)
def test_what_is_given_changes_and_the_rest_stays(unet, before, changes, expected):
    expected = before["schedule"] if expected is None else expected
    assert schedule_after(unet, before, changes) == str(expected)


def test_a_speedup_reckons_with_the_branch_in_force_and_its_interval_is_shown_rounded(unet):
    # It was shown with seventeen digits.
    helper = DeepCacheHelper(unet, branch=0).set(speedup=1.5)
    share = helper.branches[0].share
    assert helper.branch == 0
    assert helper.interval == pytest.approx((1 - share) / (1 / 1.5 - share), rel=1e-12)
    shown = f"NoiseAware(interval={helper.interval:g}, branch=0)"
    assert len(shown) < len(str(helper.schedule))
    assert repr(helper) == f"DeepCacheHelper(UNet2DConditionModel, {shown}, disabled)"
    assert f"  schedule  {shown}" in str(helper).splitlines()


def test_what_a_speedup_has_become_stays_when_the_branch_changes_and_the_schedule_then(unet):
    # `auto` went back to 2.2.
    helper = DeepCacheHelper(unet, speedup=3)
    interval = helper.interval
    assert helper.set(branch=0).schedule == NoiseAware(interval, 0)
    assert str(helper.set(schedule="auto").schedule) == str(Auto(interval, 0))


def test_a_mistyped_setting_of_the_constructor_is_answered_by_the_one_that_is_meant(unet):
    # It was a TypeError without a hint.
    with pytest.raises(InvalidSettingError, match=r"'intervall': did you mean 'interval'\?"):
        DeepCacheHelper(unet, intervall=3)


def test_several_changes_add_up(unet):
    helper = DeepCacheHelper(unet).set(interval=4).set(branch=2).set(schedule="uniform")
    assert helper.schedule == Uniform(4, 2)
    assert helper.set(schedule="noise-aware").schedule == NoiseAware(4, 2)


def test_what_was_given_is_remembered_through_another_schedule(unet):
    # `compare` and `calibrate` follow another one meanwhile.
    helper = DeepCacheHelper(unet, schedule="uniform", interval=3)
    default = helper.schedule
    helper.follow(Explicit([FULL, 0]))
    helper.follow(default)
    assert helper.set(schedule="noise-aware").schedule == NoiseAware(3, -1)


def test_a_schedule_that_is_followed_by_its_name_has_its_own_settings(unet):
    helper = DeepCacheHelper(unet, interval=4, branch=2)
    helper.follow("uniform")
    assert helper.schedule == Uniform()
    assert helper.set(schedule="noise-aware").schedule == NoiseAware()


def test_window_and_replay_change_each_alone(unet):
    helper = DeepCacheHelper(unet, interval=4, first=1, last=2)
    schedule = helper.schedule
    helper.set(first=3)
    assert (helper.first, helper.last, helper.replay) == (3, 2, Extrapolate())
    helper.set(last=0.1)
    assert (helper.first, helper.last, helper.replay) == (3, 0.1, Extrapolate())
    helper.set(replay="reuse", first=0)
    assert (helper.first, helper.last, helper.replay) == (0, 0.1, Reuse())
    assert helper.schedule is schedule


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({"interval": 2.2}, True),
        ({"branch": -1}, True),
        ({"schedule": "auto"}, True),
        ({"schedule": "auto", "interval": 2.2, "first": 2}, True),
        ({"interval": 2.5}, False),
        ({"branch": 0}, False),
        ({"schedule": Auto()}, False),
        ({"schedule": "default"}, False),
    ],
)
def test_auto_that_is_given_once_more_keeps_what_it_has_learned(unet, changes, is_kept):
    helper = DeepCacheHelper(unet, schedule="auto")
    schedule = helper.schedule
    helper.set(**changes)
    assert (helper.schedule is schedule) == is_kept


def test_interval_and_branch_can_be_read_where_the_schedule_has_them(unet):
    for schedule, interval, branch in (
        (None, 2.2, -1),
        (Uniform(4, 2), 4, 2),
        (Auto(3, 0), 3, 0),
        (Adaptive(branches=(1,)), 1.5, 1),
        (Adaptive(branches=(0, 2)), 1.5, None),
        (Explicit([FULL, 1, 1]), None, 1),
        (Explicit([FULL, 1, 2]), None, None),
        (Written(FULL, 0), None, None),
    ):
        helper = DeepCacheHelper(unet, schedule=schedule)
        assert (helper.interval, helper.branch) == (interval, branch)


@pytest.mark.parametrize("name", ["interval", "branch", "speedup", "schedule", "first", "replay"])
def test_assigning_a_setting_names_the_cure(unet, name):
    helper = DeepCacheHelper(unet)
    with pytest.raises(AttributeError) as caught:
        setattr(helper, name, 3)
    assert str(caught.value) == (
        f"{name} cannot be assigned to: call helper.set({name}=3) to change it"
    )
    with pytest.raises(AttributeError):
        helper.intervall = 3
    assert helper.schedule == NoiseAware()


# --- in force -----------------------------------------------------------------------------------


def test_a_generation_under_way_goes_on_with_a_full_step(unet):
    timesteps = torch.arange(8, 0, -1) * 100
    kinds = ""
    with DeepCacheHelper(unet, schedule=Uniform(4)) as helper, torch.no_grad():
        for step, timestep in enumerate(timesteps):
            if step == 2:
                helper.set(interval=3)
            if step == 4:
                helper.set()  # nothing is changed
            with counted_calls(unet) as calls:
                unet(**(inputs2d_condition() | {"timestep": timestep}))
            kinds += "F" if calls["mid_block"] else "s"
    assert kinds == "FsFssFss"


def test_a_change_is_in_force_whenever_it_is_made(unet):
    expected = []
    for interval, replay in ((2, "reuse"), (3, "extrapolate")):
        settings = {"schedule": "uniform", "interval": interval, "replay": replay}
        with DeepCacheHelper(unet, **settings):
            expected.append(loop(unet))
    helper = DeepCacheHelper(unet).set(schedule="uniform", interval=2, replay="reuse").enable()
    try:
        assert torch.equal(loop(unet), expected[0])
        helper.set(interval=3, replay="extrapolate")
        assert torch.equal(loop(unet), expected[1])
        helper.set(first=2)
        assert kinds_of_steps(unet) == "FFsFssF"
    finally:
        helper.disable()


def test_what_auto_has_learned_stays_while_its_schedule_does():
    helper = DeepCacheHelper(ZOO["sd"].load(), schedule="auto")
    auto = helper.schedule
    helper.set(first=1)
    assert helper.schedule is auto
    helper.set(interval=3)
    assert helper.schedule is not auto


# --- refused ------------------------------------------------------------------------------------

NO_BRANCH_9 = "branch 9 is out of range: this UNet2DConditionModel has 9 skip connections"


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ({}, {"interval": 0}, "interval must be a number from 1 to 1000, not 0"),
        ({}, {"branch": 9}, NO_BRANCH_9),
        ({}, {"first": 1, "last": 2, "replay": "reuse", "branch": 9}, NO_BRANCH_9),
        ({}, {"interval": 3, "last": -1}, "last must be a number of steps"),
        ({}, {"interval": 3, "replay": "often"}, "replay must be 'reuse' or 'extrapolate'"),
        ({}, {"schedule": "uniform", "replay": Reuse}, "the class Reuse: did you mean Reuse()?"),
        ({}, {"schedule": Adaptive}, "the class Adaptive: did you mean Adaptive()?"),
        ({}, {"schedule": "unifrom"}, "did you mean 'uniform'?"),
        ({}, {"schedule": ""}, "there is no schedule ''; there are default"),
        ({}, {"schedule": "p.json"}, "a file is read by Calibrated.load('p.json')"),
        # It was Python's own error, by the name of a class that nobody has to know.
        (
            {},
            {"intervall": 3, "branch": 1},
            "there is no setting 'intervall': did you mean 'interval'? There are interval, branch, "
            "speedup, schedule, first, last, replay",
        ),
        (
            {},
            {"full_steps": 13},
            "there is no setting 'full_steps'; there are interval, branch, speedup, schedule, "
            "first, last, replay; give interval=steps / full_steps",
        ),
        ({}, {"foo": 1}, "there is no setting 'foo'; there are interval, branch, speedup, "),
        (
            {"interval": 2.5},
            {"schedule": "uniform"},
            "interval must be an integer of at least 1, not 2.5; interval=2.5 was given before, "
            "and stays unless another one is given",
        ),
        ({}, {"schedule": "auto", "replay": "reuse"}, "Auto brings its own replay"),
        ({}, {"schedule": Uniform(), "interval": 3}, "not both"),
        (
            {},
            {"speedup": 2, "interval": 3},
            "speedup=2 stands in the place of interval=3: give one",
        ),
        (
            {"schedule": "uniform"},
            {"speedup": 2},
            "the schedule is Uniform(interval=3, branch=0), which has no speedup: give "
            "schedule='noise-aware' or 'auto' with it",
        ),
        (
            {"schedule": Explicit([FULL, 0, 0])},
            {"interval": 2, "first": 1},
            "which has no interval that can be changed: give schedule='noise-aware', or another, "
            "with it",
        ),
    ],
)
def test_a_change_that_is_refused_changes_nothing(unet, before, changes, message):
    helper = DeepCacheHelper(unet, first=0.2, **before).enable()
    try:
        found, settings = trace(unet), helper._settings
        with pytest.raises(InvalidSettingError) as caught:
            helper.set(**changes)
        assert message in str(caught.value)
        assert helper._settings is settings
        assert (helper.first, helper.last, helper.replay) == (0.2, 0, Extrapolate())
        assert trace(unet) == found
    finally:
        helper.disable()


@pytest.mark.parametrize("schedule", ["auto", Auto()])
def test_a_schedule_with_a_replay_of_its_own_is_refused_where_another_is_in_force(unet, schedule):
    # The constructor refuses both together; one after the other they passed, and `helper.replay`
    # said what was not so.
    helper = DeepCacheHelper(unet, replay="reuse")
    with pytest.raises(InvalidSettingError) as caught:
        helper.set(schedule=schedule)
    assert str(caught.value) == (
        "Auto brings its own replay, and replay=Reuse() is in force: give replay='extrapolate' "
        "with the schedule, to give Reuse() up"
    )
    assert (helper.schedule, helper.replay) == (NoiseAware(), Reuse())
    # The cure was refused where it stood beside the schedule: "leave replay='extrapolate' out".
    for _ in range(2):  # the second time it was refused
        helper.set(schedule=schedule, replay="extrapolate")
        assert isinstance(helper.schedule, Auto)
        assert helper.replay == Extrapolate()
    helper.set(first=1)
    with pytest.raises(InvalidSettingError, match="leave replay='reuse' out"):
        helper.set(replay="reuse")


def test_a_schedule_with_a_replay_of_its_own_can_be_followed_for_a_while(unet):
    # As `compare` and `calibrate` do.
    helper = DeepCacheHelper(unet, schedule="uniform", replay="reuse")
    helper.follow("auto")
    assert helper.set(schedule="auto", interval=3).interval == 3
    helper.follow("uniform")
    assert helper.replay == Reuse()
