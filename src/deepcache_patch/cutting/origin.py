"""Whose code a call of a module runs: its library's own, or what somebody has put in its place.

A class says little of that. `forward` may be replaced on an instance or on a class, and the class
itself may be swapped. What such code may keep is judged in `running.watching.stateful`.
"""

import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from torch import nn

#: Libraries whose layers and wrappers only compute, or move weights.
LIBRARIES: Final = frozenset(
    {
        *("accelerate", "apex", "bitsandbytes", "deepspeed", "diffusers", "einops", "flash_attn"),
        *("flash_attn_interface", "gguf", "hqq", "huggingface_hub", "kornia"),
        *("intel_extension_for_pytorch",),
        *("modelopt", "numpy", "nunchaku", "onediff", "optimum", "peft", "quanto", "sageattention"),
        *("sfast", "tensordict", "tensorrt", "timm", "tomesd", "torch", "torch_tensorrt"),
        *("torch_xla", "torchao", "torchvision", "transformer_engine", "transformers", "triton"),
        "xformers",
    }
)


def is_library(name: Any) -> bool:
    """Whether the module of this name belongs to such a library, or to Python."""
    root = str(name).partition(".")[0]
    return root in LIBRARIES or root in sys.stdlib_module_names


def home_of(function: Any) -> str:
    """The name of the module whose code the function is; `functools.wraps` does not change it."""
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def is_foreign(function: Any) -> bool:
    """Whether it is a Python function, and of no such library."""
    return isinstance(function, FunctionType) and not is_library(home_of(function))


def runs_known_code(module: nn.Module, *, wrapped: bool = False) -> bool:
    """Whether a call of the module runs the `forward` that its library has defined for its class.

    Hooks of accelerate and diffusers may stand round it, and what `torch.compile` makes.

    Args:
        module: A module of a class of diffusers or torch.
        wrapped: Whether anybody's function may stand round it, as long as it names no part of the
            module.
    """
    if not _is_cuttable(type(module).__module__):
        return False
    around = put_around(module)
    if not around:
        return True
    names = {kind.__name__ for kind in type(module).__mro__}
    if not wrapped or not any(_is_forward_of(each, names) for each in _forward_of(module)):
        return False
    parts = module._modules.keys() | (vars(module).keys() & {"mid_block"})  # which may be `None`
    return not any(parts & named_in(each.__code__) for each in around if is_foreign(each))


def put_around(module: nn.Module) -> list[Any]:
    """The code around or in place of `forward` that belongs to no known library."""
    return [each for each in _forward_of(module) if not _is_of_library(each)]


def named_in(code: CodeType) -> set[str]:
    """All names and strings in a function's code, and in that of functions within it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, CodeType):
            found |= named_in(constant)
    return found


def _is_cuttable(name: str) -> bool:
    return name.partition(".")[0] in ("diffusers", "torch")


def _forward_of(module: nn.Module) -> list[Any]:
    """What a call of the module runs, and what that is made of."""
    top = vars(module).get("forward")
    if top is None:
        top = getattr(type(module), "forward", None)
    return list(_made_of(top, vars(module).get("_old_forward")))


def _is_of_library(thing: Any) -> bool:
    if isinstance(thing, FunctionType):
        return is_library(home_of(thing))
    if isinstance(thing, partial | MethodType):
        return True  # what it is made of is looked at in its turn
    return type(thing).__module__.partition(".")[0] in LIBRARIES  # not a mock, which Python has


def _is_forward_of(function: Any, names: set[str]) -> bool:
    if not isinstance(function, FunctionType) or not _is_cuttable(home_of(function)):
        return False
    kind, _, name = function.__qualname__.rpartition(".")
    return name == "forward" and kind.rpartition(".")[2] in names


def _made_of(*things: Any) -> Iterator[Any]:
    """A callable, and the callables that it is made of, as far as they can be seen."""
    todo = [each for each in things if each is not None]
    seen: list[Any] = []
    while todo:
        thing = todo.pop()
        if any(thing is each for each in seen) or isinstance(thing, nn.Module | type):
            continue
        if not callable(thing):
            continue
        seen.append(thing)
        yield thing
        # wrapt's wrappers look like what they wrap, and hold the function that they call.
        todo += [getattr(thing, name, None) for name in ("__wrapped__", "_self_wrapper")]
        if isinstance(thing, partial):
            todo += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, MethodType):
            todo.append(thing.__func__)
            if not isinstance(thing.__self__, nn.Module | type):
                todo += _callables_of(thing.__self__)
        elif isinstance(thing, FunctionType):
            if is_foreign(thing):
                todo += cells_of(thing)
        else:
            todo += [type(thing).__call__, *_callables_of(thing)]


def cells_of(function: FunctionType) -> list[Any]:
    """What the function closes over; what is not yet set is left out."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


def _callables_of(thing: Any) -> list[Any]:
    kinds = (FunctionType, MethodType, partial)
    return [each for each in getattr(thing, "__dict__", {}).values() if isinstance(each, kinds)]
