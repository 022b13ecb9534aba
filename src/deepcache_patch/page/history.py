"""What has been tried on the page, in order: settings, and what came of them. Pure Python; how it
is shown is decided in `gallery`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import isinf
from typing import Any, Final

from ..compare.outcome import Comparison

#: So many tries are kept; a picture of 1024 pixels takes 3 MB, and each try has two.
MOST: Final = 50


@dataclass(frozen=True)
class Try:
    """One picture without and with the helper, and the settings that they were made with.

    Attributes:
        number: Counts all tries from 1.
        settings: The values of the page's fields by name; `seed` is the one that was drawn.
        comparison: What came of them: the comparison of the two.
        kept: Whether the plain picture is of an earlier try, and so are its times.
    """

    number: int
    settings: Mapping[str, Any]
    comparison: Comparison
    kept: bool

    @property
    def pictures(self) -> tuple[Any, Any]:
        """The picture of the plain pipeline, and that of the same call with the helper."""
        return self.comparison.plain[0], self.comparison.cached[0]

    @property
    def speedup(self) -> float:
        """The speedup of the denoising loop, to two digits after the point."""
        return round(self.comparison.speedup, 2)

    @property
    def psnr(self) -> float | None:
        """Against the plain picture, in dB to two digits after the point; `None`: identical."""
        value = self.comparison.measures[0].values[0]
        return None if isinf(value) else round(value, 2)

    @property
    def text(self) -> str:
        """Settings, prompt and seed in one line."""
        said = [self.comparison.setting, f"seed {self.settings['seed']}"]
        prompt = self.settings.get("prompt")
        return " · ".join([*said, *([prompt] if prompt else [])])

    def was_made_with(self, settings: Mapping[str, Any]) -> bool:
        """Whether the settings are those of this try; a seed of -1, to be drawn, may be any."""
        drawn = {"seed": self.settings["seed"]} if settings.get("seed") == -1 else {}
        return {**settings, **drawn} == dict(self.settings)


class History:
    """The last tries, at most `MOST`, the first one first."""

    def __init__(self) -> None:
        self._tries: deque[Try] = deque(maxlen=MOST)
        self._numbers = count(1)

    def add(self, settings: Mapping[str, Any], comparison: Comparison, *, kept: bool) -> Try:
        """Keeps one more, and returns it."""
        made = Try(next(self._numbers), dict(settings), comparison, kept)
        self._tries.append(made)
        return made

    def find(self, number: int | None) -> Try | None:
        """The try of that number; `None` if there is none, or it has been forgotten."""
        return next((each for each in self if each.number == number), None)

    def __iter__(self) -> Iterator[Try]:
        return iter(tuple(self._tries))

    def __len__(self) -> int:
        return len(self._tries)
