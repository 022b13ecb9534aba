"""One U-Net as its calls see it: whole, with taps where it is recorded, or cut.

How a call is made shallow is known here; whether it shall be is decided in `decision`, and whether
a U-Net that is cut gives what it gives whole is tried out in `proof`.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ..cutting.anatomy import Anatomy, dissect
from ..cutting.cut import Cut, CutAt
from ..cutting.features import Recorder, StandIn
from ..schedules.plans import OUTPUT
from .watching.observers import observer_of
from .watching.offloading import bring_whole, computing_hooks
from .watching.walk import Parts


class UNetCuts:
    """The cuts of one U-Net, made once each, and what was recorded in the last call.

    Args:
        unet: The U-Net inside `torch.compile`'s wrapper.
        anatomy: Its own.

    Attributes:
        anatomy: The U-Net's as it was last seen; see `look_again`.
        revision: How often somebody's code came or went, or a block or layer was replaced.
    """

    def __init__(self, unet: nn.Module, anatomy: Anatomy) -> None:
        self._unet = unet
        self.anatomy = anatomy
        self._stand_in = StandIn()
        self._recorders: dict[int, Recorder] = {}
        self._cuts: dict[tuple[CutAt, tuple[int, ...]], Cut] = {}
        # All the U-Net's modules, once they were looked for, and the attributes of those that may
        # get a hook: that is looked for in each call.
        self._parts: Parts | None = None
        self._may_be_hooked: list[dict[str, Any]] = []
        self.revision = 0

    def look_again(self) -> bool:
        """Find the skips anew if a block or one of its layers was replaced, or runs other code now.

        What lies deeper, attention processors included, is not looked at here: `watcher` does that,
        once for each generation, branch and revision.

        Returns:
            Whether what was recorded is of another U-Net than this has become.

        Raises:
            UnsupportedModelError: If it has become a U-Net that cannot be cut.
        """
        anatomy = self.anatomy
        if anatomy.is_current:
            was_known = anatomy.is_known
            if anatomy.runs_the_same or not anatomy.look_again_at_code():
                return False
            self.revision += 1
            if was_known and anatomy.is_known:
                return False  # a function round the U-Net's calls, or in a layer that stays whole
        self.revision += 1
        self.anatomy = dissect(self._unet)
        self._cuts.clear()
        self._parts = None
        self.parts()
        return True

    def record(self, branches: Iterable[int]) -> None:
        """Be ready to record these branches, in a generation that begins.

        Raises:
            InvalidSettingError: If the U-Net lacks one.
        """
        self.parts()
        for branch in set(branches) - {OUTPUT}:  # nothing is cut there
            self.anatomy.check_branch(branch)
            self._recorders.setdefault(branch, Recorder())

    def hooks(self) -> tuple[tuple[Any, ...], ...]:
        """Which of diffusers' hooks are in the U-Net: guiders leave layers out by them."""
        hooked = [own for own in self._may_be_hooked if "_diffusers_hook" in own]
        found = [(id(own), *computing_hooks(own["_diffusers_hook"])) for own in hooked]
        return tuple([each for each in found if len(each) > 1])

    def parts(self) -> Parts:
        """All the U-Net's modules as they are now."""
        if self._parts is None or not self._parts.is_current:
            self._parts = Parts(self._unet)
            # Guiders leave out attention and blocks, and nothing as small as torch's own layers.
            self._may_be_hooked = self._parts.attributes()
        return self._parts

    def applied(
        self, branch: CutAt, tapped: tuple[int, ...], feature: torch.Tensor | None
    ) -> AbstractContextManager[None]:
        """Make the U-Net what one call shall see, for the length of a `with` block.

        Args:
            branch: Where it is cut; `None` for a call that runs everything.
            tapped: The branches that are recorded, all of them shallower.
            feature: What a shallow call replays, shaped as it was recorded.
        """
        cut = self._cut(branch, tapped)
        return cut.applied() if branch is None else self._replaying(cut, feature)

    def _cut(self, branch: CutAt, tapped: tuple[int, ...] = ()) -> Cut:
        if (branch, tapped) not in self._cuts:
            recorders = {each: self._recorders[each] for each in tapped}
            self._cuts[branch, tapped] = self.anatomy.cut(branch, self._stand_in, recorders)
        return self._cuts[branch, tapped]

    @contextmanager
    def _replaying(self, cut: Cut, feature: torch.Tensor | None) -> Iterator[None]:
        bring_whole(self._unet)
        vars(self._stand_in)["feature"] = feature  # not by a module's slow way
        try:
            with cut.applied():
                yield
        finally:
            vars(self._stand_in)["feature"] = None

    @property
    def ran_twice(self) -> bool:
        """Whether a layer was run more than once in the last call."""
        return any(recorder.repeated for recorder in self._recorders.values())

    def latest(self, branch: int) -> torch.Tensor | None:
        """What is recorded at the branch and was not yet taken, if it was recorded once."""
        recorder = self._recorders[branch]
        return None if recorder.repeated else recorder.latest

    def taken(self) -> dict[int, torch.Tensor]:
        """What the last call recorded, by branch; it is let go of here."""
        taken = {}
        for branch, recorder in self._recorders.items():
            feature = recorder.take()
            if feature is not None:
                taken[branch] = feature
        return taken

    def watcher(self, branch: int) -> str | None:
        """Say who needs the layers that a cut at the branch leaves out; see `observer_of`."""
        cut = None if branch == OUTPUT else self._cut(branch)
        return observer_of(self.parts(), cut, self.anatomy.blocks)
