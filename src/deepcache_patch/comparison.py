"""A/B comparison: the same pictures without and with the helper, what differs and what it cost.
`compare` runs the pipeline; `Comparison` holds the outcome and turns it into a table, a picture or
JSON. How a command line or a notebook asks for one is no business of this file.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .auto import Auto
from .environment import device_name, versions
from .generation import Timing, accepted_arguments, batched_call, generate
from .grid import draw_grid
from .schedule import Uniform
from .similarity import psnr, require_metrics, ssim
from .writing import write_whole

if TYPE_CHECKING:
    from .helper import DeepCacheHelper

#: What `Comparison.save_both` writes.
FILES = ("comparison.png", "comparison.json")
#: With one of these, the number of steps is not `num_inference_steps` alone.
_STEP_ARGUMENTS = ("strength", "timesteps", "sigmas", "denoising_start", "denoising_end")
#: Enough for a full and a shallow step, whatever the interval, and for multistep solvers.
_WARM_UP_STEPS = 4
#: What a calibration's seeds are apart from those of the comparison.
_CALIBRATION_SEEDS = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """The same seeds without and with the helper.

    Attributes:
        plain: Pictures of the plain pipeline, one for each seed.
        cached: The same with the helper.
        plain_times: One for each repeat, in order.
        cached_times: One for each repeat, each taken right after its plain counterpart.
        psnr: For each picture, dB against the plain one; infinite where both are identical.
        ssim: For each picture, 1 where both are identical.
        full_calls: U-Net calls of one cached generation that ran whole.
        shallow_calls: Those that ran only what lies above the branch.
        cache_nbytes: Largest size of the feature cache, in bytes.
        about: Model, pipeline, scheduler, device, dtype, steps, schedule, seeds, repeats and the
            arguments of the call.
    """

    plain: tuple[Image.Image, ...]
    cached: tuple[Image.Image, ...]
    plain_times: tuple[Timing, ...]
    cached_times: tuple[Timing, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    full_calls: int
    shallow_calls: int
    cache_nbytes: int
    about: Mapping[str, Any]

    @property
    def speedup(self) -> float:
        """Plain over cached seconds of the denoising loop, medians: the main figure."""
        return self._ratio("loop_seconds")

    @property
    def call_speedup(self) -> float:
        """The same for the whole call: text encoder, loop and image decoder."""
        return self._ratio("call_seconds")

    @property
    def identical(self) -> int:
        """The number of pictures that the helper did not change."""
        return sum(value == float("inf") for value in self.psnr)

    @property
    def mean_psnr(self) -> float:
        """Mean of the finite `psnr`; infinite only where every picture is identical."""
        different = [value for value in self.psnr if value != float("inf")]
        return statistics.fmean(different) if different else float("inf")

    @property
    def mean_ssim(self) -> float:
        """Mean of `ssim`."""
        return statistics.fmean(self.ssim)

    def grid(self) -> Image.Image:
        """Draws the plain row, the cached row and their amplified difference."""
        about = self.about
        title = f"{_short(about['model'])} · {about['steps']} steps · {about['scheduler']}"
        if about["interval"] is None:
            title += f" · {about['schedule']}"
        else:
            title += f" · interval {about['interval']}, branch {about['branch']}"
        subtitle = (
            f"denoising loop {self.speedup:.2f}x as fast · PSNR {self._psnr_text()} · "
            f"SSIM {self.mean_ssim:.3f}"
        )
        prompts = about["call"].get("prompt")
        if not isinstance(prompts, list) or len(prompts) != len(self.plain):
            prompts = [f"seed {seed}" for seed in about["seeds"]]
        return draw_grid(self.plain, self.cached, title=title, subtitle=subtitle, columns=prompts)

    def table(self) -> str:
        """Returns the figures as aligned text, without a newline at the end."""
        mib = f"{self.cache_nbytes / 2**20:.2f} MiB"
        calls = self.plain_times[0].calls
        rows = [
            ("", "plain", "DeepCache", "speedup"),
            ("denoising loop", *self._seconds_text("loop_seconds"), f"{self.speedup:.2f}x"),
            ("whole call", *self._seconds_text("call_seconds"), f"{self.call_speedup:.2f}x"),
            ("full steps", str(calls), str(self.full_calls), ""),
            ("shallow steps", "0", str(self.shallow_calls), ""),
            ("PSNR", "", self._psnr_text(), ""),
            ("SSIM", "", f"{self.mean_ssim:.4f}", ""),
            ("feature cache", "", mib, ""),
        ]
        lines = (f"{a:<15}{b:>11}{c:>13}{d:>10}".rstrip() for a, b, c, d in rows)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pictures, ready for JSON.

        JSON has no infinity: the PSNR of identical pictures is `None`, and `identical` counts them.
        """
        return {
            "versions": versions(),
            **self.about,
            "figures": {
                "loop_speedup": self.speedup,
                "call_speedup": self.call_speedup,
                "plain": self._times(self.plain_times),
                "cached": self._times(self.cached_times),
                "full_calls": self.full_calls,
                "shallow_calls": self.shallow_calls,
                "cache_nbytes": self.cache_nbytes,
                "identical": self.identical,
                "psnr": _finite(self.mean_psnr),
                "ssim": _finite(self.mean_ssim),
                "psnr_each": [_finite(value) for value in self.psnr],
                "ssim_each": [_finite(value) for value in self.ssim],
            },
        }

    def to_json(self, **more: Any) -> str:
        """Returns `to_dict()` as indented JSON, after the entries of `more`."""
        whole = {**more, **self.to_dict()}
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False, default=str)

    def save(self, path: str | os.PathLike[str], **more: Any) -> Path:
        """Writes the picture (.png) or the figures (.json; `more` as for `to_json`).

        The file is written beside and then renamed: it is there whole or not at all.

        Raises:
            ValueError: Another suffix.
            OSError: It cannot be written. What was there is there still.
        """
        path = Path(path)
        write_whole({path: self._encoded(path, more)})
        return path

    def save_both(self, folder: str | os.PathLike[str], **more: Any) -> Path:
        """Writes comparison.png and comparison.json, and returns the former's path.

        Raises:
            OSError: One cannot be written. What was there is there still, unless a rename failed.
        """
        paths = [Path(folder) / name for name in FILES]
        write_whole({path: self._encoded(path, more) for path in paths})
        return paths[0]

    def _encoded(self, path: Path, more: Mapping[str, Any]) -> bytes:
        if path.suffix == ".json":
            # Bytes of the command line that are no text stand in it as escapes, as JSON has them.
            return (self.to_json(**more) + "\n").encode("utf-8", "backslashreplace")
        if path.suffix != ".png":
            raise ValueError(f"cannot save a comparison as {path.name!r}; end in .png or .json")
        picture = BytesIO()
        self.grid().save(picture, format="PNG")
        return picture.getvalue()

    def _ratio(self, name: str) -> float:
        return _median(self.plain_times, name) / _median(self.cached_times, name)

    def _seconds_text(self, name: str) -> tuple[str, str]:
        times = (self.plain_times, self.cached_times)
        plain, cached = (f"{_median(each, name):.3f} s" for each in times)
        return plain, cached

    def _psnr_text(self) -> str:
        if self.identical == len(self.psnr):
            return "identical"
        return f"{self.mean_psnr:.2f} dB"

    @staticmethod
    def _times(times: Sequence[Timing]) -> dict[str, Any]:
        return {
            "loop_seconds": _median(times, "loop_seconds"),
            "call_seconds": _median(times, "call_seconds"),
            "loop_seconds_each": [time.loop_seconds for time in times],
            "call_seconds_each": [time.call_seconds for time in times],
            "calls": times[0].calls,
        }


def compare(
    pipe: Any,
    helper: DeepCacheHelper,
    *,
    seeds: Sequence[int] = (0,),
    repeats: int = 1,
    **call: Any,
) -> Comparison:
    """Generates the same pictures without and with `helper`, after a short warm-up.

    With `schedule="auto"` the calibration comes first, from other seeds. All pictures are one
    batch. The helper is left enabled or disabled as it was found.

    Args:
        pipe: A pipeline whose output has `.images`.
        helper: A helper of this pipeline.
        seeds: One for each picture; several prompts share them out evenly, in order.
        repeats: Timed runs of each kind, taken in turn; the figures are their medians. The
            pictures are those of the first.
        call: Arguments of the pipeline's `__call__`, such as `prompt` or `num_inference_steps`.

    Raises:
        ImportError: scikit-image is not installed.
        TypeError: An argument that this pipeline does not know, or one that it lacks; or it has no
            `unet`, or returns no pictures.
        ValueError: No seeds, `repeats` below 1, or a number of seeds that the prompts do not share.

    Example:
        >>> outcome = compare(pipe, DeepCacheHelper(pipe), prompt="a fox", seeds=range(4))
        >>> print(outcome.table())
        >>> outcome.grid().save("foxes.png")
    """
    require_metrics()
    seeds = tuple(seeds)
    if not seeds:
        raise ValueError("seeds is empty: give one seed for each picture")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: at least 1 run of each kind is needed")
    arguments = batched_call(pipe, call, len(seeds))
    denoiser = getattr(pipe, "unet", None)
    if denoiser is None:
        raise TypeError(f"{type(pipe).__name__} has no pipe.unet, whose calls could be timed")
    plain, cached = [], []
    was_enabled, schedule = helper.enabled, helper.schedule
    try:
        helper.enable()
        branch = min(getattr(schedule, "branches", ()), default=0)
        helper.follow(Uniform(2, branch))  # one that does not mind how few steps there are
        generate(pipe, denoiser, _shortened(arguments), seeds, label="warm-up")
        helper.follow(schedule)
        if isinstance(schedule, Auto):  # its first generation runs in full, to learn
            others = [seed + _CALIBRATION_SEEDS for seed in seeds]
            generate(pipe, denoiser, arguments, others, label="calibration")
        for _ in range(repeats):
            helper.disable()
            plain.append(generate(pipe, denoiser, arguments, seeds, label="plain"))
            helper.enable()  # counts from here: its stats are those of this run alone
            cached.append(generate(pipe, denoiser, arguments, seeds, label="cached"))
            stats = helper.stats
    finally:
        helper.follow(schedule)
        if was_enabled:
            helper.enable()
        else:
            helper.disable()

    pairs = list(zip(plain[0].pictures, cached[0].pictures, strict=True))
    about = {
        "model": getattr(pipe, "name_or_path", None) or type(pipe).__name__,
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__.removesuffix("Scheduler"),
        "device": {"type": str(plain[0].device), "name": device_name(plain[0].device)},
        "dtype": str(getattr(denoiser, "dtype", "unknown")).removeprefix("torch."),
        "steps": _steps(pipe, call),
        "interval": getattr(helper.schedule, "interval", None),
        "branch": getattr(helper.schedule, "branch", None),
        "schedule": str(helper.schedule),
        "seeds": list(seeds),
        "repeats": repeats,
        "call": dict(call),
    }
    return Comparison(
        plain=tuple(_picture(each) for each in plain[0].pictures),
        cached=tuple(_picture(each) for each in cached[0].pictures),
        plain_times=tuple(each.timing for each in plain),
        cached_times=tuple(each.timing for each in cached),
        psnr=tuple(psnr(*pair) for pair in pairs),
        ssim=tuple(ssim(*pair) for pair in pairs),
        full_calls=stats.full_calls,
        shallow_calls=stats.shallow_calls,
        cache_nbytes=stats.cache_nbytes,
        about=about,
    )


def _shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the warm-up: few steps, where their number is told plainly."""
    short = dict(arguments)
    if "num_inference_steps" in short and not any(name in short for name in _STEP_ARGUMENTS):
        short["num_inference_steps"] = min(short["num_inference_steps"], _WARM_UP_STEPS)
    return short


def _steps(pipe: Any, call: Mapping[str, Any]) -> Any:
    parameter = accepted_arguments(pipe).get("num_inference_steps")
    return call.get("num_inference_steps", parameter.default if parameter else None)


def _picture(floats: np.ndarray) -> Image.Image:
    """Rounds a float picture to 8 bits, in RGB."""
    eight_bits = (np.nan_to_num(floats) * 255).round().astype(np.uint8)
    return Image.fromarray(eight_bits.squeeze(-1) if floats.shape[-1] == 1 else eight_bits).convert(
        "RGB"
    )


def _median(times: Sequence[Timing], name: str) -> float:
    return float(statistics.median(getattr(time, name) for time in times))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _short(model: str) -> str:
    """A folder's own name, or a hub id as it is."""
    return Path(model).resolve().name if Path(model).is_dir() else model
