"""What may be typed as the value of an option: numbers in a range, names, lists of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..errors import no_such
from .names import SCHEDULES, friendly_name, may_be_scheduler, no_such_scheduler

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # which newer versions of click alone can subscribe
    _ParamType = click.ParamType

_Number = TypeVar("_Number", int, float)

#: Of pictures and pixels: beyond, memory runs out before anything can be said.
_LARGEST_COUNT: Final = 100_000

#: Of steps: four times as many as schedulers have; a plan for many more takes gigabytes.
_MOST_STEPS: Final = 4_000


def positive(text: str) -> int:
    """A whole number from 1 up to what can be."""
    return _between(text, _integer, 1, _LARGEST_COUNT)


def num_steps(text: str) -> int:
    """How many steps, from 1 up to what can be."""
    return _between(text, _integer, 1, _MOST_STEPS)


def whole(text: str) -> int:
    """A whole number from 0 up to what can be."""
    return _between(text, _integer, 0, _LARGEST_COUNT)


def branch_number(text: str) -> int:
    """A whole number from -1, above the output, up to what can be."""
    return _between(text, _integer, -1, _LARGEST_COUNT)


def port(text: str) -> int:
    """A number of a TCP port; 0 means any that is free."""
    return _between(text, _integer, 0, 2**16 - 1)


def random_seed(text: str) -> int:
    """A number for a generator of torch, with room for those of further pictures."""
    return _between(text, _integer, -(2**63), 2**63 - 1)


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _between(text, finite, 0, 1)


def at_least_one(text: str) -> float:
    """A number from 1 up, whole or not; a whole one is an `int`."""
    number = _between(text, _interval, 1, math.inf)
    return int(number) if number.is_integer() else number


def finite(text: str) -> float:
    """A number that is one."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        fraction = _fraction(text)
        cure = "" if fraction is None else f": write a decimal, {fraction[0] / fraction[1]:.3g}"
        raise click.BadParameter(f"{text!r} is no finite number{cure}")
    return number


def _interval(text: str) -> float:
    """A number, as by `finite`; for steps over full steps, the error names the right option."""
    fraction = _fraction(text)
    if fraction is None:
        return finite(text)
    full, steps = sorted(fraction)  # 13/25 is meant so, too
    context = click.get_current_context(silent=True)
    known = () if context is None else {each.name for each in context.command.params}
    more = f", or --full-steps {full} for {full} of {steps} steps" if "full_steps" in known else ""
    decimal = 100 * steps // full / 100  # rounded down, so that no full step is lost
    raise click.BadParameter(f"{text!r} is no finite number: write a decimal, {decimal:g}{more}")


def _fraction(text: str) -> tuple[int, int] | None:
    """What stands above and below the stroke, both at least 1; `None` where it is no fraction."""
    found = re.fullmatch(r"0*([1-9]\d{0,5})/0*([1-9]\d{0,5})", text, re.ASCII)
    return None if found is None else (int(found[1]), int(found[2]))


def folder(path: Path) -> Path:
    """Where a folder is or is to be; a name like that of a report is a mistake."""
    if path.suffix.lower() in (".html", ".png", ".json") and not path.is_dir():
        raise click.BadParameter(
            f"{path} is taken for a folder, which gets a page, a picture and figures: give a name "
            f"without {path.suffix}, such as {path.with_suffix('')}"
        )
    return path


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no whole number") from None


def _between(text: str, read: Callable[[str], _Number], least: float, most: float) -> _Number:
    number = read(text)
    if number < least:
        raise click.BadParameter(f"{text} is too small: {least} is the least")
    if number > most:
        raise click.BadParameter(f"{text} is too large: {most} is the most")
    return number


def steps_or_share(text: str) -> float:
    """A whole number of steps, or a share of them such as 0.2."""
    try:
        amount: float = int(text)
    except ValueError:
        try:
            amount = float(text)
        except ValueError:
            amount = -1
    if not 0 <= amount < (math.inf if isinstance(amount, int) else 1):
        raise click.BadParameter(
            f"{text} is neither a whole number of steps nor a share of them, 0.0 to below 1"
        )
    return amount


def scheduler_name(text: str) -> str:
    """A name of a scheduler, as far as it can be told without diffusers."""
    name = friendly_name(text)
    if not may_be_scheduler(name):
        raise click.BadParameter(no_such_scheduler(text))
    return name


def schedule_name(text: str) -> str:
    """A name of a schedule, or of a file, whether or not that can be read."""
    is_file = text.endswith(".json") or os.path.basename(text) != text or os.path.exists(text)
    if text in SCHEDULES or is_file:
        return text
    known = no_such("schedule", text, SCHEDULES)
    raise click.BadParameter(f"{known}, or a file that `calibrate` wrote")


class ListOf(_ParamType):
    """Several values of a kind, with commas between; it has that kind's name."""

    def __init__(self, kind: _ParamType) -> None:
        self.name, self._kind = kind.name, kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """Returns the values, in order."""
        if isinstance(value, list):
            return value
        return [self._kind.convert(each.strip(), param, ctx) for each in str(value).split(",")]
