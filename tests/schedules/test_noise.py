"""How much noise each step has: against formulas."""

import random
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from builders.cases import CASES
from builders.schedulers import SCHEDULERS

from deepcache_patch.schedules.noise import (
    adds_noise,
    copied_scheduler,
    noise_levels,
)

SD = CASES["sd"]


@pytest.fixture(scope="module")
def config():
    return SD.load().scheduler.config


def prepared(name, config, steps=8, **options):
    scheduler = SCHEDULERS[name](config | options)
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.timesteps.tolist()


def state(scheduler):
    """Everything that a scheduler holds, tensors as bytes."""
    return {
        key: value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
        for key, value in vars(scheduler).items()
    }


# --- levels -------------------------------------------------------------------------------------


def test_ddim_and_euler_have_the_same_levels_at_the_same_timesteps(config):
    ddim, timesteps = prepared("ddim", config)
    euler, same = prepared("euler", config, timestep_spacing="leading")
    assert timesteps == same
    levels = noise_levels(ddim, timesteps)
    assert len(levels) == 8
    # Euler computes its sigmas in float32: a few units in the last place of each.
    assert levels == pytest.approx(noise_levels(euler, timesteps), abs=1e-6)


def test_levels_of_ddim_are_the_formula(config):
    ddim, timesteps = prepared("ddim", config)
    shares = ddim.alphas_cumprod.double().numpy()[timesteps]
    assert noise_levels(ddim, timesteps) == tuple(np.log(np.sqrt((1 - shares) / shares)).tolist())


def test_levels_of_euler_are_its_sigmas(config):
    euler, timesteps = prepared("euler", config)
    sigmas = euler.sigmas[:-1].double()
    assert noise_levels(euler, timesteps) == tuple(np.log(sigmas.numpy()).tolist())


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_levels_never_rise(name, config):
    scheduler, timesteps = prepared(name, config)
    levels = noise_levels(scheduler, timesteps)
    assert len(levels) == len(timesteps)
    assert (np.diff(levels) <= 0).all()
    assert levels[0] > levels[-1]


def test_levels_of_euler_are_its_sigmas_where_two_more_stand_behind_them(config):
    # With "log_linear" it has a sigma that no step begins with before the closing 0. That was taken
    # for a list of other things, and the table gave the levels of its timesteps, which are others:
    # forecasts were wrong even where x0 never changes.
    euler, timesteps = prepared("euler", config, interpolation_type="log_linear")
    assert len(euler.sigmas) == len(timesteps) + 2
    sigmas = euler.sigmas[: len(timesteps)].double()
    assert noise_levels(euler, timesteps) == tuple(np.log(sigmas.numpy()).tolist())
    assert noise_levels(euler, timesteps[3:]) == noise_levels(euler, timesteps)[3:]


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm-multistep", "heun", "pndm"])
def test_a_generation_that_starts_late_has_the_last_levels(name, config):
    scheduler, timesteps = prepared(name, config)
    assert noise_levels(scheduler, timesteps[3:]) == noise_levels(scheduler, timesteps)[3:]


def test_no_noise_left_is_still_a_number(config):
    euler, timesteps = prepared("euler", config)
    euler.sigmas[3] = 0
    assert noise_levels(euler, timesteps)[3] == np.log(1e-4)


ODD = {
    "no scheduler": (None, [3.0, 2.0]),
    "neither table": (SimpleNamespace(timesteps=torch.tensor([3, 2])), [3.0, 2.0]),
    "sigmas of another length": (
        SimpleNamespace(timesteps=torch.tensor([3, 2]), sigmas=torch.ones(6)),
        [3.0, 2.0],
    ),
    "timesteps beyond the table": (
        SimpleNamespace(timesteps=torch.tensor([5, 1]), alphas_cumprod=torch.ones(5) / 2),
        [5.0, 1.0],
    ),
    "timesteps below the table": (
        SimpleNamespace(timesteps=torch.tensor([1, -1]), alphas_cumprod=torch.ones(5) / 2),
        [1.0, -1.0],
    ),
    "more steps than timesteps": (
        SimpleNamespace(timesteps=torch.tensor([3, 2]), sigmas=torch.ones(3)),
        [4.0, 3.0, 2.0],
    ),
    "another list of timesteps": (
        SimpleNamespace(timesteps=torch.tensor([3, 2]), sigmas=torch.ones(3)),
        [3.0, 1.0],
    ),
    "no list of timesteps": (SimpleNamespace(timesteps=[3, 2], sigmas=torch.ones(3)), [3.0, 2.0]),
    "a table of timesteps": (
        SimpleNamespace(timesteps=torch.tensor([[3], [2]]), sigmas=torch.ones(3)),
        [3.0, 2.0],
    ),
    "no steps": (SimpleNamespace(timesteps=torch.tensor([3, 2]), sigmas=torch.ones(3)), []),
}


@pytest.mark.parametrize("name", ODD)
def test_a_scheduler_that_does_not_say_has_no_levels(name):
    assert noise_levels(*ODD[name]) is None


def test_between_the_entries_of_the_table_the_level_is_on_a_straight_line():
    # Noise and data are equally strong where half of the variance is left, and that is level 0.
    scheduler = SimpleNamespace(alphas_cumprod=torch.tensor([1 / (1 + 2.0), 0.5], dtype=float))
    assert noise_levels(scheduler, [0.75, 0.5, 0.0]) == pytest.approx(
        [np.log(2) / 8, np.log(2) / 4, np.log(2) / 2], abs=1e-15
    )


def test_what_another_pipelines_scheduler_holds_at_the_moment_does_not_matter(config):
    # Where two lists are equal by chance, the levels came from this scheduler's sigmas, else from
    # the table: a thread's picture depended on what another thread had set.
    euler, timesteps = prepared("euler", config)
    chance = noise_levels(euler, timesteps, is_own=False)
    euler.set_timesteps(5)
    assert noise_levels(euler, timesteps) == noise_levels(euler, timesteps, is_own=False) == chance


@pytest.mark.parametrize(("name", "tolerance"), [("ddim", 0), ("ddpm", 0), ("euler", 1e-3)])
def test_another_schedulers_timesteps_have_its_levels(name, tolerance, config):
    # Pipelines that share a U-Net have schedulers of their own. Euler's sigmas are on a straight
    # line between those of the table, and these are their logarithms.
    other, timesteps = prepared(name, config)
    mine, _ = prepared("dpm-multistep", config)
    expected = noise_levels(other, timesteps)
    assert noise_levels(mine, timesteps) == pytest.approx(expected, abs=tolerance)


def test_sigmas_of_whole_steps_alone_do_not_say_those_of_the_midpoints():
    # As DPMSolverSDEScheduler has them: each twice, beside timesteps that are all different.
    plain = diffusers.DDIMScheduler()
    scheduler = SimpleNamespace(
        timesteps=torch.tensor([900.0, 700.0, 500.0, 300.0]),
        sigmas=torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0]),
        alphas_cumprod=plain.alphas_cumprod,
    )
    timesteps = (900.0, 700.0, 500.0, 300.0)
    assert noise_levels(scheduler, timesteps) == noise_levels(plain, timesteps)


# --- noise that is added --------------------------------------------------------------------------

KDPM2_ANCESTRAL = diffusers.KDPM2AncestralDiscreteScheduler
MULTISTEP = diffusers.DPMSolverMultistepScheduler

#: Every one that the tests know, and others that add noise, not all of them in the first step.
MAKERS = {
    **SCHEDULERS,
    "kdpm2-ancestral": lambda config: KDPM2_ANCESTRAL.from_config(config),
    "dpm-sde": lambda config: MULTISTEP.from_config(config, algorithm_type="sde-dpmsolver++"),
    "tcd": lambda config: diffusers.TCDScheduler.from_config(config),
}


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_seen_which_schedulers_add_noise(name, config):
    scheduler = MAKERS[name](config)
    scheduler.set_timesteps(8)
    before, random = state(scheduler), torch.random.get_rng_state()
    adding = {"ddpm", "euler-ancestral", "lcm", "kdpm2-ancestral", "dpm-sde", "tcd"}
    assert adds_noise(scheduler) is (name in adding)
    assert state(scheduler) == before
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("name", ["euler-ancestral", "lcm", "dpm-sde", "ddpm"])
def test_it_does_not_matter_how_many_steps_there_are_or_how_far_it_is(name, config):
    # After a generation, and with one step, it was said that none is added.
    scheduler = MAKERS[name](config)
    scheduler.set_timesteps(1)
    assert adds_noise(scheduler)
    other = MAKERS[name](config)
    other.set_timesteps(8)
    sample = torch.zeros(1, 1, 8, 1)
    for timestep in other.timesteps:
        sample = other.step(sample, timestep, sample, return_dict=False)[0]
    assert adds_noise(other)


def test_noise_beside_a_learned_variance_is_seen(config):
    scheduler = diffusers.DDPMScheduler.from_config(config, variance_type="learned_range")
    assert adds_noise(scheduler)


def test_noise_of_a_scheduler_that_holds_a_function_is_seen(config):
    scheduler = diffusers.SASolverScheduler.from_config(config)
    assert callable(scheduler.tau_func)
    assert adds_noise(scheduler)


def test_a_config_that_cannot_be_compared_is_looked_at_once_more(config):
    scheduler = diffusers.DDPMScheduler.from_config(config)
    for number in (0.1, 0.2):
        scheduler.register_to_config(trained_betas=np.full(3, number))
        assert adds_noise(scheduler)


def test_nan_is_not_noise(config):
    scheduler, _ = prepared("ddim", config, rescale_betas_zero_snr=True)
    assert not adds_noise(scheduler)


def test_it_is_looked_at_once_for_each_config(config, monkeypatch):
    scheduler, _ = prepared("dpm-multistep", config)
    steps = []
    step = type(scheduler).step
    monkeypatch.setattr(
        type(scheduler), "step", lambda *args, **kwargs: steps.append(1) or step(*args, **kwargs)
    )
    assert not adds_noise(scheduler)
    assert not adds_noise(scheduler)
    assert len(steps) == 4
    scheduler.register_to_config(algorithm_type="sde-dpmsolver++")
    assert adds_noise(scheduler)
    assert len(steps) == 4 + 1


class Refuses(diffusers.DDPMScheduler):
    def step(self, *args, **kwargs):
        raise RuntimeError("not without the pipeline")


@pytest.mark.parametrize(
    "scheduler",
    [None, SimpleNamespace(timesteps=torch.tensor([3, 2])), Refuses()],
    ids=["none", "no step", "raises"],
)
def test_what_cannot_be_tried_adds_none(scheduler):
    assert adds_noise(scheduler) is False


class DrawsElsewhere(diffusers.DDIMScheduler):
    """Adds what the generators of torch, numpy and Python give, whatever its own one is."""

    def step(self, output, timestep, sample, generator=None, return_dict=True):
        made = super().step(output, timestep, sample, return_dict=False)[0]
        drawn = torch.randn_like(made) + float(np.random.randn()) + random.random()
        return (made + drawn,)


def test_what_a_trial_draws_is_drawn_once_more(config):
    scheduler = DrawsElsewhere.from_config(config)
    draws = []
    for is_tried in (False, True):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        assert not is_tried or adds_noise(scheduler)
        draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert draws[0] == draws[1]


def test_a_scheduler_that_holds_a_model_is_not_copied(config):
    scheduler, _ = prepared("euler-ancestral", config)
    scheduler.unet = torch.nn.Linear(1, 1)
    assert copied_scheduler(scheduler) is None
    assert adds_noise(scheduler) is False
