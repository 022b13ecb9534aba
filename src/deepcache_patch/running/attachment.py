"""All of one pipeline that a helper is attached to: its U-Nets, and the ControlNets that feed them.

Here patches are put on and taken off, all of them or none. What a patched call does stands in
`unet` and `controlnet`; when a user wants it, in `deepcache_patch.helper`.
"""

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final

from torch import nn

from ..cutting.anatomy import Anatomy
from ..errors import AlreadyEnabledError, UnsupportedModelError
from ..patching.call import CallPatch, call_patch_of
from ..patching.wrappers import layers_of, unwrapped
from ..schedules.guide import Context, Guide
from .controlnet import AttachedCompanion
from .pipelines import controlnets_of, modules_later, modules_of, schedulers_of, unets_of
from .stats import LastGeneration, Stats
from .unet import AttachedUNet

#: Held by whoever installs or removes patches: two threads must not find the same U-Net free, and
#: before it is patched it has no lock of its own.
SWITCHING: Final = threading.RLock()


class Attachment:
    """The U-Nets and ControlNets of one pipeline, to be attached and detached together.

    Args:
        pipe: The pipeline, or a bare U-Net.
        anatomies: Of its U-Nets, as it calls them.
        begin: Gives each generation its guide.
        paused: Whether calls run plainly; asked for each of them.
        tag: Weakly, who attaches; for whoever finds the patch.

    Attributes:
        unets: One for each U-Net.
        companions: One for each ControlNet that is cut, too.
    """

    def __init__(
        self,
        pipe: Any,
        anatomies: Mapping[nn.Module, Anatomy],
        begin: Callable[[Context], Guide],
        paused: Callable[[], bool],
        tag: "weakref.ref[Any]",
    ) -> None:
        def patch_of(module: nn.Module) -> CallPatch:
            return CallPatch(module, modules_later(pipe), tag=tag)

        names = {unet: name for name, unet in unets_of(pipe).items()}
        self.unets = tuple(
            AttachedUNet(
                names[unet],
                patch_of(unet),
                anatomy,
                begin,
                schedulers_of(pipe, names[unet]),
                paused,
            )
            for unet, anatomy in anatomies.items()
        )
        found: list[AttachedCompanion] = []
        # With several U-Nets, nobody knows which one a ControlNet is for.
        for controlnet in controlnets_of(pipe) if len(self.unets) == 1 else ():
            # One that another pipeline has, too, is cut for the first of the two.
            if call_patch_of(controlnet) is None:
                with suppress(UnsupportedModelError):  # then it runs whole
                    found.append(AttachedCompanion(patch_of(controlnet), self.unets[0]))
        self.companions = tuple(found)

    def attach(self) -> None:
        """Send calls here; wait for those that are under way. If it fails, nothing is attached."""
        with ExitStack() as undo:
            for each in self._all():
                undo.callback(each.detach)
                each.attach()
            undo.pop_all()

    def detach(self) -> None:
        """Leave all modules as they were, and let go of everything recorded."""
        for each in reversed(self._all()):
            each.detach()

    def follow(self, begin: Callable[[Context], Guide]) -> None:
        """Be led by another from the next call on, which is a first step."""
        for each in self.unets:
            each.follow(begin)

    def reset(self) -> None:
        """Forget the current generation of every thread."""
        for each in self.unets:
            each.reset()

    def holds(self, pipe: Any) -> bool:
        """Whether calls of the pipeline's U-Nets come here: it may have got another one."""
        # What was compiled since calls what it was.
        parts = {each for part in modules_of(pipe).values() for each in layers_of(part)}
        return bool(self.unets) and all(
            each.installed and each.unet in parts for each in self.unets
        )

    def stands_outside(self, pipe: Any) -> bool:
        """Whether nothing was compiled round what this is attached to."""
        return self._modules() <= set(modules_of(pipe).values())

    def names(self, pipe: Any) -> dict[str, str]:
        """The classes of the modules that are patched, by component's name."""
        patched = self._modules()
        return {
            name: type(unwrapped(module)).__name__
            for name, module in modules_of(pipe).items()
            if module in patched
        }

    @property
    def stats(self) -> Stats:
        """Counts since this was made."""
        return sum((each.stats for each in self.unets), Stats())

    @property
    def last_generations(self) -> dict[str, LastGeneration]:
        """How the last generation of each U-Net went, by component's name."""
        found = {each.name: each.last_generation for each in self.unets}
        return {name: last for name, last in found.items() if last is not None}

    @property
    def examples(self) -> dict[nn.Module, dict[str, Any]]:
        """What each U-Net was called with last, without values."""
        found = {unwrapped(each.unet): each.example for each in self.unets}
        return {unet: example for unet, example in found.items() if example is not None}

    def _all(self) -> list[AttachedUNet | AttachedCompanion]:
        return [*self.unets, *self.companions]

    def _modules(self) -> set[nn.Module]:
        companions = {each.controlnet for each in self.companions}
        return {each.unet for each in self.unets} | companions


def refuse_another(pipe: Any, me: Any) -> None:
    """Check that no other helper that still exists is enabled on a U-Net of the pipeline.

    Raises:
        AlreadyEnabledError: If one is.
    """
    for unet in unets_of(pipe).values():
        for module in layers_of(unet):
            patch = call_patch_of(module)
            if patch is not None and patch.tag() not in (None, me):
                raise AlreadyEnabledError(
                    f"another DeepCacheHelper is enabled on this {type(unwrapped(unet)).__name__}: "
                    "call its disable() first, or change it with its set_params()"
                )


def release_left_behind(pipe: Any) -> None:
    """Remove the patches of helpers that were deleted while they were enabled."""
    unets: list[nn.Module] = []
    with suppress(UnsupportedModelError):  # it got something else in the place of its U-Net
        unets.extend(unets_of(pipe).values())
    for module in dict.fromkeys([*unets, *controlnets_of(pipe)]):
        for patched in layers_of(module):
            patch = call_patch_of(patched)
            if patch is not None and patch.tag() is None:
                patch.remove()
