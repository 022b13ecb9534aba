"""A ControlNet beside the U-Net: cut where the U-Net's coming call is shallow.

A ControlNet costs nearly half a U-Net, and on a shallow step only the residuals of the skips up to
the branch are used. It is called before the U-Net, so it asks the U-Net's side what is coming. If
that turns out otherwise, the U-Net's side has it run again, in full: a U-Net call never misses a
residual.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..cutting.anatomy import ControlNetAnatomy, dissect_controlnet
from ..cutting.cut import Cut, CutAt
from ..cutting.origin import put_around
from ..errors import UnsupportedModelError
from ..patching.call import CallPatch, whole
from ..patching.wrappers import unwrapped
from .residuals import Given, Source, is_known, watching_hooks
from .unet import AttachedUNet
from .watching.offloading import bring_whole


class AttachedControlNet:
    """One ControlNet with the patch round its call.

    Args:
        patch: The patch round the ControlNet's calls, to be installed.
        unet: The U-Net that gets its residuals.
    """

    def __init__(self, patch: CallPatch, unet: AttachedUNet) -> None:
        self._controlnet = unwrapped(patch.module)
        # Or a ControlNet that another pipeline has, too, would keep the U-Net alive.
        self._unet = weakref.ref(unet)
        with whole(patch.module):
            self._anatomy = dissect_controlnet(self._controlnet)
        self._source = Source(type(self._controlnet).__name__)
        self._cuts: dict[int, Cut] = {}
        # A cut changes the ControlNet for everybody, so calls take turns.
        self._lock = patch.lock
        self._patch = patch

    @property
    def controlnet(self) -> nn.Module:
        """The ControlNet as the pipeline calls it; changes when it was compiled since."""
        return self._patch.module

    def attach(self) -> None:
        """Send calls of the ControlNet here; wait for those that are under way."""
        self._patch.take_over(self._call)

    def detach(self) -> None:
        """Leave the ControlNet as it was."""
        with self._lock:
            self._patch.remove()

    def _call(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        unet, anatomy = self._unet(), self._current()
        if unet is None or anatomy is None:
            return original(*args, **kwargs)
        arguments = anatomy.arguments(args, kwargs)
        may_be_cut = self._may_be_cut(unet, anatomy, arguments)
        branch = self._branch(unet, anatomy, arguments) if may_be_cut else None
        # Cut at each branch, and whole: another thread may have it cut even when this one may not.
        with self._lock, self._patch.room_for_graphs(unet.num_skips + 1):
            mine = self._patch.installed
            # While this call was waiting, layers may have been replaced.
            is_whole = branch is None or not anatomy.is_current
            if mine and is_whole:
                with watching_hooks(self._controlnet, self._source) as compare:
                    output = original(*args, **kwargs)
                compare(output)
            elif mine and branch is not None:
                bring_whole(self._controlnet)
                if branch not in self._cuts:
                    self._cuts[branch] = anatomy.cut(branch)
                with self._cuts[branch].applied():
                    output = original(*args, **kwargs)
        if not mine:
            return self._patch.module(*args, **kwargs)
        # Not under this lock: the U-Net's may be held by a call that waits for this one.
        if is_whole:
            if may_be_cut and is_known(output):
                unet.remember(Given(self._source, output))
            return output

        def again() -> Any:
            with self._lock:
                return original(*args, **kwargs)

        unet.remember(Given(self._source, output, again))
        return output

    def _current(self) -> ControlNetAnatomy | None:
        """The anatomy as it is now; `None` if it has become one that cannot be cut."""
        with self._lock:  # no call of another thread is in its cut
            if not self._anatomy.is_current:
                self._cuts.clear()
                try:
                    self._anatomy = dissect_controlnet(self._controlnet)
                except UnsupportedModelError:
                    return None
            return self._anatomy

    def _may_be_cut(
        self, unet: AttachedUNet, anatomy: ControlNetAnatomy, arguments: dict[str, Any]
    ) -> bool:
        """Whether a call with these arguments is one that may be cut at all."""
        # In guess mode the scale of a residual depends on how many there are.
        if arguments.get("guess_mode") or anatomy.num_skips != unet.num_skips:
            return False
        sample = arguments.get(anatomy.sample_name)
        return arguments.get("timestep") is not None and isinstance(sample, torch.Tensor)

    def _branch(
        self, unet: AttachedUNet, anatomy: ControlNetAnatomy, arguments: dict[str, Any]
    ) -> CutAt:
        """Where to cut this call; `None` for a call in full."""
        # Not under this lock: the U-Net's may be held by a call that waits for this one.
        sample = arguments[anatomy.sample_name]
        self._source.is_own = not any(map(put_around, anatomy.networks))
        return unet.foresee(arguments["timestep"], sample, self._source)
