"""Plans for a budget, thresholds that keep one, and the work that is counted against it."""

from types import SimpleNamespace

import pytest
from builders.cases import CASES
from diffusers import DDIMScheduler, PNDMScheduler

from benchmarks.deepcache import deepcache
from benchmarks.fidelity import work
from benchmarks.fidelity.rivals import plans
from benchmarks.fidelity.rivals.fitting import fitted
from benchmarks.fidelity.work import Calls
from deepcache_patch import FULL, DeepCacheHelper, Explicit


def strip(plan, steps):
    return "".join("F" if step in plan else "." for step in range(steps))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (plans.uniform, "F.F.F.F..F.F.F.F..F.F.F.."),
        (plans.zeus, "FFFFF...F...F..F...F...FF"),
        (plans.spectrum, "FFFFF.F.F..F..F...F...F.."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_eleven_full_steps_of_25(plan, expected):
    assert strip(plan(25, 11), 25) == expected


@pytest.mark.parametrize("plan", [plans.uniform, plans.zeus, plans.spectrum])
@pytest.mark.parametrize("steps", [4, 5, 20, 51])
def test_a_plan_has_as_many_full_steps_as_the_budget(plan, steps):
    made = [plan(steps, full_steps) for full_steps in range(1, steps + 1)]
    assert [len(set(each)) for each in made] == list(range(1, steps + 1))
    assert all(each == sorted(each) and each[0] == 0 and each[-1] < steps for each in made)


def test_spectrum_has_its_published_gaps_where_the_budget_is_theirs():
    # Window 2, growing by 0.75: gaps of 2, 2, 3, 4, 5, 5, 6, 7, 8.
    published = plans._growing(50, 5, 0.75)
    assert published == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    assert len(plans.spectrum(50, 14)) == 14


@pytest.mark.parametrize("low", [0.001, -1.0])
@pytest.mark.parametrize("budget", [3, 7, 10])
def test_a_threshold_keeps_the_budget(low, budget):
    tried = []

    def full_calls(threshold):
        tried.append(threshold)
        return 20 - int(15 * (threshold - low) / (4 - low))

    found = fitted(full_calls, budget, low, 4.0)
    assert len(tried) <= 9
    if budget == 3:  # out of reach: as fast as it can
        assert found == 4.0
    else:
        assert full_calls(found) == budget


def test_a_budget_that_is_jumped_over_is_not_exceeded():
    assert fitted(lambda threshold: 12 if threshold < 2 else 8, 10, 0.01, 100.0) >= 2


@pytest.mark.parametrize(
    ("calls", "speed", "share", "full_steps"),
    [
        (25, 2.2, 0.079, 10),
        (25, 2.2, 0, 11),
        (25, 1.8, 0.079, 12),
        (20, 2, 0, 10),  # a whole number is not missed
        (10, 2, 0.25, 3),  # 3 + 7/4 = 4.75; 4 + 6/4 = 5.5
        (5, 100, 0.5, 1),
    ],
)
def test_as_many_full_steps_as_the_work_allows(calls, speed, share, full_steps):
    assert work.full_steps_within(calls, speed, share) == full_steps


def test_work_is_full_calls_and_shares_of_shallow_ones():
    calls = Calls(10, {0: 4, 2: 2}, skipped=9)
    assert calls.work({0: 0.25, 1: 0.4, 2: 0.5}) == 12.0
    assert calls.work({0: 0.25}) is None
    assert Calls(3, {}, 5).work({}) == 3


def test_shares_of_real_networks_are_those_that_were_counted():
    assert work.counted_shares("sd15")[0] == pytest.approx(0.079, abs=5e-4)
    assert work.counted_shares("sdxl")[0] == pytest.approx(0.0145, abs=5e-5)


def test_pndm_makes_one_call_more_than_steps():
    assert work.calls_of(SimpleNamespace(scheduler=DDIMScheduler()), 50) == 50
    assert work.calls_of(SimpleNamespace(scheduler=PNDMScheduler(skip_prk_steps=True)), 50) == 51


def test_calls_of_the_published_package_are_counted():
    pytest.importorskip("DeepCache")
    case = CASES["sd"]
    pipe = case.load()
    with deepcache(pipe, 3, 0), work.counting(pipe.unet) as deep:
        case.run(pipe, steps=5)
    assert deep.calls == 2


def test_calls_of_a_helper_are_counted_by_branch():
    case = CASES["sd"]
    pipe = case.load()
    helper = DeepCacheHelper(pipe, schedule=Explicit([FULL, 0, 1, FULL, 1]))
    with helper, work.counting(pipe.unet) as deep:
        case.run(pipe, steps=5)
    assert deep.calls == 2
    assert work.calls_made(helper, 5, deep.calls, 0) == Calls(2, {0: 1, 1: 2})
    assert work.calls_made(None, 5, 2, 0) == Calls(2, {0: 3})
    assert work.calls_made(None, 5, 2, None) == Calls(2, {}, 3)
    shares = work.own_shares(pipe)
    assert list(shares) == list(range(-1, len(helper.branches)))
    assert shares[-1] == 0 < shares[0] < shares[1] < 1
