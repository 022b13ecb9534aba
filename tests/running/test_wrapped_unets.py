"""A U-Net inside something else is refused by an error that names it; and named, it is helped."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from builders.cases import CASES
from builders.unets import inputs2d_condition, unet2d_condition
from builders.versions_needed import require
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
    # As are modular pipelines.
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


def test_a_modular_pipeline_is_helped_by_its_unet():
    require("diffusers", "0.42", "a modular pipeline of parts that are there")
    modular = importlib.import_module("diffusers.modular_pipelines")
    parts = CASES["sdxl"].load().components
    pipe = modular.StableDiffusionXLModularPipeline(modular.StableDiffusionXLAutoBlocks())
    known = {name for name, part in parts.items() if part is not None}
    pipe.update_components(**{name: parts[name] for name in known & {*pipe._component_specs}})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(UnsupportedModelError, match=r"DeepCacheHelper\(pipe\.unet\)$"):
        DeepCacheHelper(pipe)

    def run():
        return pipe(
            prompt="a small red circle",
            num_inference_steps=4,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            output="images",
        )

    plain = run()
    with DeepCacheHelper(pipe.unet, schedule=Uniform(1)):
        assert torch.equal(run(), plain)
    with DeepCacheHelper(pipe.unet, schedule=Uniform(3)) as helper:
        assert not torch.equal(run(), plain)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 4)  # guidance in two calls
