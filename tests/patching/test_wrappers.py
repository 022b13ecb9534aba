"""U-Nets inside wrappers for several devices: found through them, or refused by name.

Run by itself this is one process. `tests/running/test_processes.py` runs it in two, each with
another seed.
"""

import os

import pytest
import torch
import torch.distributed
from accelerate import Accelerator, dispatch_model
from accelerate.state import AcceleratorState
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.models import MODELS, model_folder
from builders.schedulers import sd_scheduler
from builders.unets import inputs2d_condition, unet2d_condition
from builders.versions_needed import require
from conftest import trace
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from deepcache_patch import (
    Adaptive,
    AlreadyEnabledError,
    Auto,
    DeepCacheHelper,
    InvalidSettingError,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.learning.fingerprint import Fingerprint
from deepcache_patch.patching.call import CallPatch

STEPS = 7
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings(
    "ignore:FSDP is switching to use `NO_SHARD`:UserWarning",  # where it is the only process
)


@pytest.fixture(scope="module", autouse=True)
def _group():
    """The process group that torchrun wants, or one of this process alone."""
    model_folder(MODELS["sd"])  # in a group, transformers saves in the first process only
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    else:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def small():
    return unet2d_condition(block_out_channels=(8, 16), layers_per_block=1)


@torch.no_grad()
def loop(unet):
    """A hand-written loop; each process has a picture of its own."""
    scheduler = sd_scheduler()
    scheduler.set_timesteps(STEPS)
    inputs = inputs2d_condition(seed=torch.distributed.get_rank())
    sample, text = inputs["sample"], inputs["encoder_hidden_states"]
    for timestep in scheduler.timesteps:
        noise = unet(sample, timestep, encoder_hidden_states=text, return_dict=False)[0]
        sample = scheduler.step(noise, timestep, sample).prev_sample
    return sample


def bare():
    """The pictures of a bare U-Net: plain, and with a helper."""
    unet = small()
    plain = loop(unet)
    with DeepCacheHelper(unet, schedule=Uniform(3)):
        return plain, loop(unet)


def blocks(unet):
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def compiled(module):
    return torch.compile(module, backend="eager")


def sharded(unet, parts=()):
    require("torch", "2.6", "fully_shard on a CPU")
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    return fully_shard(unet, mesh=mesh)


def fully_sharded(unet):
    return FullyShardedDataParallel(unet, device_id=CPU, use_orig_params=True)


def dispatched(unet, places):
    return dispatch_model(unet, places, main_device="cpu", force_hooks=True)


def block_places(unet):
    lists = [name for name, child in unet.named_children() if isinstance(child, nn.ModuleList)]
    single = [name for name, _ in unet.named_children() if name not in lists]
    listed = [f"{name}.{i}" for name in lists for i in range(len(getattr(unet, name)))]
    return dict.fromkeys([*single, *listed], "cpu")


def assert_helped_as_if_bare(wrapper):
    plain, helped = bare()
    assert torch.equal(loop(wrapper), plain)
    before = trace(wrapper)
    helper = DeepCacheHelper(wrapper, schedule=Uniform(3)).enable()
    assert helper.enabled
    assert torch.equal(loop(wrapper), helped)
    assert not torch.equal(helped, plain)
    assert torch.equal(loop(wrapper), helped)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (6, 8)
    with helper.paused():
        assert torch.equal(loop(wrapper), plain)
    helper.disable()
    assert trace(wrapper) == before
    assert torch.equal(loop(wrapper), plain)


WRAPPERS = {
    "dispatched": lambda unet: dispatched(unet, {"": "cpu"}),
    "dispatched-by-blocks": lambda unet: dispatched(unet, block_places(unet)),
    "sharded": sharded,
    "sharded-by-blocks": lambda unet: sharded(unet, blocks(unet)),
    "sharded-by-layers": lambda unet: sharded(
        unet, [each for block in blocks(unet) for each in block.resnets]
    ),
}
DISTRIBUTED = {
    "distributed": DistributedDataParallel,
    "distributed-compiled": lambda unet: DistributedDataParallel(compiled(unet)),
    "compiled-distributed": lambda unet: compiled(DistributedDataParallel(unet)),
}


@pytest.mark.parametrize(
    "wrap",
    mostly_slow(
        [pytest.param(wrap, id=name) for name, wrap in WRAPPERS.items()],
        ["sharded-by-blocks"],
    ),
)
def test_a_unet_that_stays_itself_is_helped(wrap):
    assert_helped_as_if_bare(wrap(small()))


@pytest.mark.parametrize("wrap", mostly_slow(DISTRIBUTED.values(), 1), ids=DISTRIBUTED)
def test_a_unet_is_found_through_distributed_data_parallel(wrap):
    assert_helped_as_if_bare(wrap(small()))


def test_a_unet_that_accelerate_prepared_is_found(accelerator):
    assert_helped_as_if_bare(accelerator.prepare(small()))


def test_a_unet_that_accelerate_prepared_to_be_evaluated_is_found(accelerator):
    prepared = accelerator.prepare_model(small(), evaluation_mode=True)
    assert_helped_as_if_bare(prepared)


def test_two_helpers_cannot_have_a_unet_and_its_wrapper():
    unet = small()
    with DeepCacheHelper(unet, schedule=Uniform()), pytest.raises(AlreadyEnabledError):
        DeepCacheHelper(DistributedDataParallel(unet), schedule=Uniform()).enable()


def test_a_unet_that_is_wrapped_afterwards_is_helped_inside():
    plain, helped = bare()
    unet = small()
    helper = DeepCacheHelper(unet, schedule=Uniform(3)).enable()
    wrapper = DistributedDataParallel(unet)
    assert torch.equal(loop(wrapper), helped)
    helper.disable()
    assert torch.equal(loop(wrapper), plain)


def test_a_pipeline_with_a_sharded_unet_is_helped():
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform(3)):
        helped = case.run(pipe)
    fresh = case.load()
    plain = case.run(fresh)
    sharded(fresh.unet, blocks(fresh.unet))
    with DeepCacheHelper(fresh, schedule=Uniform(3)) as helper:
        assert torch.equal(case.run(fresh), helped)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)
    assert torch.equal(case.run(fresh), plain)


def test_a_sharded_unet_goes_by_a_calibration_and_its_weights_are_not_gathered_to_compare_them():
    case = CASES["sd"]
    pipe = case.load()
    schedule = DeepCacheHelper(pipe).calibrate(lambda: case.run(pipe, steps=10), full_steps=4)
    with DeepCacheHelper(pipe, schedule=schedule):
        helped = case.run(pipe, steps=10)
    fresh = case.load()
    sharded(fresh.unet, blocks(fresh.unet))
    assert Fingerprint.of(fresh.unet) is None
    with DeepCacheHelper(fresh, schedule=schedule) as helper:
        assert torch.equal(case.run(fresh, steps=10), helped)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 6)


REFUSED = {"DataParallel": nn.DataParallel, "FullyShardedDataParallel": fully_sharded}


@pytest.mark.parametrize(("name", "wrap"), REFUSED.items(), ids=REFUSED)
def test_what_copies_or_hides_the_layers_is_refused_by_name(name, wrap):
    wrapper = wrap(small())
    before = trace(wrapper)
    with pytest.raises(UnsupportedModelError, match=f"found: {name}"):
        DeepCacheHelper(wrapper, schedule=Uniform())
    assert trace(wrapper) == before


@pytest.mark.parametrize(("name", "wrap"), REFUSED.items(), ids=REFUSED)
def test_the_refusal_says_what_to_use_instead(name, wrap):
    with pytest.raises(UnsupportedModelError, match=f"{name}.*one process for each device"):
        DeepCacheHelper(wrap(small()), schedule=Uniform())


@pytest.mark.parametrize("schedule", [Adaptive(0.1), Auto()], ids=["adaptive", "auto"])
def test_a_sharded_unet_has_one_plan_in_all_processes(schedule):
    # The processes fetch each other's part of a block's weights when it runs. A process whose own
    # picture made it run another block than the others is given weights of that one, or waits for
    # ever; gloo ends the process if the two differ in size.
    unet = sharded(small())
    with pytest.raises(InvalidSettingError, match="sharded"):
        DeepCacheHelper(unet, schedule=schedule)


def test_a_sharded_unet_is_not_calibrated_by_each_process_for_itself():
    pipe = CASES["sd"].load()
    sharded(pipe.unet)
    with pytest.raises(InvalidSettingError, match="sharded"):
        DeepCacheHelper(pipe).calibrate(lambda: CASES["sd"].run(pipe), full_steps=2)


def test_a_stack_that_cannot_be_read_is_looked_at_again():
    # Seen with Python 3.11: what called a generator that another thread runs was a dict.
    patch = CallPatch(torch.nn.Identity(), list, installer=None)
    assert patch._is_in_earlier_call(None) is False
    assert patch._is_in_earlier_call({}) is True
