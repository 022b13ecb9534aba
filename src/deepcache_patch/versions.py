"""The version of this package, those that it was tested with, and one warning about any others.

The range is stated here; the tests compare `setup.cfg`, the constraints files and the documents.
"""

from functools import cache
from importlib import import_module
from typing import Final

from packaging.version import InvalidVersion, Version

from .errors import warn

__version__ = "0.2.0"

#: Package -> the oldest and the newest minor version that the core tests were run with.
TESTED: Final = {
    "torch": ("2.4", "2.15"),
    "diffusers": ("0.35", "0.42"),
    "wrapt": ("1.16", "2.5"),
    "numpy": ("1.26", "2.4"),
}


@cache
def warn_of_untested() -> None:
    """Warn of each package whose version was not tested; once in a process."""
    for package, (oldest, newest) in TESTED.items():
        found = str(import_module(package).__version__)
        if not _lies_within(found, oldest, newest):
            warn(
                f"{package} {found} is not tested with deepcache_patch, {oldest} to {newest} are: "
                "compare pictures without and with the helper, or install one of those"
            )


def _lies_within(found: str, oldest: str, newest: str) -> bool:
    """Whether a version, be it local, of development or a patch, is of a minor one in the range."""
    try:
        minor = Version(found).release[:2]
    except InvalidVersion:
        return False
    return Version(oldest).release <= minor <= Version(newest).release
