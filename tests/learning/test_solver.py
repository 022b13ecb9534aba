"""The search against every plan there is, blends against the family that they are made of."""

import time
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from deepcache_patch import FULL
from deepcache_patch.learning.solver import (
    NEAR,
    POSITIONS,
    REACH,
    RIDGE,
    SAMPLED,
    WIDEST,
    Recording,
    _Fit,
    solve,
)


def drifting(steps, *, channels=3, positions=20, seed=0):
    """Features of shape `(steps, channels, positions)` that wander, at a rate of their own each."""
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.2, 2, (steps, 1, 1))
    walks = np.cumsum(rates * generator.standard_normal((steps, channels, positions)), axis=0)
    return walks + generator.standard_normal((1, channels, 1)) * 3


def replayed(features, blend):
    """What a blend gives, by its definition."""
    newest, older = features[blend.a], features[blend.b]
    gain, trend, offset = (each[:, None] for each in (blend.gain, blend.trend, blend.offset))
    return newest + gain * newest + trend * (newest - older) + offset


def missed(features, step, blend):
    """The share of a step's feature that its blend gets wrong."""
    return np.linalg.norm(features[step] - replayed(features, blend)) / np.linalg.norm(
        features[step]
    )


def before(chosen, step):
    """The two full steps before a shallow one; twice the same if there is but one."""
    earlier = [full for full in chosen if full < step]
    return earlier[-1], earlier[-2:][0]


def every_plan(features, weights, levels, count):
    """The error of each choice of `count` full steps, step 0 among them."""
    steps, fit = len(features), _Fit(features, levels)

    @cache
    def cost(step, a, b, after):
        return (weights[step] * missed(features, step, fit.blend(step, a, b, after))) ** 2

    def error(plan):
        shallow = (step for step in range(steps) if step not in plan)
        afters = {step: next((full for full in plan if full > step), steps) for step in shallow}
        return sum(cost(step, *before(plan, step), after) for step, after in afters.items())

    plans = [(0, *others) for others in combinations(range(1, steps), count - 1)]
    return {plan: error(plan) for plan in plans}


#: Where a trend is followed: always, between neighbours two steps apart, never.
LEVELS = {
    "unknown": lambda steps: None,
    "near": lambda steps: [2 - step * REACH / 2.5 for step in range(steps)],
    "far": lambda steps: [2 - step * REACH * 1.5 for step in range(steps)],
}


# --- which steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(
    ("steps", "count"), [(9, 1), (9, 2), (9, 3), (9, 5), (9, 8), (10, 2), (10, 4), (10, 6)]
)
def test_the_plan_is_the_best_of_all(steps, count, levels):
    features = drifting(steps, seed=count)
    weights = np.random.default_rng(count).uniform(0.1, 1, steps)
    errors = every_plan(features, weights, LEVELS[levels](steps), count)
    best = min(errors, key=errors.__getitem__)
    solution = solve(
        features, weights, LEVELS[levels](steps), full_steps=count, branch=0, num_steps=steps
    )
    assert solution.plan.full_steps == best
    # The same sum, from covariances there and from the features here.
    assert solution.error == pytest.approx(errors[best], rel=1e-9)


@pytest.mark.parametrize(
    ("steps", "count", "protected"),
    [
        (9, 4, {0, 1, 2}),
        (9, 4, {8}),
        (10, 5, {1, 8, 9}),
        (9, 3, {1, 2}),
        (9, 2, {1, 2, 8}),  # more than were asked for
    ],
    ids=str,
)
def test_the_plan_is_the_best_of_those_with_what_is_protected(steps, count, protected):
    features = drifting(steps, seed=count)
    features[3] = features[2]  # nothing is missed there, in full or not
    weights = np.random.default_rng(count).uniform(0.1, 1, steps)
    errors = every_plan(features, weights, None, max(count, len(protected | {0})))
    errors = {plan: error for plan, error in errors.items() if protected <= {*plan}}
    solution = solve(
        features, weights, None,
        full_steps=count, branch=0, num_steps=steps, protected=protected,
    )  # fmt: skip
    assert solution.error == pytest.approx(min(errors.values()), rel=1e-9)
    assert errors[solution.plan.full_steps] == min(errors.values())


@pytest.mark.parametrize(("count", "last"), [(10, 0), (11, 0), (13, 2), (12, 2)])
def test_what_is_protected_may_leave_few_full_steps_to_a_long_way(count, last):
    protected = {*range(10), *range(60 - last, 60)}
    plan = solve(
        drifting(60), np.ones(60), None,
        full_steps=count, branch=0, num_steps=60, protected=protected,
    ).plan  # fmt: skip
    assert len(plan.full_steps) == count
    assert protected <= {*plan.full_steps}


def test_what_is_protected_and_was_not_seen_is_full_as_all_that_was_not():
    solution = solve(
        drifting(9), np.ones(12), None,
        full_steps=3, branch=0, num_steps=12, protected={10, 11},
    )  # fmt: skip
    assert solution.plan[9:] == (FULL,) * 3
    assert len(solution.plan.full_steps) == 3 + 3


def test_neighbours_are_at_most_so_far_apart():
    # Nothing happens but between the first steps: all full steps would go there.
    features = drifting(60)
    features[20:] = features[20]
    weights = np.ones(60)
    plan = solve(features, weights, None, full_steps=12, branch=0, num_steps=60).plan
    gaps = np.diff([*plan.full_steps, 60])
    assert gaps.max() == WIDEST * 60 // 12 == 20
    assert gaps[-1] == 20  # nor is the end further
    few = solve(features[:24], weights[:24], None, full_steps=12, branch=0, num_steps=24).plan
    assert np.diff([*few.full_steps, 24]).max() <= NEAR


def test_neighbours_are_closer_where_the_search_would_keep_too_much(monkeypatch):
    # All triples of neighbouring full steps: 60 · 13 · 13 of them are too many.
    monkeypatch.setattr("deepcache_patch.learning.solver.SEARCHED", 60 * 12 * 12)
    features = drifting(60)
    features[20:] = features[20]
    plan = solve(features, np.ones(60), None, full_steps=12, branch=0, num_steps=60).plan
    assert np.diff([*plan.full_steps, 60]).max() == 12
    # But never closer than what the number of full steps needs.
    plan = solve(features, np.ones(60), None, full_steps=4, branch=0, num_steps=60).plan
    assert plan.full_steps == (0, 15, 30, 45)


def test_weights_decide():
    # Every step is as far from the next as any other, but one counts a thousand times.
    features = np.eye(6)[:, None, :]
    for heavy in range(1, 6):
        weights = np.where(np.arange(6) == heavy, 1.0, 1e-3)
        plan = solve(features, weights, None, full_steps=2, branch=0, num_steps=6).plan
        assert plan.full_steps == (0, heavy)


def test_a_step_that_is_a_copy_of_the_last_needs_no_full_one():
    features = drifting(8)
    features[3] = features[2]
    features[6] = features[5]
    plan = solve(features, np.ones(8), None, full_steps=6, branch=2, num_steps=8).plan
    assert plan == (FULL, FULL, FULL, 2, FULL, FULL, 2, FULL)


def test_a_single_full_step_is_the_first():
    solution = solve(drifting(30), np.ones(30), None, full_steps=1, branch=0, num_steps=30)
    assert str(solution.plan) == "F" + "·" * 29
    assert {(blend.a, blend.b) for blend in solution.blends.values()} == {(0, 0)}
    assert all(np.array_equal(blend.trend, np.zeros(3)) for blend in solution.blends.values())


@pytest.mark.parametrize("count", [5, 6, 100])
def test_as_many_full_steps_as_there_are_leave_nothing_to_replay(count):
    solution = solve(drifting(5), np.ones(5), None, full_steps=count, branch=0, num_steps=5)
    assert solution.plan == (FULL,) * 5
    assert solution.seen == 5
    assert solution.blends == {}
    assert solution.error == 0.0


def test_steps_that_were_not_seen_are_full():
    features, weights = drifting(9), np.linspace(1, 0.2, 12)
    seen = solve(features, weights[:9], None, full_steps=3, branch=1, num_steps=9)
    solution = solve(features, weights, None, full_steps=3, branch=1, num_steps=12)
    assert solution.plan == (*seen.plan, FULL, FULL, FULL)
    assert len(seen.plan.full_steps) == 3
    assert (seen.seen, solution.seen) == (9, 9)
    assert solution.blends.keys() == seen.blends.keys()
    assert solve(features, weights, None, full_steps=9, branch=1, num_steps=12).plan == (FULL,) * 12


def test_each_shallow_step_has_a_blend_of_the_full_ones_before_it():
    features = drifting(12)
    solution = solve(features, np.ones(12), None, full_steps=4, branch=0, num_steps=12)
    full = solution.plan.full_steps
    assert len(full) == 4
    assert {step: (blend.a, blend.b) for step, blend in solution.blends.items()} == {
        step: before(full, step) for step in range(12) if step not in full
    }


def test_the_same_features_give_the_same_solution():
    first, second = (
        solve(
            drifting(20, channels=7),
            np.linspace(1, 0.1, 20),
            np.linspace(2, -2, 20).tolist(),
            full_steps=6,
            branch=0,
            num_steps=20,
        )
        for _ in range(2)
    )
    assert first.plan == second.plan
    assert first.error == second.error
    for step, blend in first.blends.items():
        for mine, other in zip(blend, second.blends[step], strict=True):
            assert np.array_equal(mine, other)


@pytest.mark.parametrize("place", [0, 4, 8])
def test_features_that_are_not_finite_have_no_finite_error(place):
    features = drifting(9)
    features[place, 1, 2] = np.inf
    with np.errstate(invalid="ignore"):
        solution = solve(features, np.ones(9), None, full_steps=1, branch=0, num_steps=9)
    assert not np.isfinite(solution.error)


@pytest.mark.parametrize("interval", [3, 10])
def test_250_steps_of_320_channels_take_seconds(interval):
    # Not for the sake of the second, but so that it never grows to minutes without a word.
    features = drifting(250, channels=320, positions=SAMPLED // 320)
    count = -(-250 // interval)
    start = time.process_time()
    solution = solve(
        features,
        np.ones(250),
        np.linspace(3, -3, 250).tolist(),
        full_steps=count,
        branch=0,
        num_steps=250,
    )
    assert time.process_time() - start < 5
    assert len(solution.plan.full_steps) == count


# --- how they are replayed ----------------------------------------------------------------------

#: Of mean 0 and orthogonal to each other, each of mean square 1.
WAVES = np.array(
    [[1, 1, 1, 1, -1, -1, -1, -1], [1, 1, -1, -1, 1, 1, -1, -1], [1, -1, 1, -1, 1, -1, 1, -1]],
    dtype=float,
)


def family(gain, trend, offset, *, means=(5.0, 3.0)):
    """Steps 0 and 1 and what follows from them, one channel for each entry.

    The change from step 0 to 1 is orthogonal to step 1: gain and trend do not mix.
    """
    gain, trend, offset = (np.asarray(each, float)[:, None] for each in (gain, trend, offset))
    newest = np.broadcast_to(WAVES[0] * 2 + means[1], (len(gain), 8))
    older = newest - WAVES[1] + (means[0] - means[1])
    return np.stack([older, newest, newest + gain * newest + trend * (newest - older) + offset])


def second_shallow(features, levels=None):
    """The blend of the third step, the two before it being full."""
    weights = np.array([1.0, 1e6, 1.0])
    solution = solve(features, weights, levels, full_steps=2, branch=0, num_steps=3)
    assert solution.plan == (FULL, FULL, 0)
    return solution.blends[2]


def test_an_affine_family_is_recovered_channel_by_channel():
    gain, trend, offset = [0.25, -0.5, 0.0, 0.125], [0.5, 0.0, -0.75, 1.0], [1.0, -2.0, 0.0, 4.0]
    features = family(gain, trend, offset)
    blend = second_shallow(features)
    assert (blend.a, blend.b) == (1, 0)
    # What divides is a variance and `RIDGE` of it; the rest is the rounding of float64.
    shrunk = 1 + RIDGE
    np.testing.assert_allclose(blend.gain, np.array(gain) / shrunk, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(blend.trend, np.array(trend) / shrunk, rtol=1e-12, atol=1e-12)
    # The mean is met exactly, whatever the ridge.
    np.testing.assert_allclose(
        replayed(features, blend).mean(1), features[2].mean(1), rtol=1e-12, atol=1e-12
    )


def test_features_that_are_not_orthogonal_are_recovered_but_for_the_ridge():
    generator = np.random.default_rng(0)
    older, newest = generator.standard_normal((2, 50, 400))
    gain, trend, offset = generator.uniform(-0.9, 0.9, (3, 50, 1))
    following = newest + gain * newest + trend * (newest - older) + offset
    blend = second_shallow(np.stack([older, newest, following]))
    # The ridge moves the coefficients by at most RIDGE · |A⁻¹ R| of their size, R being the
    # diagonal of the matrix A; for two independent features of one size that is 4 RIDGE.
    np.testing.assert_allclose(blend.gain, gain[:, 0], atol=5 * RIDGE)
    np.testing.assert_allclose(blend.trend, trend[:, 0], atol=5 * RIDGE)
    # The gain also moves the mean of what is replayed, which the offset makes good.
    np.testing.assert_allclose(blend.offset, offset[:, 0], atol=5 * RIDGE)


def test_features_of_another_size_are_recovered_as_well():
    gain, trend, offset = [0.25], [0.5], [1.0]
    large = second_shallow(family(gain, trend, offset) * 1e4)
    small = second_shallow(family(gain, trend, offset) * 1e-4)
    np.testing.assert_allclose(large.gain, small.gain, rtol=1e-9)  # float64's rounding
    np.testing.assert_allclose(large.trend, small.trend, rtol=1e-9)
    np.testing.assert_allclose(large.offset, small.offset * 1e8, rtol=1e-9)


def test_a_feature_that_only_shifts_needs_the_offset_alone():
    blend = second_shallow(family([0.0], [0.0], [3.0], means=(0.0, 0.0)))
    assert blend.gain == pytest.approx(0, abs=1e-12)  # float64's rounding
    assert blend.trend == pytest.approx(0, abs=1e-12)
    assert blend.offset == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trend_is_at_most_that_of_a_straight_line(sign):
    features = family([0.0], [sign * 4.0], [0.0])
    assert second_shallow(features).trend == sign * 1.0  # one step on a line through one step
    within = family([0.0], [sign * 0.5], [0.0])
    assert second_shallow(within).trend == pytest.approx(sign * 0.5 / (1 + RIDGE), rel=1e-12)


def test_a_line_through_distant_steps_is_less_steep():
    # Full at 0, 4 and 6: for step 5 a line through 0 and 4, followed by one step; for step 7 one
    # through 4 and 6.
    features = np.cumsum(np.full((8, 1, 8), 1.0), axis=0) * WAVES[0]
    features[[5, 7]] += 100 * (features[4] - features[0])
    fit = _Fit(features, None)
    assert fit.blend(5, 4, 0, 6).trend == 1 / 4
    assert fit.blend(7, 6, 4, 8).trend == 1 / 2


@pytest.mark.parametrize(
    ("gap", "followed"), [(0.5, True), (1.0, True), (1.01, False), (-1.0, True), (-1.01, False)]
)
def test_a_trend_is_followed_only_where_the_next_full_step_is_near(gap, followed):
    features = family([0.25], [1.0], [2.0])
    # There is no full step after step 2, so what counts is the level of the last step.
    blend = second_shallow(features, [0.0, 0.0, gap * REACH])
    assert blend.trend.any() == followed
    assert blend.gain.any()  # that is no question of noise


def test_the_next_full_step_counts_and_not_the_shallow_one():
    features = drifting(9)
    levels = [0.0, 0.0, 0.5 * REACH, REACH, 1.5 * REACH, 1.5 * REACH, 0, 0, 0]
    fit = _Fit(features, levels)
    assert fit.blend(2, 1, 0, 3).trend.any()  # up to the reach
    assert not fit.blend(2, 1, 0, 4).trend.any()  # beyond it, though step 2 is not
    assert not fit.blend(2, 1, 0, 5).trend.any()
    assert fit.blend(2, 1, 0, 9).trend.any()  # the end: the last step's level


def test_a_constant_channel_stays_what_it_is():
    features = np.zeros((3, 2, 8))
    features[:, 0] = 7.0
    features[:, 1] = WAVES
    blend = second_shallow(features)
    assert (blend.gain[0], blend.trend[0], blend.offset[0]) == (0.0, 0.0, 0.0)


def test_the_search_looks_at_no_more_channels_than_it_may(monkeypatch):
    # Ten steps have a hundred pairs: with 300 numbers, every third of nine channels is looked at.
    monkeypatch.setattr("deepcache_patch.learning.solver.SEARCHED", 300)
    features = drifting(10, channels=9)
    looked_at = _Fit(features[:, ::3], None)
    fit = _Fit(features, None)
    b, i = np.array([0, 1]), np.array([4, 5, 6])
    assert np.array_equal(fit.missed(3, b, i, True), looked_at.missed(3, b, i, True))
    assert len(fit.blend(4, 3, 1, 7).gain) == 9


# --- what is recorded ---------------------------------------------------------------------------


def call(feature, *, scale=1.0, channels=4):
    sample = torch.arange(2 * channels * 4, dtype=torch.float32).reshape(2, channels, 2, 2)
    return sample, scale * sample[:, :4], {0: feature}


def test_a_recording_gives_back_small_features_whole():
    features = [torch.randn(2, 3, 4, 5) for _ in range(3)]
    recording = Recording(3)
    for step, feature in enumerate(features):
        recording.add(step, *call(feature))
    recorded = recording.features(0)
    assert recorded.shape == (3, 3, 2 * 4 * 5)
    assert recorded.dtype == np.float64
    for step, feature in enumerate(features):
        by_channel = feature.transpose(0, 1).flatten(1)
        assert np.array_equal(recorded[step], by_channel.double().numpy())


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((2, 320, 64, 64), SAMPLED // 320),
        ((1, 1280, 32, 32), POSITIONS),
        ((1, 2, 300, 300), SAMPLED // 2),
        ((1, 1280, 4, 4), 16),
    ],
    ids=["many", "at-least", "few-channels", "small"],
)
def test_of_a_huge_feature_some_positions_are_kept(shape, positions):
    channels = shape[1]
    recording = Recording(1)
    recording.add(0, *call(torch.zeros(shape, dtype=torch.float16)))
    assert recording.features(0).shape == (1, channels, positions)
    (kept,) = recording._features[0][0]
    # Nor is what it was taken from kept alive.
    assert kept.untyped_storage().nbytes() == channels * positions * 4
    assert channels * positions <= max(POSITIONS * channels, SAMPLED)


def test_the_same_positions_are_kept_at_every_step():
    feature = torch.arange(2 * 8 * 100 * 100, dtype=torch.float32).reshape(2, 8, 100, 100)
    first, second = Recording(2), Recording(2)
    for recording in (first, second):
        torch.randn(3)  # what else is drawn does not matter
        for step in range(2):
            recording.add(step, *call(feature + step))
    recorded = first.features(0)
    assert np.array_equal(recorded[1], recorded[0] + 1)
    assert np.array_equal(recorded, second.features(0))
    # Of all channels, and from both samples of the batch.
    assert np.array_equal(recorded[0, 1:], recorded[0, :-1] + 100 * 100)
    assert (recorded[0, 0] < 8 * 100 * 100).any()
    assert (recorded[0, 0] >= 8 * 100 * 100).any()


def test_several_generations_are_put_side_by_side():
    recording = Recording(2)
    for generation in range(3):
        for step in range(2):
            recording.add(step, *call(torch.full((1, 2, 2, 2), 10.0 * generation + step)))
    recorded = recording.features(0)
    assert recorded.shape == (2, 2, 3 * 4)
    assert recorded[1, 0].tolist() == [1.0] * 4 + [11.0] * 4 + [21.0] * 4


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 4, 5), (2, 4, 4, 4)])
def test_a_feature_of_another_shape_is_ignored_and_the_recording_ends_there(shape):
    recording = Recording(5)
    for step in range(5):
        recording.add(step, *call(torch.zeros(shape if step == 3 else (2, 3, 4, 4))))
    assert recording.features(0).shape == (3, 3, 32)


def test_a_recording_ends_where_a_generation_did():
    recording = Recording(5)
    for step in range(2):
        recording.add(step, *call(torch.zeros(2, 3, 4, 4)))
    assert recording.features(0).shape == (2, 3, 32)
    # And where a second one did that stopped sooner: there the two do not belong together.
    recording.add(0, *call(torch.zeros(2, 3, 4, 4)))
    assert recording.features(0).shape == (1, 3, 64)


def test_a_branch_that_was_not_recorded_has_no_steps():
    recording = Recording(5)
    assert recording.features(0).shape[0] == 0
    recording.add(0, *call(torch.zeros(1, 2, 2, 2)))
    assert recording.features(1).shape[0] == 0
    # Nor one whose first step is missing.
    late = Recording(5)
    late.add(1, *call(torch.zeros(1, 2, 2, 2)))
    assert late.features(0).shape[0] == 0


def test_slopes_are_those_of_output_on_input():
    recording = Recording(4)
    feature = torch.zeros(1, 2, 2, 2)
    recording.add(0, *call(feature, scale=0.5))
    recording.add(1, *call(feature, scale=-2.0))
    recording.add(1, *call(feature, scale=1.0))  # another generation: both count
    recording.add(2, *call(feature, scale=0.25, channels=9))  # inpainting: more inputs
    assert recording.slopes() == [0.5, -0.5, 0.25, 1.0]


def test_an_output_of_another_size_has_no_slope():
    recording = Recording(1)
    sample = torch.ones(1, 4, 2, 2)
    recording.add(0, sample, torch.ones(1, 4, 3, 3), {0: torch.zeros(1, 2, 2, 2)})
    assert recording.slopes() == [1.0]
    assert len(recording.features(0)) == 1
