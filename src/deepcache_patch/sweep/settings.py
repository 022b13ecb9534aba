"""`SweepSetting`: one point of a sweep. Which ones are asked for, whether each fits the pipeline,
and how each is written as options of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from ..compare.call_steps import LISTS, pythons, require_same_steps
from ..compare.contest import Contest
from ..errors import InvalidSettingError, no_such
from ..learning.auto import Auto
from ..learning.calibrated_schedule import Calibrated
from ..schedules.adaptive import Adaptive
from ..schedules.noise_aware import NoiseAware
from ..schedules.placing import FEW_STEPS
from ..schedules.plans import FULL, Schedule, whole_number
from ..schedules.replay import Extrapolate
from ..settings.by_name import DEFAULT, NOISE_AWARE, PARAMETERS, replay_of, schedule_of
from ..settings.fitting import anatomies_for


@dataclass(frozen=True)
class SweepSetting:
    """One setting of the helper, and a number of steps.

    Attributes:
        schedule: Its name; of a file, the path; of an object, what it is printed as, with a number
            where another one before it is printed alike.
        interval: One that is not given is the schedule's own; `None` for a file or an object.
        branch: `None` for the schedule's own.
        steps: `num_inference_steps`; `None` for the pipeline's own number.
        given: The schedule itself, where it is a file or an object.
        file: Its path, where it is a file.
    """

    schedule: str = NOISE_AWARE
    interval: float | None = None
    branch: int | None = None
    steps: int | None = None
    given: Any = None
    file: str | None = None

    @property
    def name(self) -> str:
        """What it is called, without its steps: "auto, interval 2.2"."""
        words = [] if self.schedule == NOISE_AWARE else [self.schedule]
        words += [] if self.interval is None else [f"interval {self.interval:g}"]
        words += [] if self.branch is None else [f"branch {self.branch}"]
        return ", ".join(words)

    @property
    def key(self) -> str:
        """The name that its files have in a folder."""
        name = f"{self.name}, {'own' if self.steps is None else self.steps} steps"
        if self.given is not None:
            is_file = isinstance(self.given, Calibrated)
            content = self.given.to_dict() if is_file else self.given
            name += f" {sha256(repr(content).encode()).hexdigest()[:12]}"
        return re.sub(r"[^\w.-]+", "-", name)[-100:].strip("-.")

    def made(self, file: Path | None = None) -> Any:
        """The schedule; `file` is where `Auto` keeps what it learns."""
        if self.given is not None:
            return self.given
        found = schedule_of(self.schedule, self.interval, self.branch)
        if isinstance(found, Auto) and file is not None:
            return Auto(found.interval, found.branch, file=file)
        return found

    def options(self) -> list[str] | None:
        """The setting as options of a command; `None` where the command has none for it."""
        if self.given is not None and self.file is None:
            return None
        schedule = None if self.schedule == NOISE_AWARE else self.schedule
        given = {
            "--interval": None if self.interval is None else f"{self.interval:g}",
            "--branch": self.branch,
            "--schedule": schedule,
            "--steps": self.steps,
        }
        pairs = [(name, str(value)) for name, value in given.items() if value is not None]
        return [word for pair in pairs for word in pair]


def settings_of(
    *, schedule: Any, interval: Any, branch: Any, steps: Any
) -> tuple[SweepSetting, ...]:
    """All that are asked for: each schedule with each interval, branch and number of steps.

    Args:
        schedule: A name, "default", a file that `calibrate` wrote, an object, or a list of these.
            A file or an object has its own interval and branch.
        interval: A number or a list; `None` stands for the schedule's own.
        branch: A number, `None`, or a list.
        steps: A number, `None`, or a list.

    Raises:
        InvalidSettingError: If a list is empty, a name unknown, or a number out of range.
        OSError: If a file cannot be read.
    """
    schedules, intervals = listed("schedule", schedule), listed("interval", interval)
    branches, counts = listed("branch", branch), listed("num_inference_steps", steps)
    for count in counts:
        if count is not None:
            whole_number("num_inference_steps", count, 1)
    found: list[SweepSetting] = []
    for count, each in product(counts, schedules):
        named = NOISE_AWARE if each is None or (isinstance(each, str) and each == DEFAULT) else each
        if isinstance(named, str) and named in PARAMETERS:
            for place, value in product(branches, intervals):
                own = schedule_of(named, value, place).interval  # or it is refused
                found.append(SweepSetting(named, own if value is None else value, place, count))
        elif isinstance(named, str | Path):
            file = str(named)
            found.append(SweepSetting(file, steps=count, given=_read(named), file=file))
        else:
            found.append(SweepSetting(str(named), steps=count, given=named))
    for setting in found:
        setting.made()  # or it is refused
    kept: dict[str, SweepSetting] = {}
    for setting in found:
        one, number = setting, 1
        while one.key in kept and not _is_same(one, kept[one.key]):
            number += 1
            one = replace(setting, schedule=f"{setting.schedule} ({number})")
        kept.setdefault(one.key, one)
    return tuple(kept.values())


def listed(name: str, value: Any) -> list[Any]:
    """The values that are meant by one, or by several; numbers of numpy as Python's own.

    Raises:
        InvalidSettingError: If there are none.
    """
    several = isinstance(value, Iterable) and not isinstance(value, str)
    values = list(value) if several and not isinstance(value, Schedule) else [value]
    if not values:
        raise InvalidSettingError(f"{name} is an empty list: give at least one")
    return [pythons(each) for each in values]


def require_fitting(settings: Iterable[SweepSetting], contest: Contest) -> None:
    """Refuses what does not fit the pipeline, or would leave nothing out.

    Raises:
        InvalidSettingError: The message names the setting and the cure.
        UnsupportedModelError: If the pipeline has no U-Net that can be cut.
    """
    pipe, call = contest.pipe, contest.call
    replay: Any = contest.helper.replay
    lists = [name for name in LISTS if call.get(name) is not None]
    for setting in settings:
        schedule = setting.made()
        anatomies_for(pipe, schedule)
        if replay != Extrapolate():
            replay_of(replay, schedule)  # or it is refused: the schedule has its own
        if lists and setting.steps is not None:
            raise InvalidSettingError(
                f"{lists[0]}= says which steps there are: give it, or num_inference_steps"
            )
        require_same_steps(
            pipe, {**call, "num_inference_steps": setting.steps}, schedule, setting.name
        )
        plan = None if setting.steps is None else contest.plan_ahead(schedule, setting.steps)
        if plan is not None and all(entry == FULL for entry in plan):
            few = len(plan) <= FEW_STEPS and isinstance(schedule, NoiseAware | Auto)
            cure = f"more than {FEW_STEPS} steps" if few else "a larger interval, or more steps"
            raise InvalidSettingError(
                f"{setting.name} would run all of {len(plan)} steps in full, and be no faster: "
                f"give {cure}"
            )


def require_told_apart(settings: Iterable[SweepSetting]) -> None:
    """Refuses, for a folder, schedules of which its names could not say which one ran.

    Those that only another sweep has are not known here.

    Raises:
        InvalidSettingError: One is printed with its place in memory, or like another one.
    """
    printed: set[tuple[str, int | None]] = set()
    for setting in settings:
        if _is_told_by_key(setting):
            continue
        text = repr(setting.given)
        if " at 0x" in text or (text, setting.steps) in printed:
            raise InvalidSettingError(
                f"a folder cannot tell the schedule {text} from another one: give its class a "
                "__repr__ with all its settings, as a dataclass has it, or leave folder= out"
            )
        printed.add((text, setting.steps))


def _is_same(one: SweepSetting, other: SweepSetting) -> bool:
    """Whether two settings of one key are the same; objects may be printed alike."""
    same = one.given is other.given or bool(one.given == other.given)
    return same or (_is_told_by_key(one) and _is_told_by_key(other))


def _is_told_by_key(setting: SweepSetting) -> bool:
    """Whether the key says all of the schedule; what somebody's own is printed as may not."""
    return setting.given is None or isinstance(setting.given, Adaptive | Auto | Calibrated)


def _read(file: str | Path) -> Calibrated:
    if isinstance(file, str) and not file.endswith(".json") and not Path(file).exists():
        known = no_such("schedule", file, PARAMETERS)
        raise InvalidSettingError(f"{known}, or a file that `calibrate` wrote")
    return Calibrated.load(file)
