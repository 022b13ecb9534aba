"""What a function writes to and which globals it reads, told from its bytecode."""

import math
from types import SimpleNamespace

import pytest

from deepcache_patch.running.watching import bytecode
from deepcache_patch.running.watching.bytecode import loaded_globals, writes

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
    "class Inner:\n        math.clear(1)",
    "{}.update(x)",
    "y = [1, 2, 3]; y.append(x)",
    "y = {'a': 1, 'b': 2}; y.setdefault('c', x)",
    "y = {**named}; y.setdefault('a', x)",
    "y, z = x.shape; y += 1; z += 1",
    "y, z = 1, x.size(0); y += 1; z += 1",
    "y = z = x + 1; y += 1; z += 1",
    "y = [x]; y[x.first] = x.maps",
    "y = [x]; y[0], z = 1, 2",
    "y = [x]; y[x.first] += x.maps",
    "y = [1, 2]; y[0:x.first] += x.maps",
    "y, z = x.add(1), x; z.mul(1)",
    "y = x(1 if more else 2); y += 1",
    "y = x.maps; y = y + 1",
    "y = x.maps; y = y >= 1",
    "z = [x]; z[(y := 0)] = 1",
    "x(y := x(1)); y += 1",
    "z = [0]; y, z[0] = x + 1, 0; y += 1",
    "try:\n        x()\n    except ValueError as y:\n        y += 1",
    "y = x.scale if more else 1.0; z = x * y",
    "y = [x]; y[0] = x.maps if more else 1",
    "y = [x]; y[0] = x.maps or 1; y.insert(0, x.maps or 1)",
    "z = 0; y = [x]\n    if more: z = 1\n    y[z] = 1",
    "y = x.maps; z = y + 1; z += 1",
    "y = x.shape; z, w = y; z += 1",
    "y = x; z = y; z += 1",
    "y = 0\n    def put():\n        nonlocal y\n        y += 1\n    put()",
    "y = x.maps\n    def put():\n        nonlocal y\n        y = 1\n    put()",
    "y = x.maps\n    def put(y):\n        y[0] = 1\n    put([y])",
    "y = x.maps\n    def put():\n        return y[0] + 1\n    put()",
    "y, z = x.shape; y += 1\n    def put():\n        return y",
    "y = [z for z in x]; y[0] = 1",
    "y = {z: w for z, w in x}; y.clear()",
    "y = {z: w for z, w in x}; y.clear()\n    def put():\n        return y",
    "try:\n        x()\n    except ValueError as y:\n        y += 1\n        z = lambda: y",
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
    "class Inner:\n        kept[0] = 1",
    "math.fsum(x, out=x)",
    "put = kept.insert; put(x)",
    "put = x.scale.insert; put(x)",
    "kept.append(x); y = []; y.append(x)",
    "kept.insert(x); y = []; y.insert(x)",
    "kept[0] = x; y = []; y[0] = x",
    "x.scale = 1; y = []; y[0] = x; y.append(x)",
    "y = lambda z: kept.append(z); y = lambda z: z",
    "kept[0:1] += x",
    "x.scale[0:1] += [1]",
    "kept[0][1] += 1",
    "y = z = x.maps; y += 1",
    "y = z = x.maps; z += 1",
    "y, z = (x.maps if x else 1), 2; y += 1",
    "y, z = 1, (x.maps if x else 2); z += 1",
    "y, z = x.maps, x(1, 2); y += 1",
    "y, z, more = x.maps, x[0], x; y += 1",
    "x(y := x.maps); y += 1",
    "z = [0]; y, z[0] = x.maps, 0; y += 1",
    "z = [0]; y, w, z[0] = x.maps, 1, 0; y += 1",
    "more = x; more.append(1)",
    "x().append(1)",
    "x().insert(1)",
    "(x.maps if more else named)[0] = 1",
    "(named if more else x.maps)[0] = 1",
    "(x.maps or named)[0] = 1",
    "(x.maps or named)[0] += 1",
    "(x.maps or named)[0:1] = [1]",
    "del (x.maps or named)[0]",
    "(x.maps if more else named).update(n=2)",
    "(x.maps or named).update(n=2)",
    "y = x.maps; z = y; z[0] += 1",
    "y = x.maps; z = y; z += 1",
    "y = x.maps; z = y; w = z; w.clear()",
    "for y in more:\n        w = z; z = x.maps\n        w[0] = 1",
    "y, z = x.maps, 0; w, z = y, z; w[0] = 1",
    "y = x.maps\n    def put():\n        y[0] += 1\n    put()",
    "y = x.maps\n    def put():\n        y.clear()\n    put()",
    "y = x.maps; y[0] = 1\n    def put():\n        return y",
    "y = x.maps; z = y\n    def put():\n        z.clear()\n    put()",
    "y = x.maps\n    def put():\n        z = y\n        return lambda: z.clear()\n    put()",
    "y = x.maps\n    def put():\n        nonlocal y\n        y += 1\n    put()",
    "y = x.maps; y += 1\n    def put():\n        return y",
    "y = 2 if more else (z := x.maps); z[0] = 1",
    "y, z = x.maps, [w for w in x]; y[0] = 1",
    "y, z = [w for w in x], x.maps; z[0] = 1",
    "y, z = x.maps, {w: v for w, v in x}; y[0] = 1",
    "y = x.maps; z = [y for y in x]; y[0] = 1",
    "y = x.maps if more else [z for z in x]; y[0] = 1",
]
#: Where branches meet, it is not known what an object is.
DOUBTFUL = [
    "y = [x]; y[0 if x else 1] = 1",
    "y, z = 1, x(1 if more else 2); z += 1",
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


@pytest.mark.parametrize("body", SOMEWHERE + DOUBTFUL)
def test_what_outlives_a_call_is_written_to(body):
    assert is_written(body)


@pytest.mark.parametrize("body", ["x.append(1)", "x.extend([1])", "x.setdefault(1, 2)"])
def test_lists_that_are_made_for_one_call_may_be_added_to(body):
    assert is_written(body)
    assert not is_written(body, for_one_call=True)


def test_a_function_within_may_add_to_its_lists_of_one_call_likewise():
    assert is_written("return lambda y: y.append(1)")
    assert not is_written("return lambda y: y.append(1)", for_one_call=True)


def test_only_what_stars_gather_is_new():
    assert is_written("y = x; y.append(1)", arguments="x")
    assert is_written("k.append(1)", arguments="x, *, k, **named")
    assert is_written("x.append(1)", arguments="x, *, k, **named")
    assert not is_written("named.setdefault(1, 2)", arguments="x, *, k, **named")
    assert not is_written("more.append(1)", arguments="*more")


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
    assert is_written("(more * x)[0] = 1", SimpleNamespace())  # not an attribute of it


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


def test_an_attribute_is_not_the_owners_where_branches_meet():
    assert is_written("(more if named else x).maps[0] = 1", SimpleNamespace())
    assert is_written("(more or x).maps.clear()", SimpleNamespace())


def test_a_list_that_is_also_rebound_by_a_function_within_is_not_new():
    assert is_written("more = x; more.append(1)\n    def put():\n        return more")


def test_long_jumps_hide_no_branch():
    # Past 255 names and 255 units of code, arguments have a prefix, and that is what is jumped to.
    names = "; ".join(f"x.name_{number}" for number in range(300))
    body = f"{names}\n    (x.maps or named)[x.late] = 1"
    assert is_written(body)
    assert is_written(f"{names}\n    (x.maps or named).update(n=2)")
    assert not is_written(f"{names}\n    y = [x]; y[x.late] = 1")


def step(opname, argval=None, **its):
    given = {"opcode": 1, "arg": None, "argrepr": "", "is_jump_target": False} | its
    return SimpleNamespace(opname=opname, argval=argval, **given)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (step("LOAD_FAST_CHECK", "y"), [("LOAD_FAST", "y", 1, False)]),
        (step("STORE_FAST", "y", is_jump_target=True), [("STORE_FAST", "y", -1, True)]),
        (
            step("LOAD_FAST_BORROW_LOAD_FAST_BORROW", ("y", "z")),
            [("LOAD_FAST", "y", 1, False), ("LOAD_FAST", "z", 1, False)],
        ),
        (
            step("STORE_FAST_LOAD_FAST", ("y", "z")),
            [("STORE_FAST", "y", -1, False), ("LOAD_FAST", "z", 1, False)],
        ),
        (step("ROT_THREE"), [("SWAP", 3, 7, False)]),
        (step("SWAP", 4), [("SWAP", 4, 7, False)]),
        (step("DELETE_ATTR", "scale", is_jump_target=True), [("WRITE", "scale", 7, True)]),
        (step("BINARY_OP", 13, argrepr="+="), [("IN_PLACE", 13, 7, False)]),
        (step("BINARY_OP", 0, argrepr="+"), [("BINARY_OP", 0, 7, False)]),
        (step("NOT_TAKEN"), []),
    ],
    ids=lambda each: getattr(each, "opname", ""),
)
def test_instructions_of_every_python_are_the_same_steps(monkeypatch, instruction, expected):
    monkeypatch.setattr(bytecode, "get_instructions", lambda _: [instruction])
    monkeypatch.setattr(bytecode, "stack_effect", lambda *_: 7)
    assert bytecode._steps(None) == expected


@pytest.mark.parametrize("nothing", ["EXTENDED_ARG", "NOP"])
def test_a_jump_to_an_instruction_that_does_nothing_is_one_to_the_next(monkeypatch, nothing):
    instructions = [
        step("LOAD_FAST", "y"),
        step(nothing, is_jump_target=True),
        step("EXTENDED_ARG"),
        step("LOAD_FAST_LOAD_FAST", ("y", "z")),
        step("LOAD_FAST", "w"),
    ]
    monkeypatch.setattr(bytecode, "get_instructions", lambda _: instructions)
    found = [(each.what, each.is_target) for each in bytecode._steps(None)]
    assert found == [("y", False), ("y", True), ("z", False), ("w", False)]


def test_globals_are_those_that_are_read_here_and_within():
    code = function("y = first; z = lambda: (second, y); third(x.fourth)").__code__
    assert loaded_globals(code) == ("first", "third", "second")
    assert loaded_globals(function("return x").__code__) == ()
    kinds = function("class Inner:\n        value = first\n    return Inner").__code__
    assert loaded_globals(kinds)[-1] == "first"
