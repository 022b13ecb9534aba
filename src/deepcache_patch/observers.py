"""Who watches the layers that a shallow call leaves out.

Some pipelines and users read attention maps out of a U-Net's deep layers at every step: through an
attention processor that keeps what it saw. On a shallow step there would be no map, or an old one.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .cut import Cut
from .offloading import offloading_of

_PLAIN = (bool, int, float, str, type(None))


def observer_of(unet: nn.Module, cut: Cut) -> str | None:
    """Say what needs the layers that the cut leaves out: an attention processor, or offloading.

    Processors of `diffusers.models` only compute. So does any other, as far as can be seen, that
    holds nothing but numbers, names and weights.
    """
    with cut.applied():
        kept = set(unet.modules())
    for name, module in unet.named_modules():
        if module not in kept and _keeps_something(getattr(module, "processor", None)):
            return (
                f"the attention processor {_name(module.processor)} of {name} may keep what it "
                "sees at each step, and shallow steps leave that layer out"
            )
    return offloading_of(unet)


def _keeps_something(processor: Any) -> bool:
    if processor is None or type(processor).__module__.startswith("diffusers.models."):
        return False
    if isinstance(processor, nn.Module):
        own = vars(processor).keys() - vars(nn.Module()).keys()  # weights are in the others
        return _any_state({name: vars(processor)[name] for name in own})
    return _any_state(getattr(processor, "__dict__", {})) or bool(
        getattr(processor, "__closure__", None)
    )


def _any_state(attributes: Mapping[str, Any]) -> bool:
    return any(not isinstance(value, _PLAIN) for value in attributes.values())


def _name(processor: Any) -> str:
    return getattr(processor, "__name__", type(processor).__name__)
