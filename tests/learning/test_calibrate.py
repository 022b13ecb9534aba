"""`helper.calibrate`: what was asked for is what is got, and a failure leaves no trace."""

import itertools
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders.cases import CASES
from builders.marks import mostly_slow
from conftest import trace

from deepcache_patch import (
    Calibrated,
    DeepCacheHelper,
    DeepCacheWarning,
    InvalidSettingError,
    NoiseAware,
    Uniform,
)
from deepcache_patch.learning import calibrate, nearest, trials
from deepcache_patch.learning.reached import Reached
from deepcache_patch.learning.trials import Trials
from deepcache_patch.measuring.similarity import psnr
from deepcache_patch.running.stats import Stats
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.placing import cheapest, cheapest_by

pytestmark = pytest.mark.usefixtures("kept_tables")

LDM = CASES["ldm"]


class FakeClock:
    """In the place of `LoopClock`: each call of the U-Net takes what the test says.

    A call in full costs `plain` while the helper is paused and `full` while it is not. All of it
    is multiplied by what `noise` returns.
    """

    plain, full, shallow = 1.0, 1.0, 0.125
    noise = staticmethod(lambda: 1.0)
    helper = None
    runs = 0

    def __init__(self, unet):
        self._unet = unet
        self._calls = self._full = 0

    def __enter__(self):
        type(self).runs += 1
        self._paused = self.helper is not None and self.helper._paused.get()
        self._handles = [
            self._unet.register_forward_hook(lambda *_: self._add("_calls")),
            self._unet.mid_block.register_forward_hook(lambda *_: self._add("_full")),
        ]
        return self

    def _add(self, name):
        setattr(self, name, getattr(self, name) + 1)

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()

    @property
    def seconds(self):
        assert self._calls > 0
        full = self.plain if self._paused else self.full
        exact = self._full * full + (self._calls - self._full) * self.shallow
        return exact * type(self).noise()


@pytest.fixture(scope="module")
def counted():
    """By branch, the work of a shallow call of `pipe`: counted once, it takes as long as a run."""
    return {}


@pytest.fixture
def clock(monkeypatch, counted):
    class Clock(FakeClock):
        pass

    def share(helper, name, study):
        if study.branch not in counted:
            counted[study.branch] = count(helper, name, study)
        return counted[study.branch]

    count = calibrate._share
    monkeypatch.setattr(calibrate, "_share", share)
    monkeypatch.setattr(trials, "LoopClock", Clock)
    return Clock


@pytest.fixture(scope="module")
def pipe():
    """One for all: what is tested leaves it as it was."""
    return LDM.load()


@pytest.fixture(scope="module")
def untouched(pipe):
    """The trace of its U-Net before any test."""
    return trace(pipe.unet)


def counts(helper, run):
    before = helper.stats
    run()
    after = helper.stats
    return after.full_calls - before.full_calls, after.shallow_calls - before.shallow_calls


# --- so many full steps -------------------------------------------------------------------------


@pytest.mark.parametrize("full", [1, 3, 7, 8])
def test_as_many_full_steps_as_were_asked_for(full, pipe):
    run = partial(LDM.run, pipe, steps=8)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    found = helper.calibrate(run, branch=0, full_steps=full)
    assert isinstance(found, Calibrated)
    assert len(found.plan(8).full_steps) == full
    assert helper.schedule is found
    assert counts(helper, run) == (full, 8 - full)
    helper.disable()


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (
            {"full_steps": 3},
            "full_steps=3 is fewer than run in full in any case, by first and last: 4; "
            "give 4 or more",
        ),
        (
            {"speedup": 2.5},
            "speedup=2.5 is out of reach: at branch -1 at most 2.00×, with 4 of 8 steps in full, "
            "as a shallow call is 0.0% of a full one's work; ask for less",
        ),
    ],
)
def test_fewer_full_steps_than_are_protected_are_refused(pipe, goal, message):
    helper = DeepCacheHelper(pipe, first=3, last=1)
    with pytest.raises(InvalidSettingError) as caught:
        helper.calibrate(partial(LDM.run, pipe, steps=8), **goal)
    assert str(caught.value) == message


def test_more_full_steps_than_there_are_are_refused(pipe):
    untouched, helper = trace(pipe.unet), DeepCacheHelper(pipe, schedule=Uniform())
    with pytest.raises(InvalidSettingError) as caught:
        helper.calibrate(partial(LDM.run, pipe, steps=8), branch=0, full_steps=9)
    assert str(caught.value) == ("full_steps=9 is more than the generation has: 8; give fewer")
    assert helper.schedule == Uniform()
    assert trace(pipe.unet) == untouched


def test_a_psnr_that_takes_all_steps_is_told(pipe, monkeypatch):
    # The pictures themselves are quantised: with one step left out they may be identical.
    monkeypatch.setattr(Trials, "closeness_by", lambda *_: [150.0])
    with pytest.warns(DeepCacheWarning) as caught:
        found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=5), psnr=200)
    assert [str(each.message) for each in caught] == [
        "psnr=200 takes all 5 steps in full, so nothing is faster; ask for less, or give full_steps"
    ]
    assert len(found.entries.full_steps) == 5


def test_the_branch_is_the_one_that_was_asked_for(pipe):
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=6), full_steps=2, branch=2)
    assert found.branches == (2,)


def test_several_generations_in_one_run_are_one_calibration(pipe):
    def generations(seeds):
        for seed in seeds:
            LDM.run(pipe, steps=9, seed=seed)

    with pytest.warns(DeepCacheWarning, match="plans are not compared"):  # nothing is returned
        found, single = (
            DeepCacheHelper(pipe).calibrate(partial(generations, seeds), full_steps=4)
            for seeds in (range(3), range(1))
        )
    assert len(found.plan(9).full_steps) == 4
    assert found.weights.keys() == single.weights.keys()
    assert found.weights != single.weights  # three pictures, not the last or the first


def test_the_same_run_gives_the_same_schedule(pipe):
    run = partial(LDM.run, pipe, steps=8)
    first, second = (DeepCacheHelper(pipe).calibrate(run, branch=0, full_steps=3) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_it_goes_by_the_schedule_in_another_helper(pipe, tmp_path):
    run = partial(LDM.run, pipe, steps=8)
    DeepCacheHelper(pipe).calibrate(run, branch=0, full_steps=3).save(tmp_path / "schedule.json")
    schedule = Calibrated.load(tmp_path / "schedule.json")
    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        assert counts(helper, run) == (3, 5)


# --- so close to the plain pictures -------------------------------------------------------------


def shown(pipe):
    """What the pipeline itself returns."""
    return pipe(num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="np")


def test_the_fewest_full_steps_that_come_so_close_are_taken(pipe, monkeypatch):
    monkeypatch.setattr(trials, "nearest_way", lambda *_: nearest.USUAL_WAY)
    run = partial(LDM.run, pipe, steps=6)
    (plain,) = run().numpy()
    reached = {}
    for count in range(1, 7):
        helper = DeepCacheHelper(pipe, schedule=Uniform())
        helper.calibrate(run, branch=0, full_steps=count)
        with helper:
            (picture,) = run().numpy()
        # Beyond, it is float32's rounding, which a CPU does not repeat: as good as identical.
        reached[count] = min(psnr(plain, picture), 110.0)
    # Halving finds the fewest where more full steps are never worse.
    assert sorted(reached.values()) == list(reached.values())
    finite = [each for each in reached.values() if each < 110]
    assert len(set(finite)) > 1
    for below, above in pairwise([*finite, 110]):
        for target in {finite[-1], (below + above) / 2}:
            helper = DeepCacheHelper(pipe, schedule=Uniform())
            found = helper.calibrate(run, branch=0, psnr=target)
            assert len(found.plan(6).full_steps) == min(
                count for count, each in reached.items() if each >= target
            )
            assert helper.schedule is found


@pytest.mark.parametrize(
    "kind", mostly_slow(["pictures", "output", "list of outputs", "PIL"], ["output", "PIL"])
)
def test_run_may_return_what_the_pipeline_did(kind, pipe):
    def run():
        output = shown(pipe)
        if kind == "pictures":
            return output.images
        if kind == "PIL":
            return pipe.numpy_to_pil(output.images)
        return [output, shown(pipe)] if kind == "list of outputs" else output

    found = DeepCacheHelper(pipe).calibrate(run, branch=0, psnr=0)
    assert len(found.plan(6).full_steps) == 1


def test_one_array_is_one_picture(pipe):
    # Each of its rows counted as a picture, so that there seemed to be eight of them or more.
    found = DeepCacheHelper(pipe).calibrate(lambda: shown(pipe).images[0], full_steps=2)
    assert found.reached.pictures == 1


@pytest.mark.slow
def test_the_mean_of_several_pictures_counts(pipe, monkeypatch):
    # The second picture is 20 dB closer: the mean reaches 30 dB with the first at 20.
    monkeypatch.setattr(Trials, "closeness_by", lambda *_: [20.0, 40.0])

    def run():
        return [shown(pipe), shown(pipe)]

    assert len(DeepCacheHelper(pipe).calibrate(run, branch=0, psnr=30).plan(6).full_steps) == 1
    with pytest.warns(DeepCacheWarning, match="psnr=30.1 takes all 6 steps in full"):
        found = DeepCacheHelper(pipe).calibrate(run, branch=0, psnr=30.1)
    assert len(found.plan(6).full_steps) == 6


def test_full_steps_are_taken_away_while_the_nearest_plan_is_close_enough(pipe, monkeypatch):
    # The number was looked for by one way to go, which for others is not the nearest.
    ways = itertools.chain([nearest.Way()], itertools.repeat(nearest.Way(None)))
    monkeypatch.setattr(trials, "nearest_way", lambda *_: next(ways))

    def closeness(self, schedule):
        count = len(schedule.entries.full_steps)
        usual = nearest.Way().schedule(self.study, count)
        return [60.0 if count >= (5 if schedule == usual else 2) else 40.0]

    monkeypatch.setattr(Trials, "closeness_by", closeness)
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=12), psnr=50)
    assert len(found.entries.full_steps) == 2
    assert (found.reached.psnr, found.reached.default_psnr) == (60.0, 40.0)


def test_a_picture_that_is_identical_does_not_reach_the_goal_for_others(pipe):
    # One black picture of a safety checker made the mean infinite, and one full step enough.
    def run():
        made = LDM.run(pipe, steps=12).numpy()
        return [made[0], np.zeros_like(made[0])]

    found = DeepCacheHelper(pipe).calibrate(run, branch=0, psnr=60)
    alone = DeepCacheHelper(pipe).calibrate(lambda: run()[:1], branch=0, psnr=60)
    assert found.entries == alone.entries
    assert found.reached.psnr == alone.reached.psnr
    assert found.reached.pictures == 2


def test_pictures_that_are_fewer_than_before_are_refused(pipe):
    counts = iter([2, 2, 1])

    def run():
        made = LDM.run(pipe, steps=12).numpy()
        return [made[0]] * next(counts)

    with pytest.raises(InvalidSettingError, match=r"run\(\) returned 1 pictures, and 2 before"):
        DeepCacheHelper(pipe).calibrate(run, branch=0, full_steps=4)


def test_plain_pictures_with_nan_are_refused_for_a_psnr(pipe):
    with pytest.raises(InvalidSettingError, match="the plain pipeline makes pictures with NaN"):
        DeepCacheHelper(pipe).calibrate(
            lambda: LDM.run(pipe, steps=5).numpy() * np.nan, branch=0, psnr=40
        )


def test_of_few_steps_the_default_leaves_out_none_so_nothing_is_said_of_it(pipe):
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=8), full_steps=3)
    assert (found.reached.default_psnr, found.reached.pictures) == (None, 1)


# --- so many times as fast ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def share(pipe):
    """Of a full call's work, what a shallow one is at branch 0."""
    return DeepCacheHelper(pipe).branches[0].share


def by_work(full, steps, share):
    return steps / (full + (steps - full) * share)


@pytest.mark.parametrize("speedup", mostly_slow([1, 1.3, 2, 3], [2]))
@pytest.mark.parametrize("branch", mostly_slow([0, 1], [1]))
def test_the_most_full_steps_that_are_so_fast_by_work_are_taken(branch, speedup, clock, pipe):
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    share = clock.shallow = helper.branches[branch].share
    fast = [full for full in range(1, 10) if by_work(full, 9, share) >= speedup]
    run = partial(LDM.run, pipe, steps=9)
    if not fast:
        with pytest.raises(InvalidSettingError, match="is out of reach"):
            helper.calibrate(run, speedup=speedup, branch=branch)
        return
    found = helper.calibrate(run, speedup=speedup, branch=branch)
    assert len(found.plan(9).full_steps) == max(fast)
    assert found.reached.work == by_work(max(fast), 9, share)
    assert helper.schedule is found


@pytest.mark.parametrize("enabled", [True, False])
def test_counts_begin_anew_after_a_calibration(enabled, clock, pipe):
    # `print(helper)` showed the runs of the calibration, as if they were the user's.
    helper, run = DeepCacheHelper(pipe), partial(LDM.run, pipe, steps=12)
    if enabled:
        helper.enable()
    found = helper.calibrate(run, branch=0, speedup=2)
    assert helper.enabled == enabled
    assert (helper.stats, helper.last_generations) == (Stats(), {})
    assert f"  plan      {found.entries} (of 12 steps)\n" in f"{helper}"
    with helper:
        run()
        assert helper.stats.generations == 1
        assert helper.last_generations["unet"].plan == found.entries
    helper.disable()


@pytest.mark.parametrize("shallow", mostly_slow([0.0, 0.1], [0.1]))
def test_a_shallow_call_that_takes_less_than_its_work_adds_no_full_steps(shallow, clock, pipe):
    clock.shallow = shallow
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=12), branch=0, speedup=2)
    assert len(found.plan(12).full_steps) == 5  # (12/2 - 12·0.138) / (1 - 0.138)


def test_timings_that_agree_and_are_fast_enough_are_taken_three_times(clock, pipe, share):
    clock.shallow = share
    runs = []

    def run():
        runs.append(LDM.run(pipe, steps=12))
        return runs[-1]

    found = DeepCacheHelper(pipe).calibrate(run, branch=0, speedup=2)
    assert clock.runs == 3 * 2
    levels = context_of(pipe, 12).levels
    plans = {cheapest(levels, 5, power=power) for power in (0, 0.8, 1.0, 1.5)}
    plans.add(cheapest_by(range(12), [1] * 12, 5))  # evenly spaced
    # To learn, once more without the helper, and by each plan.
    assert len(runs) == 2 + len(plans) + clock.runs
    reached = found.reached
    expected = by_work(5, 12, share)
    assert (reached.timings, reached.speed) == (3, pytest.approx(expected))
    assert reached.quartiles == pytest.approx((expected, expected))
    assert reached.work == expected
    close = pytest.approx(psnr(runs[0][0].numpy(), runs[-1][0].numpy()))
    assert reached.psnr == reached.worst_psnr == close
    assert reached.default_psnr == reached.psnr  # the default's plan was the nearest
    assert str(reached) == (
        f"{expected:.2f}× measured ({expected:.2f}–{expected:.2f}, 3 timings), "
        f"{expected:.2f}× by work, {reached.psnr:.1f} dB (worst {reached.psnr:.1f}), "
        "over 1 picture, too few to be sure: give 8 or more"
    )


def test_each_number_of_full_steps_has_its_own_nearest_plan(clock, pipe, monkeypatch):
    # What was nearest with 10 full steps was taken with 9: 2.5 dB worse than the default there.
    asked = []

    def spied(study, full_steps, _error):
        asked.append(full_steps)
        return nearest.USUAL_WAY

    monkeypatch.setattr(trials, "nearest_way", spied)
    clock.shallow = 0.25
    run = partial(LDM.run, pipe, steps=12)
    found = DeepCacheHelper(pipe).calibrate(run, branch=0, speedup=2)
    assert asked == [5, 4] == [5, len(found.entries.full_steps)]


def test_a_shallow_call_that_takes_longer_than_its_work_costs_full_steps(clock, pipe, share):
    clock.shallow = 0.25
    assert share < 0.25 < 2 * share
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=12), branch=0, speedup=2)
    assert len(found.plan(12).full_steps) == 4  # (12/2 - 12/4) / (1 - 1/4)
    assert (found.reached.speed, found.reached.timings) == (2, 3)
    assert clock.runs == 2 * (9 + 3)  # with 5 full steps, which is too slow, and with 4


@pytest.mark.slow
def test_no_more_full_steps_are_taken_away_than_twice_the_work_explains(clock, pipe, share):
    # With 1 of 12 steps in full it would not be twice as fast, either.
    clock.shallow = 0.9
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    with pytest.warns(DeepCacheWarning) as caught:
        found = helper.calibrate(partial(LDM.run, pipe, steps=12), branch=0, speedup=2)
    assert [str(each.message) for each in caught] == [
        "speedup=2 is not reached: 1.08× measured (1.08–1.08, 9 timings), 2.83× by work, with 3 of "
        "12 steps in full; a shallow call takes longer here than its work says, so ask for more, "
        "or give full_steps"
    ]
    assert caught[0].filename == __file__
    assert len(found.plan(12).full_steps) == 3 == int((6 - 12 * 2 * share) / (1 - 2 * share))
    assert helper.schedule is found


def test_no_more_than_half_of_the_full_steps_are_taken_away(clock, pipe):
    # At branch 1 a call of twice the work leaves no way to be so fast.
    clock.shallow = 0.95
    with pytest.warns(DeepCacheWarning, match="speedup=1.5 is not reached: 1.04× measured"):
        found = DeepCacheHelper(pipe).calibrate(
            partial(LDM.run, pipe, steps=12), speedup=1.5, branch=1
        )
    assert len(found.plan(12).full_steps) == 3  # (12/1.5 - 12·0.357) / (1 - 0.357) are 5


@pytest.mark.parametrize("speedup", [6, 12, 999])
def test_a_speed_that_is_out_of_reach_by_work_is_refused(speedup, clock, pipe, share):
    helper = DeepCacheHelper(pipe, schedule=Uniform(4))
    with pytest.raises(InvalidSettingError) as caught:
        helper.calibrate(partial(LDM.run, pipe, steps=12), branch=0, speedup=speedup)
    assert str(caught.value) == (
        f"speedup={speedup} is out of reach: at branch 0 at most {by_work(1, 12, share):.2f}×, "
        "with 1 of 12 steps in full, as a shallow call is 13.8% of a full one's work; ask for less"
    )
    assert clock.runs == 0
    assert helper.schedule == Uniform(4)
    assert not helper.enabled


@pytest.mark.parametrize(
    ("speedup", "full"), mostly_slow([(1.5, 1.1), (2, 1.1), (2, 1.3)], [(2, 1.3)])
)
def test_full_steps_that_cost_more_than_plain_ones_still_give_the_speed(speedup, full, clock, pipe):
    # Recording takes time: then a plan of full steps alone is slower than the plain pipeline.
    clock.full, clock.shallow = full, 0.14
    clock.helper = helper = DeepCacheHelper(pipe, schedule=Uniform())
    found = helper.calibrate(partial(LDM.run, pipe, steps=12), branch=0, speedup=speedup)
    count = len(found.plan(12).full_steps)
    assert 12 / (count * full + (12 - count) * 0.14) >= speedup


def test_work_that_cannot_be_counted_is_refused(clock, pipe, monkeypatch):
    monkeypatch.setattr("deepcache_patch.learning.calibrate._share", lambda *_: None)
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    with pytest.raises(InvalidSettingError) as caught:
        helper.calibrate(partial(LDM.run, pipe, steps=4), branch=0, speedup=2)
    assert str(caught.value) == (
        "speedup cannot be a goal here, because the work of this U-Net's shallow calls cannot be "
        "counted: give full_steps or psnr"
    )
    found = helper.calibrate(partial(LDM.run, pipe, steps=4), branch=0, full_steps=2)
    assert found.reached.work is None


# --- on a busy machine --------------------------------------------------------------------------


class ByPlan:
    """A clock that asks the helper what a run would be, so that nothing need run."""

    helper = share = noise = None

    def __init__(self, _unet):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def seconds(self):
        full = 6 if self.helper._paused.get() else len(self.helper.schedule.plan(6).full_steps)
        return (full + (6 - full) * self.share) * type(self).noise()


def test_a_busy_moment_does_not_change_the_plan(pipe, share, monkeypatch):
    # One timing of each, and never again, gave one full step of ten where something else ran.
    monkeypatch.setattr("deepcache_patch.learning.trials.LoopClock", ByPlan)
    monkeypatch.setattr(ByPlan, "share", share)
    # Counted once for all, as it takes longer than the rest.
    monkeypatch.setattr("deepcache_patch.learning.calibrate._share", lambda *_: share)
    counted, said = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)

        def noise(random=random):
            return random.uniform(0.97, 1.03) * (4 if random.random() < 0.2 else 1)

        monkeypatch.setattr(ByPlan, "noise", staticmethod(noise))
        monkeypatch.setattr(ByPlan, "helper", helper := DeepCacheHelper(pipe, schedule=Uniform()))
        runs = iter([partial(LDM.run, pipe, steps=6)])  # only the first, which teaches
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeepCacheWarning)
            found = helper.calibrate(
                lambda runs=runs: next(runs, lambda: None)(), branch=0, speedup=2
            )
        counted.append(len(found.plan(6).full_steps))
        said.append(sum("timings vary too much" in str(each.message) for each in caught))
    assert counted == [2] * 20
    assert 0 < sum(said) < 20  # some are too noisy to be sure, and say so


def test_a_shortfall_that_the_timings_do_not_prove_is_told(clock, pipe, share):
    """The plan stayed, and nobody heard that it may be slower than what was asked for."""
    clock.shallow = share
    factors = itertools.cycle([1.2, 1.25, 1.1])  # 2.35 / these: 1.96, 1.88 and 2.14
    timed = itertools.cycle([lambda: 1.0, lambda: next(factors)])
    clock.noise = staticmethod(lambda: next(timed)())
    run = partial(LDM.run, pipe, steps=6)
    with pytest.warns(DeepCacheWarning) as caught:
        found = DeepCacheHelper(pipe).calibrate(run, speedup=2, branch=0)
    (message,) = (str(each.message) for each in caught)
    exact = by_work(2, 6, share)
    assert message.startswith(
        "timings vary too much to see whether speedup=2 is reached: "
        f"{exact / 1.2:.2f}× measured ({exact / 1.25:.2f}–{exact / 1.1:.2f}, 9 timings), "
    )
    assert len(found.plan(6).full_steps) == 2


def test_timings_that_vary_too_much_are_not_gone_by(clock, pipe, share):
    # All are too slow, but each by another factor.
    clock.shallow = share
    factors = itertools.cycle([2.0, 2.5, 4.0])  # 2.35 / these: about 1.18, 0.94 and 0.59
    timed = itertools.cycle([lambda: 1.0, lambda: next(factors)])
    clock.noise = staticmethod(lambda: next(timed)())
    with pytest.warns(DeepCacheWarning) as caught:
        found = DeepCacheHelper(pipe).calibrate(
            partial(LDM.run, pipe, steps=6), branch=0, speedup=2
        )
    exact = by_work(2, 6, share)
    assert [str(each.message) for each in caught] == [
        f"timings vary too much to see whether speedup=2 is reached: {exact / 2.5:.2f}× measured "
        f"({exact / 4:.2f}–{exact / 2:.2f}, 9 timings), {exact:.2f}× by work, with 2 of 6 steps in "
        "full; the plan stays, calibrate again while little else runs, or give full_steps"
    ]
    assert len(found.plan(6).full_steps) == 2
    assert found.reached.timings == 9


# --- what was reached ---------------------------------------------------------------------------


def test_a_number_of_full_steps_is_told_with_its_work_and_how_near_it_came(pipe, share):
    run = partial(LDM.run, pipe, steps=12)
    (plain,) = run().numpy()
    found = DeepCacheHelper(pipe).calibrate(run, branch=0, full_steps=4)
    with DeepCacheHelper(pipe, schedule=found):
        (picture,) = run().numpy()
    near = pytest.approx(psnr(plain, picture), abs=0.01)  # of float32 that adds up in any order
    work, reached = by_work(4, 12, share), found.reached
    close = dict.fromkeys(("psnr", "worst_psnr"), reached.psnr)
    with DeepCacheHelper(pipe, schedule=NoiseAware(3, 0)):
        (default,) = run().numpy()
    near_by_default = pytest.approx(psnr(plain, default), abs=0.01)
    assert reached == Reached(work, **close, default_psnr=near_by_default, pictures=1)
    assert reached.psnr == near
    assert repr(found).endswith(f": {work:.2f}× by work, {reached.psnr:.1f} dB)")


def test_a_psnr_is_told_with_the_worst_picture(pipe, share, monkeypatch):
    monkeypatch.setattr(Trials, "closeness_by", lambda *_: [20.0, 40.0])
    found = DeepCacheHelper(pipe).calibrate(lambda: [shown(pipe), shown(pipe)], branch=0, psnr=30)
    assert found.reached == Reached(
        work=by_work(1, 6, share), psnr=30.0, worst_psnr=20.0, pictures=2
    )
    assert str(found.reached) == (
        f"{by_work(1, 6, share):.2f}× by work, 30.0 dB (worst 20.0), "
        "over 2 pictures, too few to be sure: give 8 or more"
    )


@pytest.mark.parametrize("kind", mostly_slow(["nothing", "other pictures", "latents"]))
def test_without_the_same_pictures_each_time_there_is_no_psnr(kind, clock, pipe):
    def run():
        result = draws() if kind == "other pictures" else LDM.run(pipe, steps=4)
        return {"nothing": None, "latents": result.permute(0, 3, 1, 2)}.get(kind, result)

    draws = Draws(pipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepCacheWarning)
        found = DeepCacheHelper(pipe).calibrate(run, branch=0, speedup=1.5)
    obstacles = {
        "nothing": (
            "run() must return what the pipeline returned, with pictures as PIL or NumPy, not "
            "latents; it returned NoneType"
        ),
        "latents": (
            "run() must return what the pipeline returned, with pictures as PIL or NumPy, not "
            "latents; it returned Tensor"
        ),
        "other pictures": (
            "run() makes other pictures each time: give the pipeline a seeded generator in it"
        ),
    }
    assert [str(each.message) for each in caught] == [
        f"plans are not compared, and the default's is taken: {obstacles[each]}"
        for each in obstacles
        if each == kind
    ]
    assert (found.reached.psnr, found.reached.worst_psnr) == (None, None)
    assert found.reached.speed >= 1.5


def test_what_was_reached_is_kept_in_the_file(clock, pipe, tmp_path):
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=6), branch=0, speedup=1.5)
    found.save(tmp_path / "schedule.json")
    loaded = Calibrated.load(tmp_path / "schedule.json")
    assert loaded.to_dict() == found.to_dict()
    assert str(loaded.reached) == str(found.reached)
    assert repr(loaded) == repr(found)


@pytest.mark.filterwarnings("ignore:timings vary:deepcache_patch.DeepCacheWarning")
@pytest.mark.filterwarnings("ignore:speedup=1 is not:deepcache_patch.DeepCacheWarning")
def test_time_is_measured_with_a_clock_that_runs(pipe):
    # Not how fast, only that it is asked for and found.
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    found = helper.calibrate(partial(LDM.run, pipe, steps=4), branch=0, speedup=1)
    assert len(found.plan(4).full_steps) == 4
    assert 3 <= found.reached.timings <= 9
    assert 0 < found.reached.quartiles[0] <= found.reached.speed <= found.reached.quartiles[1]


# --- before and after ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    mostly_slow([{"full_steps": 2}, {"psnr": 10}, {"speedup": 1.5}], 1),
    ids=["full_steps", "psnr", "speedup"],
)
@pytest.mark.parametrize("enabled", mostly_slow([True, False], 1), ids=["enabled", "disabled"])
def test_a_helper_stays_enabled_or_disabled(enabled, asked, clock, pipe, untouched):
    run = partial(LDM.run, pipe, steps=6)
    plain = run()
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    if enabled:
        helper.enable()
    found = helper.calibrate(run, branch=0, **asked)
    assert helper.enabled is enabled
    assert helper.schedule is found
    if not enabled:
        assert trace(pipe.unet) == untouched
        assert torch.equal(run(), plain)
    full = len(found.plan(6).full_steps)
    helper.enable()
    assert counts(helper, run) == (full, 6 - full)
    with helper.paused():
        assert torch.equal(run(), plain)
    helper.disable()
    assert trace(pipe.unet) == untouched


def test_the_pipelines_progress_bar_says_which_run_it_is_and_of_how_many(clock, pipe):
    said = []

    def run():
        said.append(pipe._progress_bar_config["desc"])
        return LDM.run(pipe, steps=4)

    before = vars(pipe).get("_progress_bar_config")
    DeepCacheHelper(pipe).calibrate(run, branch=0, speedup=1)
    assert said == [f"calibration, run {number} of about 16" for number in range(1, 10)]
    assert len(said) == 3 + 6  # there is one plan in which all steps run in full
    assert vars(pipe).get("_progress_bar_config") == before


@pytest.mark.parametrize("goal", mostly_slow([{"full_steps": 7}, {"psnr": 40}], [{"psnr": 40}]))
def test_how_many_runs_a_goal_takes_is_said_before_the_first(goal, pipe):
    # Thirty runs went by, and nothing told when they would end.
    said = []

    def run():
        said.append(pipe._progress_bar_config["desc"])
        return LDM.run(pipe, steps=18)

    DeepCacheHelper(pipe).calibrate(run, **goal)
    word, total = ("about", 31) if "psnr" in goal else ("at most", 10)
    expected = [f" of {word} {total}"] * total + [", more than expected"] * 99
    assert said == [
        f"calibration, run {number}{of_all}"
        for number, of_all in enumerate(expected[: len(said)], 1)
    ]
    assert len(said) <= total or "psnr" in goal


def nothing():
    pass


def two_lengths(pipe):
    LDM.run(pipe, steps=4)
    LDM.run(pipe, steps=5)


def fails(pipe):
    LDM.run(pipe, steps=4)
    raise KeyError("in run")


class Draws:
    """A run without a seed: other pictures each time."""

    def __init__(self, pipe):
        self.pipe, self.seed = pipe, 0

    def __call__(self):
        self.seed += 1
        return LDM.run(self.pipe, steps=4, seed=self.seed)


FAILURES = {
    "nothing asked for": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {},
        InvalidSettingError,
        "give one of speedup, full_steps and psnr, not none",
    ),
    "two asked for": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"speedup": 2, "psnr": 30},
        InvalidSettingError,
        "give one of speedup, full_steps and psnr, not speedup and psnr",
    ),
    "slower": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"speedup": 0.5},
        InvalidSettingError,
        "speedup must be a number from 1 to 1000, not 0.5",
    ),
    "speed of words": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"speedup": "2x"},
        InvalidSettingError,
        "speedup must be a number from 1 to 1000, not '2x'",
    ),
    "no full step": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"full_steps": 0},
        InvalidSettingError,
        "full_steps must be an integer of at least 1, not 0",
    ),
    "half a full step": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"full_steps": 2.5},
        InvalidSettingError,
        "full_steps must be an integer of at least 1, not 2.5",
    ),
    "negative decibels": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"psnr": -1},
        InvalidSettingError,
        "psnr must be a number from 0 to 200, not -1",
    ),
    "negative branch": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"full_steps": 2, "branch": -2},
        InvalidSettingError,
        "branch must be an integer of at least -1, not -2",
    ),
    "branch too high": (
        lambda pipe: partial(LDM.run, pipe, steps=4),
        {"full_steps": 2, "branch": 99},
        InvalidSettingError,
        "branch 99 is out of range",
    ),
    "no function": (
        lambda pipe: "a prompt",
        {"full_steps": 2},
        InvalidSettingError,
        "run must be a function that calls the pipeline, not 'a prompt'",
    ),
    "calls nothing": (
        lambda pipe: nothing,
        {"full_steps": 2},
        InvalidSettingError,
        r"run\(\) started no generation of this pipeline",
    ),
    "two numbers of steps": (
        lambda pipe: partial(two_lengths, pipe),
        {"full_steps": 2},
        InvalidSettingError,
        "must be of one kind, but the generation has 5 steps, not 4",
    ),
    "no seed": (
        lambda pipe: Draws(pipe),
        {"psnr": 30},
        InvalidSettingError,
        r"with psnr=, run\(\) makes other pictures each time: give the pipeline a seeded generator",
    ),
    "nothing returned": (
        lambda pipe: lambda: (LDM.run(pipe, steps=4), None)[1],
        {"psnr": 30},
        InvalidSettingError,
        r"with psnr=, run\(\) must return what the pipeline returned, .*; it returned NoneType",
    ),
    "no pictures returned": (
        lambda pipe: lambda: (LDM.run(pipe, steps=4), "done")[1],
        {"psnr": 30},
        InvalidSettingError,
        "it returned str",
    ),
    "an error of its own": (
        lambda pipe: partial(fails, pipe),
        {"full_steps": 2},
        KeyError,
        "in run",
    ),
}


@pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_leaves_everything_as_it_was(name, enabled, pipe, untouched):
    make, asked, error, message = FAILURES[name]
    helper = DeepCacheHelper(pipe, schedule=Uniform(2))
    schedule = helper.schedule
    if enabled:
        helper.enable()
    with pytest.raises(error, match=message):
        helper.calibrate(make(pipe), **{"branch": 0, **asked})
    assert helper.schedule is schedule
    assert helper.enabled is enabled
    if not enabled:
        assert trace(pipe.unet) == untouched
    helper.enable()
    assert counts(helper, partial(LDM.run, pipe, steps=4)) == (2, 2)
    helper.disable()


def test_a_failure_on_the_way_leaves_everything_as_it_was(clock, pipe, untouched):
    # Not in the first run, which learns, but in the third, which goes by a schedule already.
    runs = []

    def run():
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return LDM.run(pipe, steps=4)

    helper = DeepCacheHelper(pipe, schedule=Uniform(2))
    with pytest.raises(KeyboardInterrupt):
        helper.calibrate(run, branch=0, speedup=1.5)
    assert helper.schedule == Uniform(2)
    assert not helper.enabled
    assert trace(pipe.unet) == untouched
    with helper:
        assert counts(helper, partial(LDM.run, pipe, steps=4)) == (2, 2)


def test_outputs_that_are_not_finite_teach_nothing(pipe):
    handle = pipe.unet.conv_out.register_forward_hook(lambda _m, _a, output: output / 0)
    with pytest.warns(DeepCacheWarning, match="the plain pipeline makes pictures with NaN"):
        found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=9), full_steps=4)
    handle.remove()
    assert len(found.entries.full_steps) == 4
    assert found.weights == {}


def test_nothing_runs_in_steps_above_the_output_and_each_has_weights(pipe, monkeypatch):
    monkeypatch.setattr(trials, "nearest_way", lambda *_: nearest.USUAL_WAY)
    run = partial(LDM.run, pipe, steps=12)
    helper = DeepCacheHelper(pipe).enable()
    found = helper.calibrate(run, full_steps=5)
    assert found.entries == NoiseAware(12 / 5).plan_for(context_of(pipe, 12))
    assert found.branches == (-1,)
    assert found.reached.work == 12 / 5
    full = found.entries.full_steps
    shallow = [step for step in range(full[1], 11) if step not in full]
    assert list(found.weights) == [
        (step, *[each for each in reversed(full) if each < step][:3]) for step in shallow
    ]
    assert counts(helper, run) == (5, 7)
    helper.disable()


def test_a_speed_is_that_of_the_full_steps_alone(clock, pipe):
    clock.shallow = 0.0
    found = DeepCacheHelper(pipe).calibrate(partial(LDM.run, pipe, steps=12), speedup=2.2)
    assert len(found.entries.full_steps) == 5
    assert found.reached.work == 12 / 5


def context_of(pipe, steps):
    pipe.scheduler.set_timesteps(steps)
    timesteps = tuple(map(float, pipe.scheduler.timesteps.tolist()))
    return Context(steps, timesteps, pipe.scheduler, pipe.unet)


def test_a_bare_unet_has_nothing_to_calibrate(pipe, untouched):
    helper = DeepCacheHelper(pipe.unet, schedule=Uniform())
    with pytest.raises(InvalidSettingError, match="needs a pipeline that runs the timesteps"):
        helper.calibrate(partial(LDM.run, pipe, steps=4), branch=0, full_steps=2)
    assert trace(pipe.unet) == untouched


def test_a_pipeline_of_another_helper_is_not_calibrated(pipe):
    other = LDM.load()
    with pytest.raises(InvalidSettingError, match="started no generation of this pipeline"):
        DeepCacheHelper(pipe).calibrate(partial(LDM.run, other, steps=4), branch=0, full_steps=2)
