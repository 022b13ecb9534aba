"""`Fingerprint`, a few numbers out of a U-Net's weights: whether a calibration is of these weights.

It is no proof. A copy in another floating-point type has the same one, and so has a U-Net with
adapters beside its weights. Weights that are packed, sharded or not in memory are not looked at.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ..running.watching.offloading import group_of
from .schedule_file import LONGEST

#: How many parameters are looked at, and how many numbers of each.
SAMPLED_PARAMETERS: Final = 16
NUMBERS: Final = 4

#: Two numbers are the same if rounding to bfloat16 may be all that lies between them.
_ROUNDING: Final = {"rel_tol": 2**-7, "abs_tol": 1e-6}

#: Types of one number for each weight; a smaller float or an integer stands for something coarser.
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: What stands round a layer: torch.compile's wrapper, one that saves activations, and peft's.
_WRAPPED: Final = ("_orig_mod", "_checkpoint_wrapped_module", "base_layer")

_DIGITS: Final = 5


@dataclass(frozen=True)
class Fingerprint:
    """A few numbers of some parameters.

    Attributes:
        numbers: The numbers by the parameter's name, without the names of wrappers.
    """

    numbers: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, unet: nn.Module) -> "Fingerprint | None":
        """The fingerprint of a U-Net, read from the device; `None` if no weights can be read."""
        known = dict(_readable(unet))
        names = list(known)
        count = min(SAMPLED_PARAMETERS, len(names))
        chosen = (names[place * len(names) // count] for place in range(count))
        found = {name: numbers for name in chosen if (numbers := _numbers(known[name]))}
        return cls(found) if found else None

    def difference(self, unet: nn.Module) -> str | None:
        """Says in what the weights of a U-Net differ, or `None`. Reads from the device.

        Parameters that it lacks or that cannot be read are left out.
        """
        known = dict(_readable(unet))
        here = {name: _numbers(known[name]) for name in self.numbers if name in known}
        differ = {
            name: pair
            for name, numbers in here.items()
            for pair in zip(self.numbers[name], numbers, strict=False)  # none if not finite
            if not math.isclose(*pair, **_ROUNDING)
        }
        if not differ:
            return None
        name, (before, now) = next(iter(differ.items()))
        return (
            f"{len(differ)} of {len(here)} parameters that were looked at differ, {name} had "
            f"{before:.4g} and has {now:.4g}"
        )

    def to_dict(self) -> dict[str, list[float]]:
        """The numbers in JSON's types."""
        return {name: list(numbers) for name, numbers in self.numbers.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Fingerprint":
        """What `to_dict` gave; it is not checked here."""
        return cls({name: tuple(map(float, numbers)) for name, numbers in data.items()})


def _readable(unet: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The matrices and kernels of a U-Net whose numbers can be read one by one."""
    if any(map(_is_on_disk, unet.modules())):
        return
    for name, parameter in _parameters(unet, "", set()):
        # Of a shard of a model there is a flat part, and of a quantised layer a class of its own.
        is_plain = type(parameter) in (nn.Parameter, torch.Tensor) and parameter.ndim > 1
        is_there = not parameter.is_meta and parameter.layout is torch.strided and len(parameter)
        can_be_told = len(name) <= LONGEST and name.isprintable()
        if is_plain and is_there and can_be_told and parameter.dtype in _DTYPES:
            yield name, parameter


def _parameters(
    module: nn.Module, prefix: str, seen: set[nn.Module]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's own parameters by name, without what peft and IP-Adapter add."""
    if module in seen:
        return
    seen.add(module)
    base = module._modules.get("base_layer")
    if base is not None:
        yield from _parameters(base, prefix, seen)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter
    for name, child in module._modules.items():
        if child is not None and name != "processor":
            yield from _parameters(child, prefix if name in _WRAPPED else f"{prefix}{name}.", seen)


def _numbers(parameter: torch.Tensor) -> tuple[float, ...]:
    """Some along the first axis, in the middle of the others; none if one is not finite."""
    values = parameter.detach()
    while values.ndim > 1:
        if not values.shape[1]:
            return ()
        values = values[:, values.shape[1] // 2]
    some = values[:: max(1, len(values) // NUMBERS)][:NUMBERS]
    numbers = some.to("cpu", torch.float32).tolist()
    if not all(map(math.isfinite, numbers)):
        return ()
    return tuple(float(f"{number:.{_DIGITS}g}") for number in numbers)


def _is_on_disk(module: nn.Module) -> bool:
    """Whether group offloading has the weights in a file, and anything in their place."""
    return getattr(group_of(module), "offload_to_disk_path", None) is not None
