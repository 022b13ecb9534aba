"""The output folder: settings, pictures, and what each batch was measured with.

A batch counts once all contestants have drawn it: its file is the last thing that is written. A run
that was broken off begins with the first batch that has none, so times of a batch that are compared
are always of one process.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcache_patch.measuring.media import to_pil
from deepcache_patch.measuring.writing import write_whole

#: What a contestant's generation left: seconds and counts, or why it failed.
Figures = dict[str, Any]


@dataclass(frozen=True)
class Gallery:
    """Pictures 0 to `count` - 1 of each contestant, made `batch` at a time.

    Attributes:
        folder: Where everything is.
        count: Of each contestant's pictures.
        batch: How many are made at a time.
    """

    folder: Path
    count: int
    batch: int

    def batches(self) -> list[range]:
        """Pictures that are made together."""
        starts = range(0, self.count, self.batch)
        return [range(start, min(start + self.batch, self.count)) for start in starts]

    def missing(self) -> list[range]:
        """The batches that not all have drawn."""
        return [batch for batch in self.batches() if not self._file(batch).exists()]

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Write down what everything is made with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole({self._settings: _as_json(settings)})

    def settled(self) -> dict[str, Any] | None:
        """What the folder's pictures are made with; `None` if it has none."""
        return json.loads(self._settings.read_bytes()) if self._settings.exists() else None

    def hang(self, contestant: str, batch: range, pictures: np.ndarray) -> None:
        """Keep pictures.

        Args:
            contestant: Its folder.
            batch: Their numbers.
            pictures: (pictures, height, width, channels), floats in 0..1.
        """
        paths = [self._picture(contestant, index) for index in batch]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        write_whole({path: _png(one) for path, one in zip(paths, pictures, strict=True)})

    def close(self, batch: range, figures: Mapping[str, Figures]) -> None:
        """Everyone has drawn the batch; `figures` by the contestants' names."""
        self._file(batch).parent.mkdir(exist_ok=True)
        write_whole({self._file(batch): _as_json(figures)})

    def figures(self) -> list[dict[str, Figures]]:
        """Of the batches that are there."""
        files = (self._file(batch) for batch in self.batches())
        return [json.loads(file.read_bytes()) for file in files if file.exists()]

    def pictures_of(self, contestant: str) -> Path:
        """The folder of its pictures."""
        return self.folder / "pictures" / contestant

    def look(self, contestant: str) -> Iterator[np.ndarray]:
        """Its pictures: (height, width, 3), float32 in 0..1, in steps of 1/255."""
        for index in range(self.count):
            with Image.open(self._picture(contestant, index)) as image:
                yield np.asarray(image, np.float32) / 255

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    def _file(self, batch: range) -> Path:
        return self.folder / "batches" / f"{batch.start:06d}.json"

    def _picture(self, contestant: str, index: int) -> Path:
        return self.pictures_of(contestant) / f"{index:06d}.png"


def _png(picture: np.ndarray) -> bytes:
    written = io.BytesIO()
    to_pil(picture).save(written, format="PNG")
    return written.getvalue()


def _as_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
