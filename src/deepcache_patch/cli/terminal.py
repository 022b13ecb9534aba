"""How something is said to a person at a terminal: in one line, or in signs that it knows."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def one_line(text: str) -> str:
    """What a person typed, or a file holds, may be long, and may steer the terminal."""
    shown = text if len(text) <= 1000 else f"{text[:1000]}…"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in shown)


def say(text: str) -> None:
    """Prints also what the terminal's encoding does not know, or is no text: names of files."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    try:
        sys.stdout.flush()
    except OSError:
        # Else Python would try again at its exit, and complain in its own words.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def complain(text: str) -> None:
    """Prints one line to stderr."""
    print(one_line(text), file=sys.stderr)
