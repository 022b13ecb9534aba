"""k-diffusion's own samplers with a helper of the bare U-Net, which is given their noise levels."""

import pytest
import torch
from builders.k_diffusion_samplers import k_diffusion
from builders.layouts.original import CompVisUNet, build
from builders.unets import TEXT_WIDTH, unet2d_condition
from torch import nn

from deepcache_patch import FULL, OUTPUT, DeepCacheHelper, DeepCacheWarning, Uniform

pytestmark = pytest.mark.usefixtures("no_grad")

STEPS = 12
#: Of Karras' noise levels, by default.
PLAN = "FF·F··F··F··"
#: Heun's method calls the U-Net twice in each step but one: first where it ends up, then again.
SAMPLERS = {
    "sample_euler": "FFsFssFssFss",
    "sample_dpmpp_2m": "FFsFssFssFss",
    "sample_heun": "FFFssFFssssFFssssFFssss",
}


class Diffusers(nn.Module):
    """Calls a U-Net of diffusers as k-diffusion calls one."""

    def __init__(self):
        super().__init__()
        self.unet = unet2d_condition()
        self.context = torch.randn(2, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))

    def forward(self, x, t):
        return self.unet(x, t, encoder_hidden_states=self.context).sample


class Original(nn.Module):
    """Calls one of CompVis' layout."""

    def __init__(self):
        super().__init__()
        self.unet = build(CompVisUNet)
        self.context = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))

    def forward(self, x, t):
        return self.unet(x, t, self.context)


class Watched(nn.Module):
    """Notes which calls ran in full."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.helper, self.kinds = inner, None, ""

    def forward(self, x, t):
        before = self.helper and self.helper.stats.full_calls
        output = self.inner(x, t)
        if self.helper is not None:
            self.kinds += "F" if self.helper.stats.full_calls > before else "s"
        return output


class Host:
    """A model in k-diffusion's wrapper, and a sampler."""

    def __init__(self, layout, sampler, wrapper="DiscreteEpsDDPMDenoiser"):
        package = k_diffusion()
        self.watched = Watched(layout())
        self.unet = self.watched.inner.unet
        alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        self.model = getattr(package.external, wrapper)(self.watched, alphas, quantize=False)
        self.sampler = getattr(package.sampling, sampler)
        ends = float(self.model.sigma_min), float(self.model.sigma_max)
        self.sigmas = package.sampling.get_sigmas_karras(STEPS, *ends)

    def draw(self):
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return self.sampler(self.model, noise * self.sigmas[0], self.sigmas, disable=True)

    def declared(self, helper, prediction="epsilon"):
        with helper.generation(sigmas=self.sigmas, prediction_type=prediction):
            return self.draw()


LAYOUTS = pytest.mark.parametrize("layout", [Diffusers, Original])


@LAYOUTS
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_picture_is_one_generation_by_the_noise_levels(layout, sampler):
    host = Host(layout, sampler)
    plain = host.draw()
    helper = DeepCacheHelper(host.unet).enable()
    host.watched.helper = helper
    first = host.declared(helper)
    assert host.watched.kinds == SAMPLERS[sampler]
    assert str(helper.last_generations["unet"].plan) == PLAN
    assert helper.last_generations["unet"].plan.branches == (OUTPUT,)
    assert helper.stats.generations == 1
    assert torch.equal(host.declared(helper), first)
    assert host.watched.kinds == 2 * SAMPLERS[sampler]
    assert helper.stats.generations == 2
    assert not torch.equal(first, plain)
    helper.disable()
    assert torch.equal(host.draw(), plain)


@LAYOUTS
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Uniform(1), Uniform(1, OUTPUT)], ids=["branch 0", "output"])
def test_at_interval_1_the_picture_is_the_plain_one(layout, sampler, schedule):
    host = Host(layout, sampler)
    plain = host.draw()
    with DeepCacheHelper(host.unet, schedule=schedule) as helper:
        assert torch.equal(host.declared(helper), plain)
        assert helper.stats.shallow_calls == 0


@LAYOUTS
def test_without_the_meaning_of_the_output_shallow_steps_run_at_branch_0(layout):
    host = Host(layout, "sample_euler")
    with DeepCacheHelper(host.unet) as helper:
        host.declared(helper, prediction=None)
    assert list(helper.last_generations["unet"].plan) == [
        FULL if kind == "F" else 0 for kind in SAMPLERS["sample_euler"]
    ]


def test_an_output_that_is_a_velocity_is_forecast_as_one():
    host = Host(Original, "sample_euler", "DiscreteVDDPMDenoiser")
    plain = host.draw()
    with DeepCacheHelper(host.unet) as helper:
        right = host.declared(helper, "v_prediction")
        wrong = host.declared(helper, "epsilon")
    assert (right - plain).abs().mean() < (wrong - plain).abs().mean()


def test_a_sampler_with_calls_between_the_steps_is_given_their_noise_levels():
    # dpm_2 calls the U-Net at each noise level, and half way to the next in ln(sigma).
    host = Host(Original, "sample_dpm_2")
    with DeepCacheHelper(host.unet, schedule=Uniform(2, OUTPUT)) as helper:
        with pytest.warns(DeepCacheWarning, match=f"was given {STEPS}, so those before"):
            host.declared(helper)
        steps = host.sigmas[:-1]
        between = (steps[:-1] * steps[1:]).sqrt()
        calls = torch.cat([steps, between]).sort(descending=True).values
        before = helper.stats
        with helper.generation(sigmas=calls, prediction_type="epsilon"):
            host.draw()
        assert helper.stats.full_calls - before.full_calls == STEPS
        assert helper.stats.shallow_calls - before.shallow_calls == STEPS - 1
