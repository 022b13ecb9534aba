"""What a pipeline is made of: its U-Nets, and the scheduler that it has now."""

import weakref
from collections.abc import Callable
from typing import Any, cast

from diffusers import DiffusionPipeline
from torch import nn

from .anatomy import is_unet
from .errors import UnsupportedModelError


def unwrapped(unet: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper, or the module itself."""
    return cast(nn.Module, getattr(unet, "_orig_mod", unet))


def unets_of(pipe: Any) -> list[nn.Module]:
    """The U-Nets of a pipeline, as the pipeline calls them; or the bare U-Net itself.

    Raises:
        UnsupportedModelError: If there is none that can be cut.
    """
    if isinstance(pipe, nn.Module):
        modules = [pipe]
    elif isinstance(pipe, DiffusionPipeline):
        modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    else:
        raise UnsupportedModelError(
            f"DeepCacheHelper takes a diffusers pipeline or a U-Net, not {type(pipe).__name__}"
        )
    unets = [module for module in modules if is_unet(unwrapped(module))]
    if unets:
        return unets
    names = ", ".join(type(unwrapped(module)).__name__ for module in modules) or "no modules"
    cure = "supported are UNet2DModel and UNet2DConditionModel of diffusers"
    if any(hasattr(module, "enable_cache") for module in modules):
        cure = "transformers have caches of their own: see pipe.transformer.enable_cache(...)"
    raise UnsupportedModelError(
        f"{type(pipe).__name__} has no U-Net that can be cut (found: {names}); {cure}"
    )


def scheduler_of(pipe: Any) -> Callable[[], Any]:
    """Gives the scheduler that the pipeline has at the time, without keeping the pipeline alive."""
    if isinstance(pipe, nn.Module):
        return lambda: None
    reference = weakref.ref(pipe)
    return lambda: getattr(reference(), "scheduler", None)
