"""Forecasts of the output: exact where x0 settles evenly, and the newest output where it cannot."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch.utils._python_dispatch import TorchDispatchMode

from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.schedules.context import Context
from deepcache_patch.schedules.forecast import Forecast

#: ln(sigma) of four steps.
LEVELS = (1.5, 1.0, 0.25, -0.5)

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


class Operations(TorchDispatchMode):
    """Notes the names of operations that are no views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.name().removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "casts"), [(torch.float32, 0), (torch.float16, 2)], ids=["float32", "float16"]
)
def test_a_forecast_is_one_sum_of_inputs_and_outputs(dtype, casts):
    # Each operation is time of the host, and of a device a kernel: factors are put together before.
    x, later, output = (torch.ones(1, 4, 2, 2, dtype=dtype) * value for value in (1, 2, 3))
    seen = [recorded(1, x, output), recorded(0, later, output)]
    with Operations() as operations:
        Forecast(LEVELS, "epsilon").output(2, seen, later)
    terms = ["mul.Tensor", *["add_.Tensor"] * 4]
    channels_that_moved = ["ne.Tensor", "any.dims", "where.self"]
    assert [name for name in operations.names if name != "_to_copy"] == terms + channels_that_moved
    assert operations.names.count("_to_copy") == casts


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


# --- what was missed is made good -----------------------------------------------------------------


def missed(levels, most=None):
    """What is added to both weights at step 5 after the full steps 4, 2 and 0, by hand.

    Step 3 is the one that was forecast; `most` is what its share of 1 / sigma's rise is bounded to.
    """
    rise = [math.exp(-after) - math.exp(-before) for before, after in itertools.pairwise(levels)]
    settles = rate(math.exp(levels[2]))
    way = math.expm1(settles * (levels[3] - levels[2])) / math.expm1(
        settles * (levels[4] - levels[2])
    )
    slope = Forecast(levels, "epsilon").weights_of(3, (2, 0))[0]
    ratio = rise[3] / rise[5] if most is None else most
    return (ratio * way, -ratio * slope) if ratio else (0.0,)


def added(levels):
    """What is added to the weights at step 5 if all of it is to be made good."""
    whole = Forecast(levels, "epsilon", correction=1.0).weights_of(5, (4, 2, 0))
    (trend,) = Forecast(levels, "epsilon").weights_of(5, (4, 2, 0))
    return (whole[0] - trend, *whole[1:])


def corrected(steps, *, gap, correction=1.0):
    """A forecast whose ln(sigma) falls by `gap` in every two steps."""
    levels = tuple(2.0 - gap / 2 * step for step in range(steps))
    return Forecast(levels, "epsilon", correction=correction)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_sampler_comes_to_where_it_had_been_with_what_is_known_later(kind, prediction):
    # Steps 20, 21 and 24 are full. At 24 it is known where those of 22 and 23 lay, between the two.
    unclipped = {"clip_sample": False} if kind is DDIMScheduler else {}
    scheduler = kind(**BETAS, **unclipped, prediction_type=prediction)
    forecast = replace(Forecast.of(known(scheduler, 100)), correction=1.0)
    x0 = {
        step: torch.randn(1, 1, 2, 2, generator=generator(step)).double() for step in (20, 21, 24)
    }
    sigmas = {step: math.exp(forecast.levels[step]) for step in range(20, 26)}
    settles = rate(sigmas[21])

    def ends(forecast, between):
        sample = torch.ones(1, 1, 2, 2, dtype=torch.float64)
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = 22
        for step in range(22, 26):
            if step == 24:
                made = x0[24]
            elif step == 25:
                made = forecast.ahead(25, (24, 21, 20), [x0[24], x0[21], x0[20]])
            else:
                made = between(step)
            inputs = scheduler.scale_model_input(sample, timestep := scheduler.timesteps[step])
            output = forecast.answer(step, inputs, made)
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0].double()
        return sample

    def as_it_was_forecast(step):
        return forecast.ahead(step, (21, 20), [x0[21], x0[20]])

    def as_it_was(step):
        way = (sigmas[21] ** settles - sigmas[step] ** settles) / (
            sigmas[21] ** settles - sigmas[24] ** settles
        )
        return x0[21] + way * (x0[24] - x0[21])

    trend = replace(forecast, correction=0.0)
    expected, missed = ends(trend, as_it_was), ends(trend, as_it_was_forecast)
    found = ends(forecast, as_it_was_forecast)
    # Schedulers compute in float32.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (missed - expected).abs().max() > 1e-2


def test_of_what_was_missed_less_is_made_good_the_further_full_steps_are_apart():
    levels = {gap: corrected(8, gap=gap).levels for gap in (0.1, 0.25, 0.35, 0.46, 0.6)}
    assert added(levels[0.25]) == pytest.approx(missed(levels[0.25]))
    assert added(levels[0.1]) == pytest.approx(missed(levels[0.1]))
    # In the middle between 0.25 and 0.45, and from there on.
    assert added(levels[0.35]) == pytest.approx([each / 2 for each in missed(levels[0.35])])
    assert added(levels[0.46]) == (0.0,)
    assert added(levels[0.6]) == (0.0,)


@pytest.mark.parametrize(
    ("step", "full"),
    [(6, (4, 2, 0)), (5, (4, 2)), (5, (4, 3, 2)), (7, (6, 4, 2))],
    ids=["the second after it", "two are known", "none was forecast", "the last step"],
)
def test_nothing_is_made_good(step, full):
    trend = corrected(8, gap=0.2, correction=0.0)
    assert corrected(8, gap=0.2).weights_of(step, full) == trend.weights_of(step, full)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_it_is_for_single_step_samplers_that_add_no_noise(strength):
    for kind, share in (
        (DDIMScheduler, 0.7),
        (EulerDiscreteScheduler, 0.7),
        (EulerAncestralDiscreteScheduler, 0.0),
        (DPMSolverMultistepScheduler, 0.0),
    ):
        context = known(kind(**BETAS), 8)
        assert Forecast.of(context, strength=strength).correction == share
        # The same timesteps, but somebody else's steps.
        assert Forecast.of(replace(context, is_own=False), strength=strength).correction == 0


def test_half_of_the_strength_makes_good_half_of_what_half_of_the_trend_has_missed():
    half, whole = (
        Forecast(corrected(8, gap=0.2).levels, "epsilon", strength, 1.0) for strength in (0.5, 1.0)
    )
    of_half, of_whole = (each.weights_of(5, (4, 2, 0)) for each in (half, whole))
    trend = replace(whole, correction=0.0).weights_of(5, (4, 2, 0))[0]
    assert of_half[0] - trend / 2 == pytest.approx((of_whole[0] - trend) / 2)
    assert of_half[1] == pytest.approx(of_whole[1] / 4)


@pytest.mark.parametrize(("after", "most"), [(0.1, None), (0.03, None), (0.002, 4.0), (0.0, 0.0)])
def test_a_short_step_makes_good_four_times_its_own_at_most(after, most):
    # The step that would make it good falls by `after`.
    levels = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.6 - after, -1.0)
    assert added(levels) == pytest.approx(missed(levels, most))
