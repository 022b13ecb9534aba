"""A U-Net inside something else is refused by an error that names it; and named, it is helped."""

import importlib
import re
from types import SimpleNamespace

import pytest
import torch
from builders.cases import CASES
from builders.unets import inputs2d_condition, unet2d_condition
from builders.versions_needed import require
from diffusers import DDPMPipeline
from torch import nn

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.errors import UnsupportedModelError


class Wrapper(nn.Module):
    """Stands for a U-Net in a pipeline, and has it do the work."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    @property
    def config(self):
        return self.inner.config

    @property
    def dtype(self):
        return self.inner.dtype

    @property
    def device(self):
        return self.inner.device

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class OfSDXL(Wrapper):
    """Has what modular pipelines look at, too."""

    @property
    def add_embedding(self):
        return self.inner.add_embedding


class Unregistered(Wrapper):
    """Keeps the U-Net out of its own weights, in a list."""

    inner = property(lambda self: self.all[1])

    def __init__(self, inner):
        nn.Module.__init__(self)
        self.all = [None, inner]


class Listed(Wrapper):
    """Has it in a list of modules."""

    inner = property(lambda self: self.inners[1])

    def __init__(self, inner):
        nn.Module.__init__(self)
        self.inners = nn.ModuleList([nn.Identity(), inner])


class NoModule:
    """Forwards everything."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(vars(self)["_inner"], name)

    def __call__(self, *args, **kwargs):
        return self._inner(*args, **kwargs)


WRAPPED = {
    "pipe.unet.inner": Wrapper,
    "pipe.unet.inner.inner": lambda unet: Wrapper(Wrapper(unet)),
    "pipe.unet.all[1]": Unregistered,
    "pipe.unet.inners[1]": Listed,
    "pipe.unet._inner": NoModule,
}


@pytest.mark.parametrize("cure", WRAPPED)
def test_the_error_names_the_unet_inside_which_can_be_helped(cure):
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe.unet, schedule=Uniform(3)):
        expected = case.run(pipe, steps=4)
    unet, pipe.unet = pipe.unet, WRAPPED[cure](pipe.unet)
    with pytest.raises(UnsupportedModelError) as refused:
        DeepCacheHelper(pipe)
    assert f"DeepCacheHelper({cure})" in str(refused.value)
    named = eval(cure, {"pipe": pipe})
    assert named is unet
    with DeepCacheHelper(named, schedule=Uniform(3)) as helper:
        assert torch.equal(case.run(pipe, steps=4), expected)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)


def test_of_a_wrapper_by_itself_the_error_names_what_is_in_it():
    wrapper = Wrapper(unet2d_condition())
    with pytest.raises(UnsupportedModelError, match=r"DeepCacheHelper\(model\.inner\)"):
        DeepCacheHelper(wrapper)
    with DeepCacheHelper(wrapper.inner, schedule=Uniform(2)) as helper, torch.no_grad():
        for timestep in torch.arange(4, 0, -1):
            wrapper(**inputs2d_condition() | {"timestep": timestep})
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)


@pytest.mark.parametrize("wrap", [lambda unet: unet, Wrapper])
def test_what_is_no_pipeline_but_has_a_unet_is_told_to_give_it(wrap):
    pipe = SimpleNamespace(scheduler=object(), unet=wrap(unet2d_condition()), cycle=[])
    pipe.cycle.append(pipe)
    inner = "pipe.unet" if wrap is not Wrapper else "pipe.unet.inner"
    with pytest.raises(UnsupportedModelError) as refused:
        DeepCacheHelper(pipe)
    assert str(refused.value) == (
        "DeepCacheHelper takes a diffusers pipeline or a U-Net, not SimpleNamespace: "
        f"give it the U-Net alone, DeepCacheHelper({inner})"
    )


def test_where_there_is_none_the_error_names_none():
    for nothing in (nn.Linear(1, 1), Wrapper(nn.Linear(1, 1)), SimpleNamespace(a=1), [], None, 3):
        with pytest.raises(UnsupportedModelError) as refused:
            DeepCacheHelper(nothing)
        assert "DeepCacheHelper(" not in str(refused.value)


def test_a_wrapped_unet_of_a_modular_pipeline_is_named_too():
    require("diffusers", "0.42", "a modular pipeline of parts that are there")
    modular = importlib.import_module("builders.modular")
    pipe, run = modular.modular_sdxl(), modular.run_modular
    call = {"defaults": {"prompt": "a small red circle", "height": 16, "width": 16}, "steps": 4}
    with DeepCacheHelper(pipe, schedule=Uniform(3)) as helper:
        expected = run(pipe, **call)
    counted = helper.stats
    assert (counted.full_calls, counted.shallow_calls) == (4, 4)  # guidance in two calls
    pipe.update_components(unet=OfSDXL(pipe.unet))
    with pytest.raises(UnsupportedModelError, match=r"give DeepCacheHelper\(pipe\.unet\.inner\)"):
        DeepCacheHelper(pipe)
    with DeepCacheHelper(pipe.unet.inner, schedule=Uniform(3)) as helper:
        assert torch.equal(run(pipe, **call), expected)
    assert helper.stats == counted


def test_a_class_in_the_place_of_a_pipeline_is_called_one():
    message = "a U-Net, not the class DDPMPipeline: give DDPMPipeline.from_pretrained(...)"
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        DeepCacheHelper(DDPMPipeline)
