"""Who watches the layers that a shallow call leaves out.

Some pipelines and users read attention maps out of a U-Net's deep layers at every step: through an
attention processor that keeps what it saw. On a shallow step there would be no map, or an old one.
Forward hooks are not looked at: profilers have them, too.
"""

import inspect
from collections import deque
from collections.abc import Iterable
from dis import get_instructions
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..cutting.cut import Cut
from .offloading import offloading_of

_KEEPING = {"append", "extend", "setattr", "setdefault"}
_STORING = {"STORE_ATTR", "STORE_GLOBAL"}
_PLAIN = (bool, int, float, str, type(None))


def observer_of(unet: nn.Module, cut: Cut | None) -> str | None:
    """Say what needs the layers that the cut leaves out: a processor, offloading, another cache.

    Processors of `diffusers.models` only compute. So does any other, as far as can be seen, that
    can reach nothing but numbers, names and weights, and writes to nobody's attributes. Without a
    cut everything is left out.
    """
    kept: set[nn.Module] = set()
    if cut is not None:
        with cut.applied():
            kept = set(unet.modules())
    for name, module in unet.named_modules():
        if module not in kept and _keeps_something(getattr(module, "processor", None)):
            return (
                f"the attention processor {_name(module.processor)} of {name} may keep what it "
                "sees at each step, and shallow steps leave that layer out: set diffusers' own "
                "processors to be fast"
            )
    made_by = str(getattr(vars(unet).get("forward"), "__module__", ""))
    if made_by.partition(".")[0] == "DeepCache":
        return (
            "DeepCacheSDHelper of the DeepCache package is enabled, too, and each would replay "
            "what the other has replayed: call its disable() to be fast"
        )
    return offloading_of(unet)


def _keeps_something(processor: Any) -> bool:
    if processor is None or type(processor).__module__.startswith("diffusers.models."):
        return False
    if isinstance(processor, partial):
        given = [*processor.args, *processor.keywords.values()]
        return _any_state(given) or _keeps_something(processor.func)
    if isinstance(processor, MethodType):
        return _keeps_something(processor.__self__) or _function_keeps(processor.__func__)
    if isinstance(processor, FunctionType):
        return _function_keeps(processor)
    called = "forward" if isinstance(processor, nn.Module) else "__call__"
    return _any_state(_attributes(processor)) or _function_keeps(getattr(type(processor), called))


def _function_keeps(function: Any) -> bool:
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is not None:
        if set(code.co_freevars) - {"__class__"}:  # that one is for `super()`
            return True
        stored = {each.opname for each in get_instructions(code)}
        if _KEEPING & set(code.co_names) or _STORING & stored:
            return True
        named = (getattr(function, "__globals__", {}).get(name) for name in code.co_names)
        if any(isinstance(value, list | dict | set | deque) for value in named):
            return True
    defaults = getattr(function, "__defaults__", None) or ()
    by_name = getattr(function, "__kwdefaults__", None) or {}
    return _any_state([*defaults, *by_name.values(), *getattr(function, "__dict__", {}).values()])


def _attributes(processor: Any) -> Iterable[Any]:
    """What it has itself, and what its classes have that is no method."""
    own = getattr(processor, "__dict__", {})
    if isinstance(processor, nn.Module):
        yield from (own[name] for name in own.keys() - vars(nn.Module()).keys())  # no weights
    else:
        yield from own.values()
    for kind in set(type(processor).__mro__) - set(nn.Module.__mro__):
        for name, value in vars(kind).items():
            if type(value).__name__ == "member_descriptor":  # of `__slots__`
                yield getattr(processor, name, None)
            elif not name.startswith(("__", "_abc_")) and not hasattr(value, "__get__"):
                yield value


def _any_state(values: Iterable[Any]) -> bool:
    return any(not isinstance(value, _PLAIN) for value in values)


def _name(processor: Any) -> str:
    return getattr(processor, "__name__", type(processor).__name__)
