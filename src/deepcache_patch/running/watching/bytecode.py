"""What a function reads and writes, by its bytecode: its own variables, or what outlives the call.

Each code is looked at once, and what it does is remembered. What its names stand for is asked anew.
Every version of Python has other instructions: all are read as steps of the same few kinds.
"""

import re
from dis import get_instructions, opmap, stack_effect
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
    "WRITE": ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"),
    "IN_PLACE": tuple(name for name in opmap if name.startswith("INPLACE_")),
    "COPY": ("DUP_TOP", "DUP_TOP_TWO"),
    "SWAP": ("ROT_TWO", "ROT_THREE", "ROT_FOUR"),
}
_KIND_OF: Final = {name: kind for kind, names in _KINDS.items() for name in names}
#: For the function's own variables; Python 3.13 and newer load and store two at once.
_FAST: Final = re.compile("LOAD_FAST|STORE_FAST")
#: How many values those reach that copy or move some; newer ones say it themselves.
_REACH: Final = {"DUP_TOP": 1, "DUP_TOP_TWO": 2, "ROT_TWO": 2, "ROT_THREE": 3, "ROT_FOUR": 4}
#: Steps that write into an object -> how many values lie on top of it.
_INTO: Final = {"STORE_SUBSCR": 1, "DELETE_SUBSCR": 1, "STORE_SLICE": 2}
#: Steps that give a variable of the function, or of one round it, something to stand for.
_STORES: Final = {"STORE_FAST", "STORE_DEREF"}
#: Steps that load something that may outlive the call, and compute nothing.
_LASTING: Final = {"LOAD_ATTR", "LOAD_GLOBAL", "LOAD_DEREF", "FOR_ITER"}

#: In the place of a place; it is below 0.
_UNKNOWN: Final = -1

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
        for each in _writes_of(code, code.co_freevars, code.co_freevars, for_one_call)
    )


@lru_cache(_REMEMBERED)
def _writes_of(
    code: CodeType, outside: tuple[str, ...], lasting: tuple[str, ...], for_one_call: bool
) -> frozenset[_Write]:
    """Where a code, or one within it, writes to anything but its own variables.

    Args:
        code: A function's code.
        outside: The variables of those round the outermost one that it uses.
        lasting: The variables of those round it that stand for what may outlive the call.
        for_one_call: Whether lists are made anew for each call, as for `writes`.
    """
    steps = _steps(code)
    made, aliases = _origins(code, steps)
    known = aliases | {*lasting}
    found: set[_Write] = set()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            used = constant.co_freevars  # it may have others of the same names
            its = [tuple(each for each in used if each in those) for those in (outside, known)]
            inner = _writes_of(constant, its[0], its[1], for_one_call)
            found |= {_Write(each.of_global) for each in inner}  # its first argument is another
        elif isinstance(constant, tuple) and "out" in constant:  # `out=` of a call
            found.add(_Write())
    if {"setattr", "delattr"} & set(code.co_names):
        found.add(_Write())
    for place, step in enumerate(steps):
        if (
            step.kind == "WRITE"
            or (step.kind in ("STORE_DEREF", "DELETE_DEREF") and step.what in outside)
            or (step.kind == "IN_PLACE" and steps[place + 1].what in known)  # stored there
        ):
            found.add(_Write())
        elif step.kind in _INTO:
            found |= _written(code, steps, _container(steps, place), known)
        elif step.kind == "LOAD_ATTR":
            if step.what not in _CHANGING and not _IN_PLACE.fullmatch(step.what):
                continue
            written = _written(code, steps, _last(steps, place), known)
            is_added = step.what in _ADDING and not for_one_call
            if is_added and steps[place - 1].what not in made:
                written = {each for each in written if each.of_owner} or {_Write()}
            found |= written
    return frozenset(found)


def _steps(code: CodeType) -> list[_Step]:
    """What the instructions of a code do, in order."""
    found: list[_Step] = []
    is_target = False
    for each in get_instructions(code):
        is_target |= each.is_jump_target  # or one that does nothing, just before it
        own = _FAST.findall(each.opname)
        if own:
            names = each.argval if isinstance(each.argval, tuple) else (each.argval,)
            adds = [1 if kind == "LOAD_FAST" else -1 for kind in own]
            found += map(_Step, own, names, adds, [is_target, False])
        elif each.opname in _NOTHING:
            continue
        else:
            is_in_place = each.opname == "BINARY_OP" and each.argrepr.endswith("=")
            kind = "IN_PLACE" if is_in_place else _KIND_OF.get(each.opname, each.opname)
            what = _REACH.get(each.opname, each.argval)
            effect = stack_effect(each.opcode, each.arg)
            found.append(_Step(kind, what, effect, is_target))
        is_target = False
    return found


def _written(code: CodeType, steps: list[_Step], place: int, lasting: set[Any]) -> set[_Write]:
    """The write to what was loaded at a place; none if it is a variable of the function."""
    if place < 0:
        return {_Write()}
    loaded, before = steps[place], steps[place - 1]
    if loaded.kind in ("LOAD_FAST", "LOAD_DEREF"):
        return {_Write()} if loaded.what in lasting else set()
    if loaded.kind == "LOAD_GLOBAL":
        return {_Write(of_global=loaded.what)}
    if loaded.kind == "LOAD_ATTR":
        is_first = before.kind == "LOAD_FAST" and before.what == code.co_varnames[0]
        is_owners = is_first and not loaded.is_target
        return {_Write(of_owner=loaded.what)} if is_owners else {_Write()}
    return set() if loaded.kind == "MAKE" else {_Write()}


def _origins(code: CodeType, steps: list[_Step]) -> tuple[set[Any], set[Any]]:
    """The variables that are only ever given new lists, and those that stand for something else."""
    made: set[Any] = {*getargs(code)[1:]}  # those of `*` and `**`
    other: set[Any] = set()
    stores = [place for place, step in enumerate(steps) if step.kind in _STORES]
    for place in stores:
        # One that others use too, they may give something else.
        is_made = steps[place].kind == "STORE_FAST" and steps[place - 1].kind == "MAKE"
        (made if is_made else other).add(steps[place].what)
    aliases: set[Any] = set()
    count = -1
    while count < len(aliases):  # what stands for one of them is one too
        count = len(aliases)
        aliases |= {steps[each].what for each in stores if _outlives(steps, each, aliases)}
    return made - other, aliases


def _outlives(steps: list[_Step], place: int, aliases: set[Any]) -> bool:
    """Whether what is stored at a place may outlive the call: loaded, and not computed.

    Of `one, other = values` all are looked at. What branches give is not known.
    """
    first = last = place
    while steps[first - 1].kind in _STORES and not steps[first].is_target:
        first -= 1
    while steps[last].kind in _STORES:
        last += 1
    if place == _given(steps, first):
        return False
    count, end = last - first, first
    while steps[end - 1].kind in ("SWAP", "COPY"):
        end -= 1
        count = max(count, steps[end].what)
    for _ in range(count):
        loaded = steps[end - 1]
        if end < 0 or steps[end].is_target or loaded.kind in _LASTING:
            return True
        if loaded.kind == "LOAD_FAST" and loaded.what in aliases:
            return True
        if loaded.kind.startswith("UNPACK"):
            return False
        end = _start(steps, end, 1)
    return False


def _given(steps: list[_Step], first: int) -> int:
    """Where a new list is stored that a comprehension has just made; below 0 if none has.

    Python 3.12 and newer have it in the function itself, and give its variables back after it. Then
    nothing else stands between the end of a loop and a store.

    Args:
        steps: The steps of a code.
        first: Where storing begins.
    """
    reach, end = 1, first
    if steps[end - 1].kind == "SWAP":
        reach, end = steps[end - 1].what, end - 1
    if steps[end - 1].kind in ("POP_TOP", "POP_ITER"):
        end -= 1
    return first + reach - 1 if steps[end - 1].kind == "END_FOR" else _UNKNOWN


def _container(steps: list[_Step], place: int) -> int:
    """Where the object was loaded that `object[key] = value` writes to; below 0 if not known."""
    count = _INTO[steps[place].kind]
    if steps[place - 1].kind == "SWAP":  # `object[key] += value`: what is new comes after the key
        place = _start(steps, place, 1)
    return _last(steps, _start(steps, place, count))


def _last(steps: list[_Step], end: int) -> int:
    """Where the last value before a place was loaded; below 0 if branches meet there."""
    return _UNKNOWN if end < 0 or steps[end].is_target else end - 1


def _start(steps: list[_Step], end: int, count: int) -> int:
    """Where the steps begin that make the last values before a place; below 0 if not known."""
    while count > 0:
        if end <= 0 or steps[end].is_target:
            return _UNKNOWN
        end -= 1
        count -= steps[end].adds
    return end


@lru_cache(_REMEMBERED)
def loaded_globals(code: CodeType) -> tuple[str, ...]:
    """The global names that a code reads, and those within it, in order."""
    inner = (loaded_globals(each) for each in code.co_consts if isinstance(each, CodeType))
    own = (step.what for step in _steps(code) if step.kind == "LOAD_GLOBAL")
    return (*own, *chain.from_iterable(inner))
