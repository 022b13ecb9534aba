"""From words to objects: schedules and replays by name, and what the arguments of `DeepCacheHelper`
mean. Whether a schedule fits a pipeline is seen in `fitting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ..errors import InvalidSettingError, no_such
from ..schedules.plans import Centred, Uniform, number_between

if TYPE_CHECKING:
    from ..schedules.replay import Replay

#: What `schedule=` knows by name.
ScheduleName: TypeAlias = Literal[
    "default", "noise-aware", "uniform", "centred", "adaptive", "auto"
]

#: What `replay=` knows by name.
ReplayName: TypeAlias = Literal["extrapolate", "reuse"]

#: The schedule that a helper has by itself, and what stands for it.
NOISE_AWARE: Final = "noise-aware"
DEFAULT: Final = "default"

#: Which parameters each one has, by name; those that plan ahead first.
PARAMETERS: Final = {
    DEFAULT: ("interval", "branch"),
    NOISE_AWARE: ("interval", "branch"),
    "uniform": ("interval", "branch"),
    "centred": ("interval", "branch", "center", "power"),
    "auto": ("interval", "branch"),
    "adaptive": ("tolerance", "branch", "interval"),
}

#: Those that take a speedup in the place of an interval.
TAKE_SPEEDUP: Final = (DEFAULT, NOISE_AWARE, "auto")

#: One full step in so many, at most; see `NoiseAware`.
_LONGEST: Final = 1000


def named_schedule(name: str, **given: Any) -> Any:
    """Returns the schedule of that name.

    Args:
        name: A key of `PARAMETERS`.
        given: Its parameters; `None` stands for its own default.

    Raises:
        InvalidSettingError: If the name is unknown, a parameter is another's or out of range.
    """
    if name not in PARAMETERS:
        is_file = name.endswith(".json")
        cure = f"; a file is read by Calibrated.load({name!r})" if is_file else ""
        raise InvalidSettingError(no_such("schedule", name, PARAMETERS) + cure)
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in PARAMETERS[name]:
            theirs = " and ".join(each for each, keys in PARAMETERS.items() if key in keys)
            raise InvalidSettingError(f"{key} is a setting of {theirs}, not of {name}")
    plain = {"uniform": Uniform, "centred": Centred}
    if name in plain:
        return plain[name](**given)

    from ..learning.auto import Auto
    from ..schedules.adaptive import Adaptive
    from ..schedules.noise_aware import NoiseAware  # which need torch

    if name == "auto":
        return Auto(**given)
    if name in (DEFAULT, NOISE_AWARE):
        return NoiseAware(**given)
    if "branch" in given:
        given["branches"] = (given.pop("branch"),)
    return Adaptive(**given)


def schedule_of(
    schedule: Any,
    interval: float | None = None,
    branch: int | None = None,
    speedup: float | None = None,
    share_of: Callable[[Any], float | None] = lambda _: None,
) -> Any:
    """The schedule that is meant by the arguments of `DeepCacheHelper`.

    Args:
        schedule: An object, a name, or `None` for the default.
        interval: Of the default or the named schedule; `None` stands for its own default.
        branch: Likewise.
        speedup: In the place of `interval`, for the default and "auto".
        share_of: The work of a schedule's shallow calls, as a part of that of a full one, 0 to 1;
            `None` where that is not known. Asked only if a speedup is given.

    Raises:
        InvalidSettingError: If there are too many of them, or one is out of range.
    """
    given = {"interval": interval, "branch": branch}
    given = {name: value for name, value in given.items() if value is not None}
    schedule = DEFAULT if schedule is None else schedule
    if speedup is not None:
        if interval is not None:
            raise InvalidSettingError(
                f"speedup={speedup!r} stands in the place of interval={interval!r}: give one"
            )
        if schedule not in TAKE_SPEEDUP:
            raise InvalidSettingError(
                "speedup goes with the name of a schedule, 'noise-aware' (the default) or 'auto', "
                f"not with {schedule!r}: give one of the two, or leave speedup out"
            )
        named = named_schedule(schedule, **given)
        given["interval"] = _interval_for(speedup, named.branch, share_of(named))
    if isinstance(schedule, str):
        return named_schedule(schedule, **given)
    if given:
        raise InvalidSettingError("give either schedule or interval and branch, not both")
    return schedule


def with_parameters(schedule: Any, given: Mapping[str, Any]) -> Any:
    """A schedule of the same kind with other parameters; those that are not given stay.

    Args:
        schedule: Of any kind.
        given: `interval`, `branch` or both.

    Raises:
        InvalidSettingError: If the schedule has no such parameter, or it is out of range.
    """
    from ..learning.auto import Auto
    from ..schedules.adaptive import Adaptive  # which need torch

    if type(schedule) is Auto:
        now = {"interval": schedule.interval, "branch": schedule.branch, "file": schedule.file}
        return Auto(**now | dict(given))
    if type(schedule) is Adaptive:
        branches = (given["branch"],) if "branch" in given else schedule.branches
        interval = given.get("interval", schedule.interval)
        return Adaptive(schedule.tolerance, branches, interval=interval, longest=schedule.longest)
    has = {each.name for each in fields(schedule) if each.init} if is_dataclass(schedule) else set()
    for name in given:
        if name not in has:
            raise InvalidSettingError(
                f"the schedule is {schedule!r}, which has no {name} that can be changed: give "
                "schedule='noise-aware', or another, with it"
            )
    return replace(schedule, **given)


def branch_of(schedule: Any) -> int | None:
    """The branch of all shallow steps; `None` where there are several, or it is not known."""
    branches: tuple[int, ...] = tuple(getattr(schedule, "branches", ()))
    return branches[0] if len(branches) == 1 else None


def as_given(value: Any, *methods: str) -> str:
    """What somebody has given in the place of an object; of a class, what may be meant.

    Args:
        value: What was given.
        methods: A class that has one of these is one of such objects.
    """
    if isinstance(value, type) and any(hasattr(value, each) for each in methods):
        return f"the class {value.__name__}: did you mean {value.__name__}()?"
    return repr(value)


def _interval_for(speedup: Any, branch: int, share: float | None) -> float:
    """The interval at which a U-Net's work is 1 / speedup, if a shallow call has this share."""
    speedup = number_between("speedup", speedup, 1, _LONGEST)
    if share is None:
        raise InvalidSettingError(
            f"what a call at branch {branch} costs is known after the first generation: give "
            "interval, not speedup"
        )
    full = (1 / speedup - share) / (1 - share) if share < 1 else 0
    if speedup > 1 and full < 1 / _LONGEST:
        most = 1 / (share + (1 - share) / _LONGEST)
        raise InvalidSettingError(
            f"speedup={speedup:g} is out of reach: a shallow call at branch {branch} is "
            f"{share:.1%} of a full one, so at most {math.floor(10 * most) / 10}×; "
            "branch=-1, the forecast, costs nothing"
        )
    return 1 if speedup == 1 else 1 / full


def replay_of(replay: Any, schedule: Any) -> Replay:
    """The replay that is meant by an argument.

    Raises:
        InvalidSettingError: If none is, or if the schedule brings its own.
    """
    from ..schedules.guide import brings_replay
    from ..schedules.replay import REPLAYS, Extrapolate, Replay  # which needs torch

    if replay is not None and brings_replay(schedule):
        raise InvalidSettingError(
            f"{type(schedule).__name__} brings its own replay: leave replay={replay!r} out"
        )
    if isinstance(replay, str) and replay in REPLAYS:
        replay = REPLAYS[replay]()
    if replay is None:
        replay = Extrapolate()
    if isinstance(replay, type) or not isinstance(replay, Replay):
        raise InvalidSettingError(
            f"replay must be {' or '.join(map(repr, REPLAYS))} or an object with a method "
            f"feature(step, recorded, levels), not {as_given(replay, 'feature')}"
        )
    return replay
