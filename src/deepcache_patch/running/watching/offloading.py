"""Who moves weights about in a way that a shallow call would break.

Memory savers bring a layer's weights to the device when it runs, or just before. Most of them go by
the layer itself, and never notice that others are left out; this knows those that do not.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import diffusers
from torch import nn

#: Hooks that move a whole model to the device when it is called: accelerate's, and that of
#: diffusers' `ComponentsManager`.
_MOVERS: Final = ("CpuOffload", "CustomOffloadHook")

#: Where the hooks are defined that only move or cast weights. Some go once a call has been seen.
_STORING: Final = ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")

# From here on, diffusers loads a layer at once that no layer before it has prefetched.
_LOADS_AFTER_A_GAP: Final = (0, 37)


def offloading_of(modules: Iterable[nn.Module]) -> str | None:
    """Say what in the offloading of a U-Net's modules needs every layer to run, if it does."""
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    for module in modules:
        own = vars(module)
        if "_hf_hook" not in own and "_diffusers_hook" not in own:
            continue
        group = group_of(module)
        if group is not None and group.onload_leader not in (None, module):
            return (
                "group offloading loads several blocks when the first of them runs, and shallow "
                "steps leave that one out: give enable_group_offload(num_blocks_per_group=1)"
            )
        if getattr(group, "stream", None) is not None and version < _LOADS_AFTER_A_GAP:
            return (
                "group offloading prefetches layers in the order of a full step: give "
                "enable_group_offload(use_stream=False), or update diffusers to 0.37 or newer"
            )
        # They have other names while lists of layers are cut short.
        hooks = accelerate_hooks(module)
        if any(getattr(each, "place_submodules", False) and each.offload for each in hooks):
            return (
                f"accelerate loads what is inside a {type(module).__name__} by its names, which "
                "shallow steps change: leave preload_module_classes and place_submodules out"
            )
    return None


def bring_whole(model: nn.Module) -> None:
    """Have an offloaded model moved to the device before a part of it is left out.

    The hook would move what it finds in the call, and take the first weight for all of them then.
    """
    for each in accelerate_hooks(model):
        if type(each).__name__ in _MOVERS:
            each.pre_forward(model)


def computing_hooks(registry: Any) -> list[str]:
    """The names of diffusers' hooks of a module that do not only move or cast its weights."""
    hooks = getattr(registry, "hooks", {}).items()
    return [name for name, hook in hooks if type(hook).__module__ not in _STORING]


def group_of(module: nn.Module) -> Any:
    """The group by which diffusers offloads a module with others; `None` where it does not."""
    registry = vars(module).get("_diffusers_hook")
    hook = registry and registry.get_hook("group_offloading")
    return getattr(hook, "group", None)


def accelerate_hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on a module itself, one by one, and those within a hook."""
    hook: Any = vars(module).get("_hf_hook")
    hooks = [] if hook is None else [hook]
    for hook in hooks:
        yield hook
        hooks += getattr(hook, "hooks", ())  # a `SequentialHook` has several, of its own kind, too
