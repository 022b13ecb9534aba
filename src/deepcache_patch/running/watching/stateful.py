"""Whether code can count its calls, or keep what it sees: told from the code, without running it.

Looked at are a callable's own bytecode, what it closes over, its defaults, the attributes and
globals that it names, and the methods and functions that these lead to. Code of libraries that only
compute is not looked into. What is in doubt is said to keep something.
"""

import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from logging import Logger, LoggerAdapter
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final

import torch
from torch import nn

from ...cutting.origin import LIBRARIES, cells_of, home_of, is_library, named_in
from .bytecode import loaded_globals, writes

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), range, slice, Enum)
_HARMLESS: Final = (
    *(torch.Tensor, torch.dtype, torch.device, re.Pattern, PurePath, Logger, LoggerAdapter),
    *(ModuleType, MethodDescriptorType, WrapperDescriptorType),
)
_CONTAINERS: Final = (list, dict, set, deque, bytearray)
#: Methods that the library or Python calls, and not the code of a call.
_APART: Final = {
    *("__init__", "__post_init__", "__new__", "__setattr__", "__delattr__", "__setstate__"),
    *("__init_subclass__", "__class_getitem__", "__subclasshook__", "__hash__", "__eq__"),
}


def may_be_stateful(called: Any) -> bool:
    """Whether what is called may keep something or count.

    Args:
        called: A function, a method, a module or another object that can be called.
    """
    return _or_in_doubt(_Search().callable, called)


def module_may_be_stateful(module: nn.Module, *, for_one_call: bool = False) -> bool:
    """Whether a module may keep something or count, by code that is not of its library.

    Args:
        module: Its children are not looked at.
        for_one_call: Whether the lists that it is called with are made anew for each call, as those
            of skips are that a U-Net's blocks hand on.
    """
    return _or_in_doubt(_Search(for_one_call).module, module)


def _or_in_doubt(search: Callable[[Any], bool], thing: Any) -> bool:
    try:
        return search(thing)
    except Exception:  # whatever an object raises that is looked at, such as a dead proxy
        return True


def is_known_class(kind: type) -> bool:
    """Whether calls of the class's modules run code of libraries alone."""
    found = (getattr(kind, name, None) for name in ("forward", "__call__"))
    return all(not isinstance(each, FunctionType) or _is_all_known(each) for each in found)


def is_plain(value: Any) -> bool:
    """Whether it is a number, a name or nothing."""
    return isinstance(value, bool | int | float | str | type(None))


class _Search:
    """One look: what it has seen already is not looked at again."""

    def __init__(self, for_one_call: bool = False) -> None:
        self._for_one_call = for_one_call
        self._seen: dict[Any, Any] = {}

    def callable(self, thing: Any, owner: Any = None) -> bool:
        """Whether a call may keep something.

        Args:
            thing: What is called.
            owner: What its first argument is, if that is known.
        """
        if self._is_seen(thing, owner):
            return False
        # wrapt's wrappers look like what they wrap, and hold the function that they call.
        inner, by = (getattr(thing, name, None) for name in ("__wrapped__", "_self_wrapper"))
        if any(each is not None and self.callable(each, owner) for each in (inner, by)):
            return True
        if isinstance(thing, partial):
            given = [*thing.args, *thing.keywords.values()]
            return any(map(self.value, given)) or self.callable(thing.func, owner)
        if isinstance(thing, MethodType):
            its = thing.__self__
            return self.value(its) or self.callable(thing.__func__, its)
        if isinstance(thing, FunctionType):
            return not _is_known(home_of(thing)) and self._function(thing, owner)
        if isinstance(thing, BuiltinFunctionType):
            return not isinstance(thing.__self__, type) and self.value(thing.__self__)
        if by is not None or (inner is not None and is_library(type(thing).__module__)):
            return False  # such as a function with a cache
        return self._object(thing)

    def value(self, value: Any) -> bool:
        """Whether something may be kept in the value, or by its methods."""
        if isinstance(value, (*_PLAIN, *_HARMLESS)):
            return False
        if isinstance(value, tuple | frozenset):
            return any(map(self.value, value))
        if isinstance(value, weakref.ref):
            return self.value(value())
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, type):
            return not _is_known(value.__module__) and self._class(value)
        if isinstance(value, _CALLED) or hasattr(value, "__wrapped__"):
            return self.callable(value)
        return self._object(value)

    def _object(self, value: Any) -> bool:
        home = type(value).__module__
        if isinstance(value, torch.Generator):
            return True
        if home.partition(".")[0] in LIBRARIES and _is_known(home):
            return False
        if isinstance(value, _CONTAINERS) or _is_known(home):
            return True
        return self._instance(value)

    def module(self, module: nn.Module) -> bool:
        """Whether code that is not its library's may keep something when the module is called."""
        own = (vars(module).get(name) for name in ("forward", "_call_impl"))
        by_class = (getattr(type(module), name, None) for name in ("forward", "__call__"))
        found = [each for each in (*own, *by_class) if each is not None]
        return any(self.callable(each, module) for each in found)

    def _instance(self, value: Any) -> bool:
        if self._is_seen(value, type(value)):
            return False
        if any(map(self.value, attributes_of(value))):
            return True
        return any(self.callable(method, value) for _, method in _methods_of(type(value)))

    def _class(self, kind: type) -> bool:
        if self._is_seen(kind) or issubclass(kind, (tuple, Enum, BaseException)):
            return False
        if any(map(self._attribute, _shared_of(kind))):
            return True
        theirs = [each for each in kind.__mro__ if not _is_known(each.__module__)]
        bound = [each for its in theirs for each in vars(its).values()]
        called = [each.__func__ for each in bound if isinstance(each, classmethod | staticmethod)]
        return any(self.callable(each, kind) for each in called)

    def _function(self, function: Any, owner: Any) -> bool:
        cells, code = cells_of(function), function.__code__
        own = [value for name, value in vars(function).items() if not name.startswith("__")]
        given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if any(map(self.value, [*cells, *given, *own])):
            return True
        if writes(function, owner, for_one_call=self._for_one_call):
            return True
        reached = _globals_of(function)
        if any(map(self._attribute, reached)):
            return True
        names = named_in(code)
        owners = [each for each in (owner, *cells) if isinstance(each, nn.Module)]
        if any(self._attribute(value) for each in owners for value in _state_of(each, names)):
            return True
        classes = [each for each in (*cells, *reached) if isinstance(each, type)]
        for each in (owner, *owners, *classes):
            kind = each if isinstance(each, type) else type(each)
            called = [method for name, method in _methods_of(kind) if name in names]
            if any(self.callable(method, each) for method in called):
                return True
        return False

    def _attribute(self, value: Any) -> bool:
        """Whether something may be kept in what code names: a global, or a module's attribute.

        Lists of numbers and names are settings; whoever changes them is seen in the code.
        """
        if isinstance(value, _CONTAINERS) and type(value).__module__ == "builtins":
            return not value or not _is_settings(value)
        return self.value(value)

    def _is_seen(self, thing: Any, owner: Any = None) -> bool:
        key = id(thing), id(owner)
        if key in self._seen:
            return True
        self._seen[key] = thing, owner  # held, or others could have their numbers
        return False


def attributes_of(value: Any) -> Iterator[Any]:
    """What an object has itself, and what its classes have that is no method."""
    own = getattr(value, "__dict__", {})
    if isinstance(value, nn.Module):
        yield from (own[name] for name in own.keys() - _OF_MODULES)  # no weights
    else:
        yield from own.values()
    for kind in set(type(value).__mro__) - set(nn.Module.__mro__):
        for name, each in vars(kind).items():
            if type(each).__name__ == "member_descriptor":  # of `__slots__`
                yield getattr(value, name, None)
    yield from _shared_of(type(value))


def _shared_of(kind: type) -> Iterator[Any]:
    """What classes that are no library's have for all their objects, without their methods."""
    for each in set(kind.__mro__) - set(nn.Module.__mro__):
        if _is_known(each.__module__):
            continue
        for name, value in vars(each).items():
            if not name.startswith(("__", "_abc_")) and not hasattr(value, "__get__"):
                yield value


def _methods_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The functions of a class by name, inherited ones and those of properties among them."""
    for each in set(kind.__mro__) - set(nn.Module.__mro__):
        for name, value in vars(each).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if name not in _APART and isinstance(function, FunctionType):
                yield name, function


def _state_of(module: nn.Module, names: set[str]) -> list[Any]:
    """The attributes and children with these names that a module has, and not every module."""
    own, children = vars(module), module._modules
    found = [own[name] for name in (own.keys() & names) - _OF_MODULES - _OF_HOOKS]
    return found + [children[name] for name in children.keys() & names]


def _globals_of(function: Any) -> list[Any]:
    """What a function finds by global names; of modules of somebody's own, what it names there."""
    names, found = named_in(function.__code__), []
    for name in loaded_globals(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and not is_library(value.__name__):
            found += [vars(value)[each] for each in names & vars(value).keys()]
        else:
            found.append(value)
    return found


def _is_known(home: str) -> bool:
    """Whether this is where code of libraries is that only compute."""
    return is_library(home) and not home.startswith("diffusers.pipelines.")


def _is_all_known(function: Any) -> bool:
    while function is not None:
        if not is_library(home_of(function)):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _is_settings(value: Any) -> bool:
    """Whether there is nothing in it but numbers and names."""
    if isinstance(value, dict):
        return all(map(_is_settings, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_settings, value))
    return isinstance(value, (*_PLAIN, torch.dtype, torch.device))


_CALLED: Final = (FunctionType, MethodType, BuiltinFunctionType, partial)
_OF_MODULES: Final = vars(nn.Module()).keys() | {"forward"}
_OF_HOOKS: Final = {"_hf_hook", "_old_forward", "_diffusers_hook"}
