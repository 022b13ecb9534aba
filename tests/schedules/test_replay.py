"""What a shallow step gets: the recorded feature itself, or a point on the line through two."""

from dataclasses import dataclass, field

import pytest
import torch
from builders.cases import CASES
from builders.unets import inputs2d_condition, unet2d_condition

from deepcache_patch import (
    DeepCacheHelper,
    Extrapolate,
    InvalidSettingError,
    Replay,
    Reuse,
    Uniform,
)
from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.schedules.replay import REACH, damping, safe_share

LDM = CASES["ldm"]
KEY = FeatureKey.of(torch.zeros(1, 4, 8, 8))

#: Integers, and steps whose differences are powers of two: every product and sum is exact.
START = torch.tensor([0.0, 8.0, -16.0, 3.0])
SLOPE = torch.tensor([1.0, -2.0, 4.0, 0.0])


def linear(step):
    """A feature that changes by the same in every step."""
    return Recorded(step, KEY, START + step * SLOPE)


@dataclass
class Watched:
    """Another replay, and what it was asked for: the step, and the steps that were recorded."""

    inner: Replay
    asked: list = field(default_factory=list)

    @property
    def keep(self):
        return self.inner.keep

    def feature(self, step, recorded, levels):
        self.asked.append((step, *(each.step for each in recorded)))
        return self.inner.feature(step, recorded, levels)


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, [1.0, 0.5, 0.0, -0.5]], ids=["unknown", "known"])
def test_reuse_gives_the_recorded_tensor_itself(levels):
    recorded = linear(1)
    assert Reuse().feature(3, [recorded], levels) is recorded.feature
    assert Reuse().keep == 1


@pytest.mark.parametrize(
    ("step", "newest", "older"),
    [(3, 2, 0), (4, 2, 0), (5, 2, 1), (9, 4, 0), (4, 3, 2)],
    ids=lambda value: str(value),
)
def test_extrapolate_follows_a_linear_feature_exactly(step, newest, older):
    feature = Extrapolate().feature(step, [linear(newest), linear(older)], None)
    assert torch.equal(feature, linear(step).feature)


def test_extrapolate_keeps_shape_and_dtype():
    recorded = [
        Recorded(step, KEY, torch.full((2, 3, 4, 4), step, dtype=torch.float16)) for step in (2, 0)
    ]
    feature = Extrapolate().feature(3, recorded, None)
    assert torch.equal(feature, torch.full((2, 3, 4, 4), 3, dtype=torch.float16))


def test_with_one_feature_there_is_no_line():
    recorded = linear(0)
    assert Extrapolate().feature(2, [recorded], None) is recorded.feature
    assert Extrapolate().keep == 2


def test_without_strength_it_is_reuse():
    recorded = [linear(2), linear(0)]
    assert Extrapolate(0).feature(3, recorded, None) is recorded[0].feature


def test_half_the_strength_is_half_the_way():
    feature = Extrapolate(0.5).feature(4, [linear(2), linear(0)], None)
    assert torch.equal(feature, linear(3).feature)


def test_beyond_the_reach_it_is_reuse():
    recorded = [linear(2), linear(0)]
    levels = [3 * REACH, 2 * REACH, REACH, 0.0, -REACH]  # one reach for each step
    assert Extrapolate().feature(3, recorded, levels) is recorded[0].feature


def test_within_half_the_reach_it_follows_the_whole_slope():
    levels = [step * -REACH / 4 for step in range(6)]  # the step after step 3 is half a reach on
    feature = Extrapolate().feature(3, [linear(2), linear(0)], levels)
    assert torch.equal(feature, linear(3).feature)


def test_between_them_it_follows_a_share_of_the_slope():
    # Two thirds of a reach from step 2 to step 4, made of powers of two: reach / gap - 1 is 0.5
    # but for the rounding of the division, which float32 does not show.
    levels = [0.0, 0.0, 0.0, 0.0, -2 / 3 * REACH, -2 / 3 * REACH]
    feature = Extrapolate().feature(3, [linear(2), linear(0)], levels)
    assert torch.equal(feature, linear(2).feature + SLOPE / 2)


@pytest.mark.parametrize(
    ("gap", "share"),
    [
        (0.0, 1.0),
        (0.25, 1.0),
        (1.0, 1.0),  # half the reach
        (1.25, 0.6),
        (1.6, 0.25),
        (2.0, 0.0),  # the reach
        (3.0, 0.0),
    ],
)
@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
def test_damping_is_whole_up_to_half_the_reach_and_nothing_from_the_reach_on(gap, share, sign):
    # Recorded at step 1; the output of step 2 is used up to step 3, which is `gap` on.
    levels = [9.0, 4.0, 77.0, 4.0 + sign * gap * REACH / 2, -9.0]
    # The gap is a difference of floats, and is divided by: a few units in the last place.
    assert damping(1, 2, levels) == pytest.approx(share, abs=1e-13)


def test_the_share_is_exact_where_the_gap_is():
    assert safe_share(3.0, 4.0) == 4 / 3 - 1
    assert safe_share(2.0, 4.0) == 1.0
    assert safe_share(2.0, 3.0) == 0.5
    assert safe_share(2.0, 2.0) == 0.0


def test_the_last_step_has_no_next_one():
    levels = [4.0, 3.75]
    assert damping(0, 1, levels) == damping(0, 0, levels) == REACH / 0.25 - 1


def test_without_levels_nothing_is_damped():
    assert damping(0, 1000, None) == 1.0


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "1", None, True])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(
        InvalidSettingError, match=f"strength must be a number from 0 to 1, not {strength!r}"
    ):
        Extrapolate(strength)


def test_both_are_replays():
    assert isinstance(Reuse(), Replay)
    assert isinstance(Extrapolate(), Replay)
    assert not isinstance(object(), Replay)


# --- in a pipeline ------------------------------------------------------------------------------


def one_feature(pipe):
    """Bytes of branch 0's feature: as wide as the U-Net's first level, float32."""
    return pipe.unet.config.block_out_channels[0] * 8 * 8 * 4


@pytest.mark.parametrize(
    ("replay", "asked", "kept"),
    [
        (Reuse(), [(1, 0), (2, 0), (4, 3), (5, 3), (7, 6)], 1),
        (Extrapolate(), [(1, 0), (2, 0), (4, 3, 0), (5, 3, 0), (7, 6, 3)], 2),
    ],
    ids=["reuse", "extrapolate"],
)
def test_each_shallow_step_gets_the_newest_and_as_many_as_the_replay_keeps(replay, asked, kept):
    pipe = LDM.load()
    watched = Watched(replay)
    with DeepCacheHelper(pipe, schedule=Uniform(3), replay=watched) as helper:
        LDM.run(pipe, steps=8)
    assert watched.asked == asked
    assert helper.stats.cache_nbytes == kept * one_feature(pipe)


def pictures(pipe, steps, replay, interval=2):
    with DeepCacheHelper(pipe, schedule=Uniform(interval), replay=replay):
        return LDM.run(pipe, steps=steps)


def test_extrapolation_starts_after_two_full_steps():
    # A bare U-Net has no scheduler, so no levels: nothing is damped.
    unet = unet2d_condition()

    def samples(replay):
        arguments, found = inputs2d_condition(), []
        with DeepCacheHelper(unet, schedule=Uniform(2), replay=replay), torch.no_grad():
            for timestep in torch.arange(6, 0, -1) * 100:
                output = unet(**(arguments | {"timestep": timestep})).sample
                arguments["sample"] = arguments["sample"] - 0.1 * output
                found.append(arguments["sample"])
        return found

    pairs = zip(samples("reuse"), samples("extrapolate"), strict=True)
    # F·F·F·: the third step is the second full one.
    assert [torch.equal(*pair) for pair in pairs] == [True, True, True, False, False, False]


def test_steps_within_the_reach_are_extrapolated_in_a_pipeline():
    pipe = LDM.load()
    default, reused = pictures(pipe, 20, None), pictures(pipe, 20, "reuse")
    assert not torch.equal(default, reused)  # `extrapolate` is the default
    assert torch.equal(default, pictures(pipe, 20, "extrapolate"))
    assert torch.equal(default, pictures(pipe, 20, Extrapolate()))
    assert torch.equal(reused, pictures(pipe, 20, Extrapolate(0)))


def test_full_steps_further_apart_than_the_reach_are_those_of_reuse():
    # 8 steps in ln(sigma): each is more than the reach.
    pipe = LDM.load()
    assert torch.equal(pictures(pipe, 8, "reuse"), pictures(pipe, 8, "extrapolate"))


def test_full_steps_are_exact_whatever_is_replayed_between_them():
    pipe = LDM.load()
    calls = []

    def note(_module, args, kwargs, output):
        calls.append((args, kwargs, output[0]))

    with DeepCacheHelper(pipe, schedule=Uniform(2), replay="extrapolate") as helper:
        handle = pipe.unet.register_forward_hook(note, with_kwargs=True)
        LDM.run(pipe, steps=20)
        handle.remove()
        with helper.paused(), torch.no_grad():
            again = [pipe.unet(*args, **kwargs)[0] for args, kwargs, _ in calls]
    exact = [torch.equal(output, plain) for (*_, output), plain in zip(calls, again, strict=True)]
    assert exact == [True, False] * 10


def test_interval_1_keeps_the_plain_picture():
    pipe = LDM.load()
    plain = LDM.run(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(1), replay="extrapolate") as helper:
        assert torch.equal(LDM.run(pipe), plain)
    assert helper.stats.cache_nbytes == 0
