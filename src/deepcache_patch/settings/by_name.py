"""From words to objects: schedules and replays by name, and what the arguments of `DeepCacheHelper`
mean. Whether a schedule fits a pipeline is seen in `fitting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidSettingError
from ..schedules.plans import Centred, Growing, Uniform

if TYPE_CHECKING:
    from ..schedules.guide import AnySchedule
    from ..schedules.replay import Replay

#: Which parameters each one has, by name; those that plan ahead first.
PARAMETERS: Final = {
    "noise-aware": ("interval", "branch"),
    "uniform": ("interval", "branch"),
    "centred": ("interval", "branch", "center", "power"),
    "growing": ("full_steps", "branch", "power"),
    "auto": ("interval", "branch"),
    "adaptive": ("tolerance", "branch"),
}

#: Those whose plan is known before a generation.
PLANNED: Final = ("uniform", "centred", "growing")


def named_schedule(name: str, **given: Any) -> Any:
    """Returns the schedule of that name.

    Args:
        name: A key of `PARAMETERS`.
        given: Its parameters; `None` stands for its own default.

    Raises:
        InvalidSettingError: If the name is unknown, a parameter is another's, lacking, or out of
            range.
    """
    if name not in PARAMETERS:
        known = ", ".join(PARAMETERS)
        raise InvalidSettingError(f"there is no schedule {name!r}; there are {known}")
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in PARAMETERS[name]:
            theirs = " and ".join(each for each, keys in PARAMETERS.items() if key in keys)
            raise InvalidSettingError(f"{key} is a setting of {theirs}, not of {name}")
    if name == "growing" and "full_steps" not in given:
        raise InvalidSettingError("growing needs full_steps: how many steps run in full")
    if name in PLANNED:
        planned = {"uniform": Uniform, "centred": Centred, "growing": Growing}
        return planned[name](**given)

    from ..learning.auto import Auto
    from ..schedules.adaptive import Adaptive
    from ..schedules.noise_aware import NoiseAware  # which need torch

    if name == "auto":
        return Auto(**given)
    if name == "noise-aware":
        return NoiseAware(**given)
    return Adaptive(given.get("tolerance", 0.1), (given.get("branch", 0),))


def schedule_of(schedule: Any, interval: float | None, branch: int | None) -> Any:
    """The schedule that is meant by the arguments.

    Raises:
        InvalidSettingError: If there are too many of them, or one is out of range.
    """
    given = {"interval": interval, "branch": branch}
    given = {name: value for name, value in given.items() if value is not None}
    if schedule is None:
        return named_schedule("noise-aware", **given)
    if isinstance(schedule, str) and schedule == "auto":
        return named_schedule("auto", **given)
    if given:
        raise InvalidSettingError("give either schedule or interval and branch, not both")
    return schedule


def replay_of(replay: Any, schedule: Any) -> Replay:
    """The replay that is meant by an argument.

    Raises:
        InvalidSettingError: If none is, or if the schedule brings its own.
    """
    from ..schedules.replay import REPLAYS, Extrapolate, Replay  # which needs torch

    if replay is not None and getattr(schedule, "own_replay", False):
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
            f"feature(step, recorded, levels), not {replay!r}"
        )
    return replay


def uniform_of(
    schedule: AnySchedule, interval: int | None, branch: int | None, skip_mode: str
) -> Uniform:
    """The uniform schedule that is meant by the arguments of `DeepCacheHelper.set_params`.

    Args:
        schedule: What is in force: where it is uniform, `None` leaves a value as it is.
        interval: At least 1.
        branch: At least 0.
        skip_mode: Only "uniform".

    Raises:
        InvalidSettingError: As `DeepCacheHelper.set_params` says.
    """
    if skip_mode != "uniform":
        raise InvalidSettingError(
            f"skip_mode must be 'uniform', not {skip_mode!r}: for another strategy give "
            "DeepCacheHelper(pipe, schedule=...) a schedule"
        )
    if isinstance(schedule, Uniform):
        interval = schedule.interval if interval is None else interval
        branch = schedule.branch if branch is None else branch
    if interval is None or branch is None:
        raise InvalidSettingError(
            f"the schedule is {schedule!r}: to replace it by a uniform one, give both "
            "cache_interval and cache_branch_id"
        )
    return Uniform(interval, branch)
