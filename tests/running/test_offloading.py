"""Memory savers of diffusers and accelerate beside the helper, enabled before it or after it.

They replace `forward` on instances, move weights to and fro, or cast them for the length of a
call. On a machine with CUDA the pipelines' own methods are tested there, too; on a CPU the same
hooks run, and `FarDevice` plays the accelerator where the order of what is loaded matters.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    CpuOffload,
    add_hook_to_module,
    remove_hook_from_module,
)
from builders.cases import CASES as TINY
from builders.models import MODELS, model_folder
from builders.unets import inputs2d_condition, unet2d_condition
from builders.versions_needed import needs, require, require_group_offloading
from conftest import trace
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.hooks import apply_group_offloading, group_offloading
from torch import nn
from zoo import CASES as ZOO

from deepcache_patch import DeepCacheHelper, DeepCacheWarning
from deepcache_patch.running.offloading import offloading_of
from deepcache_patch.running.steps import StepTracker

CASES = {**TINY, **ZOO}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(autouse=True)
def _same_kernels_each_time():
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        yield


def loaded(name: str, device: str = "cpu") -> Any:
    return CASES[name].load().to(device)


def denoisers(pipe: Any) -> list[nn.Module]:
    """What the helper patches."""
    return [pipe.components[name] for name in ("unet", "controlnet") if name in pipe.components]


def attributes(pipe: Any) -> list[tuple]:
    """Which attributes the modules have, in order.

    Less than `conftest.trace` compares: some savers make new hooks and weights at every call.
    """
    return [
        (name, type(module), list(vars(module)))
        for model in denoisers(pipe)
        for name, module in model.named_modules()
    ]


# --- the savers ---------------------------------------------------------------------------------


class Saver(NamedTuple):
    """How to apply one to a pipeline, to compute on a device, and how to take it back."""

    apply: Callable[[Any, str], Any]
    undo: Callable[[Any], Any] | None = None


def _sequentially(pipe: Any, device: str) -> None:
    if device != "cpu":
        pipe.enable_sequential_cpu_offload(device=device)
        return
    # What that does with each model; with a text encoder it fails where both devices are the CPU.
    for part in pipe.components.values():
        if part in denoisers(pipe):
            cpu_offload(part, CPU)
        elif isinstance(part, nn.Module):
            add_hook_to_module(part, AlignDevicesHook(CPU))


def _dispatched(pipe: Any, device: str) -> None:
    pipe.to(device)
    for model in denoisers(pipe):
        dispatch_model(model, {"": device}, main_device=device, force_hooks=True)


def _hooked(pipe: Any, device: str) -> None:
    pipe.to(device)
    for model in denoisers(pipe):
        cpu_offload_with_hook(model, device)


def _aligned(pipe: Any, device: str) -> None:
    pipe.to(device)
    for model in denoisers(pipe):
        for block in (model.down_blocks[0], model.mid_block):
            add_hook_to_module(block.resnets[0].conv1, AlignDevicesHook(device, offload=True))


def _in_groups(**options: Any) -> Callable[[Any, str], None]:
    def offload(pipe: Any, device: str) -> None:
        require("diffusers", "0.36", "enable_group_offload of a pipeline")
        pipe.enable_group_offload(torch.device(device), CPU, **options)

    return offload


def _of_the_unet_in_groups(pipe: Any, device: str) -> None:
    pipe.to(device)
    apply_group_offloading(pipe.unet, torch.device(device), CPU, "leaf_level", non_blocking=True)


def _in_storage(dtype: torch.dtype) -> Callable[[Any, str], None]:
    def cast(pipe: Any, device: str) -> None:
        pipe.to(device)
        for model in denoisers(pipe):
            model.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)

    return cast


def _sliced(pipe: Any, device: str) -> None:
    pipe.to(device).enable_attention_slicing(1)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


def _unsliced(pipe: Any) -> None:
    pipe.disable_attention_slicing()
    pipe.vae.disable_slicing()
    pipe.vae.disable_tiling()


def _channels_last(pipe: Any, device: str) -> None:
    pipe.to(device)
    for model in denoisers(pipe):
        model.to(memory_format=torch.channels_last)


def _without_hooks(pipe: Any) -> None:
    pipe.remove_all_hooks()
    for model in denoisers(pipe):
        remove_hook_from_module(model, recurse=True)


def _without_groups(pipe: Any) -> None:
    for part in pipe.components.values():
        if hasattr(part, "_diffusers_hook"):
            part._diffusers_hook.remove_hook("group_offloading", recurse=True)


_LEAF = {"offload_type": "leaf_level"}
_BLOCK = {"offload_type": "block_level", "num_blocks_per_group": 1}
_STREAM = {"use_stream": True}

SAVERS = {
    "model-offload": Saver(
        lambda pipe, device: pipe.enable_model_cpu_offload(device=device), _without_hooks
    ),
    "sequential-offload": Saver(_sequentially, _without_hooks),
    "offload-with-hook": Saver(_hooked, _without_hooks),
    "dispatch": Saver(_dispatched, _without_hooks),
    "aligned-parts": Saver(_aligned, _without_hooks),
    "groups-of-leaves": Saver(_in_groups(**_LEAF), _without_groups),
    "groups-of-leaves-in-the-unet": Saver(_of_the_unet_in_groups, _without_groups),
    "groups-of-blocks": Saver(_in_groups(**_BLOCK, low_cpu_mem_usage=True), _without_groups),
    "float8": Saver(_in_storage(torch.float8_e4m3fn)),
    "float16-storage": Saver(_in_storage(torch.float16)),
    "slicing": Saver(_sliced, _unsliced),
    "channels-last": Saver(_channels_last),
    "bfloat16": Saver(lambda pipe, device: pipe.to(device, torch.bfloat16)),
    "float16": Saver(lambda pipe, device: pipe.to(device, torch.float16)),
}
STREAMED = {
    "streamed-leaves": Saver(_in_groups(**_LEAF, **_STREAM), _without_groups),
    "streamed-leaves-recorded": Saver(_in_groups(**_LEAF, **_STREAM, record_stream=True)),
    "streamed-blocks": Saver(_in_groups(**_BLOCK, **_STREAM, low_cpu_mem_usage=True)),
}
ALL_SAVERS = SAVERS | STREAMED

# The same hooks as others have, put there in other ways.
VARIANTS = (
    *("offload-with-hook", "dispatch", "aligned-parts", "groups-of-leaves-in-the-unet"),
    "float16-storage",
)
MOVERS = ("model-offload", "sequential-offload", "groups-of-leaves", "groups-of-blocks", "float8")


def _marked(*values: str, slow: bool) -> Any:
    return pytest.param(*values, marks=[pytest.mark.slow] if slow else (), id="-".join(values))


#: Every saver with the plainest pipeline, and those that move weights with the others.
PAIRS = {("sd", saver): saver in VARIANTS for saver in SAVERS}
PAIRS |= {("sd-controlnet", saver): False for saver in MOVERS}
PAIRS |= {(name, saver): True for name in ("sdxl", "animatediff") for saver in MOVERS}
RUNS = [_marked(*pair, device, slow=slow) for device in DEVICES for pair, slow in PAIRS.items()]
if "cuda" in DEVICES:
    RUNS += [_marked("sd-controlnet", saver, "cuda", slow=False) for saver in STREAMED]


class Expected(NamedTuple):
    """The plain picture, the first of a fresh helper, and the attributes without a helper."""

    plain: torch.Tensor
    fast: torch.Tensor
    left: list[tuple]


@functools.cache
def expected_of(name: str, saver: str, device: str) -> Expected:
    case = CASES[name]
    pipe = case.load()
    ALL_SAVERS[saver].apply(pipe, device)
    plain, left = case.run(pipe), attributes(pipe)
    pipe = case.load()
    ALL_SAVERS[saver].apply(pipe, device)
    with DeepCacheHelper(pipe):
        return Expected(plain, case.run(pipe), left)


@pytest.mark.parametrize("order", ["saver-first", "helper-first"])
@pytest.mark.parametrize(("name", "saver", "device"), RUNS)
def test_every_picture_is_that_of_a_fresh_pipeline(name, saver, device, order):
    case, expected = CASES[name], expected_of(name, saver, device)
    assert not torch.equal(expected.plain, expected.fast)
    pipe = case.load()
    helper = DeepCacheHelper(pipe)
    steps = [lambda: ALL_SAVERS[saver].apply(pipe, device), helper.enable]
    for step in steps if order == "saver-first" else reversed(steps):
        step()
    for count in (1, 2, 3):
        assert torch.equal(case.run(pipe), expected.fast)
        assert helper.stats.generations == count
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2 * count, 3 * count)
    helper.disable()
    assert torch.equal(case.run(pipe), expected.plain)
    # Nothing is left behind that the saver would not have left behind alone.
    assert attributes(pipe) == expected.left


UNDONE = [
    _marked(saver, slow=saver in VARIANTS)
    for saver, (_, undo) in SAVERS.items()
    if undo is not None
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("saver", UNDONE)
@pytest.mark.parametrize("order", ["saver-first", "helper-first"])
def test_both_are_removed_in_either_order(saver, order, device):
    name, (apply, undo) = "sd-controlnet", SAVERS[saver]
    case = CASES[name]
    alone = case.load()
    apply(alone, device)
    case.run(alone)
    undo(alone)
    bare = loaded(name, device)
    plain = case.run(bare)
    with DeepCacheHelper(bare):
        expected = case.run(bare)

    pipe = case.load()
    apply(pipe, device)
    helper = DeepCacheHelper(pipe).enable()
    case.run(pipe)
    if order == "saver-first":
        undo(pipe)
        pipe.to(device)
        assert torch.equal(case.run(pipe), expected)
        assert helper.stats.shallow_calls == 6
        helper.disable()
    else:
        helper.disable()
        undo(pipe)
        pipe.to(device)
    assert torch.equal(case.run(pipe), plain)
    assert attributes(pipe) == attributes(alone)


@pytest.mark.parametrize("saver", [*UNDONE, "channels-last", "float8"])
def test_disable_leaves_what_the_saver_has_put_there(saver):
    pipe = CASES["sd-controlnet"].load()
    SAVERS[saver].apply(pipe, "cpu")
    before = [trace(model) for model in denoisers(pipe)]
    DeepCacheHelper(pipe).enable().disable()
    assert [trace(model) for model in denoisers(pipe)] == before


def test_hooks_that_each_call_installs_anew_leave_the_patch_alone():
    # The images after the first came out plain, or distorted, with other implementations: at the
    # end of every call, `maybe_free_model_hooks` removes accelerate's hooks and installs new ones.
    case = CASES["sd"]
    pipe = case.load()
    pipe.enable_model_cpu_offload(device="cpu")
    with DeepCacheHelper(pipe) as helper:
        hooks = [pipe.unet._hf_hook]
        for _ in range(2):
            case.run(pipe)
            hooks.append(pipe.unet._hf_hook)
        assert len(set(map(id, hooks))) == 3
        pipe.maybe_free_model_hooks()
        assert helper.enabled
        case.run(pipe)
    assert helper.stats.shallow_calls == 9


# --- dtypes, devices and layouts that change ------------------------------------------------------


CHANGES = {
    "bfloat16": [lambda pipe: pipe.to(torch.bfloat16)],
    "float16": [lambda pipe: pipe.to(torch.float16)],
    "float16-and-back": [lambda pipe: pipe.to(torch.float16), lambda pipe: pipe.to(torch.float32)],
    "cpu": [lambda pipe: pipe.to("cpu")],
    "channels-last": [lambda pipe: pipe.unet.to(memory_format=torch.channels_last)],
    "slicing-and-back": [lambda pipe: _sliced(pipe, pipe.device), _unsliced],
    "model-offload-and-back": [
        lambda pipe: pipe.enable_model_cpu_offload(device=DEVICES[-1]),
        _without_hooks,
    ],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_generations_are_followed(change, device):
    case = CASES["sd-controlnet"]
    pipe = loaded(case.name, device)
    helper = DeepCacheHelper(pipe).enable()
    case.run(pipe)
    for count in range(1, len(CHANGES[change]) + 1):
        fresh = loaded(case.name, device)
        for step in CHANGES[change][:count]:
            step(fresh)
        plain = case.run(fresh)
        with DeepCacheHelper(fresh):
            expected = case.run(fresh)
        CHANGES[change][count - 1](pipe)
        assert torch.equal(case.run(pipe), expected)
        with helper.paused():
            assert torch.equal(case.run(pipe), plain)
    helper.disable()
    assert torch.equal(case.run(pipe), plain)
    assert helper.stats.shallow_calls == 3 * (1 + len(CHANGES[change]))


LOADED = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "device-map-balanced": {"device_map": "balanced"},
    "device-map": {"device_map": DEVICES[-1]},
}


@pytest.mark.parametrize("options", LOADED.values(), ids=LOADED)
def test_what_a_pipeline_was_loaded_with_makes_no_difference(options):
    case, folder = CASES["sd"], model_folder(MODELS["sd"])

    def load():
        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    fresh = load()
    plain = case.run(fresh)
    with DeepCacheHelper(fresh):
        expected = case.run(fresh)
    pipe = load()
    with DeepCacheHelper(pipe) as helper:
        assert all(torch.equal(case.run(pipe), expected) for _ in range(2))
    assert helper.stats.shallow_calls == 6
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("parts", [("mid_block",), ("up_blocks",), ("down_blocks", "up_blocks")])
def test_a_unet_whose_parts_are_on_a_disk_is_cut(parts, tmp_path):
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe):
        expected = case.run(pipe)
    plain = case.run(pipe)
    names = [name for name, _ in pipe.unet.named_children()]
    pipe.unet = UNet2DConditionModel.from_pretrained(
        model_folder(MODELS["sd"]),
        subfolder="unet",
        device_map={name: "disk" if name in parts else "cpu" for name in names},
        offload_folder=tmp_path,
    )
    assert {name.split(".")[0] for name, w in pipe.unet.named_parameters() if w.is_meta} == {*parts}
    with DeepCacheHelper(pipe) as helper:
        assert all(torch.equal(case.run(pipe), expected) for _ in range(2))
    assert helper.stats.shallow_calls == 6
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["hunyuandit", "stable-cascade-prior"])
def test_a_pipeline_that_casts_its_timesteps_has_as_many_shallow_calls_as_in_float32(name, dtype):
    # 981 is 980 in bfloat16, which is no timestep of the scheduler's, but 241 is 241: each time
    # such a one followed a rounded one, a new generation began, with a full step.
    counts = []
    for each in (torch.float32, dtype):
        pipe = CASES[name].load()
        pipe.to(each)
        with DeepCacheHelper(pipe) as helper:
            for _ in range(2):
                CASES[name].run(pipe, steps=10)
        stats = helper.stats
        counts.append((stats.generations, stats.full_calls, stats.shallow_calls))
    assert counts[1] == counts[0] == (2, 8, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_a_cast_timestep_is_located_in_the_schedulers_list(dtype, batch):
    timesteps, tracker = torch.arange(981, 0, -20), StepTracker()
    cast = [timestep.expand(batch).to(dtype, copy=True) for timestep in timesteps]
    positions = [tracker.locate(each.clone(), timesteps) for each in cast]
    assert [position.step for position in positions] == list(range(50))
    assert {(p.generation, p.slot, p.num_steps) for p in positions} == {(0, 0, 50)}


def test_timesteps_that_are_the_same_once_cast_are_not_located():
    # 999 and 998 both are 1000 in bfloat16, 996 and 995 are 996: which step it is, nobody knows.
    timesteps, tracker = torch.arange(999, -1, -1), StepTracker()
    assert tracker.locate(torch.tensor(998.0).to(torch.bfloat16), timesteps) is None
    assert tracker.locate(torch.tensor(100.0).to(torch.bfloat16), timesteps).num_steps == 101


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_bare_unet_is_led_by_cast_timesteps(dtype):
    unet = unet2d_condition().to(dtype)
    inputs = {
        name: value.to(dtype) for name, value in inputs2d_condition().items() if name != "timestep"
    }
    with DeepCacheHelper(unet) as helper, torch.no_grad():
        for count in (1, 2):
            for timestep in torch.arange(981, 0, -109):
                unet(**inputs, timestep=timestep.to(dtype))
            assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3 * count, 6 * count)
            assert helper.stats.generations == count


# --- what is loaded when: an accelerator that is played -------------------------------------------


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


@pytest.mark.parametrize(
    "branch", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 4))]
)
@pytest.mark.parametrize("streamed", [False, True], ids=["waiting", "streamed"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", ["sd-controlnet", _marked("animatediff", slow=True)])
def test_layers_after_the_gap_are_loaded_in_time(far, name, kind, streamed, branch):
    # The first call after the hooks were made notes in which order the layers run, and from then
    # on each layer has the next one loaded. A shallow call has a gap in that order.
    if streamed:
        require("diffusers", "0.37", "a gap among streams")
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe)
    with DeepCacheHelper(pipe, branch=branch):
        expected = case.run(pipe)

    pipe = case.load()
    for model in denoisers(pipe):
        in_groups(model, kind=kind, stream=Stream() if streamed else None)
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    with DeepCacheHelper(pipe, branch=branch) as helper:
        assert all(torch.equal(case.run(pipe), expected) for _ in range(3))
    assert helper.stats.shallow_calls == 9
    assert torch.equal(case.run(pipe), plain)
    assert all(weight.is_meta for weight in pipe.unet.parameters())


@needs("diffusers", "0.37")
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_an_order_that_was_noted_in_a_shallow_call_does_no_harm(far, kind):
    # Offloading that is applied, or applied anew because a LoRA was loaded, amid a generation.
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    with DeepCacheHelper(pipe):
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
    with DeepCacheHelper(pipe) as helper:
        pictures = []
        one_warning(
            lambda: pictures.extend(case.run(pipe) for _ in range(2)), "num_blocks_per_group=1"
        )
        assert all(torch.equal(picture, plain) for picture in pictures)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (10, 0)
        _without_groups(pipe)
        far.here(pipe.unet.parameters())
        case.run(pipe)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (12, 3)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_streams_of_an_older_diffusers_run_in_full(far, kind, monkeypatch):
    # Before 0.37 a layer that its predecessor has not prefetched stayed where it was.
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    in_groups(pipe.unet, kind=kind, stream=Stream())
    monkeypatch.setattr(diffusers, "__version__", "0.36.1.dev0")
    with DeepCacheHelper(pipe) as helper:
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
    assert offloading_of(waiting) is None
    assert (offloading_of(streamed) is None) == taken


@pytest.mark.parametrize("classes", [["UNet2DConditionModel"], ["CrossAttnUpBlock2D"]])
def test_weights_that_are_loaded_by_the_names_of_inner_layers_run_in_full(classes):
    # A cut block's third layer is its first, so it was given the first one's weights: an error
    # where they are of another shape, and a wrong picture where they are not.
    case = CASES["sd"]
    pipe = case.load()
    plain = case.run(pipe)
    cpu_offload(pipe.unet, CPU, preload_module_classes=classes)
    with DeepCacheHelper(pipe) as helper:
        pictures = []
        one_warning(lambda: pictures.append(case.run(pipe)), f"a {classes[0]} by its names")
    assert torch.equal(pictures[0], plain)
    assert helper.stats.shallow_calls == 0


def test_a_unet_that_is_offloaded_amid_a_generation_comes_back_whole(far):
    # A preview in a callback: `vae.decode` sends the U-Net to the CPU. In a shallow step accelerate
    # fetched what was left of it, and in the next full one saw by its first weight that it was
    # there.
    case = CASES["sd"]
    pipe = case.load()
    add_hook_to_module(pipe.unet, CpuOffload(CPU))
    vars(pipe.unet)["to"] = lambda _device: far.here(pipe.unet.parameters())

    def preview(pipe, step, _timestep, kwargs):
        if step == 0:
            far.away(pipe.unet.parameters())
        return kwargs

    plain = case.run(pipe)
    assert torch.equal(case.run(pipe, callback_on_step_end=preview), plain)
    with DeepCacheHelper(pipe) as helper:
        expected = case.run(pipe)
        assert torch.equal(case.run(pipe, callback_on_step_end=preview), expected)
    assert helper.stats.shallow_calls == 6
