"""Full when errors would add up to more than the tolerance: plans by hand, nothing waited for."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from builders.cases import CASES
from builders.finished_calls import Told
from builders.loops import Loop
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import trace

from deepcache_patch import (
    FULL,
    Adaptive,
    DeepCacheHelper,
    DeepCacheWarning,
    InvalidSettingError,
    Plan,
    Reuse,
)
from deepcache_patch.schedules.adaptive import AdaptiveGuide
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.guide import GuidingSchedule
from deepcache_patch.schedules.placing import (
    cheapest,
    early_weights,
    how_long_used,
    usual_levels,
)
from deepcache_patch.schedules.window import Window

SD, LDM = CASES["sd"], CASES["ldm"]

#: In a loop whose length nobody knows, an error of a feature in a step over its rate, exactly; and
#: what a step k after the full one adds is UNIT * GAP * rate * k.
GAP = 0.11
UNIT = GAP * 2**1.25


def context(steps, **given):
    return Context(steps, None, None, **given)


def plan_of(schedule, values, steps, *, is_guess=True, **given):
    """The entries of a generation in which branch b's feature at step s is `values[b](s)`."""
    guide = schedule.begin(context(steps, is_guess=is_guess, **given), Reuse())
    assert guide.num_steps == steps
    entries, told = [], Told(guide)
    for step in range(steps):
        entry = guide.entry(step)
        entries.append(entry)
        recorded = {
            branch: torch.as_tensor(value(step), dtype=torch.float32).reshape(-1, 1)
            for branch, value in values.items()
            if entry == FULL or branch < entry
        }
        num_steps = None if is_guess else steps
        told.call(step, recorded, torch.zeros(1, 1), num_steps=num_steps)
    return Plan(entries)


def growing(rate):
    """A feature with exactly that rate, whenever it is recorded."""
    last = [0, 1.0]

    def value(step):
        before, size = last
        last[:] = step, size / (1 - rate * UNIT * (step - before))
        return last[1]

    return value


# --- by hand ------------------------------------------------------------------------------------


def test_as_long_as_nothing_is_known_full_steps_come_at_the_usual_rate():
    # With 0.085, four steps add 0.085 * UNIT * GAP * (1 + 2 + 3 + 4) = 0.0245, five 0.0367.
    assert 0.085 * UNIT * GAP * 10 < 0.03 < 0.085 * UNIT * GAP * 15
    assert str(plan_of(Adaptive(0.03), {}, 13)) == "F····F····F··"


def test_what_changes_more_gets_more_full_steps():
    # At step 5 it shows that the rate is 0.3, and step 7 knows: 0.0024 of step 6, 0.0173 of step 7.
    # From then on two steps add 0.026, three 0.052.
    assert 0.3 * UNIT * GAP * 3 < 0.03 < 0.3 * UNIT * GAP * 6
    assert str(plan_of(Adaptive(0.03), {0: growing(0.3)}, 15)) == "F····F··F··F··F"
    assert str(plan_of(Adaptive(0.03), {0: growing(0.6)}, 15)) == "F····F·F·F·F·F·"
    assert str(plan_of(Adaptive(0.03), {0: growing(0.085)}, 15)) == "F····F····F····"
    assert str(plan_of(Adaptive(0.03), {0: lambda step: 7}, 22)) == "F····F·········F······"


def test_a_higher_tolerance_leaves_more_steps_shallow():
    assert str(plan_of(Adaptive(0.06), {0: growing(0.6)}, 15)) == "F······F··F··F·"
    assert str(plan_of(Adaptive(0.005), {0: growing(0.6)}, 9)) == "F·F·FFFFF"


def test_an_error_counts_two_steps_after_it_was_made():
    # The jump shows at step 5. Step 6 does not know of it, step 7 does.
    jump = {0: lambda step: 1.0 if step < 5 else 1e6}
    assert str(plan_of(Adaptive(0.03), jump, 9)) == "F····F·F·"


def test_what_does_not_change_is_shallow_up_to_the_longest_gap():
    plan = plan_of(Adaptive(1, longest=4), {0: lambda step: 7}, 13)
    assert str(plan) == "F···F···F···F"
    assert str(plan_of(Adaptive(1, longest=1), {0: lambda step: 7}, 6)) == "FFFFFF"


def test_at_the_usual_rate_a_plan_costs_hardly_more_than_the_cheapest():
    for steps in (20, 25, 50):
        levels = usual_levels(steps)
        plan = plan_of(Adaptive(0.03, (0,)), {}, steps, is_guess=False)
        best = cheapest(levels, len(plan.full_steps))
        assert cost_of(levels, plan.full_steps) < 1.25 * cost_of(levels, best)


def cost_of(levels, full_steps):
    """As `NoiseAware` says."""
    sigmas = torch.tensor(levels).exp()
    weights = how_long_used(levels) * early_weights(sigmas.clamp(max=8), 0.8)
    places = (sigmas + 0.15).log()
    last = [max(full for full in full_steps if full <= step) for step in range(len(levels))]
    return sum(weights[i] * abs(places[i] - places[a]) for i, a in enumerate(last))


def test_the_picture_that_changes_most_counts():
    restless, calm = growing(0.6), growing(0.085)
    both = plan_of(Adaptive(0.03), {0: lambda step: [calm(step), restless(step)]}, 20)
    assert both == plan_of(Adaptive(0.03), {0: growing(0.6)}, 20)
    assert both != plan_of(Adaptive(0.03), {0: growing(0.085)}, 20)


def test_every_call_of_a_step_counts():
    restless, entries = growing(0.6), []
    guide = Adaptive(0.03).begin(context(15, is_guess=True), Reuse())
    told = Told(guide)
    for step in range(15):
        entries.append(guide.entry(step))
        values = (1.0, restless(step), 1.0) if entries[-1] == FULL else ()
        for slot, value in enumerate(values):
            told.call(step, {0: torch.full((1, 1), value)}, torch.zeros(1, 1), slot=slot)
    assert str(Plan(entries)) == "F····F·F·F·F·F·"


def test_the_shallowest_branch_that_is_good_enough_is_run():
    # Branch 3 does not change. Where branch 0 would add too much, branch 3 refreshes it.
    values = {0: growing(0.3), 3: lambda step: 7.0}
    plan = plan_of(Adaptive(0.02, branches=(3, 0)), values, 16)
    assert str(plan) == "F000F003333333F0"
    assert str(plan_of(Adaptive(0.02), {0: growing(0.3)}, 16)) == "F···F··F·F·F·F·F"


def test_where_no_forecast_is_possible_the_first_branch_stands_for_the_output():
    guide = Adaptive(branches=(-1, 0, 2)).begin(context(9), Reuse())
    assert guide.branches == (0, 2)


def test_a_feature_of_another_shape_is_not_compared():
    guide = Adaptive(0.03).begin(context(8, is_guess=True), Reuse())
    entries, told = [], Told(guide)
    for step in range(8):
        entries.append(guide.entry(step))
        pictures = 2 if step < 5 else 1
        feature = {0: torch.full((pictures, 1), 1.0 + 9 * step)} if entries[-1] == FULL else {}
        told.call(step, feature, torch.zeros(pictures, 1))
    assert str(Plan(entries)) == "F····F··"


def test_features_of_zero_do_not_divide_by_zero():
    assert str(plan_of(Adaptive(1, longest=3), {0: lambda step: 0}, 9)) == "F··F··F··"


def test_large_features_in_half_precision_do_not_overflow():
    guide = Adaptive(0.02).begin(context(9, is_guess=True), Reuse())
    told = Told(guide)
    for step in range(8):
        if guide.entry(step) == FULL:
            feature = {0: torch.full((4, 4), 30000.0 + 32 * step, dtype=torch.float16)}
            told.call(step, feature, torch.zeros(4, 1))
    assert guide.entry(8) == 0
    assert guide._rates[0] < 0.03


# --- the budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1.5, 2.2, 4, 12.5])
@pytest.mark.parametrize("rate", [0.0006, 0.006, 0.03])
def test_no_generation_has_more_full_steps_than_its_budget(interval, rate):
    for steps in (20, 25, 50):
        schedule = Adaptive(0.001, interval=interval)
        plan = plan_of(schedule, {0: growing(rate)}, steps, is_guess=False)
        assert 1 <= len(plan.full_steps) <= int(steps / interval)
    assert plan_of(schedule, {}, 25, is_guess=False).count(FULL) <= int(25 / interval)


def test_a_short_budget_is_spent_by_the_noise_levels():
    plan = plan_of(Adaptive(0, interval=4), {}, 25, is_guess=False)
    first, *others = plan.full_steps
    assert first == 0
    gaps = [after - before for before, after in zip(plan.full_steps, others, strict=False)]
    assert gaps == sorted(gaps)
    assert len(plan.full_steps) == 6


def test_protected_steps_come_on_top_of_the_budget():
    schedule = Adaptive(0, interval=4)
    plan = plan_of(schedule, {}, 25, is_guess=False, window=Window(first=3, last=2))
    assert plan[:3] == (FULL,) * 3
    assert plan[-2:] == (FULL,) * 2
    assert len(plan.full_steps) <= 5 + 20 // 4
    least = plan_of(Adaptive(0, interval=99), {}, 25, is_guess=False, window=Window(last=2))
    assert least.full_steps == (0, 23, 24)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_computed_while_the_budget_lasts(wrong):
    plain = plan_of(Adaptive(1, interval=1), {0: lambda step: wrong}, 20, is_guess=False)
    assert str(plain)[8:] == "F" * 12
    plan = plan_of(Adaptive(0.03, interval=2), {0: lambda step: wrong}, 20, is_guess=False)
    assert 8 <= plan.count(FULL) <= 10


def test_a_generation_of_few_steps_has_no_budget():
    assert str(plan_of(Adaptive(0, interval=4), {}, 8, is_guess=False)) == "FFFFFFFF"


def test_equal_features_give_equal_plans():
    generator = torch.Generator().manual_seed(0)
    values = {
        branch: (1 + 0.3 * torch.rand(40, generator=generator)).tolist().__getitem__
        for branch in (0, 2)
    }
    schedule = Adaptive(0.05, branches=(0, 2))
    first = plan_of(schedule, values, 40)
    assert first == plan_of(schedule, values, 40)  # one generation leaves nothing to the next
    assert {FULL, 0} <= set(first)


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
            for name in ("entry", "observe", "feature", "output"):
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
        assert str(Plan(entries)) == "F··F··F··F·F"
        assert torch.equal(LDM.run(pipe, steps=12), first)
        assert entries[:12] == entries[12:]
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2 * 5, 2 * 7)
    assert not torch.equal(first, plain)
    assert trace(pipe.unet) == before
    assert torch.equal(LDM.run(pipe, steps=12), plain)


def test_what_no_error_is_small_enough_for_is_the_plain_pipeline():
    pipe = LDM.load()
    plain = LDM.run(pipe, steps=12)
    with DeepCacheHelper(pipe, schedule=Adaptive(0, interval=1)) as helper:
        assert torch.equal(LDM.run(pipe, steps=12), plain)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (12, 0)


def test_a_loop_whose_length_nobody_knows_runs_on():
    # A bare U-Net and timesteps that are plain numbers: the guide is renewed at step 64.
    unet = LDM.load().unet
    sample, full = torch.zeros(1, 3, 8, 8), []
    with DeepCacheHelper(unet, schedule=Adaptive(1, longest=5)) as helper, torch.no_grad():
        for step in range(100):
            before = helper.stats.full_calls
            unet(sample, float(100 - step))
            full += [step] * (helper.stats.full_calls - before)
    assert full == [*range(0, 64, 5), *range(64, 100, 5)]


def still():
    """A U-Net that gives the same at each timestep, but not for each prompt."""
    unet = unet2d_condition()
    for each in unet.time_embedding.parameters():
        torch.nn.init.zeros_(each)
    return unet


def prompt(seed):
    return {"encoder_hidden_states": inputs2d_condition(seed=seed)["encoder_hidden_states"]}


@pytest.mark.parametrize(
    ("steps", "kinds"),
    mostly_slow(
        [
            (["c"] * 9 + ["uc"] * 11, "F F F F F F s F s Fs ss FF ss ss ss ss ss ss ss ss"),
            (["uc"] * 9 + ["c"] * 11, "FF FF FF FF FF FF ss FF ss F s s s s s s s s s s"),
            (["c"] * 9 + ["uc"] * 5 + ["c"] * 6, "F F F F F F s F s Fs ss FF ss ss F s s s s s"),
            (["cu"] * 9 + ["c"] * 11, "FF FF FF FF FF FF ss FF ss s s F s s s s s s s s"),
        ]
    ),
    ids=["begins", "ends", "begins and ends", "ends, second call"],
)
def test_each_call_is_measured_by_what_was_recorded_of_its_own(steps, kinds):
    # Where guidance began or ended, the unconditional call was compared with the conditional one,
    # and steps ran in full for a change that no call had seen. In truth nothing changes.
    unet = still()
    made = {each: prompt(ord(each)) for each in "uc"}
    schedule = Adaptive(0.03, (0,), interval=1, longest=20)
    with DeepCacheHelper(unet, schedule=schedule):
        loop = Loop(unet)
        assert loop.run([[made[each] for each in calls] for calls in steps]) == kinds


def test_what_is_given_something_else_at_each_step_is_not_measured():
    unet, pair = still(), [prompt(seed) for seed in range(2)]
    with DeepCacheHelper(unet, schedule=Adaptive(0.03, (0,))) as helper:
        loop = Loop(unet)
        with pytest.warns(DeepCacheWarning, match="encoder_hidden_states is another at each step"):
            loop.run([[pair[step % 2]] for step in range(20)])
        assert helper._attachment.unets[0]._session().guide._rates == {0: 0.085}
    assert "".join(loop.kinds) == " ".join("F" * 20)


@pytest.mark.parametrize("replay", ["reuse", "extrapolate"])
def test_any_replay_may_be_given(replay):
    pipe = LDM.load()
    schedule = Adaptive(1, (0,), longest=3)
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
        (lambda: Adaptive(interval=0.5), "interval must be a number from 1 to 1000, not 0.5"),
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
    assert repr(Adaptive(0.2, (2, 0))) == "Adaptive(0.2, (0, 2), interval=1.5, longest=10)"
