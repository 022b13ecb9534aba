"""Files that a person names: a folder of a model, a file of prompts or a picture to read, places to
write to. All that can be wrong with them is found here, before a model is loaded.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from ..measuring.writing import require_replaceable
from .mistakes import BadInputError, reason_of

#: Bytes of a file of prompts, all of which make one batch.
_LARGEST_PROMPTS: Final = 2**20


def model_folder(model: str, revision: str | None = None) -> Path | None:
    """Returns the folder of a pipeline; `None` for a hub id.

    Raises:
        ValueError: It is neither, or the folder is none of a pipeline, or has no revisions.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise ValueError(f"there is no folder {model}") from error
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            if revision is None:
                return folder
            raise ValueError(f"--revision {revision} is for the hub, {model} is here: leave it out")
        if (folder / "modular_model_index.json").is_file():
            raise ValueError(
                f"{model} is a modular pipeline, which this does not load: load it in Python, "
                "and call DeepCacheHelper(pipe).compare(...)"
            )
        raise ValueError(f"{model} is not a diffusers pipeline: it has no model_index.json")
    if folder.exists():
        raise ValueError(f"{model} is a file; give the folder of a diffusers pipeline")
    if looks_local(model):
        raise ValueError(f"there is no folder {model}")
    return None


def looks_local(place: str) -> bool:
    """Whether what is typed cannot be a hub id, so that it has to be here."""
    return place.startswith((".", "/", "~")) or place.count("/") != 1


def scheduler_in(folder: Path) -> str | None:
    """The class of a pipeline's scheduler; `None` where its folder does not tell."""
    try:
        return str(json.loads((folder / "model_index.json").read_bytes())["scheduler"][1])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # whoever loads it says what is wrong


def picture_in(path: Path) -> Any:
    """The picture of `--image`, upright, in RGB."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception as error:  # whatever a damaged file can raise
        told = isinstance(error, OSError) and not isinstance(error, Image.UnidentifiedImageError)
        reason = reason_of(error) if told else "it is no picture that Pillow knows"
        raise BadInputError(f"cannot read --image {path}: {reason}") from error


def prompts_in(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_PROMPTS + 1)
        if len(content) > _LARGEST_PROMPTS:
            raise BadInputError(f"--prompts {path} has more than {_LARGEST_PROMPTS} bytes")
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = reason_of(error)
        raise BadInputError(f"cannot read --prompts {path}: {reason}") from error
    except ValueError as error:  # also of a path that cannot be one
        message = f"cannot read --prompts {path}: {error}; save it as text in UTF-8"
        raise BadInputError(message) from error
    prompts = lines_of(text)
    if not prompts:
        raise BadInputError(f"--prompts {path} holds no prompt: write one in each line")
    if "\0" in text:
        raise BadInputError(f"--prompts {path} holds NUL characters: save it as text in UTF-8")
    return prompts


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    # Only these end a line. `splitlines` also splits at what stands within pasted text, U+2028.
    return [line.strip() for line in re.split("\r\n|\r|\n", text) if line.strip()]


def require_writable(folder: Path, *files: Path) -> None:
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
        reason = reason_of(error)
        raise BadInputError(f"cannot write into --output {place}: {reason}") from error
