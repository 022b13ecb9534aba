"""`enable` and `disable`: a pipeline is accelerated by one call, and plain again by another, and
nobody has to keep a helper. What keeps it meanwhile stands in `running/pipeline/owners.py`.
"""

from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline
from torch import nn

from .helper import DeepCacheHelper
from .running.attachment import SWITCHING
from .running.pipeline.components import modules_of
from .running.pipeline.owners import check_can_hold, helpers_of, hold, release, remove_left_behind
from .settings.changed import SettingsGiven, require_known

if TYPE_CHECKING:
    from typing_extensions import Unpack


def enable(
    pipe: DiffusionPipeline | nn.Module, **settings: "Unpack[SettingsGiven]"
) -> DeepCacheHelper:
    """Accelerate a pipeline, until `disable(pipe)`, and return its helper, which may be dropped.

    Where a helper is enabled on the pipeline already, it stays: its settings are changed as
    `DeepCacheHelper.set` does, so what is not given stays as it is. Meanwhile the pipeline, or the
    bare U-Net, has one attribute more, by which it keeps the helper alive. A pipeline that is
    dropped while enabled is freed by Python's next garbage collection, not at once.

    `with enable(pipe):` leaves the pipeline enabled, as the block found it: to accelerate for the
    length of a block, write `with DeepCacheHelper(pipe):`.

    Args:
        pipe: A diffusers pipeline with a U-Net, or a bare U-Net for a hand-written loop.
        settings: Those of `DeepCacheHelper`, such as `interval=3`.

    Raises:
        UnsupportedModelError: If there is no U-Net here that can be cut, or the pipeline takes no
            further attribute.
        InvalidSettingError: If there is no such setting, or one is out of range. Nothing is enabled
            or changed then.
        AlreadyEnabledError: If another pipeline's helper is enabled on the same U-Net.

    Example:
        >>> deepcache_patch.enable(pipe, interval=3)  # doctest: +SKIP
        >>> images = pipe("a red circle").images  # doctest: +SKIP
        >>> deepcache_patch.disable(pipe)  # doctest: +SKIP
    """
    modules_of(pipe)  # what is no pipeline has none
    check_can_hold(pipe)
    require_known(settings)
    with SWITCHING:
        mine = [helper for helper in helpers_of(pipe) if helper.pipe is pipe]
        helper: DeepCacheHelper
        helper = mine[0].set(**settings) if mine else DeepCacheHelper(pipe, **settings)
        helper.enable()
        hold(pipe, helper)
        return helper


def disable(pipe: DiffusionPipeline | nn.Module) -> None:
    """Make a pipeline plain again, bit by bit. Harmless where nothing is enabled.

    However it was enabled: by `enable`, or by a helper, which is disabled then; through this
    pipeline, or through another one that has the same U-Net.

    Raises:
        UnsupportedModelError: If it is no pipeline.
    """
    modules_of(pipe)
    with SWITCHING:
        for helper in helpers_of(pipe):
            helper.disable()
        release(pipe)
        remove_left_behind(pipe)
