"""Every error and warning of this package, in one tree; how an error is told in a line, what is
said of a name that there is not, and to which line a warning points.

    DeepCacheError
    ├── InvalidSettingError       (ValueError)    an argument outside its range
    ├── UnsupportedModelError     (TypeError)     nothing here that can be cached, and why
    ├── AlreadyEnabledError       (RuntimeError)  the U-Net belongs to another helper
    └── ChangedResidualsError     (RuntimeError)  a ControlNet's residuals cannot be made anew

    DeepCacheWarning              (UserWarning)   a call ran in full that should be fast, or may be
                                                  wrong: nobody has tested these versions

Each is raised before anything is patched, but for `ChangedResidualsError`, and for a schedule whose
plan turns out to be invalid for the number of steps of a generation: that is known only when the
generation starts.
"""

import sys
import warnings
from collections.abc import Collection
from difflib import get_close_matches
from types import FrameType
from typing import Final

#: Whose lines stand between a user's and what warns, by the first part of a module's name.
_BETWEEN: Final = (
    *("deepcache_patch", "diffusers", "diffusers_modules", "accelerate", "torch", "wrapt"),
    *("click", "contextlib", "functools"),
)


class DeepCacheError(Exception):
    """The base of all errors that this package raises on purpose."""


class InvalidSettingError(DeepCacheError, ValueError):
    """A setting is of the wrong kind or out of range; the message names value and range."""


class UnsupportedModelError(DeepCacheError, TypeError):
    """The pipeline or model has no U-Net that can be cut; the message says why."""


class AlreadyEnabledError(DeepCacheError, RuntimeError):
    """Another helper is enabled on the same U-Net."""


class ChangedResidualsError(DeepCacheError, RuntimeError):
    """A U-Net call needs residuals that a ControlNet left out, and those it gave were changed."""


class DeepCacheWarning(UserWarning):
    """Calls run in full, or with untested versions of other packages; the message says which."""


def no_such(kind: str, name: str, known: Collection[str], others: Collection[str] = ()) -> str:
    """What to say of a name that none of a kind has: the one that may be meant, and the known ones.

    Args:
        kind: What has the name: "setting", "schedule".
        name: What was given.
        known: All that are listed.
        others: Such as may be meant, too.
    """
    by_lower = {each.lower(): each for each in (*known, *others)}
    begun = [each for each in by_lower if name and each.startswith(name.lower())]  # "euler-a"
    near = begun or get_close_matches(name.lower(), by_lower, n=1)
    meant = f": did you mean {by_lower[near[0]]!r}? There" if near else "; there"
    return f"there is no {kind} {name!r}{meant} are {', '.join(known)}"


def warn(message: str) -> None:
    """Warns with a `DeepCacheWarning`, which points to the user's line and not to one in here.

    That is the innermost one which is neither of this package nor of a library that called it.
    """
    level, frame = 1, sys._getframe()
    while _is_between(frame) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeepCacheWarning, stacklevel=level)


def _is_between(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN


def first_line(error: BaseException) -> str:
    """Returns the first line that says something, or the error's class."""
    if isinstance(error, LookupError):  # its text is what was looked up, and no more
        return f"{type(error).__name__}: {error}"
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
