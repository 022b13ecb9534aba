"""Which weights are loaded when, where layers or blocks are offloaded: in time for shallow calls.

`FarDevice` plays the accelerator, so the order is checked on a CPU.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, SequentialHook, add_hook_to_module
from builders.marks import mostly_slow
from builders.savers import CASES, CPU, META, denoisers, without_groups
from builders.unets import unet2d_condition
from builders.versions_needed import needs, require, require_group_offloading
from diffusers.hooks import group_offloading
from torch import nn

from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform
from deepcache_patch.running.watching.offloading import offloading_of

pytestmark = pytest.mark.usefixtures("same_kernels")


class Stream:
    """Copies that are under way until somebody waits for them."""

    def __init__(self):
        self.pending = []

    def synchronize(self):
        pending, self.pending = self.pending, []
        for finish in pending:
            finish()


class FarDevice:
    """The CPU as an accelerator, and `meta` as the place where weights wait.

    A layer whose weights are not there fails, and one whose copy has not ended computes NaN. Only
    the copies of diffusers' group offloading are replaced; when to copy is for its hooks to say.
    """

    def __init__(self):
        self._home = {}

    def away(self, tensors):
        for tensor in list(tensors):
            if not tensor.is_meta:
                self._home.setdefault(tensor, tensor.detach().clone())
                self._become(tensor, torch.empty_like(tensor, device=META))

    def here(self, tensors):
        for tensor in list(tensors):
            self._become(tensor, self._home[tensor].clone())

    def offload(self, group):
        self.away(self._tensors(group))

    def onload(self, group):
        if group.stream is not None:
            group.stream.synchronize()
        if group.stream is None or not group.non_blocking:
            self.here(self._tensors(group))
            return
        for tensor in list(self._tensors(group)):
            self._become(tensor, torch.full_like(self._home[tensor], torch.nan))
            group.stream.pending.append(functools.partial(self._finish, tensor))

    def _finish(self, tensor):
        if not tensor.is_meta:
            tensor.data.copy_(self._home[tensor])

    def _tensors(self, group):
        for module in group.modules:
            yield from module.parameters()
            yield from module.buffers()
        yield from group.parameters
        yield from group.buffers

    def _become(self, tensor, other):
        if isinstance(tensor, nn.Parameter):
            other = nn.Parameter(other, requires_grad=tensor.requires_grad)
        torch.utils.swap_tensors(tensor, other)


@pytest.fixture
def far(monkeypatch):
    device = FarDevice()
    group = group_offloading.ModuleGroup
    monkeypatch.setattr(group, "_offload_to_memory", lambda each: device.offload(each))
    monkeypatch.setattr(group, "_onload_from_memory", lambda each: device.onload(each))
    return device


def in_groups(model: nn.Module, *, kind: str, stream: Stream | None, blocks: int = 1) -> None:
    """What `apply_group_offloading` does, which asks for CUDA before it takes a stream."""
    require_group_offloading()
    config = group_offloading.GroupOffloadingConfig(
        onload_device=CPU,
        offload_device=META,
        offload_type=group_offloading.GroupOffloadingType(kind),
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=True,  # no pinning, which needs CUDA
        num_blocks_per_group=blocks,
        stream=stream,
    )
    group_offloading._apply_group_offloading(model, config)


@pytest.mark.parametrize("branch", mostly_slow([0, 2, 4], 1))
@pytest.mark.parametrize(
    "streamed", mostly_slow([False, True], [True]), ids=["waiting", "streamed"]
)
@pytest.mark.parametrize("kind", mostly_slow(["leaf_level", "block_level"], ["block_level"]))
@pytest.mark.parametrize("name", mostly_slow(["sd-controlnet", "animatediff"], 1))
def test_layers_after_the_gap_are_loaded_in_time(far, name, kind, streamed, branch):
    # The first call after the hooks were made notes in which order the layers run, and from then
    # on each layer has the next one loaded. A shallow call has a gap in that order.
    if streamed:
        require("diffusers", "0.37", "a gap among streams")
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(branch=branch)):
        expected = case.run(pipe)

    pipe = case.load()
    for model in denoisers(pipe):
        in_groups(model, kind=kind, stream=Stream() if streamed else None)
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    with DeepCacheHelper(pipe, schedule=Uniform(branch=branch)) as helper:
        assert all(torch.equal(case.run(pipe), expected) for _ in range(3))
    assert helper.stats.shallow_calls == 9
    assert torch.equal(case.run(pipe), plain)
    assert all(weight.is_meta for weight in pipe.unet.parameters())


@needs("diffusers", "0.37")
@pytest.mark.parametrize("kind", mostly_slow(["leaf_level", "block_level"], 1))
def test_an_order_that_was_noted_in_a_shallow_call_does_no_harm(far, kind):
    # Offloading that is applied, or applied anew because a LoRA was loaded, amid a generation.
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = case.run(pipe)

        def apply(pipe, step, _timestep, _kwargs):
            if step == 0:
                in_groups(pipe.unet, kind=kind, stream=Stream())
            return {}

        assert torch.equal(case.run(pipe, callback_on_step_end=apply), expected)
        assert torch.equal(case.run(pipe), expected)
    assert torch.equal(case.run(pipe), plain)


def one_warning(run: Callable[[], Any], match: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepCacheWarning)
        run()
    assert [match in str(each.message) for each in caught] == [True]


def test_groups_of_several_blocks_run_in_full(far):
    # The first up block of a group loads them all, and a shallow step leaves it out: the kept one
    # was on the wrong device ("Expected all tensors to be on the same device").
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    in_groups(pipe.unet, kind="block_level", stream=None, blocks=3)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        pictures = []
        one_warning(
            lambda: pictures.extend(case.run(pipe) for _ in range(2)), "num_blocks_per_group=1"
        )
        assert all(torch.equal(picture, plain) for picture in pictures)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (10, 0)
        without_groups(pipe)
        far.here(pipe.unet.parameters())
        case.run(pipe)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (12, 3)


@pytest.mark.parametrize("kind", mostly_slow(["leaf_level", "block_level"], 1))
def test_streams_of_an_older_diffusers_run_in_full(far, kind, monkeypatch):
    # Before 0.37 a layer that its predecessor has not prefetched stayed where it was.
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    in_groups(pipe.unet, kind=kind, stream=Stream())
    monkeypatch.setattr(diffusers, "__version__", "0.36.1.dev0")
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        pictures = []
        one_warning(lambda: pictures.append(case.run(pipe)), "use_stream=False")
    assert torch.equal(pictures[0], plain)
    assert helper.stats.shallow_calls == 0


@pytest.mark.parametrize(("version", "taken"), [("0.36.0", False), ("0.37.0.dev0", True)])
def test_the_version_of_diffusers_decides_over_streams_only(far, version, taken, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", version)
    waiting, streamed = unet2d_condition(), unet2d_condition()
    in_groups(waiting, kind="leaf_level", stream=None)
    in_groups(streamed, kind="leaf_level", stream=Stream())
    assert offloading_of(waiting.modules()) is None
    assert (offloading_of(streamed.modules()) is None) == taken


@pytest.mark.parametrize("classes", [["UNet2DConditionModel"], ["CrossAttnUpBlock2D"]])
def test_weights_that_are_loaded_by_the_names_of_inner_layers_run_in_full(classes):
    # A cut block's third layer is its first, so it was given the first one's weights: an error
    # where they are of another shape, and a wrong picture where they are not.
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    cpu_offload(pipe.unet, CPU, preload_module_classes=classes)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        pictures = []
        one_warning(lambda: pictures.append(case.run(pipe)), f"a {classes[0]} by its names")
    assert torch.equal(pictures[0], plain)
    assert helper.stats.shallow_calls == 0


@pytest.mark.parametrize("around", [(), (SequentialHook, SequentialHook)], ids=["alone", "nested"])
def test_a_unet_that_is_offloaded_amid_a_generation_comes_back_whole(around, far):
    # A preview in a callback: `vae.decode` sends the U-Net to the CPU. In a shallow step accelerate
    # fetched what was left of it, and in the next full one saw by its first weight that it was
    # there.
    case = CASES["sd"]
    pipe = case.load()
    hook = functools.reduce(lambda inner, kind: kind(inner), around, CpuOffload(CPU))
    add_hook_to_module(pipe.unet, hook)
    vars(pipe.unet)["to"] = lambda _device: far.here(pipe.unet.parameters())

    def preview(pipe, step, _timestep, kwargs):
        if step == 0:
            far.away(pipe.unet.parameters())
        return kwargs

    plain = case.run(pipe)
    assert torch.equal(case.run(pipe, callback_on_step_end=preview), plain)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        expected = case.run(pipe)
        assert torch.equal(case.run(pipe, callback_on_step_end=preview), expected)
    assert helper.stats.shallow_calls == 6
