"""What can go wrong in a command, told apart by whose fault it is: the person's who typed it, or
that of whatever runs. `main` answers each with one line and an exit code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from ..errors import DeepCacheError, first_line


class BadInputError(Exception):
    """What the person typed cannot be done; the message says why and what can."""


class FailedError(Exception):
    """Something went wrong on the way; the message says where."""


def reason_of(error: BaseException) -> str:
    """What the system says of a file or an address, without its name; else the error's text."""
    return getattr(error, "strerror", None) or str(error)


def require_package(name: str, what: str) -> None:
    """Checks that a package is installed, without importing it.

    Raises:
        ValueError: It is not.
    """
    if find_spec(name) is None:
        raise ValueError(f"{what} needs {name}, which is not installed: pip install {name}")


def missing_package(error: BaseException) -> str | None:
    """What to say if the error comes from a package that is not installed; else `None`.

    diffusers wraps such an error in others, whose first lines name its own modules.
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ModuleNotFoundError) and at.name is not None:
            name = at.name.partition(".")[0]
            return f"{name} is needed and not installed: pip install {name}"
        at = at.__cause__
    return None


@contextmanager
def bad_input() -> Iterator[None]:
    """What the library refuses is the person's mistake: said in one line."""
    try:
        yield
    except (ValueError, DeepCacheError) as error:
        raise BadInputError(first_line(error)) from error


@contextmanager
def while_running(pipe: Any) -> Iterator[None]:
    """What goes wrong while a pipeline runs, in one line: whatever it or its device raises."""
    name = type(pipe).__name__
    try:
        yield
    except (ValueError, DeepCacheError) as error:
        raise BadInputError(f"{name}: {first_line(error)}") from error
    except Exception as error:
        where = f"{name} on {pipe.device} in {str(pipe.dtype).removeprefix('torch.')}"
        raise FailedError(f"{where} failed: {first_line(error)}") from error
