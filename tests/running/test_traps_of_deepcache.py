"""Traps that DeepCache 0.1.1, the package of that name, has been caught in: each stays open.

Each was met by running a real pipeline. What is tested in depth elsewhere has its short test here
all the same; the traps of other ways to speed up U-Nets are in the `test_traps_of_…` beside it.
"""

import gc
import itertools

import pytest
import torch
from builders.kinds_of_calls import (
    TWICE,
    assert_as_fresh,
    assert_exact,
    counted,
    kinds_of,
    kinds_of_calls,
)
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from builders.unets import inputs2d_condition
from conftest import counted_calls, trace
from torch.overrides import TorchFunctionMode
from zoo import CASES

from deepcache_patch import (
    DeepCacheHelper,
    DeepCacheSDHelper,
    InvalidSettingError,
    Uniform,
)


class CountedReads(TorchFunctionMode):
    """Counts what waits for a device: every read of a tensor's values."""

    READS = frozenset(
        {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"}
        | {"__index__", "__array__", "__contains__"}
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.READS
        return func(*args, **(kwargs or {}))


def test_trap_timesteps():
    # DeepCache looks each timestep's value up in a list: the device is waited for at every step.
    case = CASES["sd"]
    pipe = case.load()

    def reads_of_each_step():
        counts = []

        def ended(_pipe, _step, _timestep, kwargs):
            counts.append(reads.count)
            return kwargs

        with CountedReads() as reads:
            case.run(pipe, steps=8, callback_on_step_end=ended)
        return [after - before for before, after in itertools.pairwise(counts)]

    plain = reads_of_each_step()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert reads_of_each_step() == plain
    assert counted(helper) == (3, 5)
    with CountedReads() as reads:  # the counter works
        [*TWICE.tolist(), TWICE[0].item(), int(TWICE[0])]
    assert reads.count == 3


@pytest.mark.parametrize("scheduler", mostly_slow(["heun", "kdpm2", "pndm"], ["heun", "pndm"]))
def test_trap_repeated_timesteps(scheduler):
    # And the look-up takes a timestep that occurs again for its first occurrence.
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), scheduler)
    calls = len(kinds_of(case, pipe))
    assert calls == {"heun": 9, "kdpm2": 9, "pndm": 6}[scheduler]
    distinct = len(pipe.scheduler.timesteps.unique())
    assert distinct == {"heun": 5, "kdpm2": 9, "pndm": 5}[scheduler]
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert kinds_of(case, pipe) == ("Fss" * calls)[:calls]


def test_trap_timestep_by_keyword():
    # And the timestep has to be given by position.
    unet = CASES["sd"].load().unet
    with DeepCacheHelper(unet, schedule=Uniform()), torch.no_grad(), kinds_of_calls(unet) as kinds:
        for timestep in torch.tensor([900, 700, 500, 300]):
            unet(**inputs2d_condition() | {"timestep": timestep})
    assert kinds == ["F", "s", "s", "F"]


def test_trap_second_generation():
    # DeepCache keeps its start timestep and its features: with another strength it starts shallow.
    case = CASES["sd-img2img"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert kinds_of(case, pipe, steps=8) == "FssFss"  # strength 0.8
        assert kinds_of(case, pipe, steps=8, strength=0.6) == "FssF"
        assert kinds_of(case, pipe, steps=8) == "FssFss"
    assert_as_fresh("sd-img2img", {"steps": 8, "strength": 0.6})


def test_trap_branches():
    # DeepCache finds the place of a branch by `% 3`, right only for two layers in each block.
    pipe = CASES["sd-instruct-pix2pix"].load()  # three levels of one layer: six skips
    case = CASES["sd-instruct-pix2pix"]
    assert_exact(case, pipe, steps=1)
    with DeepCacheHelper(pipe, schedule=Uniform(10, branch=2)):
        case.run(pipe, steps=1)
        case.run(pipe, steps=2, callback_on_step_end=None)
    kept = []
    with DeepCacheHelper(pipe, schedule=Uniform(10, branch=2)), counted_calls(pipe.unet) as calls:

        def ended(_pipe, step, _timestep, kwargs):
            kept[:] = sorted(name for name in calls if name.count(".") == 3)
            calls.clear()
            return kwargs

        case.run(pipe, steps=2, callback_on_step_end=ended)
    # Skip 0 is made by conv_in, 1 by the first level's layer, 2 by its downsampler.
    assert [name for name in kept if "resnets" in name or "samplers" in name] == [
        "down_blocks.0.downsamplers.0",
        "down_blocks.0.resnets.0",
        "up_blocks.1.resnets.1",
        "up_blocks.1.upsamplers.0",
        "up_blocks.2.resnets.0",
        "up_blocks.2.resnets.1",
    ]


@pytest.mark.usefixtures("quick_collections")
def test_trap_memory():
    # DeepCache keeps the outputs of 42 layers. One is enough, and the next shallow step's input.
    case = CASES["sd"]
    pipe = case.load()

    def bytes_held(step_to_look_at=1):
        found = []

        def ended(_pipe, step, _timestep, kwargs):
            if step == step_to_look_at:
                gc.collect()
                storages = {
                    each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
                    for each in gc.get_objects()
                    if type(each) is torch.Tensor and not each.is_meta
                }
                found.append(sum(storages.values()))
            return kwargs

        case.run(pipe, callback_on_step_end=ended)
        return found[0]

    bytes_held()
    plain = bytes_held()
    feature = 2 * 8 * 8 * 8 * 4  # (batch, channels, height, width) in fp32
    with DeepCacheHelper(pipe, schedule=Uniform(), replay="reuse") as helper:
        assert bytes_held() == plain + feature
    assert helper.stats.cache_nbytes == feature
    assert bytes_held() == plain


def test_trap_skip_mode():
    # With any other `skip_mode`, DeepCache skips from step 0 on, with nothing to replay.
    case = CASES["sd"]
    pipe = case.load()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    for mode in ("non-uniform", "quad", None):
        with pytest.raises(InvalidSettingError, match="skip_mode must be 'uniform'"):
            helper.set_params(cache_interval=3, cache_branch_id=0, skip_mode=mode)
    assert kinds_of(case, pipe) == "FsFsF"


def test_trap_instance_forward():
    # After removal, DeepCache, diffusers and accelerate leave a `forward` in the instance's
    # dictionary, which is found instead of the class's from then on.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    plain = case.run(pipe)
    before = trace(pipe.unet), trace(pipe.controlnet)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        case.run(pipe)
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before
    for model in (pipe.unet, pipe.controlnet):
        assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(case.run(pipe), plain)
