"""From a picture to noise and back: with both loops in `paused()`, as without a helper."""

from contextlib import nullcontext

import pytest
import torch
from builders.cases import CASES
from builders.kinds_of_calls import told
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition
from diffusers import DDIMInverseScheduler, DDIMScheduler

from deepcache_patch import DeepCacheHelper, NoiseAware, Uniform

STEPS = 10
SCHEDULES = [
    pytest.param(Uniform(3), id="branch 0"),
    pytest.param(NoiseAware(2), id="default"),
]


def picture():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def by_pipeline(pipe):
    """DDIM's inversion, as a pipeline with the inverse scheduler makes it, and the way back."""
    latents, back = picture(), DDIMScheduler.from_config(pipe.scheduler.config)
    for pipe.scheduler in (DDIMInverseScheduler.from_config(back.config), back):
        latents = pipe(
            prompt="a small red circle",
            num_inference_steps=STEPS,
            latents=latents,
            guidance_scale=1.0,
            output_type="latent",
        ).images
    return latents


def edict(pipe):
    """Two coupled samples, whose steps can be undone exactly: up the timesteps, and down again."""
    prompt = inputs2d_condition()["encoder_hidden_states"][:1].double()
    pipe.unet.double()
    pipe.scheduler.set_timesteps(STEPS)
    timesteps, share = pipe.scheduler.timesteps, 0.93
    signal = pipe.scheduler.alphas_cumprod.double()
    ratio = pipe.scheduler.config.num_train_timesteps // STEPS

    def factors(timestep):
        now, then = signal[timestep], signal[max(int(timestep) - ratio, 0)]
        scale = (then / now).sqrt()
        return scale, (1 - then).sqrt() - scale * (1 - now).sqrt()

    def noise(sample, timestep):
        return pipe.unet(sample, timestep, encoder_hidden_states=prompt).sample

    x = y = picture().double()
    with torch.no_grad():
        for timestep in timesteps.flip(0):
            scale, step = factors(timestep)
            y = (y - (1 - share) * x) / share
            x = (x - (1 - share) * y) / share
            y = (y - step * noise(x, timestep)) / scale
            x = (x - step * noise(y, timestep)) / scale
        for timestep in timesteps:
            scale, step = factors(timestep)
            x = scale * x + step * noise(y, timestep)
            y = scale * y + step * noise(x, timestep)
            x = share * x + (1 - share) * y
            y = share * y + (1 - share) * x
    return x


TRIPS = {"by the pipeline": by_pipeline, "two coupled samples": edict}


@pytest.mark.parametrize("schedule", mostly_slow(SCHEDULES, ["default"]))
@pytest.mark.parametrize("there_and_back", mostly_slow(TRIPS.values(), 1), ids=TRIPS)
def test_with_both_loops_paused_all_comes_back_as_without_a_helper(there_and_back, schedule):
    pipe = CASES["sd"].load()
    plain = there_and_back(pipe)
    helper = DeepCacheHelper(pipe, schedule=schedule).enable()
    with helper.paused():
        assert torch.equal(there_and_back(pipe), plain)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (0, 0)
    with told():  # each rise is a new start, with few steps before it
        assert not torch.equal(there_and_back(pipe), plain)  # which is why
    assert helper.stats.shallow_calls > 0


def test_what_can_be_undone_exactly_comes_back_paused_alone():
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, schedule=Uniform(3)).enable()

    def error(context):
        with context:
            return float((edict(pipe) - picture()).abs().max())

    assert error(helper.paused()) < 1e-9
    assert error(nullcontext()) > 1e-3
