"""`Settings`: what a helper goes by, and what becomes of it when some of it is given anew. Who may
change it, and when that is in force, stands in `adjustable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypedDict

from ..errors import InvalidSettingError, no_such
from ..learning.auto import Auto
from ..schedules.guide import AnySchedule, GuideFactory, brings_replay, guide_factory
from ..schedules.noise_aware import NoiseAware
from ..schedules.replay import Replay
from ..schedules.window import NO_WINDOW, Window
from .by_name import (
    TAKE_SPEEDUP,
    ReplayName,
    ScheduleName,
    branch_of,
    named_schedule,
    replay_of,
    schedule_of,
    with_parameters,
)


class SettingsGiven(TypedDict, total=False):
    """The arguments of `DeepCacheHelper`; `None` is one that is not given."""

    interval: float | None
    branch: int | None
    speedup: float | None
    schedule: AnySchedule | ScheduleName | None
    first: float
    last: float
    replay: Replay | ReplayName | None


def require_known(names: Iterable[str]) -> None:
    """Refuses names that no setting has.

    Raises:
        InvalidSettingError: It names the first, the one that may be meant, and all that there are.
    """
    for name in names:
        if name not in SettingsGiven.__annotations__:
            cure = "; give interval=steps / full_steps" if name == "full_steps" else ""
            known = no_such("setting", name, SettingsGiven.__annotations__)
            raise InvalidSettingError(known + cure)


@dataclass(frozen=True)
class Settings:
    """What a helper goes by. Two are equal if that is the same, however it was given.

    Attributes:
        schedule: What is in force.
        replay: What a shallow step gets, unless the schedule has a replay of its own.
        window: What runs in full whatever the schedule says.
        made: The last schedule that was made of words, whether or not it is still in force.
        words: The `interval` or the `speedup`, and the `branch`, among these words.
    """

    schedule: AnySchedule
    replay: Replay
    window: Window
    made: AnySchedule = field(compare=False)
    words: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def changed(
        self, given: Mapping[str, Any], share_of: Callable[[Any], float | None]
    ) -> Settings:
        """These settings with others in the place of some; as `DeepCacheHelper.set` says.

        Args:
            given: By the names of the arguments of `DeepCacheHelper`.
            share_of: As of `schedule_of`.

        Raises:
            InvalidSettingError: If they are too many, out of range or not of this schedule.
        """
        ends = {name: given[name] for name in ("first", "last") if name in given}
        found = self._other_schedule(given, share_of)
        if "replay" in given:
            # Beside a schedule with its own, the default one takes back what was given before.
            takes_back = isinstance(given["replay"], str) and given["replay"] == "extrapolate"
            schedule = None if takes_back else found.schedule
            found = replace(found, replay=replay_of(given["replay"], schedule))
        else:
            self._check_replay(found.schedule)
        return replace(found, window=replace(self.window, **ends))

    def follows(self, schedule: Any) -> Settings:
        """These settings with another schedule; one by its name has its own parameters."""
        if not isinstance(schedule, str):
            return replace(self, schedule=schedule)
        return self._made_of({}, named_schedule(schedule))

    def guide_factory(self) -> GuideFactory:
        """What gives each generation its guide."""
        return guide_factory(self.schedule, self.replay, self.window)

    def _other_schedule(
        self, given: Mapping[str, Any], share_of: Callable[[Any], float | None]
    ) -> Settings:
        """With another schedule, if `given` asks for one."""
        words = {name: given[name] for name in ("interval", "branch") if name in given}
        schedule, speedup = given.get("schedule"), given.get("speedup")
        if schedule is None and speedup is None:
            if not words:
                return self
            before = dict(self._words)
            had_speedup = before.pop("speedup", None) is not None
            if had_speedup and isinstance(self.schedule, NoiseAware | Auto):
                before["interval"] = self.schedule.interval  # what the speedup has become
            return self._made_of(before | words, with_parameters(self.schedule, words))
        learns = schedule is None and isinstance(self.schedule, Auto)
        if schedule is None and not learns and not isinstance(self.schedule, NoiseAware):
            raise InvalidSettingError(
                f"the schedule is {self.schedule!r}, which has no speedup: give "
                "schedule='noise-aware' or 'auto' with it"
            )
        if schedule is not None and not isinstance(schedule, str):
            return replace(self, schedule=schedule_of(schedule, **words, speedup=speedup))
        # Of an object its kind stays with it: a schedule by its name has parameters of its own.
        known = self._words if schedule is None or self.schedule is self.made else {}
        before = {name: value for name, value in known.items() if name not in words}
        wanted = before.pop("speedup", None)
        if speedup is None and "interval" not in words and schedule in TAKE_SPEEDUP:
            speedup = wanted
        if speedup is not None:
            before.pop("interval", None)
        try:
            named = "auto" if learns else schedule
            found = schedule_of(named, **before | words, speedup=speedup, share_of=share_of)
            if learns:  # with its file
                own = {"interval": found.interval, "branch": found.branch}
                found = with_parameters(self.schedule, own)
        except InvalidSettingError as error:
            if "interval" not in before:  # a branch that was given before is one of any schedule
                raise
            raise InvalidSettingError(
                f"{error}; interval={before['interval']} was given before, and stays unless "
                "another one is given"
            ) from error
        reached = {} if speedup is None else {"speedup": speedup}
        return self._made_of(before | words | reached, found)

    def _check_replay(self, schedule: AnySchedule) -> None:
        """Refuse a schedule that would put out of force the replay that somebody has chosen."""
        in_force = not brings_replay(self.schedule)
        chosen = self.replay != DEFAULT.replay
        if in_force and chosen and brings_replay(schedule):
            raise InvalidSettingError(
                f"{type(schedule).__name__} brings its own replay, and replay={self.replay!r} is "
                f"in force: give replay='extrapolate' with the schedule, to give {self.replay!r} up"
            )

    def _made_of(self, words: Mapping[str, Any], schedule: AnySchedule) -> Settings:
        if isinstance(schedule, Auto) and schedule.equals(self.schedule):
            schedule = self.schedule  # with what it has learned
        return replace(self, schedule=schedule, made=schedule, words=words)

    @property
    def _words(self) -> dict[str, Any]:
        """What `words` says, as far as it is in force, or what an object says."""
        if self.schedule is self.made:
            return dict(self.words)
        of_object = {
            "interval": getattr(self.schedule, "interval", None),
            "branch": branch_of(self.schedule),
        }
        return {name: value for name, value in of_object.items() if value is not None}


_SCHEDULE: Final = NoiseAware()

#: Of a helper to which nothing is given.
DEFAULT: Final = Settings(_SCHEDULE, replay_of(None, _SCHEDULE), NO_WINDOW, made=_SCHEDULE)
