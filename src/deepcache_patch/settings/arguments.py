"""What the arguments of `DeepCacheHelper` mean: the schedule and the replay."""

from typing import Any

from ..errors import InvalidSettingError
from ..learning.auto import Auto
from ..schedules.plans import Uniform
from ..schedules.replay import REPLAYS, Extrapolate, Replay


def schedule_of(schedule: Any, interval: int | None, branch: int | None) -> Any:
    """The schedule that is meant by the arguments.

    Raises:
        InvalidSettingError: If there are too many of them, or one is out of range.
    """
    given = {"interval": interval, "branch": branch}
    given = {name: value for name, value in given.items() if value is not None}
    if schedule is None:
        return Uniform(**given)  # type: ignore[arg-type]
    if isinstance(schedule, str) and schedule == "auto":
        return Auto(**given)  # type: ignore[arg-type]
    if given:
        raise InvalidSettingError("give either schedule or interval and branch, not both")
    return schedule


def replay_of(replay: Any, schedule: Any) -> Replay:
    """The replay that is meant by an argument.

    Raises:
        InvalidSettingError: If none is, or if the schedule brings its own.
    """
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
