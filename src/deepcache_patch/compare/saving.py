"""`Saved`: how a comparison and a sweep become files: a page, a picture, JSON; and what a notebook
shows of them.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from ..measuring.writing import finite, write_whole


class Saved:
    """What has a table, a picture, a page and figures."""

    #: What it is, and the stem of the names of its files.
    kind_of_result: ClassVar[str]

    if TYPE_CHECKING:  # else they would be in the way of fields
        # ruff: noqa: D102 - what each is does whoever inherits say

        @property
        def about(self) -> Mapping[str, Any]: ...
        @property
        def title(self) -> str: ...
        def table(self) -> str: ...
        def to_dict(self) -> dict[str, Any]: ...
        def to_html(self) -> str: ...
        def _drawn(self) -> Image.Image: ...

    @property
    def model(self) -> str:
        """The name of the model's folder, or its hub id."""
        return short_name(str(self.about["model"]))

    @property
    def headings(self) -> list[str]:
        """One for each result: its prompt if there are several, its seed if that tells more."""
        prompts, seeds = self.about["call"].get("prompt"), self.about["seeds"]
        if not isinstance(prompts, list | tuple) or len(prompts) < 2:
            return [f"seed {seed}" for seed in seeds]
        each = len(seeds) // len(prompts)
        shared = [str(prompt) for prompt in prompts for _ in range(each)]
        if each == 1:
            return shared
        return [f"{prompt}, seed {seed}" for prompt, seed in zip(shared, seeds, strict=True)]

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The text and the picture, for a notebook; long lines break, or it would be as wide."""
        picture = b64encode(self._encoded(Path("picture.png"))).decode()
        return (
            f'<pre style="white-space:pre-wrap">{escape(self.table())}</pre><img '
            f'style="max-width:100%" alt="{escape(self.title)}" '
            f'src="data:image/png;base64,{picture}">'
        )

    def to_json(self) -> str:
        """Returns `to_dict()` as indented JSON."""
        whole = finite(self.to_dict(), as_text=True)
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False, default=str)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page (.html), the picture (.png) or the figures (.json), by the suffix.

        The file is written beside and then renamed: it is there whole or not at all.

        Args:
            path: The file; its folder is made if it is not there.

        Raises:
            ValueError: Another suffix.
            OSError: It cannot be written. What was there is there still.
        """
        path = Path(path)
        encoded = self._encoded(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({path: encoded})
        return path

    def save_all(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Writes a picture, figures and a page (.png, .json, .html); returns their paths.

        The folder is made if it is not there.

        Raises:
            OSError: One cannot be written. What was there is there still, unless a rename failed.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = tuple(Path(folder) / name for name in files_of(self.kind_of_result))
        write_whole({path: self._encoded(path) for path in paths})
        return paths

    def _encoded(self, path: Path) -> bytes:
        if path.suffix in (".json", ".html"):
            make = self.to_json if path.suffix == ".json" else self.to_html
            # Bytes of the command line that are no text stand in it as escapes, as JSON has them.
            return (make() + "\n").encode("utf-8", "backslashreplace")
        if path.suffix != ".png":
            raise ValueError(
                f"cannot save a {self.kind_of_result} as {path.name!r}; end in .html, .png or .json"
            )
        picture = BytesIO()
        self._drawn().save(picture, format="PNG")
        return picture.getvalue()


def files_of(kind: str) -> tuple[str, str, str]:
    """The names of what `Saved.save_all` writes."""
    return f"{kind}.png", f"{kind}.json", f"{kind}.html"


def short_name(model: str) -> str:
    """The name of a model's folder, or its hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model
