"""What is written: figures as JSON can have them, and files that are there whole or not at all:
written beside, then renamed.
"""

import errno
import math
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def require_replaceable(path: Path) -> None:
    """Check, before minutes of work, that a rename would put a file there.

    Raises:
        OSError: If there is a folder, a pipe or a device. A rename would do away with the latter.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except ValueError as error:  # no name of a file
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files; all are written before the first is renamed.

    Whoever reads one meanwhile sees the old one or the new.

    A link stays, and what it points at is replaced. After `kill -9` a `.….partial` may be left.

    Raises:
        OSError: If one cannot be written; it names that file.
    """
    partials: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            require_replaceable(path)
            target = Path(os.path.realpath(path))
            partial = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.partial")
            partials[partial] = target
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name without content
        for partial, target in partials.items():
            path = target
            partial.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        for partial in partials:
            with suppress(OSError):  # what came before is to be told
                partial.unlink()


def finite(data: Any, *, as_text: bool = False) -> Any:
    """The same with `None` for each number that is infinite or none: JSON knows no such.

    Args:
        data: A value of JSON's types; keys become text.
        as_text: Whether text stands for such a number, "inf", so that it can be told from `None`.
    """
    if isinstance(data, Mapping):
        return {str(name): finite(value, as_text=as_text) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value, as_text=as_text) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data) if as_text else None
    return data
