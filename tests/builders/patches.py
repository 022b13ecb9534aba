"""What other libraries put round a U-Net, its layers or a ControlNet: how each comes and goes.

The pipeline that has one of them, and what is right for it, is in `patched`.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import tomesd
import torch
import wrapt
from accelerate import cpu_offload_with_hook
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from diffusers.hooks import (
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks import ModelHook as DiffusersHook
from peft import LoraConfig
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from builders.unets import seeded

Remove = Callable[[], Any]
Install = Callable[[nn.Module, Callable[[], Any]], Remove]


def dimmed(output: Any) -> Any:
    """What a denoiser returned, in every form that it may have, times 0.9."""
    if isinstance(output, torch.Tensor):
        return output * 0.9
    if isinstance(output, list | tuple):
        return type(output)(map(dimmed, output))
    return type(output)(**{name: dimmed(value) for name, value in output.items()})


# `install(model, seen)` returns what removes it. Unless it says otherwise it changes the output,
# and calls `seen` when it does.
def _dims(forward: Callable[..., Any], seen: Callable[[], Any]) -> Callable[..., Any]:
    def dim(*args: Any, **kwargs: Any) -> Any:
        seen()
        return dimmed(forward(*args, **kwargs))

    return dim


def _put_back(model: nn.Module, forward: Any) -> Remove:
    """Put it on the instance; what removes it restores what was there, or that nothing was."""
    own = vars(model).get("forward")
    model.forward = forward

    def remove() -> None:
        if own is None:
            del model.forward
        else:
            model.forward = own

    return remove


def closure(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    return _put_back(model, _dims(model.forward, seen))


def saved(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    """As most do it: the old one, bound, is left on the instance."""
    old = model.forward
    model.forward = functools.wraps(old)(_dims(old, seen))
    return lambda: setattr(model, "forward", old)


def partial(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def dim(forward: Any, *args: Any, **kwargs: Any) -> Any:
        seen()
        return dimmed(forward(*args, **kwargs))

    return _put_back(model, functools.partial(dim, model.forward))


def method(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    old = model.forward

    def dim(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _dims(old, seen)(*args, **kwargs)

    return _put_back(model, types.MethodType(dim, model))


def mocked(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    patcher = mock.patch.object(model, "forward", side_effect=_dims(model.forward, seen))
    patcher.start()
    return patcher.stop


def _wrapper(seen: Callable[[], Any]) -> Callable[..., Any]:
    return lambda wrapped, _instance, args, kwargs: _dims(wrapped, seen)(*args, **kwargs)


def wrapped(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    wrapt.wrap_function_wrapper(model, "forward", _wrapper(seen))
    return lambda: setattr(model, "forward", model.forward.__wrapped__)


def function_wrapper(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    return _put_back(model, wrapt.FunctionWrapper(model.forward, _wrapper(seen)))


def _of_class(name: str, plainly: bool, model: nn.Module, seen: Callable[[], Any]) -> Remove:
    cls = next(each for each in type(model).__mro__ if name in vars(each))
    forward = vars(cls)[name]

    def dim(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not model:
            return forward(self, *args, **kwargs)
        seen()
        return dimmed(forward(self, *args, **kwargs))

    setattr(cls, name, dim if plainly else functools.wraps(forward)(dim))
    return lambda: setattr(cls, name, forward)


class Dim(ModelHook):
    """accelerate's."""

    def __init__(self, seen: Callable[[], Any]) -> None:
        self.seen = seen

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen()
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        return dimmed(output)


def accelerate_hook(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    add_hook_to_module(model, Dim(seen))
    return lambda: remove_hook_from_module(model)


def accelerate_sequence(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    add_hook_to_module(model, Dim(seen))
    add_hook_to_module(model, Dim(lambda: None), append=True)
    return lambda: remove_hook_from_module(model)


def accelerate_aligned(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    class Counted(AlignDevicesHook):
        def pre_forward(self, *args: Any, **kwargs: Any) -> Any:
            seen()
            return super().pre_forward(*args, **kwargs)

    add_hook_to_module(model, Counted(torch.device("cpu"), io_same_device=True))
    return lambda: remove_hook_from_module(model)


def accelerate_offload(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    _, hook = cpu_offload_with_hook(model, "cpu")
    add_hook_to_module(model, Dim(seen), append=True)
    return lambda: (hook.offload(), hook.remove())


def accelerate_on_blocks(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    for block in blocks(model):
        add_hook_to_module(block, Dim(seen))
    return lambda: remove_hook_from_module(model, recurse=True)


class DiffusersDim(DiffusersHook):
    def __init__(self, seen: Callable[[], Any]) -> None:
        super().__init__()
        self.seen = seen

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen()
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        return dimmed(output)


class DiffusersForward(DiffusersHook):
    def __init__(self, seen: Callable[[], Any]) -> None:
        super().__init__()
        self.seen = seen

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return _dims(self.fn_ref.original_forward, self.seen)(*args, **kwargs)


def _registered(hook: Any, modules: Callable, model: nn.Module, seen: Any) -> Remove:
    found, name = list(modules(model)), f"dim-{id(seen)}"
    for module in found:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook(seen), name)
    return lambda: [module._diffusers_hook.remove_hook(name, recurse=False) for module in found]


def layerwise_casting(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    return None  # diffusers does not take it back


def _ranges() -> dict[str, Any]:
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 1001),
        "current_timestep_callback": lambda: 500,
    }


def attention_broadcast(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    names = ("attentions.*attn1",)
    config = PyramidAttentionBroadcastConfig(**_ranges(), spatial_attention_block_identifiers=names)
    apply_pyramid_attention_broadcast(model, config)
    registry = HookRegistry.check_if_exists_or_initialize(model)
    return lambda: registry.remove_hook("pyramid_attention_broadcast", recurse=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    return [*model.down_blocks, model.mid_block, *getattr(model, "up_blocks", ())]


def resnets(model: nn.Module) -> list[nn.Module]:
    return [layer for block in blocks(model) for layer in block.resnets]


def block_closures(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    undo = [closure(block, seen) for block in blocks(model)]
    return lambda: [remove() for remove in undo]


def hooks(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        seen()
        return args, kwargs

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(
            lambda _module, _args, _kwargs, output: dimmed(output),
            with_kwargs=True,
            always_call=True,
        ),
        model.register_forward_hook(lambda *_: None, prepend=True),
    ]
    return lambda: [handle.remove() for handle in handles]


def hooks_inside(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def after(_module: Any, _args: Any, output: Any) -> Any:
        seen()
        return dimmed(output)

    handles = [layer.register_forward_hook(after) for layer in resnets(model)]
    return lambda: [handle.remove() for handle in handles]


def global_hook(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def after(module: Any, _args: Any, output: Any) -> Any:
        if module is model:
            seen()
            return dimmed(output)
        return None

    return torch_module.register_module_forward_hook(after).remove


class Larger(nn.Module):
    def __init__(self, seen: Callable[[], Any]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.seen()
        return weight * 1.1


def parametrized(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    layers = [model.conv_in, model.mid_block.resnets[0].conv1]
    for layer, told in zip(layers, (seen, lambda: None), strict=True):
        # Unsafe only spares the call that looks at the shape.
        parametrize.register_parametrization(layer, "weight", Larger(told), unsafe=True)
    return lambda: [
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for layer in layers
    ]


def adapter(model: nn.Module, seen: Callable[[], Any], *, fused: bool = False) -> Remove:
    targets = ["to_q", "conv1", "conv_in"]
    name = f"style{len(getattr(model, 'peft_config', {}))}"
    with seeded(1):
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)
    if fused:
        model.fuse_lora(adapter_names=[name])

    def remove() -> None:
        if fused:
            model.unfuse_lora()
        model.unload_lora()

    return remove


def switched_adapters(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    remove = adapter(model, seen)
    adapter(model, seen)
    model.set_adapters(["style0", "style1"], [0.5, 0.3])
    model.disable_lora()
    model.enable_lora()
    return remove


def merged_tokens(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    tomesd.apply_patch(model, ratio=0.5, max_downsample=2, use_rand=False)
    return lambda: tomesd.remove_patch(model)


class Other(NamedTuple):
    """Somebody else's patch of a model."""

    install: Install
    #: Whether it is called once in every call of the model.
    counts: bool = True
    #: Whether pictures differ with it.
    shows: bool = True
    #: Whether it can be removed at all, and leaves the picture then that was before.
    removable: bool = True
    exact: bool = True
    #: Whether it replaces `forward` of the model, and gives back what was there when it came.
    stacks: bool = True
    #: Whether it notes things on the model at each call.
    notes: bool = False
    #: Whether it counts in what shallow steps of a U-Net leave out, so that none is shallow.
    heeded: bool = False
    #: Whether it is for text-guided U-Nets only.
    attention: bool = False


OTHERS: dict[str, Other] = {
    "closure": Other(closure),
    "saved-closure": Other(saved),
    "partial": Other(partial),
    "method": Other(method),
    "mock": Other(mocked),
    "wrapt-function": Other(wrapped),
    "wrapt-function-set": Other(function_wrapper),
    "class-forward": Other(functools.partial(_of_class, "forward", True)),
    "class-forward-wraps": Other(functools.partial(_of_class, "forward", False)),
    "class-call": Other(functools.partial(_of_class, "__call__", False)),
    "accelerate": Other(accelerate_hook),
    "accelerate-sequence": Other(accelerate_sequence),
    "accelerate-align": Other(accelerate_aligned, shows=False),
    "accelerate-offload": Other(accelerate_offload),
    "accelerate-on-blocks": Other(accelerate_on_blocks, counts=False),
    "diffusers-hook": Other(functools.partial(_registered, DiffusersDim, lambda model: [model])),
    "diffusers-new-forward": Other(
        functools.partial(_registered, DiffusersForward, lambda model: [model])
    ),
    "diffusers-on-resnets": Other(
        functools.partial(_registered, DiffusersForward, resnets), counts=False
    ),
    "layerwise-casting": Other(layerwise_casting, counts=False, removable=False),
    "attention-broadcast": Other(attention_broadcast, counts=False, attention=True),
    "blocks": Other(block_closures, counts=False, heeded=True),
    "torch-hooks": Other(hooks, stacks=False),
    "torch-hooks-inside": Other(hooks_inside, counts=False, stacks=False),
    "torch-global-hook": Other(global_hook, stacks=False),
    "parametrized": Other(parametrized, stacks=False),
    "adapter": Other(adapter, counts=False, stacks=False, attention=True),
    "adapters": Other(switched_adapters, counts=False, stacks=False, attention=True),
    "adapter-fused": Other(
        functools.partial(adapter, fused=True),
        counts=False,
        exact=False,
        stacks=False,
        attention=True,
    ),
    "tomesd": Other(merged_tokens, counts=False, stacks=False, notes=True, attention=True),
}
