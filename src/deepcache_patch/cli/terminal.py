"""How something is said to a person at a terminal: in one line, in signs that it knows, or as JSON
for a program. In a log file, where nobody sees a bar move, each phase is a line with its time of
day.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from ..errors import DeepCacheWarning
from ..measuring.writing import finite

if TYPE_CHECKING:
    from ..schedules.plans import Plan

#: As a shell counts a process that ended because its reader had gone: 128 + SIGPIPE.
EXIT_NO_READER: Final = 141

#: Where `measuring.generation` says what begins; by name, because that module imports torch.
_PHASES: Final = "deepcache_patch.measuring.generation"


def one_line(text: str) -> str:
    """What a person typed, or a file holds, may be long, and may steer the terminal."""
    shown = text if len(text) <= 1000 else f"{text[:1000]}…"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in shown)


def say(text: str) -> None:
    """Prints also what the terminal's encoding does not know, or is no text: names of files.

    Raises:
        click.exceptions.Exit: Nobody reads any more, as after `| head`.
        OSError: It cannot be written, as to a full disk.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        _let_go(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(EXIT_NO_READER) from error
        raise


def json_of(data: Any) -> str:
    """Indented, as people read it; JSON knows no infinite number, so such a one is `null`."""
    return json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The entry of each step, and what is counted in them."""
    return {"steps": len(plan), "full_steps": list(plan.full_steps), "plan": list(plan)}


def complain(text: str) -> None:
    """Prints one line to stderr; without a word if nobody reads it."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _let_go(sys.stderr)


def phase(what: str) -> None:
    """Says on stderr what begins, and at what time of day."""
    complain(f"{time.strftime('%H:%M:%S')} {what}")


def import_word() -> None:
    """Says that torch is imported, which takes seconds, unless it is there already."""
    if not {"torch", "diffusers"} <= sys.modules.keys():
        phase("importing torch and diffusers")


def shows_bars() -> bool:
    """Whether progress bars move on stderr: it is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """For its length, what this package warns of is said without the line of code that warns."""
    usual = warnings.formatwarning

    def formatted(message: Any, category: Any, *where: Any, **more: Any) -> str:
        if issubclass(category, DeepCacheWarning):
            return f"warning: {one_line(str(message))}\n"
        return usual(message, category, *where, **more)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def phases_as_lines() -> Iterator[None]:
    """For its length, each generation that begins is a line on stderr, where no bar shows it."""
    if shows_bars():
        yield
        return
    logger, handler = logging.getLogger(_PHASES), _Phases()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Phases(logging.Handler):
    """Says each record as a phase."""

    def emit(self, record: logging.LogRecord) -> None:
        phase(record.getMessage())


def _let_go(stream: TextIO) -> None:
    """Else Python would try to write again at its exit, and complain in its own words."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
