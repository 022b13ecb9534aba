"""Memory savers of diffusers and accelerate: how each is switched on, and how it is undone.

They replace `forward` on instances, move weights to and fro, or cast them for the length of a call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from diffusers.hooks import apply_group_offloading
from torch import nn
from zoo import CASES as ZOO

from builders.cases import CASES as TINY
from builders.versions_needed import require

CASES = {**TINY, **ZOO}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CPU, META = torch.device("cpu"), torch.device("meta")


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


def sliced(pipe: Any, device: str) -> None:
    pipe.to(device).enable_attention_slicing(1)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


def unsliced(pipe: Any) -> None:
    pipe.disable_attention_slicing()
    pipe.vae.disable_slicing()
    pipe.vae.disable_tiling()


def _channels_last(pipe: Any, device: str) -> None:
    pipe.to(device)
    for model in denoisers(pipe):
        model.to(memory_format=torch.channels_last)


def without_hooks(pipe: Any) -> None:
    pipe.remove_all_hooks()
    for model in denoisers(pipe):
        remove_hook_from_module(model, recurse=True)


def without_groups(pipe: Any) -> None:
    for part in pipe.components.values():
        if hasattr(part, "_diffusers_hook"):
            part._diffusers_hook.remove_hook("group_offloading", recurse=True)


_LEAF = {"offload_type": "leaf_level"}
_BLOCK = {"offload_type": "block_level", "num_blocks_per_group": 1}
_STREAM = {"use_stream": True}

SAVERS = {
    "model-offload": Saver(
        lambda pipe, device: pipe.enable_model_cpu_offload(device=device), without_hooks
    ),
    "sequential-offload": Saver(_sequentially, without_hooks),
    "offload-with-hook": Saver(_hooked, without_hooks),
    "dispatch": Saver(_dispatched, without_hooks),
    "aligned-parts": Saver(_aligned, without_hooks),
    "groups-of-leaves": Saver(_in_groups(**_LEAF), without_groups),
    "groups-of-leaves-in-the-unet": Saver(_of_the_unet_in_groups, without_groups),
    "groups-of-blocks": Saver(_in_groups(**_BLOCK, low_cpu_mem_usage=True), without_groups),
    "float8": Saver(_in_storage(torch.float8_e4m3fn)),
    "float16-storage": Saver(_in_storage(torch.float16)),
    "slicing": Saver(sliced, unsliced),
    "channels-last": Saver(_channels_last),
    "bfloat16": Saver(lambda pipe, device: pipe.to(device, torch.bfloat16)),
    "float16": Saver(lambda pipe, device: pipe.to(device, torch.float16)),
}
STREAMED = {
    "streamed-leaves": Saver(_in_groups(**_LEAF, **_STREAM), without_groups),
    "streamed-leaves-recorded": Saver(_in_groups(**_LEAF, **_STREAM, record_stream=True)),
    "streamed-blocks": Saver(_in_groups(**_BLOCK, **_STREAM, low_cpu_mem_usage=True)),
}
ALL_SAVERS = SAVERS | STREAMED
