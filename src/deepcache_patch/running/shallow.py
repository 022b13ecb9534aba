"""One U-Net as its calls see it: whole, with taps where it is recorded, or cut.

How a call is made shallow is known here, and whether it may be; whether it shall be is decided in
`decision`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..cutting.anatomy import Anatomy, dissect
from ..cutting.cut import Cut
from ..cutting.features import Recorder, StandIn, first_tensor
from ..patching.call import CallPatch
from ..schedules.plans import OUTPUT
from .observers import observer_of
from .offloading import bring_whole


class UNetCuts:
    """The cuts of one U-Net, made once each, and what was recorded in the last call.

    Args:
        unet: The U-Net inside `torch.compile`'s wrapper.
        anatomy: Its own.

    Attributes:
        anatomy: The U-Net's as it was last seen; see `look_again`.
    """

    def __init__(self, unet: nn.Module, anatomy: Anatomy) -> None:
        self._unet = unet
        self.anatomy = anatomy
        self._stand_in = StandIn()
        self._recorders: dict[int, Recorder] = {}
        self._cuts: dict[tuple[int | None, tuple[int, ...]], Cut] = {}
        self._proofs: dict[int, bool] = {}

    def look_again(self) -> bool:
        """Find the skips anew if a block or layer was replaced; returns whether one was.

        Raises:
            UnsupportedModelError: If it has become a U-Net that cannot be cut.
        """
        if self.anatomy.is_current:
            return False
        self.anatomy = dissect(self._unet)
        self._cuts.clear()
        self._proofs.clear()
        return True

    def record(self, branches: Iterable[int]) -> None:
        """Be ready to record these branches.

        Raises:
            InvalidSettingError: If the U-Net lacks one.
        """
        for branch in set(branches) - {OUTPUT}:  # nothing is cut there
            self.anatomy.check_branch(branch)
            self._recorders.setdefault(branch, Recorder())

    @contextmanager
    def applied(
        self, branch: int | None, tapped: tuple[int, ...], feature: torch.Tensor | None
    ) -> Iterator[None]:
        """Make the U-Net what one call shall see.

        Args:
            branch: Where it is cut; `None` for a call that runs everything.
            tapped: The branches that are recorded, all of them shallower.
            feature: What a shallow call replays, shaped as it was recorded.
        """
        if (branch, tapped) not in self._cuts:
            recorders = {each: self._recorders[each] for each in tapped}
            self._cuts[branch, tapped] = self.anatomy.cut(branch, self._stand_in, recorders)
        if branch is not None:
            bring_whole(self._unet)
        self._stand_in.feature = feature
        try:
            with self._cuts[branch, tapped].applied():
                yield
        finally:
            self._stand_in.feature = None

    @property
    def ran_twice(self) -> bool:
        """Whether a layer was run more than once in the last call."""
        return any(recorder.repeated for recorder in self._recorders.values())

    def taken(self) -> dict[int, torch.Tensor]:
        """What the last call recorded, by branch; it is let go of here."""
        taken = {branch: recorder.take() for branch, recorder in self._recorders.items()}
        return {branch: feature for branch, feature in taken.items() if feature is not None}

    def watcher(self, branch: int) -> str | None:
        """Say who needs the layers that a cut at the branch leaves out; see `observer_of`."""
        cut = None if branch == OUTPUT else self.anatomy.cut(branch, self._stand_in, {})
        return observer_of(self._unet, cut)

    def doubt(self, branch: int) -> str | None:
        """Say why a cut at the branch may give something else, if it may; see `prove`."""
        if branch == OUTPUT or self.anatomy.is_known or self._proofs.get(branch):
            return None
        return (
            f"{type(self._unet).__name__} has classes that are not diffusers', and "
            f"cut at branch {branch} it does not give what it gives whole: something happens "
            "between its layers that cannot be seen from their list"
        )

    def prove(
        self,
        patch: CallPatch,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        tapped: tuple[int, ...],
    ) -> None:
        """See, once for each branch, that a shallow call straight after a full one equals it.

        Does nothing for a U-Net of diffusers' own classes.

        Args:
            patch: Round the U-Net's calls.
            original: What the patch stands round.
            args: Of the full call.
            kwargs: Of the full call.
            output: Of the full call.
            tapped: The branches that it recorded.
        """
        if self.anatomy.is_known:
            return
        unproved = [branch for branch in tapped if branch not in self._proofs]
        if unproved and patch.compiled:
            # Compiled code rounds otherwise when it is cut, and may reuse the memory of outputs.
            original = cast(Any, self._unet)._call_impl
            self.taken()  # or the taps would seem to be passed twice in one call
            with self.applied(None, tapped, None):
                output = original(*args, **kwargs)
        for branch in unproved:
            recorder = self._recorders[branch]
            if recorder.latest is None or recorder.repeated:
                continue
            arguments = self.anatomy.arguments(args, kwargs)
            arguments = self.anatomy.trimmed(branch, arguments) or arguments
            again, named = self.anatomy.handed_over(arguments, len(args))
            with self.applied(branch, (), recorder.latest):
                shallow = original(*again, **named)
            self._proofs[branch] = torch.equal(first_tensor(shallow), first_tensor(output))
