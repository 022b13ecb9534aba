"""Which helper a pipeline keeps, and whose the patches are on its U-Nets and ControlNets.

For who has a pipeline and no helper. How a helper is attached stands in `attachment`.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final

from torch import nn

from ..errors import UnsupportedModelError
from ..patching.call import CallPatch, call_patch_of
from ..patching.wrappers import layers_of
from .components import controlnets_of, unets_of

#: Where a pipeline keeps the helper that nobody else needs to keep.
_KEPT: Final = "_deepcache_patch_helper"


class _Kept:
    """Keeps a helper alive in the dictionary of its pipeline; copies and pickles keep none."""

    def __init__(self, pipe: Any, helper: Any) -> None:
        self.owner = weakref.ref(pipe)  # a shallow copy has this very object, too
        self.helper = helper

    def __reduce__(self) -> Any:
        return type(None), ()  # so that a pickle is read without this package


def check_can_keep(pipe: Any) -> None:
    """Refuse what `keep` cannot be called with.

    Raises:
        UnsupportedModelError: If the pipeline has no dictionary of attributes.
    """
    if not hasattr(pipe, "__dict__"):
        raise UnsupportedModelError(
            f"{type(pipe).__name__} takes no further attribute, so it cannot keep its helper: keep "
            "one yourself, helper = DeepCacheHelper(pipe).enable()"
        )


def keep(pipe: Any, helper: Any) -> None:
    """Let the pipeline hold its helper, which lives as long as the pipeline then, not its U-Net."""
    vars(pipe)[_KEPT] = _Kept(pipe, helper)


def let_go(pipe: Any) -> None:
    """Undo `keep`. Harmless where nothing is kept."""
    getattr(pipe, "__dict__", {}).pop(_KEPT, None)


def kept_by(pipe: Any) -> Any:
    """The helper that the pipeline keeps, if any."""
    kept = getattr(pipe, "__dict__", {}).get(_KEPT)
    return kept.helper if isinstance(kept, _Kept) and kept.owner() is pipe else None


def helpers_of(pipe: Any) -> list[Any]:
    """The helper that the pipeline keeps, and those that are enabled on its U-Nets.

    They may be another pipeline's that has the same U-Nets. Of those that are enabled on its
    ControlNets, only its own: another pipeline with other U-Nets may have the same ControlNet.
    """
    found = [kept_by(pipe), *(patch.tag() for patch in _patches_of(_unets_now(pipe)))]
    of_controlnets = [patch.tag() for patch in _patches_of(controlnets_of(pipe))]
    found.extend(each for each in of_controlnets if each is not None and each.pipe is pipe)
    return list(dict.fromkeys(helper for helper in found if helper is not None))


def release_left_behind(pipe: Any) -> None:
    """Remove the patches of helpers that were deleted while they were enabled."""
    for patch in list(_patches_of([*_unets_now(pipe), *controlnets_of(pipe)])):
        if patch.tag() is None:
            patch.remove()


def _unets_now(pipe: Any) -> list[nn.Module]:
    """The pipeline's U-Nets; none where it got something else in the place of its U-Net."""
    try:
        return list(unets_of(pipe).values())
    except UnsupportedModelError:
        return []


def _patches_of(modules: Iterable[nn.Module]) -> Iterator[CallPatch]:
    """Those of U-Nets and ControlNets."""
    for module in dict.fromkeys(modules):
        for patched in layers_of(module):
            patch = call_patch_of(patched)
            if patch is not None:
                yield patch
