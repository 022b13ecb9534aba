"""Running a sweep: each setting and fewer steps in turn, from the same seeds, round by round. The
first round makes all results; further ones only time. What comes out is a `Sweep`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from torch import nn

from ..compare.about import about
from ..compare.contest import Contest, Run
from ..compare.fewer import FewerStepsRival
from ..errors import InvalidSettingError
from ..learning.auto import Auto
from ..learning.fingerprint import Fingerprint
from ..measuring.environment import versions
from ..patching.wrappers import unwrapped
from ..running.pipeline.components import modules_of, scheduler_getter, unets_of
from ..running.protocol import Helper
from ..schedules.plans import Plan
from .folder import RowStore
from .outcome import COMPARE, Row, Sweep
from .progress import Progress
from .settings import SweepSetting, require_fitting, require_told_apart, settings_of

#: Whole, because some schedules take no others; `None` is each schedule's own.
INTERVALS: Final = (2, None, 3, 5)

#: Steps of a pipeline that is told none, to foretell how long a run takes.
_USUAL: Final = 50

#: What peft's layers say of theirs, IP-Adapter's processors, and blocks with FreeU.
_OF_ADAPTERS: Final = (
    *("scaling", "active_adapters", "merged_adapters", "disable_adapters", "scale"),
    *("s1", "s2", "b1", "b2"),
)

#: What may differ between two sweeps in one folder.
_OWN: Final = ("repeats", "settings", "loras", "model_files")


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C was pressed in a sweep.

    Attributes:
        sweep: What there is; `None` if no setting was finished.
    """

    def __init__(self, sweep: Sweep | None) -> None:
        super().__init__("the sweep was broken off")
        self.sweep = sweep


def sweep(
    helper: Helper,
    *,
    interval: Any = INTERVALS,
    schedule: Any = "default",
    branch: Any = None,
    seeds: Sequence[int] | None = None,
    repeats: int = 3,
    fewer_steps: bool = True,
    folder: str | os.PathLike[str] | None = None,
    compared_by: str = COMPARE,
    **call: Any,
) -> Sweep:
    """Generates the same results with many settings; see `DeepCacheHelper.sweep`.

    `compared_by` is that of the `Sweep`.

    Raises:
        SweepInterrupted: After Ctrl-C.
    """
    counts = call.get("num_inference_steps")
    settings = settings_of(schedule=schedule, interval=interval, branch=branch, steps=counts)
    steps = sorted({each.steps for each in settings if each.steps is not None})
    if steps:
        call["num_inference_steps"] = steps[-1]
    contest = Contest(helper, call, seeds=seeds, repeats=repeats)
    require_fitting(settings, contest)
    place = None if folder is None else Path(folder)
    if place is not None:
        require_told_apart(settings)
    running = _Running(contest, settings, steps[:-1], fewer_steps, place, compared_by)
    try:
        with contest.held():
            for number in range(repeats):
                running.round(number)
    except BaseException as error:
        found = running.outcome()
        if found is not None and place is not None:
            with suppress(Exception):  # what has happened before says more
                found.save_all(place)
        if isinstance(error, KeyboardInterrupt):
            raise SweepInterrupted(found) from error
        raise
    found = running.outcome()
    if found is None:  # what is asked for is never empty
        raise InvalidSettingError("there is nothing to run")
    if place is not None:
        found.save_all(place)
    return found


class _Running:
    """One sweep on its way."""

    def __init__(
        self,
        contest: Contest,
        settings: Sequence[SweepSetting],
        smaller: Sequence[int],
        fewer_steps: bool,
        folder: Path | None,
        compared_by: str,
    ) -> None:
        self._contest, self._settings, self._fewer_steps = contest, settings, fewer_steps
        self._smaller, self._compared_by = smaller[::-1], compared_by
        self._about = _about(contest, settings)
        # Telling all weights and adapters apart takes a while: only where rows are kept.
        self._rows = RowStore(folder, {} if folder is None else _request(contest, self._about))
        self._schedules: dict[str, Any] = {}
        self._failed: dict[str, str | None] = {}  # why fewer steps failed: the next run tries again
        self._number = 0  # the round
        self._plain: Run | None = None  # of the reference in it
        left = self._left(contest.repeats)
        self._is_restored = not left
        self._progress = Progress(left)

    def round(self, number: int) -> None:
        """Everybody who has run in fewer rounds than these runs once, the reference first."""
        self._number = number
        if not self._left(number + 1):
            return
        if self._plain is None:
            self._contest.warm_up(setting.made() for setting in self._settings)
        with self._progress.of(*self._weight(None)) as label:
            plain = self._plain = self._contest.plain(label=label)
        self._keep(None, self._contest.steps, plain)
        for steps in self._smaller:
            self._plain_with(steps)
        # Back and forth: what drifts within a round favours nobody.
        for setting in self._settings[:: -1 if number % 2 else 1]:
            row = self._row(setting)
            if row is None or len(row.times) <= number:
                row = self._cached_with(setting)
            if self._fewer_steps:
                self._rival(setting, row)

    def outcome(self) -> Sweep | None:
        """What there is; `None` before the first setting is finished."""
        plain = self._row(None, self._contest.steps)
        rows = [row for each in self._settings if (row := self._row(each)) is not None]
        if plain is None or not rows:
            return None
        for place, row in enumerate(rows):
            if row.setting is not None and row.setting.key in self._failed:
                rows[place] = replace(row, fewer_left_out=self._failed[row.setting.key])
        steps = {row.fewer for row in rows if self._fewer_steps} | {*self._smaller}
        fewer = (self._row(None, each) for each in sorted(filter(None, steps), reverse=True))
        made = tuple(filter(None, fewer))
        return Sweep(plain, tuple(rows), made, self._about, self._is_restored, self._compared_by)

    def _cached_with(self, setting: SweepSetting) -> Row:
        contest, key = self._contest, setting.key
        is_new = key not in self._schedules
        if is_new:
            self._schedules[key] = setting.made(self._rows.file(key))
        schedule = self._schedules[key]
        contest.helper.follow(schedule)
        with self._progress.of(*self._weight(setting)) as label:
            # One that was given may have learned from something else.
            taught = isinstance(schedule, Auto) and schedule.learned and setting.given is None
            if is_new and not taught and contest.learns(schedule, setting.steps):
                contest.learn(setting.steps, f"calibration of {label}")
            run = contest.cached(setting.steps, label)
        return self._keep(setting, setting.steps or contest.steps, run)

    def _rival(self, setting: SweepSetting, row: Row) -> None:
        """Runs fewer steps at equal work, if nobody has in this round; says how many they are."""
        if row.fewer is not None:
            self._plain_with(row.fewer)
        elif (row.fewer_left_out or self._failed.get(setting.key)) is None and self._plain:
            fewer = FewerStepsRival(self._contest, self._plain_with)
            fewer.follow(self._plain.time, row.worth)
            if fewer.failed:
                self._failed[setting.key] = fewer.left_out
                return
            steps = fewer.steps if fewer.runs else None
            self._rows.keep(setting.key, replace(row, fewer=steps, fewer_left_out=fewer.left_out))

    def _plain_with(self, steps: int, _label: str = "") -> Row:
        row = self._row(None, steps)
        if row is not None and len(row.times) > self._number:
            return row
        with self._progress.of(f"plain, {steps} steps", steps) as label:
            run = self._contest.plain(steps, label)
        return self._keep(None, steps, run)

    def _keep(self, setting: SweepSetting | None, steps: Any, run: Run) -> Row:
        """Adds a run to its row, or makes the row of it."""
        contest, plain = self._contest, self._plain or run
        row = self._row(setting, steps)
        if row is None:
            measured: Any = contest.measured(plain.made, run.made)
            row = Row(
                setting=setting,
                steps=steps,
                results=run.made.shown(),
                times=(),
                plain_times=(),
                worth=run.work,
                reference_calls=plain.time.calls,
                full_calls=run.stats.full_calls,
                shallow_calls=run.stats.shallow_calls,
                plan=next(iter(run.plans.values()), Plan()),
                **measured,
            )
        if len(row.times) <= self._number:
            times, plains = (*row.times, run.time), (*row.plain_times, plain.time)
            row = replace(row, times=times, plain_times=plains)
            self._rows.keep(self._key(setting, steps), row)
        return row

    def _row(self, setting: SweepSetting | None, steps: Any = None) -> Row | None:
        """The row of a setting, or of the plain pipeline; `None` before it ran."""
        return self._rows.restored(self._key(setting, steps), setting)

    def _key(self, setting: SweepSetting | None, steps: Any) -> str:
        if setting is not None:
            return setting.key
        return "plain" if steps == self._contest.steps else f"plain-{steps}-steps"

    def _left(self, rounds: int) -> float:
        """The steps that are still to be run in so many rounds, as far as that can be told."""
        left, most = 0.0, 0

        def add(row: Row | None, weight: float) -> None:
            nonlocal left, most
            due = max(0, rounds - (0 if row is None else len(row.times)))
            left, most = left + due * weight, max(most, due)

        for setting in self._settings:
            row, (_, weight) = self._row(setting), self._weight(setting)
            add(row, weight)
            if row is None and self._contest.learns(setting.made(), setting.steps):
                left += self._weight(None)[1]
            if self._fewer_steps and (row is None or row.fewer_left_out is None):
                known = None if row is None or row.fewer is None else self._row(None, row.fewer)
                add(known, weight)
        for steps in self._smaller:
            add(self._row(None, steps), steps)
        if self._row(None, self._contest.steps) is None:
            most = max(most, 1)
        return left + most * self._weight(None)[1]

    def _weight(self, setting: SweepSetting | None) -> tuple[str, float]:
        """What is said of a run, and about how many full steps it has."""
        steps = self._contest.steps if setting is None else setting.steps
        named = "plain" if setting is None else setting.name
        count = steps if isinstance(steps, int) else _USUAL
        interval = 1 if setting is None else setting.interval or 2
        return named if steps is None else f"{named}, {steps} steps", count / interval


def _about(contest: Contest, settings: Sequence[SweepSetting]) -> dict[str, Any]:
    device = getattr(contest.pipe, "_execution_device", None) or contest.pipe.device
    replay = str(contest.helper.replay)
    return {**about(contest, device), "replay": replay, "settings": len(settings)}


def _request(contest: Contest, told: Mapping[str, Any]) -> dict[str, Any]:
    """All that rows of one folder have in common."""
    shared = {name: value for name, value in told.items() if name not in _OWN}
    weights, adapters, schedulers = {}, {}, {}
    for name, part in modules_of(contest.pipe).items():
        found = Fingerprint.of(unwrapped(part))
        weights[name] = None if found is None else found.to_dict()
        adapters[name] = adapters_of(part)
    for name in unets_of(contest.pipe):
        # What begins with _ is the loading's own, in part in an order that each process draws.
        schedulers[name] = [
            {key: value for key, value in each.config.items() if not key.startswith("_")}
            for each in scheduler_getter(contest.pipe, name)()
        ]
    # PAG's own processors stand in the U-Net during a call only.
    pag = getattr(contest.pipe, "pag_applied_layers", None)
    known = {
        "weights": weights,
        "adapters": adapters,
        "PAG's layers": pag,
        "scheduler settings": schedulers,
    }
    # The call itself: the name of a picture's file does not say what the picture is.
    return {**shared, "call": contest.call, **known, **versions()}


def adapters_of(part: nn.Module) -> str:
    """A digest of what stands beside a network's weights: LoRAs, their scales, IP-Adapters, FreeU,
    and the kinds of attention processors.
    """
    digest = sha256()
    for module in part.modules():
        processor = getattr(module, "processor", None)
        kind = getattr(processor, "__name__", type(processor).__name__)  # it may be a function
        told = [getattr(module, name, None) for name in _OF_ADAPTERS]
        digest.update(repr([*told, kind]).encode())
    for name, parameter in part.named_parameters():
        beside = "lora_" in name or ".processor." in name
        if beside and not parameter.is_meta:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
