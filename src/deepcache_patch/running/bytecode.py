"""What a function reads and writes, by its bytecode: its own variables, or what outlives the call.

Each code is looked at once, and what it does is remembered. What its names stand for is asked anew.
"""

import re
from dis import Instruction, get_instructions, stack_effect
from functools import lru_cache
from inspect import CO_VARARGS, CO_VARKEYWORDS
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

_MAKING: Final = ("BUILD_LIST", "BUILD_MAP", "BUILD_SET")
_ADDING: Final = {"append", "extend", "setdefault"}
_CHANGING: Final = _ADDING | {
    *("add", "appendleft", "clear", "discard", "extendleft", "insert", "pop", "popitem", "popleft"),
    *("put", "put_nowait", "remove", "update", "__setattr__", "__setitem__"),
    *("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ior__", "__iand__"),
}
_IN_PLACE: Final = re.compile(r"[a-z]\w*[a-z0-9]_")
#: Instructions that do nothing.
_NOTHING: Final = {"CACHE", "NOP", "EXTENDED_ARG", "RESUME", "NOT_TAKEN"}


#: How many codes are remembered. What a code does never changes.
_REMEMBERED: Final = 1 << 12


class _Write(NamedTuple):
    """One place where a code writes to something, and what would make it harmless.

    Attributes:
        of_global: It writes to this global, which may be a module of Python's.
        of_owner: It writes to this attribute of its first argument, which may have none.
    """

    of_global: str | None = None
    of_owner: str | None = None


def writes(function: FunctionType, owner: Any, *, for_one_call: bool) -> bool:
    """Whether a function, or one within it, writes to anything but its own variables.

    Args:
        function: Not run.
        owner: What its first argument is, if that is known.
        for_one_call: Whether the lists that it is called with are made anew for each call.
    """
    code, known = function.__code__, function.__globals__
    return not all(
        isinstance(known.get(each.of_global or ""), ModuleType)
        or (each.of_owner is not None and owner is not None and not hasattr(owner, each.of_owner))
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
            found |= {each._replace(of_owner=None) for each in inner}
        elif isinstance(constant, tuple) and "out" in constant:  # `out=` of a call
            found.add(_Write())
    if {"setattr", "delattr"} & set(code.co_names):
        found.add(_Write())
    done = [each for each in get_instructions(code) if each.opname not in _NOTHING]
    made, aliases = _origins(done)
    named = code.co_argcount + code.co_kwonlyargcount
    gathered = bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
    made |= set(code.co_varnames[named : named + gathered])
    for place, each in enumerate(done):
        name = each.argval if isinstance(each.argval, str) else ""
        if (
            each.opname in ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL")
            or (each.opname in ("STORE_DEREF", "DELETE_DEREF") and name in outside)
            or (_is_in_place(each) and _loads(done[:place], aliases))
        ):
            found.add(_Write())
        elif each.opname in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
            found |= _written(code, done, _container(done, place), outside, aliases)
        elif each.opname in ("LOAD_ATTR", "LOAD_METHOD") and place:
            if name not in _CHANGING and not _IN_PLACE.fullmatch(name):
                continue
            its = _written(code, done, place - 1, outside, aliases)
            if not any(write.of_owner for write in its):
                kept = name in _ADDING and not for_one_call
                if kept and not _name_of(done[place - 1]) & made:
                    its = {_Write()}
            found |= its
    return frozenset(found)


def _written(
    code: CodeType, done: list[Instruction], place: int, outside: tuple[str, ...], aliases: set[str]
) -> set[_Write]:
    """The write to what was loaded at a place; none if it is a variable of the function."""
    if place < 0:
        return {_Write()}
    loaded = done[place]
    if loaded.opname.startswith("LOAD_FAST"):
        return {_Write()} if _name_of(loaded) & aliases else set()
    if loaded.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
        return {_Write()} if loaded.argval in outside else set()
    if loaded.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
        return {_Write(of_global=loaded.argval)}
    if loaded.opname == "LOAD_ATTR" and place:
        before = done[place - 1]
        if before.opname.startswith("LOAD_FAST") and _name_of(before) == set(code.co_varnames[:1]):
            return {_Write(of_owner=loaded.argval)}
    return set() if loaded.opname in ("STORE_FAST_LOAD_FAST", *_MAKING) else {_Write()}


def _name_of(loaded: Instruction) -> set[str]:
    """The variable that was loaded last; two are loaded at once in Python 3.13 and newer."""
    return {loaded.argval[-1] if isinstance(loaded.argval, tuple) else loaded.argval}


def _origins(done: list[Instruction]) -> tuple[set[str], set[str]]:
    """The variables that are only ever given new lists, and those that stand for something else."""
    made: set[str] = set()
    other: set[str] = set()
    aliases: set[str] = set()
    is_alias = False
    for place, each in enumerate(done):
        if not each.opname.startswith("STORE_FAST"):
            continue
        before = done[place - 1]
        names = set(each.argval) if isinstance(each.argval, tuple) else {each.argval}
        is_new = before.opname.startswith((*_MAKING, "LIST_EXTEND", "DICT_UPDATE"))
        (made if is_new else other).update(names)
        if not before.opname.startswith("STORE_FAST"):  # of `a, b = one, another` the first says it
            # What one of two branches gives is not known.
            is_alias = each.is_jump_target or any(map(_outlives, _values(done, place)))
        if is_alias:
            aliases |= names
    return made - other, aliases


def _outlives(given: Instruction) -> bool:
    """Whether a value may be something that outlives the call: loaded, and not computed."""
    return given.opname in ("LOAD_ATTR", "LOAD_GLOBAL", "LOAD_DEREF", "FOR_ITER")


def _values(done: list[Instruction], place: int) -> list[Instruction]:
    """What has made the values that are stored from a place on, by one instruction or several."""
    stored, found = place, []
    while stored < len(done) and done[stored].opname.startswith("STORE_FAST"):
        stored += 1
    start = place - 1
    while start >= 0 and done[start].opname in ("SWAP", "ROT_TWO", "ROT_THREE", "COPY", "DUP_TOP"):
        start -= 1
    for _ in range(stored - place):
        if start < 0 or done[start].opname.startswith("UNPACK"):
            break
        found.append(done[start])
        missing = 1
        while start >= 0 and missing > 0:
            missing -= stack_effect(done[start].opcode, done[start].arg, jump=False)
            start -= 1
    return found


def _is_in_place(each: Instruction) -> bool:
    """Whether it is `variable += value`, or another of its kind."""
    return each.opname.startswith("INPLACE_") or (
        each.opname == "BINARY_OP" and each.argrepr.endswith("=")
    )


def _loads(done: list[Instruction], names: set[str]) -> bool:
    """Whether the object of an operator on two was loaded by one of these names."""
    left = 2
    for each in reversed(done):
        left -= stack_effect(each.opcode, each.arg, jump=False)
        if left <= 0:
            return each.opname.startswith("LOAD_FAST") and bool(_name_of(each) & names)
    return False


def _container(done: list[Instruction], place: int) -> int:
    """Where the object was loaded that `object[key] = value` writes to; -1 if it is not known."""
    left = 3 if done[place].opname == "STORE_SLICE" else 2  # the object and what comes after it
    if done[place - 1].opname in ("SWAP", "ROT_THREE"):  # `object[key] += value`
        while done[place].opname not in ("COPY", "DUP_TOP_TWO") and place:
            place -= 1
        while done[place - 1].opname == "COPY":
            place -= 1
    for number in range(place - 1, -1, -1):
        if left == 1:
            return number  # the key is loaded after it
        left -= stack_effect(done[number].opcode, done[number].arg, jump=False)
        if left <= 0:
            break
    return -1


@lru_cache(_REMEMBERED)
def loaded_globals(code: CodeType) -> tuple[str, ...]:
    """The global names that a code reads, and those within it, in order."""
    inner = (loaded_globals(each) for each in code.co_consts if isinstance(each, CodeType))
    own = (each for each in get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return (*(each.argval for each in own), *chain.from_iterable(inner))
