"""How much work a call of a U-Net is, without doing it.

An outline of the U-Net, a copy of its modules whose tensors have shapes and no values, is called,
and the multiply-adds are counted. The U-Net itself is only read, and what others put on it (hooks,
patches, compiled calls) is left out.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..cutting.cut import Cut
from ..patching.wrappers import unwrapped
from ..running.example import PLAIN, on_meta


class Outline:
    """A copy of a U-Net's modules whose tensors have shapes and no values.

    Calls of it are quick: what was called with tensors of the same shapes before is not run again,
    nor is a twin of it, such as the next of many equal blocks.

    Args:
        unet: Not inside `torch.compile`'s wrapper; it is only read.
    """

    def __init__(self, unet: nn.Module) -> None:
        dtype = getattr(unet, "dtype", torch.float32)
        modules = {module: object.__new__(type(module)) for module in unet.modules()}
        self.unet = modules[unet]
        self._parents: dict[nn.Module, list[nn.Module]] = {each: [] for each in modules.values()}
        for module, copied in modules.items():
            for name, value in vars(module).items():
                if name in _FRESH:
                    vars(copied)[name] = type(value)()
                elif name not in _INSTALLED and "hook" not in name:
                    vars(copied)[name] = _emptied(value, dtype)
            children = {
                name: None if child is None else modules[unwrapped(child)]
                for name, child in module._modules.items()
            }
            vars(copied)["_modules"] = children
            for child in children.values():
                if child is not None:
                    self._parents[child].append(copied)
        self.output: Any = None  #: Of the last call.
        self._numbers: dict[Any, int] = {}
        self._kinds: dict[nn.Module, int] = {}
        self._known: dict[Any, tuple[int, Any]] = {}

    @torch.no_grad()
    def multiply_adds(self, cut: Cut, arguments: Mapping[str, Any]) -> int:
        """Count those of one kind of call."""
        touched: set[nn.Module] = set()
        waiting = [owner for owner in cut.owners if owner in self._parents]
        while waiting:
            module = waiting.pop()
            if module not in touched:
                touched.add(module)
                waiting += self._parents[module]
        counter = _Counter()
        for module in self._parents:
            vars(module).pop("forward", None)
            if module is not self.unet and module not in touched:
                kind = self._kind(module)
                vars(module)["forward"] = _Remembering(module, kind, counter, self._known)
        try:
            with torch.inference_mode(False), cut.applied(), counter:
                self.output = self.unet(
                    **tree_map_only(torch.Tensor, torch.empty_like, dict(arguments))
                )
        finally:
            for module in self._parents:
                vars(module).pop("forward", None)
        return counter.multiply_adds

    def _kind(self, module: nn.Module) -> int:
        """A number that modules share whose calls differ in nothing but values."""
        if module not in self._kinds:
            own = {
                name: value
                for name, value in vars(module).items()
                if name not in ("_modules", "forward")
            }
            children = tuple(
                (name, None if child is None else self._kind(child))
                for name, child in module._modules.items()
            )
            traits = (type(module), _traits(own), children)
            self._kinds[module] = self._numbers.setdefault(traits, len(self._numbers))
        return self._kinds[module]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts multiply-adds, by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.multiply_adds = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Not `FlopCounterMode`: it sets hooks for all modules of the process, in all threads.
        output = func(*args, **(kwargs or {}))
        formula: Any = flop_counter.flop_registry.get(func._overloadpacket)
        if formula is not None:
            # A multiply-add is two operations there.
            self.multiply_adds += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output


class _Remembering:
    """The `forward` of a module of an outline, which runs once for each kind of call."""

    def __init__(
        self,
        module: nn.Module,
        kind: int,
        counter: _Counter,
        known: dict[Any, tuple[int, Any]],
    ) -> None:
        self._module = module
        self._kind = kind
        self._counter = counter
        self._known = known

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = (self._kind, _traits(args), _traits(kwargs))
        if call in self._known:
            number, output = self._known[call]
            self._counter.multiply_adds += number
            return output
        before = self._counter.multiply_adds
        output = type(self._module).forward(self._module, *args, **kwargs)
        self._known[call] = self._counter.multiply_adds - before, output
        return output


class _Same:
    """Equal for the same object only, which it keeps alive: its address goes to no other."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _traits(value: Any) -> Any:
    """What a call depends on in a value, but for the values in tensors."""
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.shape, value.dtype
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_traits, value))
    if isinstance(value, set):
        return type(value), frozenset(value)
    if isinstance(value, dict):
        return type(value), tuple((key, _traits(item)) for key, item in value.items())
    if type(value).__module__.startswith("diffusers.") and vars(value) == {}:
        return type(value)  # an attention processor
    return _Same(value)


#: The dictionaries of hooks that every module has; and what calls it instead of its class.
_FRESH: Final = frozenset(name for name in vars(nn.Module()) if "hooks" in name)
_INSTALLED: Final = frozenset({"forward", "_compiled_call_impl", "_modules"})


def _emptied(value: Any, dtype: torch.dtype) -> Any:
    """The value of a module's attribute without what is in its tensors; containers are copied."""
    if isinstance(value, torch.Tensor):
        try:
            # Weights may be kept in a smaller dtype than they compute in (layerwise casting).
            small = value.is_floating_point() and value.element_size() == 1
            emptied = on_meta(value, dtype if small else value.dtype)
        except Exception:  # some kinds of quantized weights; a call will say so
            return value
        return nn.Parameter(emptied, False) if isinstance(value, nn.Parameter) else emptied
    if type(value) is list:
        return [_emptied(each, dtype) for each in value]
    if type(value) in (dict, OrderedDict):
        return {key: _emptied(each, dtype) for key, each in value.items()}
    return value
