"""What a comparison found: the results of both runs, their times, how alike they are and what ran;
as a table, a picture, JSON or a page. How it is made stands in `run`.
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..measuring.environment import versions
from ..measuring.generation import Timing
from ..measuring.media import Kind, Result, Sound
from ..measuring.writing import write_whole
from ..schedules.plans import Plan, place_of
from .fewer import FewerSteps
from .figures import figures_of, looks_lines, notes, rows_of, speedup, summary, verdict
from .grid import picture_of
from .measures import Measure, looks_of, measures_of

#: What `Comparison.save_all` writes.
FILES = ("comparison.png", "comparison.json", "comparison.html")


@dataclass(frozen=True)
class Comparison:
    """The same seeds without and with the helper.

    Attributes:
        plain: What the plain pipeline made, one result for each seed: a picture, the frames of a
            video, or a `Sound`.
        cached: The same with the helper.
        plain_times: One for each repeat, in order.
        cached_times: One for each repeat, each taken right after its plain counterpart.
        psnr: For each picture, dB against the plain one; infinite where both are identical. For
            each video, the mean over its frames. `None` for sounds.
        ssim: Likewise; 1 where both are identical.
        full_calls: U-Net calls of one cached generation that ran whole.
        shallow_calls: Those that ran only what lies above the branch.
        cache_nbytes: Largest size of the feature cache, in bytes.
        about: Model, pipeline, scheduler, device, dtype, steps, schedule, replay, seeds, repeats
            and the arguments of the call.
        lpips: As `psnr`; 0 where both are identical. `None` for sounds, for pictures narrower than
            32 pixels, and where the package `lpips` is not installed.
        snr: For each sound, the ratio of signal to noise in dB; else `None`.
        plans: What ran in the last cached generation, for each U-Net by its name in the pipeline.
        work: Of the U-Net with the helper, in multiply-adds, as a share of that of the plain one,
            0 to 1. `None` where it is not known: for several U-Nets, and for some that are not
            diffusers' own.
        fewer: The plain pipeline with fewer steps at equal work, or `None`.
        fewer_left_out: Why there is no `fewer`, if it was asked for.
    """

    plain: tuple[Result, ...]
    cached: tuple[Result, ...]
    plain_times: tuple[Timing, ...]
    cached_times: tuple[Timing, ...]
    psnr: tuple[float, ...] | None
    ssim: tuple[float, ...] | None
    full_calls: int
    shallow_calls: int
    cache_nbytes: int
    about: Mapping[str, Any]
    lpips: tuple[float, ...] | None = None
    snr: tuple[float, ...] | None = None
    plans: Mapping[str, Plan] = field(default_factory=dict)
    work: float | None = None
    fewer: FewerSteps | None = None
    fewer_left_out: str | None = None

    @property
    def kind(self) -> Kind:
        """What was made: "pictures", "videos" or "sounds"."""
        if isinstance(self.plain[0], Sound):
            return "sounds"
        return "pictures" if isinstance(self.plain[0], Image.Image) else "videos"

    @property
    def plan(self) -> Plan:
        """What ran, of the first U-Net: one entry for each step."""
        return next(iter(self.plans.values()), Plan())

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that there are, of PSNR, SSIM, LPIPS and SNR."""
        return measures_of((self.psnr, self.ssim, self.lpips, self.snr))

    @property
    def speedup(self) -> float:
        """Plain over cached seconds of the denoising loop, medians: the main figure."""
        return speedup(self.plain_times, self.cached_times, "loop_seconds")

    @property
    def call_speedup(self) -> float:
        """The same for the whole call: text encoder, loop and decoder."""
        return speedup(self.plain_times, self.cached_times, "call_seconds")

    @property
    def work_speedup(self) -> float | None:
        """The most that the saved work allows for `speedup`: 1 / `work`."""
        return None if self.work is None else 1 / self.work

    @property
    def verdict(self) -> str | None:
        """Fewer steps and the helper in one line, or why there are no fewer steps; or `None`."""
        return verdict(self)

    @property
    def looks(self) -> str | None:
        """The verdict on the helper's results in words; `None` for sounds.

        "no visible difference": all have at least 40 dB and SSIM 0.98. "shapes differ": one has
        less than 25 dB or SSIM 0.90. "details move": all else. A video counts by the means over its
        frames. The limits are a convention of this package; see `measures.looks_of`.
        """
        return looks_of(self.measures)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how far the speeds are to be trusted; none where nothing speaks against it.

        Of one repeat: that it proves little. Of several: that the denoising loops of one contestant
        differ by more than 20 %, and that a speed is more than 20 % above what the work allows.
        """
        return notes(self)

    @property
    def identical(self) -> int:
        """The number of results that the helper did not change."""
        return sum(value == float("inf") for value in self.measures[0].values)

    @property
    def mean_psnr(self) -> float | None:
        """Mean of the finite `psnr`; infinite only where every picture is identical."""
        return self._mean("PSNR")

    @property
    def mean_ssim(self) -> float | None:
        """Mean of `ssim`."""
        return self._mean("SSIM")

    @property
    def model(self) -> str:
        """The name of the model's folder, or its hub id."""
        model = str(self.about["model"])
        return Path(model).resolve().name if Path(model).is_dir() else model

    @property
    def title(self) -> str:
        """`model` and `setting` in one line."""
        return f"{self.model} · {self.setting}"

    @property
    def setting(self) -> str:
        """Steps, scheduler and schedule in one line."""
        about = self.about
        steps = "" if about["steps"] is None else f"{about['steps']} steps"
        schedule = about["schedule"]
        if schedule.startswith("Uniform("):
            schedule = f"interval {about['interval']}, branch {about['branch']}"
        if schedule.startswith("NoiseAware("):
            schedule = f"noise-aware, interval {about['interval']:g}, {place_of(about['branch'])}"
        if about["replay"] == "Reuse()":  # the other one is the default
            schedule += ", reuse"
        return " · ".join(part for part in (steps, about["scheduler"], schedule) if part)

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

    @property
    def numbered(self) -> list[str]:
        """`headings` with the numbers by which the worst is named, "#4 seed 3"; of one, without."""
        if len(self.headings) == 1:
            return self.headings
        return [f"#{number} {heading}" for number, heading in enumerate(self.headings, 1)]

    def grid(self) -> Image.Image:
        """Draws a row for each contestant, and after each the amplified difference to plain.

        Differences of pixels are amplified 8 times in every comparison, those of sounds as far as
        they fit. Of a video three frames, of a sound the waveform.
        """
        return picture_of(self)

    def table(self) -> str:
        """Returns the figures as aligned text, without a newline at the end."""
        rows = (("", *self.columns), *self.rows())
        wide = max(13, *(2 + len(each) for _, _, *others in rows for each in others))
        lines = [
            f"{name:<15}{plain:>11}" + "".join(f"{each:>{wide}}" for each in others)
            for name, plain, *others in rows
        ]
        said = [*looks_lines(self), *([self.verdict] if self.verdict else []), *self.notes]
        lines += ["", *said, *([""] if self.plans else [])] if said else []
        for name, plan in self.plans.items():
            label = "plan" if len(self.plans) == 1 else f"plan of {name}"
            lines.append(f"{label:<15} {plan}")
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return summary(self)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The table and the picture, for a notebook."""
        picture = b64encode(self._encoded(Path("comparison.png"), {})).decode()
        table = escape(f"{self.title}\n\n{self.table()}")
        return f'<pre>{table}</pre><img alt="" src="data:image/png;base64,{picture}">'

    @property
    def columns(self) -> tuple[str, ...]:
        """The contestants: "plain", "DeepCache", and the fewer steps if there are any."""
        return ("plain", "DeepCache", *((self.fewer.name,) if self.fewer else ()))

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the figures as text: what, and the value of each of `columns`."""
        return rows_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the results themselves, ready for JSON.

        JSON has no infinity: the PSNR of identical pictures is `None`, and `identical` counts them.
        """
        return {"versions": versions(), **self.about, "figures": figures_of(self)}

    def to_json(self, **more: Any) -> str:
        """Returns `to_dict()` as indented JSON, after the entries of `more`."""
        whole = _plain({**more, **self.to_dict()})
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False, default=str)

    def to_html(self, *, command: str | None = None) -> str:
        """Returns one page that needs nothing else: the results under sliders, and the figures.

        Args:
            command: The command line that made the comparison, to be shown.
        """
        from .report import page  # only it needs jinja2

        return page(self, command=command)

    def save(self, path: str | os.PathLike[str], **more: Any) -> Path:
        """Writes the page (.html), the picture (.png) or the figures (.json), by the suffix.

        The file is written beside and then renamed: it is there whole or not at all.

        Args:
            path: Of the file; its folder has to be there.
            more: As for `to_html` and `to_json`.

        Raises:
            ValueError: Another suffix.
            OSError: It cannot be written. What was there is there still.
        """
        path = Path(path)
        write_whole({path: self._encoded(path, more)})
        return path

    def save_all(self, folder: str | os.PathLike[str], **more: Any) -> tuple[Path, ...]:
        """Writes comparison.png, comparison.json and comparison.html; returns their paths.

        Raises:
            OSError: One cannot be written. What was there is there still, unless a rename failed.
        """
        paths = tuple(Path(folder) / name for name in FILES)
        write_whole({path: self._encoded(path, more) for path in paths})
        return paths

    def _encoded(self, path: Path, more: Mapping[str, Any]) -> bytes:
        if path.suffix in (".json", ".html"):
            text = self.to_json(**more) if path.suffix == ".json" else self.to_html(**more)
            # Bytes of the command line that are no text stand in it as escapes, as JSON has them.
            return (text + "\n").encode("utf-8", "backslashreplace")
        if path.suffix != ".png":
            raise ValueError(
                f"cannot save a comparison as {path.name!r}; end in .html, .png or .json"
            )
        picture = BytesIO()
        self.grid().save(picture, format="PNG")
        return picture.getvalue()

    def _mean(self, name: str) -> float | None:
        return next((each.mean for each in self.measures if each.name == name), None)


def _plain(value: Any) -> Any:
    """The value as JSON can say it: keys as text, and numbers that are not finite as well."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
