"""What a function writes to and which globals it reads, told from its bytecode."""

import math
from types import SimpleNamespace

import pytest

from deepcache_patch.running.bytecode import loaded_globals, writes

NOWHERE = [
    "y = x",
    "y = x + 1; y += x",
    "y = [x]; y[0] = 1; y.append(2)",
    "y = {}; y[0] = 1; y.update(a=1); del y[0]",
    "y = {1}; y.add(2); y.discard(1)",
    "y = [x]; y[0] += 1",
    "y = x.shape; y.count(1)",
    "y = x.view(1); y.mul_(2)",
    "y = x.__name__; x.add; x._private_(1)",
    "y, z = x, 1; y, z = z, y",
    "y = x.chunk(2)[0]; y += 1",
    "y = 0\n    def put(z):\n        nonlocal y\n        y = z\n    put(1)",
    "y = []\n    def put(z):\n        y[0] = z\n    put(1)",
    "y = [z for z in x]",
    "more.append(x); named.setdefault('a', x)",
    "x[0] = 1",
    "x[1:2] = 1",
    "y = [1, 2]; y[0:1] = x",
    "y = {'a': 1}; y.pop('a')",
    "math.clear(x)",
]
SOMEWHERE = [
    "x.scale = 1",
    "del x.scale",
    "global number; number = 1",
    "global number; del number",
    "setattr(x, 'scale', 1)",
    "delattr(x, 'scale')",
    "torch.add(x, 1, out=x)",
    "kept[0] = x",
    "kept[0:1] = x",
    "del kept[0]",
    "kept[0] += 1",
    "kept.append(x)",
    "kept.update(x)",
    "kept.add_(x)",
    "x.scale[0] = 1",
    "x.scale[0] += 1",
    "x.scale.inner[0] = 1",
    "x.scale.append(1)",
    "x.append(1)",
    "y = x; y.extend(1)",
    "y = x.maps; y += 1",
    "y = x.maps; y[0] = 1",
    "y = kept; y += 1",
    "y = kept; y.add(1)",
    "z, y = 0, x.maps; y[0] = 1",
    "y, z = x.maps, 0; y[0] = 1",
    "y, z = 0, 1; y, z = x.maps, 0; y[0] = 1",
    "y = x.maps if x else []; y[0] = 1",
    "y = [] if x else x.maps; y[0] = 1",
    "for y in kept:\n        y[0] = 1",
    "for y in kept:\n        y += 1",
    "y = x.first()[0]; x.last()[0] = 1",
    "y = []; y = x.maps; y.append(1)",
    "y = [x]; y = x; y.append(1)",
    "def put(z):\n        z.scale = 1\n    put(x)",
    "y = lambda z: kept.append(z)",
    "class Inner:\n        def put(self):\n            self.scale = 1",
]


def function(body, home="somebodys", arguments="x, *more, **named"):
    known = {"__name__": home, "math": math}
    exec(f"def function({arguments}):\n    {body}", known)
    return known["function"]


def is_written(body, owner=None, *, for_one_call=False, **options):
    return writes(function(body, **options), owner, for_one_call=for_one_call)


@pytest.mark.parametrize("body", NOWHERE)
def test_a_functions_own_variables_are_written_to_by_nobody_else(body):
    assert not is_written(body)


@pytest.mark.parametrize("body", SOMEWHERE)
def test_what_outlives_a_call_is_written_to(body):
    assert is_written(body)


@pytest.mark.parametrize("body", ["x.append(1)", "x.extend([1])", "x.setdefault(1, 2)"])
def test_lists_that_are_made_for_one_call_may_be_added_to(body):
    assert is_written(body)
    assert not is_written(body, for_one_call=True)


@pytest.mark.parametrize("body", ["kept.append(x)", "x.scale.append(1)", "kept[0] = x"])
def test_for_one_call_are_only_the_lists_that_it_is_given(body):
    assert is_written(body, for_one_call=True)


def test_what_the_owner_lacks_is_not_written_to():
    body = "x.maps[0] = 1"
    assert is_written(body)
    assert is_written(body, SimpleNamespace(maps=[]))
    assert not is_written(body, SimpleNamespace())
    assert is_written("more.maps[0] = 1", SimpleNamespace())  # not its first argument
    assert is_written("x.scale.maps[0] = 1", SimpleNamespace())
    assert is_written("x.maps[0] = 1; x.scale[0] = 1", SimpleNamespace(scale=[]))
    assert not is_written("x.maps.append(1)", SimpleNamespace())
    assert is_written("x.maps.append(1)", SimpleNamespace(maps=[]), for_one_call=True)


def test_the_first_argument_of_a_function_within_is_another():
    body = "def put(y):\n        y.maps[0] = 1\n    put(x)"
    assert is_written(body, SimpleNamespace())
    assert is_written("return lambda y: y.maps.append(1)", SimpleNamespace())


def test_a_module_of_pythons_is_not_written_to_by_its_functions():
    # Such as `heapq.heappush` or `torch.relu_`, whose arguments say where they write.
    assert not is_written("math.update(x)")
    assert is_written("maths.update(x)")


def outer(kept):
    def inner(x):
        kept.append(x)

    def setting(x):
        nonlocal kept
        kept = x

    def deleting():
        nonlocal kept
        del kept

    def adding(x):
        nonlocal kept
        kept += x

    def at(x):
        kept[0] = x

    def reading():
        return kept

    def deep():
        return lambda x: kept.append(x)

    return [inner, setting, deleting, adding, at, deep], reading


def test_variables_of_the_functions_round_it_outlive_a_call():
    writing, reading = outer([])
    assert [writes(each, None, for_one_call=False) for each in writing] == [True] * 6
    assert not writes(reading, None, for_one_call=False)


def test_globals_are_those_that_are_read_here_and_within():
    code = function("y = first; z = lambda: (second, y); third(x.fourth)").__code__
    assert loaded_globals(code) == ("first", "third", "second")
    assert loaded_globals(function("return x").__code__) == ()
    kinds = function("class Inner:\n        value = first\n    return Inner").__code__
    assert loaded_globals(kinds)[-1] == "first"
