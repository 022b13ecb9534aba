"""The file of calibrated schedules: its format, and everything that can be wrong with one. What the
entries mean is no business of this file; see `calibrated_schedule`.

    {"version": 2, "schedules": [{"unet": …, "plan": …, "weights": [{"steps": …, …}, …], …}, …]}

`reached`, which is for people, and `fingerprint`, a few of the U-Net's weights by their names, may
be lacking in a schedule. Version 1 was of deep features.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from ..errors import InvalidSettingError
from ..measuring.writing import write_whole
from ..schedules.fit import LARGEST
from ..schedules.plans import FULL, Explicit, Plan, number_between, whole_number

#: The version of the format.
VERSION: Final = 2

#: Bytes that a file may have: some hundred schedules of large U-Nets.
LARGEST_FILE: Final = 64 * 2**20

#: Characters of a name.
LONGEST: Final = 200

#: Lists and objects within each other in a config; those of diffusers have four.
_DEEPEST: Final = 16

_SCHEDULE: Final = {"unet", "scheduler", "timesteps", "plan", "weights"}
#: Not in every schedule.
_OPTIONAL: Final = {"reached", "fingerprint"}
_WEIGHTS: Final = {"steps", "weights"}
_REACHED: Final = {"work", "speed", "quartiles", "timings", "psnr", "worst_psnr"}
_COMPARED: Final = {"default_psnr", "pictures"}

#: Of each number in `reached`: they are told to a person.
_MOST: Final = 1e6


def read(path: Path) -> list[dict[str, Any]]:
    """Every schedule in a file, each of them `checked`.

    Raises:
        InvalidSettingError: If the file is none of this version, or damaged; it names the file.
        OSError: If it cannot be read; it names the file.
    """
    try:
        text = _content(path).decode()
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
        version = _fields("the file", data).get("version")
        if type(version) is not int:
            raise InvalidSettingError(f"its version is {short(version)}")
        found = [] if version != VERSION else _schedules(data)
    # What JSON may nest, and the memory that it takes, are bounded by Python only.
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise InvalidSettingError(
            f"{path} is no file of calibrated schedules, or a damaged one "
            f"({short(reason, as_it_is=True)}): give one that calibrate() has written, or "
            "calibrate anew"
        ) from error
    if version != VERSION:
        raise InvalidSettingError(
            f"{path} has version {short(version)} of the format, this package reads {VERSION}: "
            "calibrate anew"
        )
    return found


def write(path: Path, schedules: Sequence[Mapping[str, Any]]) -> None:
    """Write in one go what `read` reads; the first are left out where all would be too large.

    Raises:
        InvalidSettingError: If the last one alone is too large for a file.
        OSError: If it cannot be written.
    """
    texts = [json.dumps(each) for each in schedules]
    while len(whole := f'{{"version": {VERSION}, "schedules": [{", ".join(texts)}]}}\n') > (
        LARGEST_FILE
    ):
        if len(texts) == 1:
            raise InvalidSettingError(
                f"{path} would have {len(whole)} bytes, {LARGEST_FILE} is the most"
            )
        del texts[0]
    write_whole({path: whole.encode()})


def checked(data: Any) -> dict[str, Any]:
    """One schedule as the file has it, if a generation can go by it without looking again.

    Raises:
        InvalidSettingError: If not.
    """
    schedule = _fields("a schedule", data, _SCHEDULE, _OPTIONAL)
    for part in ("unet", "scheduler"):
        _check_description(part, schedule[part])
    if not isinstance(schedule["plan"], list):
        raise InvalidSettingError("plan is no list")
    plan = Explicit(schedule["plan"]).entries
    if plan[0] != FULL:
        raise InvalidSettingError("the first step must be full")
    _check_numbers("timesteps", schedule["timesteps"], sys.float_info.max, count=len(plan))
    _check_weights(plan, schedule["weights"])
    if "reached" in schedule:
        _check_reached(_fields("reached", schedule["reached"], _REACHED, _COMPARED))
    if "fingerprint" in schedule:
        _check_fingerprint(_fields("fingerprint", schedule["fingerprint"]))
    return schedule


def _content(path: Path) -> bytes:
    """The bytes of a file, if they are not too many: never those of a pipe, which may not end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InvalidSettingError("it is a pipe or a device")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InvalidSettingError(f"it has more than {LARGEST_FILE} bytes")
        return path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _schedules(data: Any) -> list[dict[str, Any]]:
    schedules = _fields("the file", data, {"version", "schedules"})["schedules"]
    if not isinstance(schedules, list):
        raise InvalidSettingError("schedules is no list")
    return [checked(each) for each in schedules]


def _check_weights(plan: Plan, weights: Any) -> None:
    """They are of shallow steps that go on from two full ones or more."""
    if not isinstance(weights, list):
        raise InvalidSettingError("weights is no list")
    known = set()
    for place, each in enumerate(weights):
        name = f"entry {place} of weights"
        entry = _fields(name, each, _WEIGHTS)
        _check_numbers(f"steps of {name}", entry["steps"], len(plan) - 1, count=None)
        # As integers: JSON's 1.0 is equal to 1.
        step, *full = (whole_number(f"a step of {name}", at, 0) for at in entry["steps"])
        falls = all(later > earlier for later, earlier in itertools.pairwise([step, *full]))
        if not falls or len(full) < 2 or plan[step] == FULL or step in known:
            raise InvalidSettingError(f"{name} is of no shallow step that goes on from full ones")
        known.add(step)
        _check_numbers(f"weights of {name}", entry["weights"], LARGEST, count=len(full) - 1)


def _check_reached(reached: dict[str, Any]) -> None:
    """Each is in its range or `None`; `Reached.rows` shows no figure whose partner is missing."""
    for name in ("timings", "pictures"):
        count = whole_number(f"{name} of reached", reached.get(name, 0), 0)
        number_between(f"{name} of reached", count, 0, _MOST)
    for name in ("work", "speed", "psnr", "worst_psnr", "default_psnr"):
        value = reached.get(name)
        identical = name.endswith("psnr") and value == float("inf")
        if value is not None and not identical:
            number_between(f"{name} of reached", value, 0, _MOST)
    if reached["quartiles"] is not None:
        _check_numbers("quartiles of reached", reached["quartiles"], _MOST, count=2)


def _check_fingerprint(fingerprint: dict[str, Any]) -> None:
    """Names that may be told to a person, with numbers to each."""
    _check_names("fingerprint", fingerprint)
    for place, numbers in enumerate(fingerprint.values()):
        name = f"entry {place} of fingerprint"
        _check_numbers(name, numbers, sys.float_info.max, count=None)


def _check_description(part: str, described: Any) -> None:
    """A class name and a config; both may be told to a person."""
    names = _fields(part, described)
    if not isinstance(names.get("class"), str):
        raise InvalidSettingError(f"{part} has no class")
    _check_names(part, (names["class"], *names))
    level: list[Any] = [names]
    for _ in range(_DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
    if level:
        raise InvalidSettingError(f"{part} is nested more than {_DEEPEST} levels deep")


def _check_names(part: str, names: Iterable[str]) -> None:
    if not all(len(name) <= LONGEST and name.isprintable() for name in names):
        raise InvalidSettingError(f"{part} has names that cannot be printed")


def _check_numbers(name: str, values: Any, largest: float, *, count: int | None) -> None:
    """It is a list of `count` finite numbers, or of any number of them from 1."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise InvalidSettingError(f"{name} is no list of numbers")
    if len(values) != (count or len(values) or 1):
        raise InvalidSettingError(f"{name} has {len(values)} entries, not {count or 'some'}")
    if not all(-largest <= value <= largest for value in values):
        raise InvalidSettingError(f"{name} has numbers that are not from -{largest} to {largest}")


def _fields(
    name: str, data: Any, expected: set[str] | None = None, optional: Set[str] = frozenset()
) -> dict[str, Any]:
    """`data` as an object, with just the keys that are expected, and maybe the optional ones."""
    if not isinstance(data, dict):
        raise InvalidSettingError(f"{name} is no object")
    if expected is not None and data.keys() - optional != expected:
        lacking, unknown = (
            ", ".join(sorted(keys))
            for keys in (expected - data.keys(), data.keys() - expected - optional)
        )
        raise InvalidSettingError(
            f"{name} lacks {lacking}" if lacking else f"{name} has unknown keys: {unknown}"
        )
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidSettingError("a key stands twice in an object")
    return found


def _constant(name: str) -> float:
    # Infinity is in the configs of schedulers: DPM-Solver++'s `lambda_min_clipped`.
    if name == "NaN":
        raise InvalidSettingError("NaN stands in it")
    return float(name)


def short(value: Any, *, as_it_is: bool = False) -> str:
    """The value in one line that a person can read, whatever it is."""
    text = value if as_it_is and value.isprintable() else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
