"""What a comparison found: the results of both runs, their times, how alike they are and what ran;
as a table, a picture, JSON or a page. How it is made stands in `run`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..measuring.environment import versions
from ..measuring.generation import Timing
from ..measuring.media import Kind, Result, Sound, some_frames
from ..measuring.writing import write_whole
from ..schedules.plans import Plan
from .grid import draw_grid, waveform_differences

#: What `Comparison.save_all` writes.
FILES = ("comparison.png", "comparison.json", "comparison.html")


class Measure(NamedTuple):
    """How alike the results are, by one measure: one value for each."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    digits: int = 4

    @property
    def mean(self) -> float:
        """Of the finite values; infinite only where every result is identical."""
        different = [value for value in self.values if value != float("inf")]
        return statistics.fmean(different) if different else float("inf")

    def text(self, value: float | None = None, *, digits: int | None = None) -> str:
        """A value, by default the mean, as a person reads it."""
        value = self.mean if value is None else value
        if value == float("inf"):
            return "identical"
        return f"{value:.{self.digits if digits is None else digits}f} {self.unit}".rstrip()


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
        named = (
            ("PSNR", self.psnr, "dB", 2),
            ("SSIM", self.ssim, "", 4),
            ("LPIPS", self.lpips, "", 4),
            ("SNR", self.snr, "dB", 2),
        )
        return tuple(
            Measure(name, values, unit, digits)
            for name, values, unit, digits in named
            if values is not None
        )

    @property
    def speedup(self) -> float:
        """Plain over cached seconds of the denoising loop, medians: the main figure."""
        return self._ratio("loop_seconds")

    @property
    def call_speedup(self) -> float:
        """The same for the whole call: text encoder, loop and decoder."""
        return self._ratio("call_seconds")

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

    def grid(self) -> Image.Image:
        """Draws the plain row, the cached row and their amplified difference.

        Of a video three frames, of a sound the waveform.
        """
        plain: list[Any] = list(self.plain)
        cached: list[Any] = list(self.cached)
        headings = self.headings
        differences: tuple[str, list[Image.Image]] | None = None
        if self.kind == "sounds":
            factor, differences_drawn = waveform_differences(plain, cached)
            differences = (f"difference x{factor}", differences_drawn)
            plain, cached = ([sound.waveform() for sound in row] for row in (plain, cached))
        elif self.kind == "videos":
            chosen = [some_frames(video) for video in plain]
            headings = [
                f"{heading}, frame {place + 1}"
                for heading, frames in zip(headings, chosen, strict=True)
                for place in frames
            ]
            plain = [frame for frames in chosen for frame in frames.values()]
            cached = [frame for video in cached for frame in some_frames(video).values()]
        measures = (
            f"{each.name} {each.text(digits=min(each.digits, 3))}" for each in self.measures
        )
        subtitle = " · ".join((f"denoising loop {self.speedup:.2f}x as fast", *measures))
        return draw_grid(
            plain,
            cached,
            title=self.title,
            subtitle=subtitle,
            columns=headings,
            differences=differences,
        )

    def table(self) -> str:
        """Returns the figures as aligned text, without a newline at the end."""
        rows = (("", "plain", "DeepCache", "speedup"), *self.rows())
        lines = [f"{a:<15}{b:>11}{c:>13}{d:>10}".rstrip() for a, b, c, d in rows]
        for name, plan in self.plans.items():
            label = "plan" if len(self.plans) == 1 else f"plan of {name}"
            lines.append(f"{label:<15} {plan}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The table and the picture, for a notebook."""
        picture = b64encode(self._encoded(Path("comparison.png"), {})).decode()
        table = escape(f"{self.title}\n\n{self.table()}")
        return f'<pre>{table}</pre><img alt="" src="data:image/png;base64,{picture}">'

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Returns the figures as text: what, plain, with the helper, speedup."""
        return [
            ("denoising loop", *self._seconds_text("loop_seconds"), f"{self.speedup:.2f}x"),
            ("whole call", *self._seconds_text("call_seconds"), f"{self.call_speedup:.2f}x"),
            ("full calls", str(self.plain_times[0].calls), str(self.full_calls), ""),
            ("shallow calls", "0", str(self.shallow_calls), ""),
            *((each.name, "", each.text(), "") for each in self.measures),
            ("feature cache", "", f"{self.cache_nbytes / 2**20:.2f} MiB", ""),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the results themselves, ready for JSON.

        JSON has no infinity: the PSNR of identical pictures is `None`, and `identical` counts them.
        """
        measured = {each.name.lower(): each for each in self.measures}
        means: dict[str, float | None] = dict.fromkeys(("psnr", "ssim", "lpips", "snr"))
        means |= {name: _finite(each.mean) for name, each in measured.items()}
        each_value = {
            f"{name}_each": [_finite(value) for value in each.values]
            for name, each in measured.items()
        }
        return {
            "versions": versions(),
            **self.about,
            "figures": {
                "kind": self.kind,
                "loop_speedup": self.speedup,
                "call_speedup": self.call_speedup,
                "plain": self._times(self.plain_times),
                "cached": self._times(self.cached_times),
                "full_calls": self.full_calls,
                "shallow_calls": self.shallow_calls,
                "cache_nbytes": self.cache_nbytes,
                "plans": {name: str(plan) for name, plan in self.plans.items()},
                "identical": self.identical,
                **means,
                **each_value,
            },
        }

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

    def _ratio(self, name: str) -> float:
        return _median(self.plain_times, name) / _median(self.cached_times, name)

    def _mean(self, name: str) -> float | None:
        return next((each.mean for each in self.measures if each.name == name), None)

    def _seconds_text(self, name: str) -> tuple[str, str]:
        times = (self.plain_times, self.cached_times)
        plain, cached = (f"{_median(each, name):.3f} s" for each in times)
        return plain, cached

    @staticmethod
    def _times(times: Sequence[Timing]) -> dict[str, Any]:
        return {
            "loop_seconds": _median(times, "loop_seconds"),
            "call_seconds": _median(times, "call_seconds"),
            "loop_seconds_each": [time.loop_seconds for time in times],
            "call_seconds_each": [time.call_seconds for time in times],
            "calls": times[0].calls,
        }


def _median(times: Sequence[Timing], name: str) -> float:
    return float(statistics.median(getattr(time, name) for time in times))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plain(value: Any) -> Any:
    """The value as JSON can say it: keys as text, and numbers that are not finite as well."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
