"""Forecasts of the output: exact where x0 settles evenly, and the newest output where it cannot."""

import math

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.forecast import Forecast

#: ln(sigma) of four steps.
LEVELS = (1.5, 1.2, 0.75, 0.3)

#: Of Stable Diffusion.
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def parts(step):
    sigma = math.exp(LEVELS[step])
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def seen(step, x0, noise, prediction):
    """Input and output of a perfect U-Net, in float64."""
    alpha, part = parts(step)
    x = alpha * x0 + part * noise
    return x, {"epsilon": noise, "v_prediction": alpha * noise - part * x0, "sample": x0}[
        prediction
    ]


def recorded(step, x, output):
    return Recorded(step, FeatureKey.of(x), output, x)


def moving(step):
    """An x0 that settles at the rate that it has at step 1."""
    start, slope = (torch.randn(2, 3, 4, 4, generator=generator(seed)) for seed in (0, 1))
    settles = rate(math.exp(LEVELS[1]))
    return start + math.exp((LEVELS[step] - LEVELS[1]) * settles) * slope


def rate(sigma):
    """How fast x0 settles in each ln(sigma)."""
    return 1 + 3 * sigma / (1 + sigma)


def known(scheduler, steps):
    scheduler.set_timesteps(steps)
    return Context(steps, tuple(scheduler.timesteps.tolist()), scheduler)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_x0_that_settles_is_followed(prediction):
    # Noise of its own in each step, as samplers that add some have it.
    calls = [
        seen(step, moving(step), torch.randn(2, 3, 4, 4, generator=generator(9 + step)), prediction)
        for step in range(4)
    ]
    found = Forecast(LEVELS, prediction).output(
        3, [recorded(1, *calls[1]), recorded(0, *calls[0])], calls[3][0]
    )
    # Float32 keeps 7 digits, of x0 up to 20 times as large as what is left of it.
    torch.testing.assert_close(found, calls[3][1], rtol=0, atol=1e-4)
    assert not torch.allclose(calls[1][1], calls[3][1], atol=1e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_of_one_output_x0_is_kept(prediction):
    x0 = torch.randn(2, 3, 4, 4, generator=generator(0))
    noise = torch.randn(2, 3, 4, 4, generator=generator(1))
    first, third = (seen(step, x0, noise, prediction) for step in (0, 2))
    found = Forecast(LEVELS, prediction).output(2, [recorded(0, *first)], third[0])
    torch.testing.assert_close(found, third[1], rtol=0, atol=1e-5)  # a few roundings of float32


def test_noise_that_does_not_fall_is_no_line():
    x = torch.ones(1, 1, 2, 2)
    outputs = [recorded(1, x, 2 * x), recorded(0, x, 5 * x)]
    flat = Forecast((1.0, 1.0, 0.5), "sample").output(2, outputs, x)
    assert torch.equal(flat, 2 * x)


def test_a_condition_beside_the_sample_is_left_out():
    sample, condition = torch.randn(2, 4, 4, 4, generator=generator(0)), torch.ones(2, 5, 4, 4)
    x0 = torch.zeros(2, 4, 4, 4)
    x, _ = seen(0, x0, sample, "epsilon")
    later, output = seen(2, x0, sample, "epsilon")
    forecast = Forecast(LEVELS, "epsilon")
    alone = forecast.output(2, [recorded(0, x, sample)], later)
    beside = forecast.output(
        2,
        [recorded(0, torch.cat([x, condition], 1), sample)],
        torch.cat([later, condition], 1),
    )
    assert torch.equal(alone, beside)
    torch.testing.assert_close(beside, output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [2, 4], ids=["a narrow condition", "a wide one"])
def test_a_condition_may_come_first(width):
    # As in Marigold, where the picture comes first and what is denoised second.
    picture = torch.ones(1, width, 2, 2)
    x, later, output = (torch.randn(1, 4, 2, 2, generator=generator(seed)) for seed in range(3))
    forecast = Forecast(LEVELS, "epsilon")
    found = forecast.output(
        2, [recorded(0, torch.cat([picture, x], 1), output)], torch.cat([picture, later], 1)
    )
    assert torch.equal(found, forecast.output(2, [recorded(0, x, output)], later))


def test_of_channels_that_do_not_change_the_newest_output_is_given():
    # As in the second stage of DeepFloyd IF, whose output has a variance where its input has the
    # picture that is enlarged.
    x, later, picture = (torch.randn(1, 3, 2, 2, generator=generator(seed)) for seed in range(3))
    output = torch.randn(1, 6, 2, 2, generator=generator(3))
    forecast = Forecast(LEVELS, "epsilon")
    found = forecast.output(
        2, [recorded(0, torch.cat([x, picture], 1), output)], torch.cat([later, picture], 1)
    )
    alone = forecast.output(2, [recorded(0, x, output[:, :3])], later)
    assert torch.equal(found, torch.cat([alone, output[:, 3:]], 1))


def test_a_mask_and_a_masked_picture_beside_a_learned_variance_are_no_sample():
    # As in Kandinsky 2.2's inpainting: 4 + 4 + 1 channels in, 4 + 4 out.
    x, later, picture = (torch.randn(1, 4, 2, 2, generator=generator(seed)) for seed in range(3))
    output, mask = torch.randn(1, 8, 2, 2, generator=generator(3)), torch.ones(1, 1, 2, 2)
    forecast = Forecast(LEVELS, "epsilon")
    found = forecast.output(
        2,
        [recorded(0, torch.cat([x, picture, mask], 1), output)],
        torch.cat([later, picture, mask], 1),
    )
    alone = forecast.output(2, [recorded(0, x, output[:, :4])], later)
    assert torch.equal(found, torch.cat([alone, output[:, 4:]], 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_error_of_the_output_reaches_x0_as_far_as_it_says(prediction):
    forecast = Forecast(LEVELS, prediction)
    noise = torch.randn(1, 4, 2, 2, generator=generator(0))
    for step in range(4):
        moved = forecast.denoised(step, noise, noise + 1) - forecast.denoised(step, noise, noise)
        assert torch.allclose(moved.abs(), torch.full_like(moved, forecast.reach(step)), atol=1e-5)


def test_half_of_the_trend_is_half_way():
    x = torch.ones(1, 1, 2, 2)
    outputs = [recorded(1, x, 2 * x), recorded(0, x, 5 * x)]
    none, half, whole = (
        Forecast(LEVELS, "sample", strength).output(2, outputs, x) for strength in (0, 0.5, 1)
    )
    assert torch.equal(none, 2 * x)
    torch.testing.assert_close(half, (none + whole) / 2)


def test_a_learned_variance_is_that_of_the_newest():
    x, later = (torch.randn(1, 3, 2, 2, generator=generator(seed)) for seed in (0, 1))
    output = torch.randn(1, 6, 2, 2, generator=generator(2))
    forecast = Forecast(LEVELS, "epsilon")
    found = forecast.output(2, [recorded(0, x, output)], later)
    assert torch.equal(found[:, 3:], output[:, 3:])
    alone = forecast.output(2, [recorded(0, x, output[:, :3])], later)
    assert torch.equal(found[:, :3], alone)


def test_frames_before_channels_are_told_by_what_differs():
    x, later = (torch.randn(1, 3, 8, 2, 2, generator=generator(seed)) for seed in (0, 1))
    output = torch.randn(1, 3, 4, 2, 2, generator=generator(2))
    forecast = Forecast(LEVELS, "v_prediction")
    found = forecast.output(2, [recorded(0, x, output)], later)
    alone = forecast.output(2, [recorded(0, x[:, :, :4], output)], later[:, :, :4])
    assert torch.equal(found, alone)


def test_shapes_that_have_nothing_in_common_give_the_newest_output():
    output = torch.ones(1, 7, 3)
    found = Forecast(LEVELS, "sample").output(
        2, [recorded(0, torch.ones(1, 4, 2), output)], torch.ones(1, 4, 2)
    )
    assert found is output


def test_half_precision_stays_what_it_is():
    x = torch.ones(1, 1, 2, 2, dtype=torch.float16)
    found = Forecast(LEVELS, "epsilon").output(2, [recorded(0, x, x)], x)
    assert found.dtype == torch.float16


@pytest.mark.parametrize(
    ("scheduler", "known"),
    [
        (DDIMScheduler(), True),
        (DDIMScheduler(prediction_type="v_prediction"), True),
        (EulerDiscreteScheduler(prediction_type="sample"), True),
        (DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), False),
        (
            DDIMScheduler(
                rescale_betas_zero_snr=True,
                timestep_spacing="trailing",
                prediction_type="v_prediction",
            ),
            True,
        ),
        (DDIMInverseScheduler(), False),
        (UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0), False),
        (None, False),
    ],
    ids=[
        "epsilon",
        "v",
        "sample",
        "epsilon without signal",
        "v without signal",
        "inversion",
        "flow matching",
        "no scheduler",
    ],
)
def test_a_forecast_needs_to_know_what_the_output_means(scheduler, known):
    timesteps = None
    if scheduler is not None:
        scheduler.set_timesteps(10)
        timesteps = tuple(scheduler.timesteps.tolist())
    context = Context(10, timesteps, scheduler)
    assert (Forecast.of(context) is not None) is known


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(dtype):
    x, later, output = (
        torch.randn(1, 4, 8, 8, generator=generator(seed)).to(dtype) for seed in range(3)
    )
    forecast = Forecast(LEVELS, "v_prediction")
    seen = [recorded(1, x, output), recorded(0, output, x)]
    wide = [recorded(1, x.float(), output.float()), recorded(0, output.float(), x.float())]
    found = forecast.output(2, seen, later)
    assert torch.equal(found, forecast.output(2, wide, later.float()).to(dtype))


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_half_of_the_strength_is_followed_where_noise_is_added(strength):
    for kind, followed in (
        (EulerAncestralDiscreteScheduler, strength / 2),
        (EulerDiscreteScheduler, strength),
    ):
        context = known(kind(**BETAS), 8)
        assert Forecast.of(context, strength=strength).strength == followed


# --- the trend is followed as far as it has held --------------------------------------------------

#: ln(sigma) of seven steps, close enough for the whole trend.
CLOSE = tuple(1.0 - 0.2 * step for step in range(7))

#: Of the full steps 0, 2 and 4.
FULL = (4, 2, 0)


def weight(step, newest, older):
    """How far beyond the newest the trend goes, by the formula in docs/plans-and-forecasts.md."""
    settles = rate(math.exp(CLOSE[newest]))
    ahead, behind = CLOSE[newest] - CLOSE[step], CLOSE[older] - CLOSE[newest]
    return (1 - math.exp(-settles * ahead)) / (math.exp(settles * behind) - 1)


def gone(share):
    """x0 of the three full steps, which has gone this share of what the trend had said."""
    oldest, change, aside = (
        torch.randn(1, 3, 4, 4, generator=generator(seed)) for seed in range(3)
    )
    # At each place the trend is blind to it.
    aside -= (aside * change).sum(1, True) / change.square().sum(1, True) * change
    older = oldest + change
    return [older + share * weight(4, 2, 0) * change + 0.1 * aside, older, oldest]


def forecast_of(x0s, weights=None):
    x = torch.zeros_like(x0s[0])
    seen = [recorded(step, x, each) for step, each in zip(FULL, x0s, strict=True)]
    return Forecast(CLOSE, "sample", weights=weights or {}).output(5, seen, x + 1)


@pytest.mark.parametrize(
    ("share", "followed"),
    [(3, 1), (1, 1), (0.5, 0.75), (0, 0.5), (-0.5, 0.25), (-1, 0), (-2, -0.5), (-3, -1), (-5, -1)],
)
def test_less_of_a_trend_is_followed_that_has_not_held(share, followed):
    newest, older, oldest = gone(share)
    expected = newest + followed * weight(5, 4, 2) * (newest - older)
    # A few roundings of float32, of numbers up to 5.
    torch.testing.assert_close(forecast_of([newest, older, oldest]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 3, 9), (2, 3, 4, 9), (2, 3, 2, 4, 9)], ids=["3D", "4D", "5D"]
)
def test_each_part_of_a_picture_has_its_own_trend(shape):
    # On the left x0 has gone on along the trend, on the right back as far, in the middle both.
    x, width = torch.zeros(shape), shape[-1]
    older, said = x + 1, weight(4, 2, 0)
    share = torch.tensor([1.0] * 4 + [-1.0] * (width - 4))
    newest = older + said * share
    followed = torch.tensor([1.0] * 3 + [2 / 3, 1 / 3] + [0.0] * (width - 5))  # means of 3
    expected = newest + followed * weight(5, 4, 2) * (newest - older)
    torch.testing.assert_close(forecast_of([newest, older, x]), expected, rtol=0, atol=1e-6)
    if x.ndim > 3:  # above and below as well
        turned = [each.transpose(-1, -2) for each in (newest, older, x)]
        found = forecast_of(turned).transpose(-1, -2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_each_frame_has_its_own_trend():
    x = torch.zeros(2, 3, 2, 4, 4)
    share = torch.tensor([1.0, -1.0]).view(2, 1, 1)
    newest = x + 1 + weight(4, 2, 0) * share
    expected = newest + share.clamp(min=0) * weight(5, 4, 2) * (newest - x - 1)
    torch.testing.assert_close(forecast_of([newest, x + 1, x]), expected, rtol=0, atol=1e-6)


def test_frames_before_channels_have_trends_of_their_own():
    frames = [torch.stack(each, 1) for each in zip(*map(gone, (1, -0.3, -3)), strict=True)]
    condition = torch.ones_like(frames[0])
    seen = [
        recorded(step, torch.cat([torch.zeros_like(x0), condition], 2), x0)
        for step, x0 in zip(FULL, frames, strict=True)
    ]
    sample = torch.cat([torch.ones_like(condition), condition], 2)
    found = Forecast(CLOSE, "sample").output(5, seen, sample)
    for frame, share in enumerate((1, -0.3, -3)):
        torch.testing.assert_close(found[:, frame], forecast_of(gone(share)), rtol=0, atol=1e-6)


def test_each_picture_of_a_batch_has_its_own_trend():
    alone = [gone(share) for share in (1, -0.3, -3)]
    together = forecast_of([torch.cat(each) for each in zip(*alone, strict=True)])
    for each, x0s in zip(together, alone, strict=True):
        torch.testing.assert_close(each, forecast_of(x0s)[0], rtol=0, atol=1e-6)  # order of sums


def test_what_does_not_move_is_kept():
    x0 = torch.randn(2, 3, 4, 4, generator=generator(0))
    torch.testing.assert_close(forecast_of([x0] * 3), x0, rtol=0, atol=1e-6)


def test_full_steps_that_lie_very_far_apart_say_nothing_that_is_not_finite():
    # As under zero signal, where ln(sigma) is 13 at first: what the trend says there is next to 0.
    levels = (13.8, 1.0, 0.8, 0.6, 0.4, 0.2)
    x = torch.zeros(1, 3, 4, 4)
    forecast, newest, older = Forecast(levels, "sample"), x + 2, x + 1
    for oldest, followed in ((x, 1), (x + 3, -1)):  # the direction alone decides
        seen = [recorded(3, x, newest), recorded(1, x, older), recorded(0, x, oldest)]
        (weight,) = forecast.weights_of(4, (3, 1, 0))
        expected = newest + followed * weight * (newest - older)
        torch.testing.assert_close(forecast.output(4, seen, x + 1), expected)


@pytest.mark.parametrize("strength", [1, 0.5])
def test_x0_that_swings_is_followed_back_however_far_apart_the_full_steps_lie(strength):
    levels = (2.0, 1.0, -0.2, -0.5)  # beyond the reach of a trend
    forecast, x = Forecast(levels, "sample", strength), torch.zeros(1, 3, 4, 4)
    assert forecast.weights_of(3, (2, 1, 0)) == (0,)
    seen = [recorded(2, x, x + 1), recorded(1, x, x + 2), recorded(0, x, x - 1)]
    settles = rate(math.exp(levels[2]))
    gone_back = (1 - math.exp(-settles * 0.3)) / (math.exp(settles * 1.2) - 1)
    torch.testing.assert_close(forecast.output(3, seen, x + 1), x + 1 + strength * gone_back)
    seen[2] = recorded(0, x, x + 3)  # it has gone on
    torch.testing.assert_close(forecast.output(3, seen, x + 1), x + 1)


LEARNED = {(5, *FULL): (0.7, -0.2)}


def test_what_was_learned_is_followed_as_far_as_the_trend_has_held():
    newest, older, oldest = x0s = gone(0)  # half
    expected = newest + (0.7 * (newest - older) - 0.2 * (older - oldest)) / 2
    torch.testing.assert_close(forecast_of(x0s, LEARNED), expected, rtol=0, atol=1e-5)


def test_where_x0_swings_what_was_learned_is_not_followed():
    newest, older, _ = x0s = gone(-3)
    expected = newest - weight(5, 4, 2) * (newest - older)
    torch.testing.assert_close(forecast_of(x0s, LEARNED), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 4, 8), (2, 4, 8, 8), (2, 3, 4, 8, 8)], ids=["3D", "4D", "5D"]
)
def test_three_outputs_of_half_precision_are_summed_in_float32(dtype, shape):
    x, later, *outputs = (
        torch.randn(shape, generator=generator(seed)).to(dtype) for seed in range(5)
    )
    forecast = Forecast(CLOSE, "v_prediction")
    seen, wide = (
        [recorded(step, each(x), each(output)) for step, output in zip(FULL, outputs, strict=True)]
        for each in (torch.Tensor.clone, torch.Tensor.float)
    )
    found = forecast.output(5, seen, later)
    assert torch.equal(found, forecast.output(5, wide, later.float()).to(dtype))


def test_three_outputs_with_a_condition_beside_the_sample():
    xs, later, outputs = (
        torch.randn(3, 2, 4, 4, 4, generator=generator(seed)) for seed in range(3)
    )
    later, condition = later[0], torch.ones(2, 5, 4, 4)
    forecast = Forecast(CLOSE, "epsilon")
    alone = [recorded(step, x, output) for step, x, output in zip(FULL, xs, outputs, strict=True)]
    beside = [
        recorded(step, torch.cat([x, condition], 1), output)
        for step, x, output in zip(FULL, xs, outputs, strict=True)
    ]
    found = forecast.output(5, beside, torch.cat([later, condition], 1))
    assert torch.equal(found, forecast.output(5, alone, later))


def test_a_pair_of_steps_at_one_noise_level_says_nothing_of_the_trend():
    # As Heun's method has them: between 0 and 2 here there is no fall.
    levels = (0.6, 0.6, 0.6, 0.4, 0.2, 0.0, -0.2)
    x, newest, older = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    seen = [recorded(4, x, newest), recorded(2, x, older), recorded(0, x, -newest)]
    forecast = Forecast(levels, "sample")
    assert torch.equal(forecast.output(5, seen, x + 1), forecast.output(5, seen[:2], x + 1))


@pytest.mark.parametrize(
    ("gap", "share"), [(0.1, 1), (0.4, 1), (0.5, 0.6), (0.64, 0.25), (0.8, 0), (1.5, 0)]
)
def test_less_of_a_trend_is_followed_between_full_steps_that_lie_far_apart(gap, share):
    levels = (1.0 + gap, 1.0, 0.9, 0.8)
    settles = rate(math.e)
    whole = (1 - math.exp(-settles * 0.1)) / (math.exp(settles * gap) - 1)
    for strength in (1.0, 0.5):
        (found,) = Forecast(levels, "epsilon", strength).weights_of(2, (1, 0))
        assert found == pytest.approx(strength * share * whole)
