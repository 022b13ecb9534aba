"""Does a U-Net give the same where it is cut? Tried out once, where its code is somebody's own.

Where to cut is read from lists of blocks, which diffusers' own code runs one after the other. What
other code does between them cannot be seen there. So a full call of such a U-Net is followed by
shallow ones with the same input, which nobody notices: see `second_run`.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..patching.call import CallPatch
from ..schedules.plans import OUTPUT
from .second_run import copied, obstacle_to_a_second_run, put_back, same, tensors_of, unnoticed
from .unet_cuts import UNetCuts
from .watching.observers import first_stateful


class Proof:
    """At which branches one U-Net gives what it gives whole, as far as that was tried out.

    Args:
        unet: The U-Net inside `torch.compile`'s wrapper.
        cuts: That U-Net's cuts.
        patch: The patch round that U-Net's calls.
    """

    def __init__(self, unet: nn.Module, cuts: UNetCuts, patch: CallPatch) -> None:
        self._unet = unet
        self._cuts = cuts
        self._patch = patch
        self._anatomy = cuts.anatomy  # when it was tried out
        self._found: dict[int, bool] = {}
        self._obstacle: str | None = None  # in this generation, once it was looked for
        self._looked = False

    def begin(self) -> None:
        """A generation begins: somebody may have come who would notice, or gone."""
        self._looked = False

    def doubt(self, branch: int) -> str | None:
        """Say why a cut at the branch may give something else, if it may; see `prove`."""
        if branch == OUTPUT or self._cuts.anatomy.is_known or self._so_far().get(branch):
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
        if self._cuts.anatomy.is_known or all(branch in self._so_far() for branch in tapped):
            return None
        if not self._looked:
            modules, blocks = self._cuts.parts().modules, self._cuts.anatomy.blocks
            found = first_stateful(self._unet, modules, frozenset(), blocks)
            self._obstacle = found[0] if found else obstacle_to_a_second_run(self._unet)
            self._looked = True
        return None if self._obstacle is not None else copied((args, kwargs), tensors=False)

    def prove(
        self,
        original: Callable[..., Any],
        given: tuple[Any, Any] | None,
        output: Any,
        tapped: tuple[int, ...],
    ) -> None:
        """See, once for each branch, that a shallow call straight after a full one equals it.

        An error in the shallow call says that it does not, and goes no further.

        Args:
            original: What the patch stands round.
            given: What `to_prove` gave.
            output: What the full call returned.
            tapped: The branches that it recorded.
        """
        if given is None:
            return
        found = self._so_far()
        unproved = [branch for branch in tapped if branch not in found]
        try:
            with unnoticed(self._unet):
                found |= self._tried(original, given, output, unproved)
        except torch.cuda.OutOfMemoryError:
            pass  # which says nothing of the U-Net: it is tried again after the next full call
        except Exception:  # whatever the U-Net raises where it is cut
            found |= dict.fromkeys(unproved, False)

    def _tried(
        self,
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
            if branches and self._patch.compiled:
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
        self._cuts.taken()  # or the taps would seem to be passed twice in one call
        args, kwargs = copied(given, tensors=True)
        with self._cuts.applied(None, tuple(tapped), None):
            return copied(original(*args, **kwargs), tensors=True)

    def _equals(
        self, original: Callable[..., Any], given: tuple[Any, Any], output: Any, branch: int
    ) -> bool | None:
        """Whether a shallow call gives the output; `None` if there is nothing to replay."""
        feature, anatomy = self._cuts.latest(branch), self._cuts.anatomy
        if feature is None:
            return None
        args, kwargs = copied(given, tensors=True)
        arguments = anatomy.arguments(args, kwargs)
        arguments = anatomy.trimmed(branch, arguments) or arguments
        again, named = anatomy.handed_over(arguments, len(args))
        with self._cuts.applied(branch, (), feature):
            shallow = original(*again, **named)
        return same(output, shallow)

    def _so_far(self) -> dict[int, bool]:
        """Whether they were equal, by branch; of a changed U-Net nothing is known."""
        if self._anatomy is not self._cuts.anatomy:
            self._anatomy, self._found = self._cuts.anatomy, {}
        return self._found
