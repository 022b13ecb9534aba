"""Which helper a pipeline holds, and whose the patches are on its U-Nets and ControlNets.

For who has a pipeline and no helper. How a helper is attached stands in `attachment`.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final

from torch import nn

from ...errors import UnsupportedModelError
from ...patching.call import CallPatch, call_patch_of
from ...patching.wrappers import layers_of
from .components import controlnets_of, unets_of

#: Where a pipeline holds the helper that nobody else needs to keep.
_HELD: Final = "_deepcache_patch_helper"


class _Held:
    """Holds a helper in the dictionary of its pipeline; copies and pickles hold none."""

    def __init__(self, pipe: Any, helper: Any) -> None:
        self.owner = weakref.ref(pipe)  # a shallow copy has this very object, too
        self.helper = helper

    def __reduce__(self) -> Any:
        return type(None), ()  # so that a pickle is read without this package


def check_can_hold(pipe: Any) -> None:
    """Refuse what `hold` cannot be called with.

    Raises:
        UnsupportedModelError: If the pipeline has no dictionary of attributes.
    """
    if not hasattr(pipe, "__dict__"):
        raise UnsupportedModelError(
            f"{type(pipe).__name__} takes no further attribute, so it cannot keep its helper: keep "
            "one yourself, helper = DeepCacheHelper(pipe).enable()"
        )


def hold(pipe: Any, helper: Any) -> None:
    """Let the pipeline hold its helper, which lives as long as the pipeline then, not its U-Net."""
    vars(pipe)[_HELD] = _Held(pipe, helper)


def release(pipe: Any) -> None:
    """Undo `hold`. Harmless where nothing is held."""
    getattr(pipe, "__dict__", {}).pop(_HELD, None)


def held_by(pipe: Any) -> Any:
    """The helper that the pipeline holds, if any."""
    held = getattr(pipe, "__dict__", {}).get(_HELD)
    return held.helper if isinstance(held, _Held) and held.owner() is pipe else None


def helpers_of(pipe: Any) -> list[Any]:
    """The helper that the pipeline holds, and those that are enabled on its U-Nets.

    They may be another pipeline's that has the same U-Nets. Of those that are enabled on its
    ControlNets, only its own: another pipeline with other U-Nets may have the same ControlNet.
    """
    found = [held_by(pipe), *(patch.installer() for patch in _patches_of(_unets_now(pipe)))]
    of_controlnets = [patch.installer() for patch in _patches_of(controlnets_of(pipe))]
    found.extend(each for each in of_controlnets if each is not None and each.pipe is pipe)
    return list(dict.fromkeys(helper for helper in found if helper is not None))


def remove_left_behind(pipe: Any) -> None:
    """Remove the patches of helpers that were deleted while they were enabled."""
    for patch in list(_patches_of([*_unets_now(pipe), *controlnets_of(pipe)])):
        if patch.installer() is None:
            patch.remove()


def _unets_now(pipe: Any) -> list[nn.Module]:
    """The pipeline's U-Nets; none where it got something else in the place of its U-Net."""
    try:
        return list(unets_of(pipe).values())
    except UnsupportedModelError:
        return []


def _patches_of(modules: Iterable[nn.Module]) -> Iterator[CallPatch]:
    """The patches that are on U-Nets and ControlNets."""
    for module in dict.fromkeys(modules):
        for patched in layers_of(module):
            patch = call_patch_of(patched)
            if patch is not None:
                yield patch
