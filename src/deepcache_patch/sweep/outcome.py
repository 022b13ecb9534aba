"""What a sweep found: one row for each setting and for each number of steps of the plain pipeline,
as a table, a picture, JSON or a page. How it is made stands in `run`.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, Final

from PIL import Image

from ..compare.measures import Measure, measures_of
from ..measuring.generation import Timing
from ..measuring.media import Result
from ..measuring.speed import Speed
from ..measuring.writing import write_whole
from . import figures
from .knee import knee_of
from .settings import Setting

#: What `Sweep.save_all` writes.
FILES: Final = ("sweep.png", "sweep.json", "sweep.html")


@dataclass(frozen=True)
class Row:
    """One contestant: a setting of the helper, or the plain pipeline with so many steps.

    Attributes:
        setting: Of the helper; `None` for the plain pipeline.
        steps: `num_inference_steps`; `None` where the pipeline was not told.
        results: One for each seed: a picture, the frames of a video, or a `Sound`.
        times: One for each round that it ran in.
        plain_times: Those of the reference in the same rounds.
        worth: The U-Net's work, as the number of full calls that cost as much; `None` where it is
            not known.
        reference_calls: U-Net calls of the reference.
        psnr: For each result, against the reference; infinite where both are identical.
        ssim: Likewise; 1 where both are identical.
        lpips: Likewise, where it was measured.
        snr: Likewise, of sounds.
        full_calls: U-Net calls that ran whole.
        shallow_calls: Those that did not.
        plan: What ran, as a strip; of the first U-Net.
        fewer: With how many steps the plain pipeline does as much work, or barely more.
        fewer_left_out: Why that is not known.
    """

    setting: Setting | None
    steps: int | None
    results: tuple[Result, ...]
    times: tuple[Timing, ...]
    plain_times: tuple[Timing, ...]
    worth: float | None
    reference_calls: int
    psnr: tuple[float, ...] | None = None
    ssim: tuple[float, ...] | None = None
    lpips: tuple[float, ...] | None = None
    snr: tuple[float, ...] | None = None
    full_calls: int = 0
    shallow_calls: int = 0
    plan: str = ""
    fewer: int | None = None
    fewer_left_out: str | None = None

    @property
    def name(self) -> str:
        """The setting, without its steps; "plain" without the helper."""
        return "plain" if self.setting is None else self.setting.name

    @property
    def time(self) -> Timing:
        """Of the first round."""
        return self.times[0]

    @property
    def speeds(self) -> Speed:
        """Seconds of the reference's denoising loop over those of this one, round by round."""
        pairs = zip(self.plain_times, self.times, strict=True)
        return Speed(tuple(plain.loop_seconds / own.loop_seconds for plain, own in pairs))

    @property
    def speed(self) -> float:
        """Their median."""
        return self.speeds.median

    @property
    def call_speed(self) -> float:
        """The median for the whole call: text encoder, loop and decoder."""
        pairs = zip(self.plain_times, self.times, strict=True)
        return median(plain.call_seconds / own.call_seconds for plain, own in pairs)

    @property
    def work(self) -> float | None:
        """Of the U-Net, in multiply-adds, as a share of that of the reference."""
        return None if self.worth is None else self.worth / self.reference_calls

    @property
    def work_speed(self) -> float | None:
        """The most that the saved work allows for `speed`: 1 / `work`."""
        return None if self.worth is None else self.reference_calls / self.worth

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that there are, of PSNR, SSIM, LPIPS and SNR."""
        return measures_of((self.psnr, self.ssim, self.lpips, self.snr))

    @property
    def quality(self) -> float:
        """The mean of the first measure: PSNR, or SNR of sounds. Infinite if all is identical."""
        return self.measures[0].mean

    @property
    def worst(self) -> int:
        """Which result is furthest from the reference."""
        values = self.measures[0].values
        return values.index(min(values))

    def __repr__(self) -> str:
        steps = "" if self.steps is None else f", {self.steps} steps"
        measure = self.measures[0]
        speed = figures.speed_text(self)
        return f"Row({self.name}{steps}: {speed}, {measure.name} {measure.text()})"


@dataclass(frozen=True)
class Sweep:
    """The same seeds with many settings, and with fewer steps.

    Attributes:
        plain: The reference: the plain pipeline with the largest number of steps.
        settings: One row for each setting of the helper that was made, in the order asked for.
        fewer: The plain pipeline with fewer steps, the most steps first.
        about: Model, pipeline, scheduler, device, dtype, steps, seeds, repeats, the arguments of
            the call, and how many settings were asked for.
    """

    plain: Row
    settings: tuple[Row, ...]
    fewer: tuple[Row, ...]
    about: Mapping[str, Any]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All but the reference: the settings, then fewer steps."""
        return self.settings + self.fewer

    @property
    def by_work(self) -> bool:
        """Whether the figure goes by work, which is exact; else, where it is not known, by time."""
        return all(row.worth is not None for row in self.rows)

    def speed_of(self, row: Row) -> float:
        """How fast a row is as the figure has it: `work_speed`, or the measured `speed`."""
        return row.work_speed if self.by_work and row.work_speed is not None else row.speed

    @property
    def knee(self) -> Row | None:
        """The setting at the knee, or `None` where there is none.

        Of the settings that no other one beats in both speed and quality, it is the one that lies
        highest above the straight line from the slowest of them to the fastest, in the figure's
        scales. There is none if these are fewer than three, or if none lies above the line.
        """
        finite = [row for row in self.settings if row.quality != float("inf")]
        found = knee_of([(self.speed_of(row), row.quality) for row in finite])
        return None if found is None else finite[found]

    @property
    def fewer_of(self) -> Mapping[int, Row]:
        """The rows of fewer steps, by their number of steps."""
        return {row.steps: row for row in self.fewer if row.steps is not None}

    @property
    def missing(self) -> int:
        """How many settings were asked for, and are not there: the sweep was broken off."""
        return int(self.about["settings"]) - len(self.settings)

    @property
    def title(self) -> str:
        """Model, scheduler and reference in one line."""
        model = str(self.about["model"])
        model = Path(model).resolve().name if Path(model).is_dir() else model
        return " · ".join(part for part in (model, self.about["scheduler"]) if part)

    def table(self) -> str:
        """Returns the figures as aligned text, and the knee, without a newline at the end."""
        return figures.table_of(self)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        knee = f", knee at {self.knee.name}" if self.knee else ""
        return f"Sweep({self.title}: {len(self.settings)} settings{knee})"

    def _repr_html_(self) -> str:
        """The table and the picture, for a notebook."""
        picture = b64encode(self._encoded(Path("sweep.png"), None)).decode()
        table = escape(f"{self.title}\n\n{self.table()}")
        return f'<pre>{table}</pre><img alt="" src="data:image/png;base64,{picture}">'

    def python(self, row: Row) -> str:
        """Returns Python that draws with the setting of a row, to be pasted."""
        return figures.python_of(self, row)

    def command(self, row: Row, command: str | None = None) -> str | None:
        """Returns a command that compares the setting of a row, to be pasted.

        Args:
            row: One of `rows`.
            command: What stands before its options; by default with words for what to fill in.

        Returns:
            `None` where the command line has no words for it.
        """
        return figures.command_of(row, command)

    def picture(self) -> Image.Image:
        """Draws the curve, and beneath it a row of results for each row of the table."""
        from .picture import picture_of

        return picture_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the results themselves, ready for JSON.

        JSON has no infinity: the PSNR of identical pictures is `None`.
        """
        return figures.figures_of(self)

    def to_json(self) -> str:
        """Returns `to_dict()` as indented JSON."""
        options: dict[str, Any] = {"indent": 2, "ensure_ascii": False, "default": str}
        return json.dumps(self.to_dict(), allow_nan=False, **options)

    def to_html(self, *, command: str | None = None) -> str:
        """Returns one page that needs nothing else: the curve, the table, results, settings.

        Args:
            command: As for `Sweep.command`.
        """
        from .report import page  # only it needs jinja2

        return page(self, command=command)

    def save(self, path: str | os.PathLike[str], *, command: str | None = None) -> Path:
        """Writes the page (.html), the picture (.png) or the figures (.json), by the suffix.

        Args:
            path: Of the file; its folder has to be there.
            command: As for `Sweep.command`.

        Raises:
            ValueError: Another suffix.
            OSError: It cannot be written. What was there is there still.
        """
        path = Path(path)
        write_whole({path: self._encoded(path, command)})
        return path

    def save_all(
        self, folder: str | os.PathLike[str], *, command: str | None = None
    ) -> tuple[Path, ...]:
        """Writes sweep.png, sweep.json and sweep.html; returns their paths.

        Raises:
            OSError: One cannot be written. What was there is there still, unless a rename failed.
        """
        paths = tuple(Path(folder) / name for name in FILES)
        write_whole({path: self._encoded(path, command) for path in paths})
        return paths

    def _encoded(self, path: Path, command: str | None) -> bytes:
        if path.suffix in (".json", ".html"):
            text = self.to_json() if path.suffix == ".json" else self.to_html(command=command)
            # Bytes of the command line that are no text stand in it as escapes, as JSON has them.
            return (text + "\n").encode("utf-8", "backslashreplace")
        if path.suffix != ".png":
            raise ValueError(f"cannot save a sweep as {path.name!r}; end in .html, .png or .json")
        picture = BytesIO()
        self.picture().save(picture, format="PNG")
        return picture.getvalue()
