"""Whether a schedule fits the U-Nets of a pipeline: seen before anything is patched."""

from typing import Any

from torch import nn

from ..cutting.anatomy import Anatomy, dissect
from ..errors import InvalidSettingError
from ..learning.calibrated_schedule import Calibrated
from ..patching.call import whole
from ..patching.wrappers import unwrapped
from ..running.pipeline.components import is_sharded, likeliest_scheduler, unets_of
from ..schedules.guide import AnySchedule, GuidingSchedule
from ..schedules.plans import OUTPUT, Schedule
from .by_name import as_given


def anatomies_for(pipe: Any, schedule: AnySchedule) -> dict[nn.Module, Anatomy]:
    """The anatomies of the pipeline's U-Nets, as it calls them, if a schedule fits all of them.

    Args:
        pipe: The pipeline, or a bare U-Net.
        schedule: Any schedule, or what somebody has taken for one.

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
            "schedule must be a name such as 'auto', what Calibrated.load(file) gives, or an "
            f"object with a method plan(num_steps), not {as_given(schedule, 'plan', 'begin')}"
        )
    if not isinstance(schedule, Schedule) and any(map(is_sharded, unets.values())):
        raise InvalidSettingError(
            f"{type(schedule).__name__} may decide otherwise in each process, but the U-Net is "
            "sharded, and all processes must call the same layers: take Uniform, or a schedule "
            "that was calibrated before"
        )
    for branch in getattr(schedule, "branches", ()):
        for anatomy in anatomies.values() if branch != OUTPUT else ():
            anatomy.check_branch(branch)
    if isinstance(schedule, Calibrated):
        for name, unet in unets.items():
            schedule.check(unwrapped(unet), likeliest_scheduler(pipe, name))
    return anatomies
