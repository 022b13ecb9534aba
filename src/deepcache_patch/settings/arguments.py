"""What the arguments of `DeepCacheHelper` mean, and whether they fit its pipeline."""

from typing import Any

from torch import nn

from ..cutting.anatomy import Anatomy, dissect
from ..errors import InvalidSettingError
from ..learning.auto import Auto
from ..learning.learned import Calibrated
from ..patching.call import whole
from ..patching.wrappers import unwrapped
from ..running.pipelines import is_sharded, schedulers_of, unets_of
from ..schedules.guide import AnySchedule, GuidingSchedule
from ..schedules.plans import Schedule, Uniform
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


def anatomies_for(pipe: Any, schedule: AnySchedule) -> dict[nn.Module, Anatomy]:
    """The anatomies of the pipeline's U-Nets, as it calls them, if a schedule fits all of them.

    Args:
        pipe: The pipeline, or a bare U-Net.
        schedule: Of any kind, or what somebody has taken for one.

    Raises:
        UnsupportedModelError: If there is no U-Net that can be cut.
        InvalidSettingError: If it is no schedule, names a branch that a U-Net lacks, was calibrated
            for another setting, or may decide otherwise in each process of a sharded U-Net.
    """
    unets, anatomies = unets_of(pipe), {}
    for unet in unets.values():
        with whole(unet):
            anatomies[unet] = dissect(unwrapped(unet))
    if isinstance(schedule, type) or not isinstance(schedule, Schedule | GuidingSchedule):
        raise InvalidSettingError(
            "schedule must be 'auto', what Calibrated.load(file) gives, or an object with a "
            f"method plan(num_steps), not {schedule!r}"
        )
    if not isinstance(schedule, Schedule) and any(map(is_sharded, unets.values())):
        raise InvalidSettingError(
            f"{type(schedule).__name__} may decide otherwise in each process, but the U-Net is "
            "sharded, and all processes must call the same layers: take Uniform, or a schedule "
            "that was calibrated before"
        )
    for branch in getattr(schedule, "branches", ()):
        for anatomy in anatomies.values():
            anatomy.check_branch(branch)
    if isinstance(schedule, Calibrated):
        for name, unet in unets.items():
            schedulers = schedulers_of(pipe, name)()
            schedule.check(unwrapped(unet), schedulers[0] if schedulers else None)
    return anatomies
