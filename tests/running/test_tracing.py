"""What is traced, exported or transformed while a helper is enabled is the whole U-Net."""

import pytest
import torch
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepcache_patch import DeepCacheHelper, Uniform


class Wrapper(torch.nn.Module):
    """What people export: a module whose call is all positional, and gives a tensor."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, states):
        return self.unet(sample, timestep, states, return_dict=False)[0]


GIVEN = tuple(inputs2d_condition(seed=1).values())


def traced(module):
    return torch.jit.trace(module, GIVEN, check_trace=False)


def traced_and_checked(module):
    return torch.jit.trace(module, GIVEN)


def exported(module):
    return torch.export.export(module, GIVEN, strict=False).module()


def made_fx(module):
    return make_fx(lambda *given: module(*given))(*GIVEN)


WAYS = [traced, traced_and_checked, exported, made_fx]


def amid_a_loop(unet):
    """Two steps, of which the second was shallow: the next would be, too."""
    for timestep in (900, 700):
        unet(**inputs2d_condition() | {"timestep": torch.tensor(timestep)})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("branch", mostly_slow([0, -1], 1))
@pytest.mark.parametrize("way", mostly_slow(WAYS, 1), ids=lambda way: way.__name__)
@torch.no_grad()
def test_what_is_written_down_is_the_whole_unet(way, branch):
    unet = unet2d_condition()
    wrapper = Wrapper(unet)
    plain = wrapper(*GIVEN)
    next_plain = unet(**inputs2d_condition(seed=2, timestep=650)).sample
    expected = way(wrapper)(*GIVEN)
    with DeepCacheHelper(unet, schedule=Uniform(3, branch)) as helper:
        amid_a_loop(unet)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (1, 1)
        found = way(wrapper)
        assert helper.stats.shallow_calls == 1
        # Nothing of another sample is replayed after it.
        assert torch.equal(unet(**inputs2d_condition(seed=2, timestep=650)).sample, next_plain)
    assert torch.equal(found(*GIVEN), expected)
    assert torch.allclose(expected, plain, atol=1e-5)


@torch.no_grad()
def test_a_call_without_values_is_no_step():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper:
        amid_a_loop(unet)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = {name: mode.from_tensor(each) for name, each in inputs2d_condition().items()}
            assert unet(**fake).sample.shape == (2, 4, 8, 8)
        assert helper.stats.shallow_calls == 1


@torch.no_grad()
def test_a_derivative_in_forward_mode_is_that_of_the_whole_unet():
    # Of a replayed feature nothing is derived: the tangent would be another one, without a word.
    unet, (sample, timestep, states) = unet2d_condition(), GIVEN

    def derivative():
        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
            return torch.func.jvp(
                lambda each: unet(each, timestep, states).sample,
                (sample,),
                (torch.ones_like(sample),),
            )

    plain = derivative()
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper:
        amid_a_loop(unet)
        found = derivative()
        assert helper.stats.shallow_calls == 1
    assert all(map(torch.equal, found, plain))
