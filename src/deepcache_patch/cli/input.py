"""What a person typed: numbers, a file of prompts, places to write to. All that can be wrong with
them is found here, before a model is loaded.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from pathlib import Path

from ..measuring.writing import require_replaceable

#: Bytes of a file of prompts, all of which make one batch.
_LARGEST_PROMPTS = 2**20
#: Of pictures, pixels, steps: beyond, memory runs out before anything can be said.
_LARGEST_COUNT = 100_000


class BadInputError(Exception):
    """What the person typed cannot be done; the message says why and what can."""


def positive(text: str) -> int:
    """A whole number from 1 up to what can be."""
    return _count(text, least=1)


def whole(text: str) -> int:
    """A whole number from 0 up to what can be."""
    return _count(text, least=0)


def _count(text: str, *, least: int) -> int:
    number = _integer(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is too small: {least} is the least")
    if number > _LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text} is too large: {_LARGEST_COUNT} is the most")
    return number


def port(text: str) -> int:
    """A number of a TCP port; 0 means any that is free."""
    number = _integer(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{number} is no port: 0 to {2**16 - 1} are")
    return number


def seed(text: str) -> int:
    """A number for a generator of torch."""
    number = _integer(text)
    if not -(2**63) <= number < 2**63:  # torch's, with room for those of further pictures
        raise argparse.ArgumentTypeError(f"{text} is out of range: at most 63 bits")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def finite(text: str) -> float:
    """A number that is one."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return number


def prompts_of(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_PROMPTS + 1)
        if len(content) > _LARGEST_PROMPTS:
            raise BadInputError(f"--prompts {path} has more than {_LARGEST_PROMPTS} bytes")
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"cannot read --prompts {path}: {reason}") from error
    except ValueError as error:  # also of a path that cannot be one
        message = f"cannot read --prompts {path}: {error}; save it as text in UTF-8"
        raise BadInputError(message) from error
    # Only these end a line. `splitlines` also splits at what stands within pasted text, U+2028.
    prompts = [line.strip() for line in re.split("\r\n|\r|\n", text) if line.strip()]
    if not prompts:
        raise BadInputError(f"--prompts {path} holds no prompt: write one in each line")
    if "\0" in text:
        raise BadInputError(f"--prompts {path} holds NUL characters: save it as text in UTF-8")
    return prompts


def require_writable(option: str, folder: Path, *files: Path) -> None:
    """Finds out before minutes of work; the folder itself is made only when there is a result."""
    place = folder
    try:
        whole = folder.absolute()
        present = next(each for each in (whole, *whole.parents) if each.exists())
        with tempfile.TemporaryFile(dir=present):
            pass
        for place in files:
            require_replaceable(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"cannot write into {option} {place}: {reason}") from error
