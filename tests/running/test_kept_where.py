"""Each place where code may keep something, and each that looks like one and is none."""

import abc
import collections
import enum
import functools
import itertools
import logging
import random
import re
import threading
import types
import typing
import weakref
from pathlib import Path

import pytest
import torch
from builders.stateful import (
    Holding,
    Ticking,
    TickingOfClass,
    closing,
    computes,
    keeps,
    written,
)
from torch import nn

from deepcache_patch.running.watching.stateful import (
    attributes_of,
    is_known_class,
    is_plain,
    may_be_stateful,
)


class Colour(enum.Enum):
    RED = 1


class Pair(typing.NamedTuple):
    first: object
    second: object


class Empty:
    pass


class Slotted:
    __slots__ = ("unset", "value")

    def __init__(self, value):
        self.value = value


class TickingProperty:
    @property
    def tick(self):
        self.calls = 1


class Ready:
    """Its attributes are set where it is made."""

    def __init__(self):
        self.value = 1

    def __setattr__(self, name, value):
        vars(self)[name] = value

    def __eq__(self, other):
        self.other = other

    __hash__ = None


class OwnList(list):
    pass


def of_module(name, kind, **attributes):
    """An object whose class says that it is of this module."""
    return type("Kind", (kind,), {"__module__": name, **attributes})()


HARMLESS = {
    **{type(each).__name__: each for each in (True, 1, 1.0, 1j, "a", b"a", None)},
    **{type(each).__name__: each for each in (range(2), slice(1), Colour.RED)},
    "tensor": torch.zeros(1),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "pattern": re.compile("a"),
    "path": Path("a"),
    "logger": logging.getLogger("a"),
    "adapter": logging.LoggerAdapter(logging.getLogger("a"), {}),
    "module": collections,
    "method of a type": list.append,
    "slot of a type": list.__len__,
    "tuple": (1, ("a", None)),
    "frozenset": frozenset({1}),
    "named tuple": Pair(1, "a"),
    "layer": nn.Linear(1, 1),
    "class of a library": nn.Linear,
    "class of Python": collections.Counter,
    "object of a library": torch.Size([1]),
    "layer of a library with a list": of_module("diffusers.models.x", Ticking, value=[]),
    "object without a state": Empty(),
    "number": Holding(1),
    "slots": Slotted(1),
    "made ready": Ready(),
    "builtin": len,
    "method of a string": "a".upper,
    "method of a class of Python": dict.fromkeys,
    "function of a library": nn.functional.relu,
    "with a cache": functools.lru_cache(computes),
    "partial": functools.partial(computes, 1, x=2),
    "method": types.MethodType(computes, 3),
    "class of tuples": Pair,
    "class of names": Colour,
}
KEPT = {
    **{kind.__name__: kind() for kind in (list, dict, set, bytearray)},
    **{kind.__name__: kind() for kind in (collections.deque, collections.Counter, OwnList)},
    "generator": torch.Generator(),
    "iterator": itertools.count(),
    "random": random.Random(0),
    "lock": threading.Lock(),
    "tuple": (1, ([],)),
    "frozenset": frozenset({Ticking()}),
    "attribute": Holding([]),
    "attribute of an attribute": Holding(Holding([])),
    "slots": Slotted([]),
    "object that ticks": Ticking(),
    "property that ticks": TickingProperty(),
    "class that ticks": TickingOfClass,
    "object whose class ticks": TickingOfClass(),
    "object of a pipeline": of_module("diffusers.pipelines.x", Ticking),
    "method of a list": [].append,
    "function": keeps,
    "with a cache": functools.lru_cache(keeps),
    "partial of it": functools.partial(keeps, 1),
    "argument of a partial": functools.partial(computes, []),
    "keyword of a partial": functools.partial(computes, x=[]),
    "method": types.MethodType(keeps, 3),
    "method of what keeps": types.MethodType(computes, Holding([])),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_nothing_is_kept_in(name):
    assert not may_be_stateful(closing(HARMLESS[name]))


@pytest.mark.parametrize("name", KEPT)
def test_what_something_may_be_kept_in(name):
    assert may_be_stateful(closing(KEPT[name]))
    assert may_be_stateful(closing((1, KEPT[name])))


@pytest.mark.parametrize("name", ["with a cache", "partial", "method", "builtin"])
def test_a_callable_may_be_asked_about_itself(name):
    assert not may_be_stateful(HARMLESS[name])


@pytest.mark.parametrize(
    "name",
    ["method of a list", "with a cache", "partial of it", "argument of a partial", "method"],
)
def test_a_callable_that_keeps_may_be_asked_about_itself(name):
    assert may_be_stateful(KEPT[name])


def test_what_is_referred_to_weakly_is_looked_at():
    held = Holding([])
    refers = closing(weakref.ref(held))
    assert may_be_stateful(refers)
    del held
    assert not may_be_stateful(refers)


def test_what_stands_round_a_function_is_looked_at_with_what_it_calls():
    class Around:
        """As wrapt makes them."""

        def __init__(self, wrapped, wrapper, state=None):
            self.__wrapped__, self._self_wrapper, self.state = wrapped, wrapper, state

    assert not may_be_stateful(Around(computes, computes, []))
    assert may_be_stateful(Around(keeps, computes))
    assert may_be_stateful(Around(computes, keeps))
    assert may_be_stateful(Around(computes, None, []))
    assert not may_be_stateful(Around(computes, None))
    assert may_be_stateful(closing(Around(keeps, None)))


def test_a_function_that_wraps_another_is_looked_at_with_it():
    assert may_be_stateful(functools.wraps(keeps)(lambda x: x))
    assert not may_be_stateful(functools.wraps(computes)(lambda x: x))


# --- functions ----------------------------------------------------------------------------------


def test_defaults_and_what_hangs_on_a_function_are_looked_at():
    assert may_be_stateful(lambda x, kept=[]: x)
    assert may_be_stateful(lambda x, *, kept=[]: x)
    assert not may_be_stateful(lambda x, kept=1, *, more=(2,): x)
    hung = closing(1)
    hung.scale = 1
    assert not may_be_stateful(hung)
    hung.kept = []
    assert may_be_stateful(hung)
    hidden = closing(1)
    hidden.__kept__ = []
    assert not may_be_stateful(hidden)


def test_a_function_that_calls_itself_is_looked_at_once():
    known = {"__name__": "somebodys"}
    exec("def again(x):\n    return again(x - 1) if x else 0", known)
    assert not may_be_stateful(known["again"])


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        ("somebodys", True),
        ("diffusers.pipelines.some", True),
        ("diffusers.models.some", False),
        ("torch.nn.some", False),
        ("json", False),
    ],
)
def test_code_of_libraries_is_not_looked_into_but_that_of_pipelines_is(home, expected):
    assert may_be_stateful(written("kept.append(x)", "x", home, kept=[])) is expected


GLOBALS = {
    "list": ([], True),
    "numbers": ([1, 2.0, "a", None], False),
    "settings": ({"a": [1, (2, {3})], Colour.RED: torch.float32}, False),
    "device": ([torch.device("cpu")], False),
    "frozen": ([frozenset({1})], False),
    "objects": ([1, Empty()], True),
    "object as a key": ({Empty(): 1}, True),
    "object as a value": ({1: Empty()}, True),
    "ordered": (collections.OrderedDict(a=1), True),
    "class": (TickingOfClass, True),
    "function": (keeps, True),
    "plain": (computes, False),
}


@pytest.mark.parametrize("name", GLOBALS)
def test_a_global_that_code_names_is_looked_at(name):
    value, expected = GLOBALS[name]
    assert may_be_stateful(written("it", "x", it=value)) is expected
    assert not may_be_stateful(written("other", "x", it=value, other=1))


def test_of_somebodys_module_that_is_looked_at_which_code_names():
    mine = types.ModuleType("mine")
    mine.kept, mine.scale = [], 1
    assert may_be_stateful(written("mine.kept", "x", mine=mine))
    assert not may_be_stateful(written("mine.scale", "x", mine=mine))
    assert not may_be_stateful(written("mine.kept", "x", mine=types.SimpleNamespace, kept=[]))
    assert may_be_stateful(written("other, mine.scale", "x", mine=mine, other=[]))
    theirs = types.ModuleType("torch.mine")
    theirs.kept = []
    assert not may_be_stateful(written("theirs.kept", "x", theirs=theirs))


# --- classes and objects ------------------------------------------------------------------------


class Shared:
    settings = [1, 2]  # noqa: RUF012


class SharedAndEmpty:
    maps = []  # noqa: RUF012


class Inheriting(SharedAndEmpty):
    pass


class Static:
    @staticmethod
    def tick(x, kept=[]):  # noqa: B006
        return x, kept


class Made:
    @classmethod
    def made(cls, x):
        return cls, x

    @staticmethod
    def same(x):
        return x


class Lacking:
    @classmethod
    def add(cls, x):
        cls.maps.append(x)


class FailingError(Exception):
    maps = []  # noqa: RUF012


def test_what_a_class_has_for_all_is_looked_at():
    keeping, harmless = (SharedAndEmpty, Inheriting, Static), (Shared, Made, FailingError)
    assert [may_be_stateful(closing(kind)) for kind in keeping] == [True] * 3
    assert [may_be_stateful(closing(kind)) for kind in harmless] == [False] * 3
    assert may_be_stateful(closing((*harmless, SharedAndEmpty)))
    assert not may_be_stateful(closing(Lacking))  # there is nothing that it could add to
    assert may_be_stateful(closing(Inheriting()))


class Computing(abc.ABC):  # noqa: B024
    def made(self, x):
        return self, x


class LackingIt:
    def add(self, x):
        self.maps.append(x)


def test_objects_are_looked_at_with_what_their_methods_name():
    for each in (Computing(), LackingIt()):
        assert not may_be_stateful(closing(each))
        assert not may_be_stateful(closing((each, each)))


def test_what_a_class_of_a_library_has_for_all_is_not_looked_at():
    base = type("Base", (), {"__module__": "diffusers.models.x", "maps": []})
    assert not may_be_stateful(closing(type("Own", (base,), {"__module__": "somebodys"})()))
    for number in range(8):  # in whatever order its classes come
        own = type(f"Own{number}", (base,), {"__module__": "somebodys", "kept": []})
        assert may_be_stateful(closing(own()))


def test_the_attributes_of_an_object_are_its_own_and_those_of_its_classes():
    def named(value):
        return sorted(str(each) for each in attributes_of(value))

    assert named(Holding("own")) == ["own"]
    assert named(Slotted("own")) == ["None", "own"]
    assert named(Shared()) == ["[1, 2]"]
    assert named(Inheriting()) == ["[]"]
    assert named(Ready()) == ["1"]
    assert named(3) == []


def test_the_attributes_of_a_layer_are_those_that_not_every_layer_has():
    made = nn.Linear(1, 1)
    made.mark = "own"
    assert sorted(map(str, attributes_of(made))) == ["1", "1", "own"]
    made.forward = computes
    assert computes not in list(attributes_of(made))


def test_a_class_is_known_if_its_calls_run_code_of_libraries_alone():
    @functools.wraps(nn.Linear.forward)
    def own(self, x):
        return x

    around = types.FunctionType(nn.Linear.forward.__code__, vars(nn.functional))
    around.__wrapped__ = own
    assert is_known_class(nn.Linear)
    assert is_known_class(nn.Module)
    assert is_known_class(type("Child", (nn.Linear,), {}))
    for name in ("forward", "__call__"):
        assert not is_known_class(type("Own", (nn.Linear,), {name: computes}))
        assert not is_known_class(type("Own", (nn.Linear,), {name: around}))
    assert is_known_class(type("Own", (nn.Linear,), {"forward": None}))
    assert is_known_class(Empty)


def test_numbers_names_and_nothing_are_plain():
    assert all(map(is_plain, (True, 1, 1.0, "a", None)))
    assert not any(map(is_plain, ((), [], b"a", 1j, Empty())))
