"""The same picture without and with the helper, again and again with other settings, as a page asks
for it: the plain picture is kept as long as only the helper's settings change. Knows no page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from threading import Event
from typing import Any, Final, TypeAlias

from ..compare.contest import Contest, Run, branches_to_warm, shortened
from ..compare.outcome import Comparison
from ..compare.run import compared
from ..errors import UnsupportedModelError
from ..helper import DeepCacheHelper
from ..inspection.branches import Branches
from ..learning.auto import Auto
from ..measuring.generation import accepted_arguments, batched_call
from ..schedules.guide import plans_ahead
from ..schedules.plans import Plan
from ..settings.by_name import named_schedule
from ..settings.preview import num_steps, plan_of
from .watch import watched

#: What a pipeline needs, or makes, that is more than a prompt and numbers in, a picture out. Not
#: all of them are without a default in its signature.
_INPUTS: Final = ("image", "control_image", "mask_image", "video", "conditioning_frames")
_NO_PICTURES: Final = {
    "num_videos_per_prompt": "videos",
    "num_frames": "videos",
    "video_length": "videos",
    "audio_length_in_s": "sound",
}


#: Called with what is being made, the step that is done, and how many there are, if that is known.
OnStep: TypeAlias = Callable[[str, int, int | None], None]


class Runner:
    """Makes tries of one pipeline, one at a time.

    Args:
        pipe: A pipeline that makes a picture of a prompt, or of nothing.

    Attributes:
        pipe: The pipeline.
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
        self.pipe = pipe
        self._closed = Event()
        self._plains: dict[Any, Run] = {}
        self._autos: dict[tuple[float, int], Auto] = {}
        self._taught: set[tuple[Auto, Any]] = set()
        self._warm: set[tuple[Any, Any, tuple[int, ...]]] = set()
        self._calls_of_a_step = 1.0

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
        known = num_inference_steps is not None and plans_ahead(schedule)
        return plan_of(self.pipe, schedule, num_inference_steps) if known else None

    def run(
        self,
        call: Mapping[str, Any],
        *,
        seed: int,
        schedule: Any,
        replay: Any = None,
        schedule_file: str | None = None,
        told: OnStep = lambda *_: None,
        stop: Event | None = None,
    ) -> tuple[Comparison, bool]:
        """Generates with the helper, and without it unless that picture is there already.

        Args:
            call: Arguments of the pipeline's `__call__`.
            seed: The seed of the picture.
            schedule: See `DeepCacheHelper`.
            replay: See `DeepCacheHelper`.
            schedule_file: Where the schedule was read, which the comparison's `about` says then.
            told: Is called after each step of "warm-up", "plain", "calibration" and "helper".
            stop: Once it is set, the try ends at the next block of a network.

        Returns:
            The comparison of the two, one picture of each; and whether the plain one is of an
            earlier try, and so are its times.

        Raises:
            InvalidSettingError: A setting is out of range, or does not go with another.
            TypeError: The pipeline does not know an argument, or returns no pictures.
            StoppedError: `stop` is set. What was made before is kept.
        """
        stops = [self._closed, *([] if stop is None else [stop])]

        @contextmanager
        def watch(label: str) -> Iterator[None]:
            steps = self._steps(shortened(call) if label == "warm-up" else call)
            calls = 0

            def seen() -> None:
                nonlocal calls
                calls += 1
                done = ceil(calls / self._calls_of_a_step)
                told(label, done if steps is None else min(done, steps), steps)

            with watched(self.pipe, seen, lambda: any(each.is_set() for each in stops)):
                yield
            if label == "warm-up":
                self._calls_of_a_step = calls / (steps or calls)

        helper = DeepCacheHelper(self.pipe, schedule=schedule, replay=replay)
        self.plan(schedule, call.get("num_inference_steps"))
        # Without LPIPS: its network would be built, and its weights looked for, at each try.
        contest = Contest(helper, call, seeds=[seed], repeats=1, watch=watch, with_lpips=False)
        # Of another size, or at another branch, a U-Net has kernels of its own to choose.
        warm_for = (call.get("height"), call.get("width"), branches_to_warm([schedule]))
        made_for = (tuple(call.items()), seed)
        taught = (schedule, call.get("num_inference_steps"))
        kept = made_for in self._plains
        with contest.held():
            # The first calls of a process choose kernels and load libraries: no time to compare.
            if warm_for not in self._warm:
                contest.warm_up([schedule])
                self._warm.add(warm_for)
            if not kept:
                self._plains[made_for] = contest.plain()
                while len(self._plains) > _MOST_PLAINS:
                    del self._plains[next(iter(self._plains))]
            if contest.learns(schedule) and taught not in self._taught:
                contest.learn()
                self._taught.add(taught)
            cached = contest.cached()
        made = compared(contest, [self._plains[made_for]], [cached])
        if schedule_file is not None:
            made = replace(made, about={**made.about, "schedule_file": schedule_file})
        return made, kept

    def close(self) -> None:
        """Ends a try that is under way, and each one that is begun."""
        self._closed.set()

    def _steps(self, arguments: Mapping[str, Any]) -> int | None:
        given = arguments.get("num_inference_steps", self.accepted.get("num_inference_steps"))
        return num_steps(self.pipe, given if isinstance(given, int) else None)


#: Plain pictures that are kept, so that a try that is brought back is varied without waiting.
_MOST_PLAINS: Final = 8
_ONLY: Final = "a prompt and numbers are all that can be given here"
