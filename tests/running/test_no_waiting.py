"""Nothing on the step path reads a value off the device, which would have to be waited for.

On a CPU nothing waits, so reads are seen by their names in the package's own code. With CUDA torch
itself is asked to fail where it would wait.
"""

import sys
from pathlib import Path

import pytest
import torch
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from diffusers import DDIMScheduler
from zoo import CASES

import deepcache_patch
from deepcache_patch import Adaptive, Auto, DeepCacheHelper, Uniform

READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "equal")
PACKAGE = str(Path(deepcache_patch.__file__).parent)


@pytest.fixture
def reads(monkeypatch):
    """Every read of a tensor by the package itself: its name, and the function that it is in."""
    found = []

    def noted(name, original):
        def read(*args, **kwargs):
            code = sys._getframe(1).f_code
            if code.co_filename.startswith(PACKAGE):
                found.append((name, code.co_name))
            return original(*args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch, "equal", noted("equal", torch.equal))
    return found


@pytest.mark.parametrize(
    "name", mostly_slow(["sd", "sdxl", "sd-controlnet", "ddpm"], ["sd-controlnet", "ddpm"])
)
@pytest.mark.parametrize(
    "schedule", [Uniform(3), Uniform(3, 1), Auto(3)], ids=["uniform", "branch 1", "auto"]
)
def test_only_the_first_call_of_a_generation_reads(name, schedule, reads):
    case = CASES[name]
    pipe = case.load()
    at_call = []
    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        case.run(pipe, steps=12)  # `Auto` learns from the first generation
        reads.clear()
        handle = pipe.unet.register_forward_pre_hook(lambda *_: at_call.append(list(reads)))
        case.run(pipe, steps=12)
        handle.remove()
    # The scheduler's timesteps and noise, once, while nothing of this generation is under way.
    assert ("tolist", "remaining") in at_call[0]
    assert len(at_call) >= 4
    assert all(found == at_call[0] for found in at_call)
    assert reads == at_call[0]
    assert helper.stats.shallow_calls > 0


@pytest.mark.usefixtures("no_grad")
def test_only_the_first_call_of_a_generation_that_was_told_reads(reads):
    unet, scheduler, at_call = unet2d_condition(), DDIMScheduler(), []
    scheduler.set_timesteps(12)
    with DeepCacheHelper(unet) as helper, helper.generation(scheduler=scheduler):
        for timestep in scheduler.timesteps:
            unet(**(inputs2d_condition() | {"timestep": timestep}))
            at_call.append(list(reads))
    assert ("tolist", "locate") in at_call[0]
    assert all(found == at_call[0] for found in at_call)
    assert reads == at_call[0]
    assert helper.stats.shallow_calls > 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "schedule", [Uniform(3), Auto(3), Adaptive(0.1)], ids=["uniform", "auto", "adaptive"]
)
def test_no_call_but_the_first_waits_for_the_device(schedule):
    unet = unet2d_condition().to("cuda")
    given = {name: each.to("cuda") for name, each in inputs2d_condition().items()}
    timesteps = torch.linspace(900, 1, 12, device="cuda")
    with DeepCacheHelper(unet, schedule=schedule) as helper, torch.no_grad():
        for _ in range(2):
            helper.reset()
            try:
                for timestep in timesteps:
                    unet(**(given | {"timestep": timestep}))
                    torch.cuda.set_sync_debug_mode("error")
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert helper.stats.shallow_calls > 0
