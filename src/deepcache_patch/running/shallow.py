"""One U-Net as its calls see it: whole, with taps where it is recorded, or cut.

How a call is made shallow is known here, and whether it may be; whether it shall be is decided in
`decision`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..cutting.anatomy import Anatomy, dissect
from ..cutting.cut import Cut
from ..cutting.features import Recorder, StandIn
from ..patching.call import CallPatch
from ..schedules.plans import OUTPUT
from .observers import keeper_of, observer_of
from .offloading import bring_whole, computing_hooks
from .proof import copied, obstacle_to_a_second_run, put_back, same, tensors_of, unnoticed
from .walk import Parts


class UNetCuts:
    """The cuts of one U-Net, made once each, and what was recorded in the last call.

    Args:
        unet: The U-Net inside `torch.compile`'s wrapper.
        anatomy: Its own.

    Attributes:
        anatomy: The U-Net's as it was last seen; see `look_again`.
        looks: How often somebody's code came or went, or a block or layer was replaced.
    """

    def __init__(self, unet: nn.Module, anatomy: Anatomy) -> None:
        self._unet = unet
        self.anatomy = anatomy
        self._stand_in = StandIn()
        self._recorders: dict[int, Recorder] = {}
        self._cuts: dict[tuple[int | None, tuple[int, ...]], Cut] = {}
        self._proofs: dict[int, bool] = {}
        self._obstacle: str | None = None  # to a proof in this generation, once it was looked for
        self._looked = False
        # All the U-Net's modules, once they were looked for, and the attributes of those that may
        # get a hook: that is looked for in each call.
        self._parts: Parts | None = None
        self._may_be_hooked: list[dict[str, Any]] = []
        self.looks = 0

    def look_again(self) -> bool:
        """Find the skips anew if a block or layer was replaced, or runs other code now.

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
            self.looks += 1
            if was_known and anatomy.is_known:
                return False  # a function round the U-Net's calls, or in a layer that stays whole
        self.looks += 1
        self.anatomy = dissect(self._unet)
        self._cuts.clear()
        self._proofs.clear()
        self._parts = None
        self._parts_now()
        return True

    def record(self, branches: Iterable[int]) -> None:
        """Be ready to record these branches, in a generation that begins.

        Raises:
            InvalidSettingError: If the U-Net lacks one.
        """
        self._looked = False
        self._parts_now()
        for branch in set(branches) - {OUTPUT}:  # nothing is cut there
            self.anatomy.check_branch(branch)
            self._recorders.setdefault(branch, Recorder())

    def hooks(self) -> tuple[tuple[Any, ...], ...]:
        """Which of diffusers' hooks are in the U-Net: guiders leave layers out by them."""
        hooked = [own for own in self._may_be_hooked if "_diffusers_hook" in own]
        found = [(id(own), *computing_hooks(own["_diffusers_hook"])) for own in hooked]
        return tuple([each for each in found if len(each) > 1])

    def _parts_now(self) -> Parts:
        if self._parts is None or not self._parts.is_current:
            self._parts = Parts(self._unet)
            # Guiders leave out attention and blocks, and nothing as small as torch's own layers.
            self._may_be_hooked = self._parts.attributes()
        return self._parts

    def applied(
        self, branch: int | None, tapped: tuple[int, ...], feature: torch.Tensor | None
    ) -> AbstractContextManager[None]:
        """Make the U-Net what one call shall see, for the length of a `with` block.

        Args:
            branch: Where it is cut; `None` for a call that runs everything.
            tapped: The branches that are recorded, all of them shallower.
            feature: What a shallow call replays, shaped as it was recorded.
        """
        cut = self._cut(branch, tapped)
        return cut.applied() if branch is None else self._replaying(cut, feature)

    def _cut(self, branch: int | None, tapped: tuple[int, ...] = ()) -> Cut:
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
        return observer_of(self._parts_now(), cut, self.anatomy.blocks)

    def doubt(self, branch: int) -> str | None:
        """Say why a cut at the branch may give something else, if it may; see `prove`."""
        if branch == OUTPUT or self.anatomy.is_known or self._proofs.get(branch):
            return None
        theirs = (
            f"{type(self._unet).__name__} has classes that are not diffusers', or functions in the "
            "place of theirs, and "
        )
        if self._obstacle is not None:
            return (
                f"{theirs}whether it can be cut cannot be tried out, because {self._obstacle} "
                "would notice"
            )
        return (
            f"{theirs}cut at branch {branch} it does not give what it gives whole: something "
            "happens between its layers that cannot be seen from their list"
        )

    def to_prove(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tapped: tuple[int, ...]
    ) -> tuple[Any, Any] | None:
        """The arguments of a full call as they are before it, if `prove` will need them.

        Lists may be emptied by the call. Does nothing for a U-Net that runs diffusers' own code.
        """
        if self.anatomy.is_known or all(branch in self._proofs for branch in tapped):
            return None
        if not self._looked:
            modules = self._parts_now().modules
            found = keeper_of(self._unet, modules, frozenset(), self.anatomy.blocks)
            self._obstacle = found[0] if found else obstacle_to_a_second_run(self._unet)
            self._looked = True
        return None if self._obstacle is not None else copied((args, kwargs), tensors=False)

    def prove(
        self,
        patch: CallPatch,
        original: Callable[..., Any],
        given: tuple[Any, Any] | None,
        output: Any,
        tapped: tuple[int, ...],
    ) -> None:
        """See, once for each branch, that a shallow call straight after a full one equals it.

        An error in the shallow call says that it does not, and goes no further.

        Args:
            patch: Round the U-Net's calls.
            original: What the patch stands round.
            given: What `to_prove` gave.
            output: Of the full call.
            tapped: The branches that it recorded.
        """
        if given is None:
            return
        unproved = [branch for branch in tapped if branch not in self._proofs]
        try:
            with unnoticed(self._unet):
                self._proofs |= self._tried(patch, original, given, output, unproved)
        except torch.cuda.OutOfMemoryError:
            pass  # which says nothing of the U-Net: it is tried again after the next full call
        except Exception:  # whatever the U-Net raises where it is cut
            self._proofs |= dict.fromkeys(unproved, False)

    def _tried(
        self,
        patch: CallPatch,
        original: Callable[..., Any],
        given: tuple[Any, Any],
        output: Any,
        branches: Sequence[int],
    ) -> dict[int, bool]:
        """Whether a shallow call gives the output, by branch; without those that recorded nothing.

        If the second run writes into the output, it is given its values again.
        """
        tensors = tensors_of(output)
        values = [each.clone() for each in tensors]
        try:
            if branches and patch.compiled:
                # Compiled code rounds otherwise when it is cut.
                original = cast(Any, self._unet)._call_impl
                output = self._whole(original, given, branches)
            found = {each: self._equals(original, given, output, each) for each in branches}
        finally:
            changed = put_back(tensors, values)
        return {each: equal and not changed for each, equal in found.items() if equal is not None}

    def _whole(
        self, original: Callable[..., Any], given: tuple[Any, Any], tapped: Sequence[int]
    ) -> Any:
        """The output of a full call that records anew."""
        self.taken()  # or the taps would seem to be passed twice in one call
        args, kwargs = copied(given, tensors=True)
        with self.applied(None, tuple(tapped), None):
            return copied(original(*args, **kwargs), tensors=True)

    def _equals(
        self, original: Callable[..., Any], given: tuple[Any, Any], output: Any, branch: int
    ) -> bool | None:
        """Whether a shallow call gives the output; `None` if there is nothing to replay."""
        recorder = self._recorders[branch]
        if recorder.latest is None or recorder.repeated:
            return None
        args, kwargs = copied(given, tensors=True)
        arguments = self.anatomy.arguments(args, kwargs)
        arguments = self.anatomy.trimmed(branch, arguments) or arguments
        again, named = self.anatomy.handed_over(arguments, len(args))
        with self.applied(branch, (), recorder.latest):
            shallow = original(*again, **named)
        return same(output, shallow)
