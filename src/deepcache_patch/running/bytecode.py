"""What a function writes to, by its bytecode: its own variables, or what outlives the call."""

import re
from dis import Instruction, get_instructions, stack_effect
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

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


def writes(function: FunctionType, owner: Any, *, for_one_call: bool) -> bool:
    """Whether a function, or one within it, writes to anything but its own variables.

    Args:
        function: Not run.
        owner: What its first argument is, if that is known.
        for_one_call: Whether the lists that it is called with are made anew for each call.
    """
    return _Code(function, owner, for_one_call).stores(function.__code__)


class _Code:
    """A function's bytecode, and that of the functions within it."""

    def __init__(self, function: FunctionType, owner: Any, for_one_call: bool) -> None:
        self._outside = set(function.__code__.co_freevars)
        self._globals = function.__globals__
        self._owner = owner
        self._for_one_call = for_one_call

    def stores(self, code: CodeType) -> bool:
        """Whether it writes to anything but its own variables."""
        inner = (each for each in code.co_consts if isinstance(each, CodeType))
        if any(map(self.stores, inner)) or {"setattr", "delattr"} & set(code.co_names):
            return True
        if any(isinstance(each, tuple) and "out" in each for each in code.co_consts):
            return True  # `out=` of a call
        done = [each for each in get_instructions(code) if each.opname not in _NOTHING]
        made, aliases = _origins(done)
        named = code.co_argcount + code.co_kwonlyargcount
        gathered = bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
        made |= set(code.co_varnames[named : named + gathered])
        first = code.co_varnames[:1]
        for place, each in enumerate(done):
            name = each.argval if isinstance(each.argval, str) else ""
            if each.opname in ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"):
                return True
            if each.opname in ("STORE_DEREF", "DELETE_DEREF") and name in self._outside:
                return True
            if _is_in_place(each) and _loads(done[:place], aliases):
                return True
            if each.opname in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
                written = _container(done, place)
                if not self._is_own(done, written, aliases) and not self._lacks(
                    done, written, first
                ):
                    return True
            elif each.opname in ("LOAD_ATTR", "LOAD_METHOD") and place:
                if name not in _CHANGING and not _IN_PLACE.fullmatch(name):
                    continue
                receiver = done[place - 1]
                if self._lacks(done, place - 1, first):
                    continue
                if not self._is_own(done, place - 1, aliases):
                    return True
                if name in _ADDING and not self._for_one_call and not _name_of(receiver) & made:
                    return True
        return False

    def _is_own(self, done: list[Instruction], place: int, aliases: set[str]) -> bool:
        """Whether it is a variable of the function, or its argument; or what a library has."""
        if place < 0:
            return False
        loaded = done[place]
        if loaded.opname.startswith("LOAD_FAST"):
            return not _name_of(loaded) & aliases
        if loaded.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            return loaded.argval not in self._outside
        if loaded.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            return isinstance(self._globals.get(loaded.argval), ModuleType)
        return loaded.opname in ("STORE_FAST_LOAD_FAST", *_MAKING)

    def _lacks(self, done: list[Instruction], place: int, first: tuple[str, ...]) -> bool:
        """Whether it is an attribute that the function's object does not have."""
        if place < 1 or self._owner is None or done[place].opname != "LOAD_ATTR" or not first:
            return False
        before = done[place - 1]
        is_owner = before.opname.startswith("LOAD_FAST") and _name_of(before) == set(first)
        return is_owner and not hasattr(self._owner, done[place].argval)


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
