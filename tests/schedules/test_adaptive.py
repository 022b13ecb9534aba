"""Refreshed when the drift passes the tolerance: exact entries by hand, nothing waited for."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from builders.cases import CASES
from conftest import trace

from deepcache_patch import FULL, Adaptive, DeepCacheHelper, InvalidSettingError, Plan, Reuse
from deepcache_patch.schedules.adaptive import AdaptiveGuide
from deepcache_patch.schedules.guide import (
    Context,
    FinishedCall,
    GuidingSchedule,
    Position,
)

SD, LDM = CASES["sd"], CASES["ldm"]


def plan_of(schedule, values, steps):
    """The entries of a generation in which branch b's feature at step s is `values[b](s)`."""
    guide = schedule.begin(Context(steps, None, None, torch.nn.Identity()), Reuse())
    assert guide.num_steps == steps
    entries = []
    for step in range(steps):
        entry = guide.entry(step)
        entries.append(entry)
        recorded = {
            branch: torch.tensor([float(value(step))])
            for branch, value in values.items()
            if entry == FULL or branch < entry
        }
        guide.observe(FinishedCall(Position(0, step, 0, steps), torch.zeros(1), None, recorded))
    return Plan(entries)


# --- by hand ------------------------------------------------------------------------------------


def test_steps_are_shallow_while_the_drift_is_within_the_tolerance():
    # 1 % a step: after two steps 2 %, after three 3 %. The first drift is known at step 3.
    plan = plan_of(Adaptive(0.025), {0: lambda step: 100 + step}, 13)
    assert str(plan) == "FFF··F··F··F·"


def test_a_higher_tolerance_leaves_more_steps_shallow():
    plan = plan_of(Adaptive(0.045), {0: lambda step: 100 + step}, 13)
    assert str(plan) == "FFF····F····F"


def test_drift_as_large_as_the_tolerance_is_within_it():
    # Each step doubles the feature: it changes by a half of itself, exactly. Two steps on it has
    # changed by 1 - 1/4 over two steps.
    plan = plan_of(Adaptive(0.5), {0: lambda step: 2.0**step}, 8)
    # Step 3: 1/2. Step 4: 2 · 1/2, full. Step 5: what is known is still 1/2. Step 6: the change
    # from step 2 to 4 is 3/8 a step, two steps on.
    assert str(plan) == "FFF·F·F·"
    assert str(plan_of(Adaptive(0.499), {0: lambda step: 2.0**step}, 8)) == "FFFFFFFF"


def test_what_does_not_change_is_shallow_up_to_the_longest_gap():
    plan = plan_of(Adaptive(0.1, longest=4), {0: lambda step: 7}, 13)
    assert str(plan) == "FFF···F···F··"


def test_with_the_whole_tolerance_full_steps_are_the_longest_gap_apart():
    generator = torch.Generator().manual_seed(0)
    values = (1 + 0.1 * torch.rand(20, generator=generator)).tolist()  # never twice as large
    plan = plan_of(Adaptive(1, longest=3), {0: lambda step: values[step]}, 20)
    assert str(plan) == "FFF··F··F··F··F··F··"
    assert str(plan_of(Adaptive(1, longest=1), {0: lambda step: 7}, 6)) == "FFFFFF"


def test_a_jump_counts_two_steps_after_it_was_seen():
    # It doubles at step 5, a full one for its distance: 1/2 over three steps. Step 6 still goes by
    # what step 2 saw, and so does not know; steps 7 and 8 do; step 9 knows that 7 saw no change.
    plan = plan_of(Adaptive(0.05, longest=3), {0: lambda step: 200 if step >= 5 else 100}, 10)
    assert str(plan) == "FFF··F·FF·"


def test_the_shallowest_branch_within_the_tolerance_is_run():
    # Branch 0 changes by 4 % a step, branch 3 by 1 %. Step 3 is one step after the last full one.
    # At step 4 branch 0 has drifted 7.4 %, branch 3 only 2 %: it runs, and refreshes branch 0,
    # which step 5 replays. At step 8 branch 3 has drifted 5.9 %, too.
    values = {0: lambda step: 100 + 4 * step, 3: lambda step: 100 + step}
    plan = plan_of(Adaptive(0.05, branches=(0, 3)), values, 10)
    assert plan == (FULL, FULL, FULL, 0, 3, 0, 3, 0, FULL, 0)


def test_branches_may_be_named_in_any_order():
    values = {0: lambda step: 100 + 4 * step, 3: lambda step: 100 + step}
    first, second = Adaptive(0.05, branches=[3, 0]), Adaptive(0.05, branches=(0, 3))
    assert first.branches == second.branches == (0, 3)
    assert plan_of(first, values, 20) == plan_of(second, values, 20)


def test_equal_features_give_equal_plans():
    generator = torch.Generator().manual_seed(0)
    values = {
        branch: (1 + 0.3 * torch.rand(40, generator=generator)).tolist().__getitem__
        for branch in (0, 2)
    }
    schedule = Adaptive(0.2, branches=(0, 2))
    first = plan_of(schedule, values, 40)
    assert first == plan_of(schedule, values, 40)  # one generation leaves nothing to the next
    assert {FULL, 0, 2} == set(first)


def test_only_the_first_call_of_a_step_is_looked_at():
    guide = Adaptive(0.1).begin(Context(9, None, None, torch.nn.Identity()), Reuse())
    for step in range(3):
        assert guide.entry(step) == FULL
        for slot in range(2):
            # The second call's features would be a jump.
            feature = {0: torch.full((1,), 1.0 + 99 * slot)}
            guide.observe(FinishedCall(Position(0, step, slot, 9), torch.zeros(1), None, feature))
    assert guide.entry(3) == 0


def test_a_feature_of_another_shape_is_not_compared():
    guide = Adaptive(0.1).begin(Context(9, None, None, torch.nn.Identity()), Reuse())
    entries = []
    for step in range(8):
        entries.append(guide.entry(step))
        feature = {0: torch.ones(1 if step >= 4 else 2)} if entries[-1] == FULL else {}
        if step == 4:  # a call that ran in full because its batch had changed
            feature = {0: torch.ones(1)}
        guide.observe(FinishedCall(Position(0, step, 0, 9), torch.zeros(1), None, feature))
    assert str(Plan(entries)) == "FFF·····"


def test_features_of_zero_do_not_divide_by_zero():
    assert str(plan_of(Adaptive(0.1, longest=3), {0: lambda step: 0}, 9)) == "FFF··F··F"


def test_features_that_are_not_finite_are_computed():
    assert str(plan_of(Adaptive(1), {0: lambda step: float("nan")}, 5)) == "FFFFF"
    assert str(plan_of(Adaptive(1), {0: lambda step: float("inf")}, 5)) == "FFFFF"


def test_large_features_in_half_precision_do_not_overflow():
    guide = Adaptive(0.1).begin(Context(9, None, None, torch.nn.Identity()), Reuse())
    for step in range(3):
        guide.entry(step)
        feature = {0: torch.full((4, 4), 30000.0 + 32 * step, dtype=torch.float16)}
        guide.observe(FinishedCall(Position(0, step, 0, 9), torch.zeros(1), None, feature))
    assert guide.entry(3) == 0


# --- nothing waits for the device ---------------------------------------------------------------

#: Everything that brings a number from the device to the host.
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


class Watch:
    """Counts reads inside the guide, and when each copy is made and asked for."""

    def __init__(self):
        self.reads, self.asked = [], []
        self.inside = self.calls = self.copies = 0
        self.step = -1

    @contextmanager
    def watching(self, monkeypatch):
        with monkeypatch.context() as patched:
            for name in READS:
                patched.setattr(torch.Tensor, name, self._read(name, getattr(torch.Tensor, name)))
            for name in ("entry", "observe", "feature"):
                patched.setattr(AdaptiveGuide, name, self._guide(getattr(AdaptiveGuide, name)))
            patched.setattr("deepcache_patch.schedules.adaptive.HostCopy", partial(Copied, self))
            yield self

    def _read(self, name, original):
        def read(tensor, *args, **kwargs):
            if self.inside:
                self.reads.append(name)
            return original(tensor, *args, **kwargs)

        return read

    def _guide(self, original):
        def call(guide, first, *args, **kwargs):
            if original.__name__ == "entry":
                self.step = first
            self.calls += 1
            self.inside += 1
            try:
                return original(guide, first, *args, **kwargs)
            finally:
                self.inside -= 1

        return call


class Copied:
    """In the place of `HostCopy`: its value is known to the test, and not read off the tensor."""

    def __init__(self, watch, number):
        assert isinstance(number, torch.Tensor)
        assert number.shape == ()
        watch.copies += 1
        self._watch, self._made, self._number = watch, watch.step, number

    def value(self):
        self._watch.asked.append((self._made, self._watch.step))
        inside, self._watch.inside = self._watch.inside, 0
        value = self._number.item()
        self._watch.inside = inside
        return value


@pytest.mark.parametrize(
    "replay",
    [
        "reuse",
        "extrapolate",
    ],
)
def test_nothing_is_read_from_the_device_within_a_generation(replay, monkeypatch):
    pipe = SD.load()
    schedule = Adaptive(0.9, branches=(0, 4), longest=4)
    with DeepCacheHelper(pipe, schedule=schedule, replay=replay) as helper:
        expected = SD.run(pipe, steps=12)
        with Watch().watching(monkeypatch) as watch:
            assert torch.equal(SD.run(pipe, steps=12), expected)
    assert helper.stats.shallow_calls > 0
    assert watch.calls > 2 * 12  # entry and observe at each step, feature at the shallow ones
    assert watch.copies > 2
    assert watch.asked
    assert min(asked - made for made, asked in watch.asked) == Adaptive.delay == 2
    assert watch.reads == []


def test_the_watch_sees_reads(monkeypatch):
    # Or the test above could not fail.
    with Watch().watching(monkeypatch) as watch:
        watch.inside = 1
        number = torch.tensor(1.0)
        number.item(), number.tolist(), number.cpu(), number.numpy()
        bool(number), float(number), int(number)
        watch.inside = 0
        number.item()
    assert watch.reads == ["item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"]


# --- in a pipeline ------------------------------------------------------------------------------


def test_equal_generations_are_equal_and_the_counts_are_those_of_the_plan(monkeypatch):
    pipe = LDM.load()
    plain = LDM.run(pipe, steps=12)
    entries = []
    entry = AdaptiveGuide.entry

    def noted(guide, step):
        entries.append(entry(guide, step))
        return entries[-1]

    monkeypatch.setattr(AdaptiveGuide, "entry", noted)
    before = trace(pipe.unet)
    with DeepCacheHelper(pipe, schedule=Adaptive(1, longest=3)) as helper:
        first = LDM.run(pipe, steps=12)
        assert str(Plan(entries)) == "FFF··F··F··F"
        assert torch.equal(LDM.run(pipe, steps=12), first)
        assert entries[:12] == entries[12:]
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2 * 6, 2 * 6)
    assert not torch.equal(first, plain)
    assert trace(pipe.unet) == before
    assert torch.equal(LDM.run(pipe, steps=12), plain)


def test_what_no_drift_is_small_enough_for_is_the_plain_pipeline():
    pipe = LDM.load()
    plain = LDM.run(pipe, steps=8)
    with DeepCacheHelper(pipe, schedule=Adaptive(0)) as helper:
        assert torch.equal(LDM.run(pipe, steps=8), plain)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (8, 0)


def test_a_loop_whose_length_nobody_knows_runs_on():
    # A bare U-Net and timesteps that are plain numbers: the guide is renewed at step 64.
    unet = LDM.load().unet
    sample, full = torch.zeros(1, 3, 8, 8), []
    with DeepCacheHelper(unet, schedule=Adaptive(1, longest=5)) as helper, torch.no_grad():
        for step in range(100):
            before = helper.stats.full_calls
            unet(sample, float(100 - step))
            full += [step] * (helper.stats.full_calls - before)
    assert full == [0, 1, 2, *range(7, 64, 5), 64, 65, 66, *range(71, 100, 5)]


@pytest.mark.parametrize("replay", ["reuse", "extrapolate"])
def test_any_replay_may_be_given(replay):
    pipe = LDM.load()
    schedule = Adaptive(1, longest=3)
    with DeepCacheHelper(pipe, schedule=schedule, replay=replay) as helper:
        LDM.run(pipe, steps=9)
    kept = {"reuse": 1, "extrapolate": 2}[replay]
    assert helper.stats.cache_nbytes == kept * pipe.unet.config.block_out_channels[0] * 8 * 8 * 4


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adaptive(1.5), "tolerance must be a number from 0 to 1, not 1.5"),
        (lambda: Adaptive(-0.1), "tolerance must be a number from 0 to 1, not -0.1"),
        (lambda: Adaptive("low"), "tolerance must be a number from 0 to 1, not 'low'"),
        (lambda: Adaptive(longest=0), "longest must be an integer of at least 1, not 0"),
        (lambda: Adaptive(branches=()), r"branches must be different integers, not \(\)"),
        (lambda: Adaptive(branches=(1, 1)), r"branches must be different integers, not \(1, 1\)"),
        (lambda: Adaptive(branches=(0, -2)), "a branch must be an integer of at least -1, not -2"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(InvalidSettingError, match=message):
        make()


def test_a_branch_that_the_unet_lacks_is_refused_before_anything_is_patched():
    pipe = SD.load()
    before = trace(pipe.unet)
    with pytest.raises(InvalidSettingError, match="branch 9 is out of range"):
        DeepCacheHelper(pipe, schedule=Adaptive(branches=(0, 9)))
    assert trace(pipe.unet) == before


def test_it_is_a_guiding_schedule_with_a_name():
    assert isinstance(Adaptive(), GuidingSchedule)
    assert repr(Adaptive(0.2, (2, 0), longest=5)) == "Adaptive(0.2, (0, 2), longest=5)"
