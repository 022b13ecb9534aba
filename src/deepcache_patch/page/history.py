"""What has been tried on the page, in order: settings, and what came of them. Pure Python; how it
is shown is decided in `gallery`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isinf
from typing import Any, Final

from .trial import Trial

#: So many tries are kept; a picture of 1024 pixels takes 3 MB, and each try has two.
MOST: Final = 50


@dataclass(frozen=True)
class Try:
    """One trial, and the settings that it was made with.

    Attributes:
        number: Counts all tries from 1.
        settings: The values of the page's fields by name; `seed` is the one that was drawn.
        trial: What came of them.
    """

    number: int
    settings: Mapping[str, Any]
    trial: Trial

    @property
    def speedup(self) -> float:
        """The speedup of the denoising loop, to two digits after the point."""
        return round(self.trial.comparison.speedup, 2)

    @property
    def psnr(self) -> float | None:
        """Against the plain picture, in dB to two digits after the point; `None`: identical."""
        value = self.trial.psnr
        return None if isinf(value) else round(value, 2)

    @property
    def text(self) -> str:
        """Settings, prompt and seed in one line."""
        said = [self.trial.comparison.setting, f"seed {self.settings['seed']}"]
        prompt = self.settings.get("prompt")
        return " · ".join([*said, *([prompt] if prompt else [])])

    def was_made_with(self, settings: Mapping[str, Any]) -> bool:
        """Whether the settings are those of this try; a seed of -1, to be drawn, may be any."""
        drawn = {"seed": self.settings["seed"]} if settings.get("seed") == -1 else {}
        return {**settings, **drawn} == dict(self.settings)


class History:
    """The last tries, the first one first.

    Args:
        most: How many are kept; the oldest are forgotten.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._tries: dict[int, Try] = {}
        self._last = 0

    def add(self, settings: Mapping[str, Any], trial: Trial) -> Try:
        """Keeps one more, and returns it."""
        self._last += 1
        made = Try(self._last, dict(settings), trial)
        self._tries[made.number] = made
        while len(self._tries) > self._most:
            del self._tries[next(iter(self._tries))]
        return made

    def find(self, number: int | None) -> Try | None:
        """The try of that number; `None` if there is none, or it has been forgotten."""
        return None if number is None else self._tries.get(number)

    def __iter__(self) -> Iterator[Try]:
        return iter(tuple(self._tries.values()))

    def __len__(self) -> int:
        return len(self._tries)
