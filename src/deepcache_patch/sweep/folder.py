"""`RowStore`: the folder in which a sweep keeps each row as soon as it is made, so that a second
run makes only what is missing: one JSON file and the pictures of each row, beside the request.
"""

from __future__ import annotations

import inspect
import json
import os
import wave
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from ..compare.measures import Measured
from ..errors import InvalidSettingError
from ..measuring.generation import Timing
from ..measuring.media import Result, Sound, kind_of
from ..measuring.writing import finite, write_whole
from ..schedules.plans import FULL, Plan
from .outcome import Row

#: Where rows lie in the folder of a sweep.
INNER: Final = "rows"
_REQUEST: Final = "request.json"

#: What reading a damaged row raises; Pillow's are there, too.
_DAMAGES: Final = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError),
    *(wave.Error, Image.DecompressionBombError),
)

#: Letters of a value that an error shows.
_SHOWN: Final = 80


class RowStore:
    """The rows that there are, by their keys; in a folder, if one is given.

    Args:
        folder: That of the sweep; `None` keeps rows in memory only.
        request: What all rows are of; as JSON has it, but for pictures and tensors in it.

    Raises:
        InvalidSettingError: If the folder holds rows of another request, and the message names the
            difference; or rows of which nobody knows what they are of.
        OSError: If the folder cannot be read.
    """

    def __init__(self, folder: Path | None, request: Mapping[str, Any]) -> None:
        self._place = None if folder is None else folder / INNER
        # As it stands in the file: what is infinite is text there.
        self._request = json.loads(_json(json.loads(json.dumps(request, default=_named))))
        self._rows: dict[str, Row] = {}
        self._drawn: set[str] = set()
        if self._place is not None and (self._place / _REQUEST).exists():
            self._compare(self._place / _REQUEST)
        elif self._place is not None and any(self._place.glob("*.json")):
            raise InvalidSettingError(
                f"{self._place} holds rows without {_REQUEST}, which says what they are of: remove "
                "it, or give another folder"
            )

    def restored(self, key: str, setting: Any) -> Row | None:
        """The row of a key; it is read when it is first asked for. `None` if there is none."""
        if key not in self._rows and self._place is not None:
            # A damaged row is made anew.
            with suppress(*_DAMAGES):
                self._rows[key] = _read(self._place, key, setting)
                self._drawn.add(key)
        return self._rows.get(key)

    def keep(self, key: str, row: Row) -> None:
        """Holds a row, in the place of the one of this key; in the folder it is whole at any time.

        Raises:
            OSError: If it cannot be written.
        """
        self._rows[key] = row
        if self._place is None:
            return
        self._place.mkdir(parents=True, exist_ok=True)
        content: dict[Path, bytes] = {}
        if not (self._place / _REQUEST).exists():
            content[self._place / _REQUEST] = _json(self._request)
        if key not in self._drawn:
            for number, result in enumerate(row.results):
                name, written = _file(result)
                content[self._place / f"{key}-{number + 1}{name}"] = written
        # The last: pictures without it are not taken for a row.
        content[self._place / f"{key}.json"] = _json(_to_dict(row))
        write_whole(content)
        self._drawn.add(key)

    def file(self, key: str) -> Path | None:
        """Where a schedule may keep what it learns; `None` without a folder."""
        if self._place is None:
            return None
        self._place.mkdir(parents=True, exist_ok=True)
        return self._place / f"{key}.learned.json"

    def _compare(self, file: Path) -> None:
        try:
            there = json.loads(file.read_bytes())
            names = [*self._request, *there]
        except (ValueError, TypeError) as error:
            raise InvalidSettingError(
                f"{file} is damaged: remove {file.parent}, or give another folder"
            ) from error
        for name in names:
            before, now = there.get(name), self._request.get(name)
            if before == now:
                continue
            if isinstance(before, dict) and isinstance(now, dict):
                inner = next(key for key in [*now, *before] if before.get(key) != now.get(key))
                before, now = before.get(inner), now.get(inner)
                name = inner if name == "call" else f"{name} ({inner})"
            values = [_short(before), _short(now)]
            told = "" if None in values else ": {} there, {} here".format(*values)
            raise InvalidSettingError(
                f"{file.parent.parent} holds a sweep that differs in {name}{told}; give another "
                f"folder, or remove {file.parent}"
            )


def _to_dict(row: Row) -> dict[str, Any]:
    found = asdict(replace(row, setting=None, results=()))
    kinds = [len(each) if isinstance(each, tuple) else 0 for each in row.results]
    return {**found, "name": row.name, "frames": kinds, "sounds": kind_of(row.results) == "sounds"}


def _read(place: Path, key: str, setting: Any) -> Row:
    data = json.loads((place / f"{key}.json").read_bytes())
    ends = ".wav" if data["sounds"] else ".png"
    results = [
        _result(place / f"{key}-{number + 1}{ends}", frames)
        for number, frames in enumerate(data["frames"])
    ]
    known = {field.name: data[field.name] for field in fields(Row)}
    for name in ("times", "plain_times"):
        known[name] = tuple(Timing(**each) for each in data[name])
    if not all(each == FULL or type(each) is int for each in data["plan"]):
        raise ValueError("no plan")  # a strip, perhaps, which does not tell the branches
    known["plan"] = Plan(data["plan"])
    for name in (field.name for field in fields(Measured)):
        known[name] = None if data[name] is None else tuple(map(float, data[name]))
    return Row(**{**known, "setting": setting, "results": tuple(results)})


def _file(result: Result) -> tuple[str, bytes]:
    """The end of its name, and what stands in it: a picture, a video's frames in one, or a WAV."""
    if isinstance(result, Sound):
        return ".wav", result.wav()
    frames = (result,) if isinstance(result, Image.Image) else result
    whole = np.concatenate([np.asarray(frame) for frame in frames])
    file = BytesIO()
    Image.fromarray(whole).save(file, format="PNG")
    return ".png", file.getvalue()


def _result(file: Path, frames: int) -> Result:
    if file.suffix == ".wav":
        with wave.open(str(file)) as reader:
            samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
            channels = samples.reshape(-1, reader.getnchannels()).T
            return Sound(channels.astype(np.float32) / 32767, reader.getframerate())
    with Image.open(file) as picture:
        whole = picture.convert("RGB")
    if not frames:
        return whole
    return tuple(Image.fromarray(each) for each in np.split(np.asarray(whole), frames))


def _json(value: Any) -> bytes:
    """The value as JSON; what is infinite is a text, since JSON has no infinity."""
    return (json.dumps(finite(value, as_text=True), indent=2) + "\n").encode()


def _named(value: Any) -> Any:
    """A picture, a tensor or an object in a request, by what makes it the same one again.

    Raises:
        InvalidSettingError: If nothing does.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    kind = str(getattr(value, "mode", getattr(value, "dtype", "")))
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("RGBA"))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, np.ndarray):
        digest = sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"{'×'.join(map(str, value.shape))} numbers, {kind}, {digest}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, range | set | frozenset):
        return sorted(value)
    if inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise InvalidSettingError(
        f"a folder cannot tell this {type(value).__name__} from another one: leave folder= out"
    )


def _short(value: Any) -> str | None:
    """The value as text, a long string cut; `None` for other long values, as lists."""
    text = repr(value)
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}…" if isinstance(value, str) else None
