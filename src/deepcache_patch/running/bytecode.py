"""What a function reads and writes, by its bytecode: its own variables, or what outlives the call.

Each code is looked at once, and what it does is remembered. What its names stand for is asked anew.
Every version of Python has other instructions: all are read as steps of the same few kinds.
"""

import re
from dis import Instruction, get_instructions, stack_effect
from functools import lru_cache
from inspect import getargs
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

_ADDING: Final = {"append", "extend", "setdefault"}
_CHANGING: Final = _ADDING | {
    *("add", "appendleft", "clear", "discard", "extendleft", "insert", "pop", "popitem", "popleft"),
    *("put", "put_nowait", "remove", "update", "__setattr__", "__setitem__"),
    *("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ior__", "__iand__"),
}
_IN_PLACE: Final = re.compile(r"[a-z]\w*[a-z0-9]_")

#: Instructions that do nothing.
_NOTHING: Final = {"CACHE", "NOP", "EXTENDED_ARG", "RESUME", "NOT_TAKEN"}
#: Kind of step -> the instructions of it; of others, the kind is their own name.
_KINDS: Final = {
    "MAKE": ("BUILD_LIST", "BUILD_MAP", "BUILD_CONST_KEY_MAP", "LIST_EXTEND", "DICT_UPDATE"),
    "LOAD_ATTR": ("LOAD_METHOD",),
    "LOAD_GLOBAL": ("LOAD_NAME",),
    "LOAD_DEREF": ("LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"),
    "STORE_SUBSCR": ("DELETE_SUBSCR",),
    "STORE_DEREF": ("DELETE_DEREF",),
    "WRITE": ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"),
    "COPY": ("DUP_TOP", "DUP_TOP_TWO"),
    "SWAP": ("ROT_TWO", "ROT_THREE"),
}
_KIND_OF: Final = {name: kind for kind, names in _KINDS.items() for name in names}
#: Of the function's own variables; Python 3.13 and newer load and store two at once.
_FAST: Final = re.compile("LOAD_FAST|STORE_FAST")
#: Steps that load something that may outlive the call, and compute nothing.
_LASTING: Final = {"LOAD_ATTR", "LOAD_GLOBAL", "LOAD_DEREF", "FOR_ITER"}

#: How many codes are remembered. What a code does never changes.
_REMEMBERED: Final = 1 << 12


class _Step(NamedTuple):
    """What an instruction does.

    Attributes:
        kind: Its name, or that of all of its kind.
        what: The name, number or value that it is about.
        adds: The number of values by which the stack grows.
        is_target: Whether branches meet before it.
    """

    kind: str
    what: Any
    adds: int
    is_target: bool


class _Write(NamedTuple):
    """One place where a code writes to something, and what would make it harmless.

    Attributes:
        of_global: It writes to this global, which may be a module of Python's.
        of_owner: It writes to this attribute of its first argument, which may have none.
    """

    of_global: str = ""
    of_owner: str = ""


def writes(function: FunctionType, owner: Any, *, for_one_call: bool) -> bool:
    """Whether a function, or one within it, writes to anything but its own variables.

    Args:
        function: Not run.
        owner: What its first argument is, if that is known.
        for_one_call: Whether the lists that it is called with are made anew for each call.
    """
    code, known = function.__code__, function.__globals__
    return not all(
        isinstance(known.get(each.of_global), ModuleType)
        or (each.of_owner and owner is not None and not hasattr(owner, each.of_owner))
        for each in _writes_of(code, code.co_freevars, for_one_call)
    )


@lru_cache(_REMEMBERED)
def _writes_of(code: CodeType, outside: tuple[str, ...], for_one_call: bool) -> frozenset[_Write]:
    """Where a code, or one within it, writes to anything but its own variables.

    Args:
        code: Of a function.
        outside: The variables of those round the outermost one.
        for_one_call: As of `writes`.
    """
    found: set[_Write] = set()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _writes_of(constant, outside, for_one_call)  # its first argument is another
            found |= {each._replace(of_owner="") for each in inner}
        elif isinstance(constant, tuple) and "out" in constant:  # `out=` of a call
            found.add(_Write())
    if {"setattr", "delattr"} & set(code.co_names):
        found.add(_Write())
    steps = _steps(code)
    made, aliases = _origins(code, steps)
    lasting = aliases | {*outside}
    for place, step in enumerate(steps):
        if (
            step.kind == "WRITE"
            or (step.kind == "STORE_DEREF" and step.what in outside)
            or (step.kind == "IN_PLACE" and steps[place + 1].what in aliases)  # stored there
        ):
            found.add(_Write())
        elif step.kind in ("STORE_SUBSCR", "STORE_SLICE"):
            found |= _written(code, steps, _container(steps, place), lasting)
        elif step.kind == "LOAD_ATTR":
            if step.what not in _CHANGING and not _IN_PLACE.fullmatch(step.what):
                continue
            its = _written(code, steps, place - 1, lasting)
            is_added = step.what in _ADDING and not for_one_call
            if is_added and steps[place - 1].what not in made:
                its = {each for each in its if each.of_owner} or {_Write()}
            found |= its
    return frozenset(found)


def _steps(code: CodeType) -> list[_Step]:
    """What the instructions of a code do, in order."""
    found = []
    for each in get_instructions(code):
        own = _FAST.findall(each.opname)
        if own:
            names = each.argval if isinstance(each.argval, tuple) else (each.argval,)
            for kind, name in zip(own, names, strict=True):
                adds = 1 if kind == "LOAD_FAST" else -1
                found.append(_Step(kind, name, adds, each.is_jump_target))
        elif each.opname not in _NOTHING:
            adds = stack_effect(each.opcode, each.arg, jump=False)
            found.append(_Step(_kind_of(each), each.argval, adds, each.is_jump_target))
    return found


def _kind_of(each: Instruction) -> str:
    if each.opname.startswith("INPLACE_") or (
        each.opname == "BINARY_OP" and each.argrepr.endswith("=")
    ):
        return "IN_PLACE"
    return _KIND_OF.get(each.opname, each.opname)


def _written(code: CodeType, steps: list[_Step], place: int, lasting: set[str]) -> set[_Write]:
    """The write to what was loaded at a place; none if it is a variable of the function."""
    if place < 0:
        return {_Write()}
    loaded, before = steps[place], steps[place - 1]
    if loaded.kind in ("LOAD_FAST", "LOAD_DEREF"):
        return {_Write()} if loaded.what in lasting else set()
    if loaded.kind == "LOAD_GLOBAL":
        return {_Write(of_global=loaded.what)}
    if loaded.kind == "LOAD_ATTR" and before.kind == "LOAD_FAST":
        if before.what == code.co_varnames[0]:
            return {_Write(of_owner=loaded.what)}
    return set() if loaded.kind == "MAKE" else {_Write()}


def _origins(code: CodeType, steps: list[_Step]) -> tuple[set[Any], set[str]]:
    """The variables that are only ever given new lists, and those that stand for something else."""
    made, other, aliases = {*getargs(code)[1:]}, set(), set()  # those of `*` and `**` are new
    for place, step in enumerate(steps):
        if step.kind == "STORE_FAST":
            (made if steps[place - 1].kind == "MAKE" else other).add(step.what)
            if _outlives(steps, place):
                aliases.add(step.what)
    return made - other, aliases


def _outlives(steps: list[_Step], place: int) -> bool:
    """Whether what is stored at a place may outlive the call: loaded, and not computed.

    Of `one, other = values` all are looked at. What branches give is not known.
    """
    first = last = place
    while steps[first - 1].kind == "STORE_FAST":
        first -= 1
    while steps[last].kind == "STORE_FAST":
        last += 1
    end = first
    while steps[end - 1].kind in ("SWAP", "COPY"):
        end -= 1
    for _ in range(first, last):
        if end < 0 or steps[end].is_target or steps[end - 1].kind in _LASTING:
            return True
        if steps[end - 1].kind.startswith("UNPACK"):
            return False
        end = _start(steps, end, 1)
    return False


def _container(steps: list[_Step], place: int) -> int:
    """Where the object was loaded that `object[key] = value` writes to; below 0 if not known."""
    keys = 2 if steps[place].kind == "STORE_SLICE" else 1
    if steps[place - 1].kind == "SWAP":  # `object[key] += value`, which copies both before
        while steps[place].kind != "COPY":
            place -= 1
        while steps[place - 1].kind == "COPY":
            place -= 1
    return _start(steps, place, keys) - 1


def _start(steps: list[_Step], end: int, count: int) -> int:
    """Where the steps begin that make the last values before a place; -1 if that is not known."""
    while count > 0:
        if end == 0 or steps[end].is_target:
            return -1
        end -= 1
        count -= steps[end].adds
    return end if count == 0 else -1


@lru_cache(_REMEMBERED)
def loaded_globals(code: CodeType) -> tuple[str, ...]:
    """The global names that a code reads, and those within it, in order."""
    inner = (loaded_globals(each) for each in code.co_consts if isinstance(each, CodeType))
    own = (step.what for step in _steps(code) if step.kind == "LOAD_GLOBAL")
    return (*own, *chain.from_iterable(inner))
