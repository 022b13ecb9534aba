"""The same picture without and with the helper, again and again with other settings, as a page asks
for it: the plain picture is kept as long as only the helper's settings change. Knows no page.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from ..compare.contest import CALIBRATION_SEEDS, shortened
from ..errors import UnsupportedModelError
from ..helper import DeepCacheHelper
from ..inspection.branches import Branches
from ..learning.auto import Auto
from ..measuring.generation import Generation, Timing, accepted_arguments, batched_call, generate
from ..measuring.media import picture_of
from ..measuring.similarity import psnr, ssim
from ..running.components import unets_of
from ..schedules.plans import Plan, Schedule, Uniform
from ..settings.by_name import named_schedule
from ..settings.preview import plan_of

#: What a pipeline needs, or makes, that is more than a prompt and numbers in, a picture out. Not
#: all of them are without a default in its signature.
_INPUTS: Final = ("image", "control_image", "mask_image", "video", "conditioning_frames")
_NO_PICTURES: Final = {
    "num_videos_per_prompt": "videos",
    "num_frames": "videos",
    "video_length": "videos",
    "audio_length_in_s": "sound",
}


class StoppedError(Exception):
    """`Trials.stop` was called."""


@dataclass(frozen=True)
class Trial:
    """One picture without and with the helper.

    Attributes:
        plain: Of the plain pipeline.
        cached: Of the same call with the helper.
        plain_time: When the plain one was made, which may have been in an earlier trial.
        cached_time: Of this trial.
        kept: Whether the plain one is of an earlier trial.
        psnr: In dB; infinite for identical pictures.
        ssim: At most 1.
        full_calls: U-Net calls that ran whole.
        shallow_calls: Those that ran only what lies above the branch.
        plan: What ran: for each step `FULL`, or the branch.
    """

    plain: Image.Image
    cached: Image.Image
    plain_time: Timing
    cached_time: Timing
    kept: bool
    psnr: float
    ssim: float
    full_calls: int
    shallow_calls: int
    plan: Plan

    @property
    def speedup(self) -> float:
        """Plain over cached seconds of the denoising loop."""
        return self.plain_time.loop_seconds / self.cached_time.loop_seconds


class Trials:
    """Makes trials of one pipeline, one at a time.

    Args:
        pipe: A pipeline that makes a picture of a prompt, or of nothing.

    Attributes:
        accepted: The arguments that its call names, with their defaults.
        shares: For each branch the work of a shallow call as a part of a full one's, 0 to 1, or
            `None` where it is not known.

    Raises:
        UnsupportedModelError: It needs more than that, makes something else, or has no U-Net that
            can be cut.
    """

    def __init__(self, pipe: Any) -> None:
        name, accepted = type(pipe).__name__, accepted_arguments(pipe)
        for argument, made in _NO_PICTURES.items():
            if argument in accepted:
                raise UnsupportedModelError(f"{name} makes {made}: this is for pictures only")
        for argument in _INPUTS:
            if argument in accepted:
                raise UnsupportedModelError(f"{name} needs {argument}=…: {_ONLY}")
        try:
            batched_call(pipe, {"prompt": ""} if "prompt" in accepted else {}, 1)
        except TypeError as error:
            raise UnsupportedModelError(f"{error}: {_ONLY}") from error
        branches = DeepCacheHelper(pipe).branches
        if not isinstance(branches, Branches):
            raise UnsupportedModelError(f"{name} has several U-Nets: compare it in Python")
        self.accepted = {key: each.default for key, each in accepted.items()}
        self.shares = [each.share for each in branches]
        self._pipe = pipe
        self._unet = next(iter(unets_of(pipe).values()))
        self._plain: tuple[Any, Generation] | None = None
        self._autos: dict[tuple[float, int], Auto] = {}
        self._taught: set[tuple[Auto, Any]] = set()
        self._warm: set[tuple[Any, Any]] = set()
        self._stopping = threading.Event()

    def schedule(self, name: str, **given: Any) -> Any:
        """Returns the schedule of that name; the same `Auto` again, which remembers.

        Raises:
            InvalidSettingError: As `named_schedule` does.
        """
        found = named_schedule(name, **given)
        if isinstance(found, Auto):
            return self._autos.setdefault((found.interval, found.branch), found)
        return found

    def plan(self, schedule: Any, num_inference_steps: int | None) -> Plan | None:
        """Returns the plan of a generation that has not been; `None` where nobody knows.

        Raises:
            InvalidSettingError: The schedule has none for so many steps.
        """
        known = num_inference_steps is not None and isinstance(schedule, Schedule)
        return plan_of(self._pipe, schedule, num_inference_steps) if known else None

    def run(
        self, call: Mapping[str, Any], *, seed: int, schedule: Any, replay: Any = None
    ) -> Trial:
        """Generates with the helper, and without it unless that picture is there already.

        Args:
            call: Arguments of the pipeline's `__call__`.
            seed: Of the picture.
            schedule: See `DeepCacheHelper`.
            replay: Likewise.

        Raises:
            InvalidSettingError: A setting is out of range, or does not go with another.
            TypeError: The pipeline does not know an argument, or returns no pictures.
            StoppedError: `stop` was called.
        """
        helper = DeepCacheHelper(self._pipe, schedule=schedule, replay=replay)
        self.plan(schedule, call.get("num_inference_steps"))
        arguments = batched_call(self._pipe, call, 1)
        self._warm_up(arguments)
        made_for = (dict(call), seed)
        kept = self._plain is not None and self._plain[0] == made_for
        if self._plain is None or not kept:
            self._plain = (made_for, self._generate(arguments, seed, "plain"))
        plain = self._plain[1]
        with helper:
            taught = (schedule, call.get("num_inference_steps"))
            if isinstance(schedule, Auto) and taught not in self._taught:
                self._generate(arguments, seed + CALIBRATION_SEEDS, "calibration")
                self._taught.add(taught)
        with helper:  # counts from here
            cached = self._generate(arguments, seed, "cached")
            stats, ran = helper.stats, [each.plan for each in helper.last_generations.values()]
        pair = plain.pictures[0], cached.pictures[0]
        return Trial(
            plain=picture_of(plain.pictures[0]),
            cached=picture_of(cached.pictures[0]),
            plain_time=plain.timing,
            cached_time=cached.timing,
            kept=kept,
            psnr=psnr(*pair),
            ssim=ssim(*pair),
            full_calls=stats.full_calls,
            shallow_calls=stats.shallow_calls,
            plan=ran[0] if ran else Plan(),
        )

    def stop(self) -> None:
        """Ends a generation that is under way at its next U-Net call; no other can begin."""
        self._stopping.set()

    def _warm_up(self, arguments: Mapping[str, Any]) -> None:
        """The first calls of a process choose kernels and load libraries: no time to compare."""
        size = arguments.get("height"), arguments.get("width")
        if size in self._warm:
            return
        with DeepCacheHelper(self._pipe, schedule=Uniform(2)):
            self._generate(shortened(arguments), 0, "warm-up")
        self._warm.add(size)

    def _generate(self, arguments: Mapping[str, Any], seed: int, label: str) -> Generation:
        def stop_if_asked(*_: Any) -> None:
            if self._stopping.is_set():
                raise StoppedError

        with self._unet.register_forward_pre_hook(stop_if_asked):
            return generate(self._pipe, self._unet, arguments, [seed], label=label)


_ONLY: Final = "a prompt and numbers are all that can be given here"
