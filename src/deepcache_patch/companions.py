"""A ControlNet beside the U-Net: cut where the U-Net's coming call is shallow.

A ControlNet costs nearly half a U-Net, and on a shallow step only the residuals of the skips up to
the branch are used. It is called before the U-Net, so it asks the U-Net's side what is coming. If
that turns out otherwise, the U-Net's side has it run again, in full: a U-Net call never misses a
residual.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .anatomy import dissect_controlnet
from .attached import CALL, AttachedUNet
from .errors import ChangedResidualsError
from .offloading import bring_whole
from .patch import Patch
from .pipelines import unwrapped


@dataclass(frozen=True)
class CutCall:
    """A call of a companion that gave only the residuals of a shallow call.

    Attributes:
        companion: The ControlNet's name.
        residuals: What it gave.
        again: Calls it with the same arguments, in full.
    """

    companion: str
    residuals: Sequence[torch.Tensor]
    again: Callable[[], Any]

    def in_full(self, given: Sequence[torch.Tensor]) -> Any:
        """What the call would have returned in full.

        Args:
            given: The residuals that the U-Net got.

        Raises:
            ChangedResidualsError: If these are others, so that something was done to them.
        """
        if [id(each) for each in given] != [id(each) for each in self.residuals]:
            raise ChangedResidualsError(
                f"the residuals of {self.companion} were changed before they reached the U-Net, "
                "and this call needs more of them than were made: give them to the U-Net as they "
                "are, and change conditioning_scale instead"
            )
        return self.again()


class AttachedCompanion:
    """One ControlNet with the patch round its call.

    Args:
        controlnet: As the pipeline calls it, compiled or not.
        unet: The U-Net that gets its residuals.
        tag: Marks the patch.
    """

    def __init__(self, controlnet: nn.Module, unet: AttachedUNet, *, tag: object) -> None:
        self._controlnet = controlnet
        self._unet = unet
        self._anatomy = dissect_controlnet(unwrapped(controlnet))
        # A cut changes the ControlNet for everybody, so calls take turns.
        self._lock = threading.RLock()
        self._patch = Patch(controlnet, CALL, controlnet._call_impl, tag=tag)

    def attach(self) -> None:
        """Send calls of the ControlNet here."""
        self._patch.install(self._call)

    def detach(self) -> None:
        """Leave the ControlNet as it was."""
        with self._lock:
            self._patch.remove()

    def _call(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        branch = self._branch(self._anatomy.arguments(args, kwargs))
        self._unet.remember(None)
        with self._lock:
            if branch is None:
                return original(*args, **kwargs)
            bring_whole(unwrapped(self._controlnet))
            with self._anatomy.cut(branch).applied():
                output = original(*args, **kwargs)

        def again() -> Any:
            with self._lock:
                return original(*args, **kwargs)

        name = type(unwrapped(self._controlnet)).__name__
        self._unet.remember(CutCall(name, tuple(output[0]), again))
        return output

    def _branch(self, arguments: dict[str, Any]) -> int | None:
        """Where to cut this call; `None` for a call in full."""
        # In guess mode the scale of a residual depends on how many there are.
        if arguments.get("guess_mode") or self._anatomy.num_skips != self._unet.num_skips:
            return None
        timestep, sample = arguments.get("timestep"), arguments.get(self._anatomy.sample_name)
        if timestep is None or not isinstance(sample, torch.Tensor):
            return None
        if not self._anatomy.is_current:
            self._anatomy = dissect_controlnet(unwrapped(self._controlnet))
        return self._unet.foresee(timestep, sample)
