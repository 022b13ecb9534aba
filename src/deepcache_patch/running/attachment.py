"""All of one pipeline that a helper is attached to: its U-Nets, and the ControlNets that feed them.

Here patches are put on and taken off, all of them or none. What a patched call does stands in
`unet` and `controlnet`; when a user wants it, in `deepcache_patch.helper`; whose a patched U-Net
is, in `owners`.
"""

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Final

from torch import nn

from ..cutting.anatomy import Anatomy
from ..errors import AlreadyEnabledError, UnsupportedModelError
from ..patching.call import CallPatch, call_patch_of
from ..patching.wrappers import layers_of, unwrapped
from ..schedules.guide import GuideFactory
from .controlnet import AttachedControlNet
from .locating.declared import DeclaredGeneration
from .locating.declared_blocks import Block, Declarations
from .pipeline.callers import Callers
from .pipeline.components import (
    controlnets_of,
    modules_getter,
    modules_of,
    scheduler_getter,
    unets_of,
)
from .pipeline.owners import remove_left_behind
from .stats import LastGeneration, Stats
from .unet import AttachedUNet

#: Held by whoever installs or removes patches: two threads must not find the same U-Net free, and
#: before it is patched it has no lock of its own.
SWITCHING: Final = threading.RLock()


class Attachment:
    """The U-Nets and ControlNets of one pipeline that a helper is attached to, if it is.

    What has happened in them is remembered when they are detached.

    Args:
        pipe: The pipeline, or a bare U-Net.
        paused: Whether calls run plainly; asked for each of them.
        installer: Weakly, whose attachment this is; for whoever finds a patch.

    Attributes:
        unets: One for each U-Net; none while detached.
        controlnets: One for each ControlNet that is cut, too.
        examples: What the last generation of each U-Net began with, or `None`: see `example_of`.
    """

    def __init__(self, pipe: Any, paused: Callable[[], bool], installer: weakref.ref[Any]) -> None:
        self._pipe = pipe
        self._paused = paused
        self._installer = installer
        self._declarations = Declarations()
        self.unets: tuple[AttachedUNet, ...] = ()
        self.controlnets: tuple[AttachedControlNet, ...] = ()
        # Of what was detached.
        self._stats = Stats()
        self._last: dict[str, LastGeneration] = {}
        self.examples = weakref.WeakKeyDictionary[nn.Module, dict[str, Any] | None]()

    @property
    def holds(self) -> bool:
        """Whether calls of the pipeline's U-Nets come here: it may have got another one."""
        unets = self.unets
        return bool(unets) and not self._lost(unets)

    @property
    def lost(self) -> list[str]:
        """The names of the U-Nets whose calls no longer come here, as they were replaced."""
        return [each.name for each in self._lost(self.unets)]

    @property
    def stands_outside(self) -> bool:
        """Whether nothing was compiled round what this is attached to."""
        return self._modules() <= set(modules_of(self._pipe).values())

    @property
    def names(self) -> dict[str, str]:
        """The classes of the modules that are patched, by component's name."""
        patched = self._modules()
        return {
            name: type(unwrapped(module)).__name__
            for name, module in modules_of(self._pipe).items()
            if module in patched
        }

    @property
    def stats(self) -> Stats:
        """Counts since `attach`; those of the last time while detached."""
        return sum((each.stats for each in self.unets), self._stats)

    @property
    def last_generations(self) -> dict[str, LastGeneration]:
        """How the last generation of each U-Net went, by component's name; as `stats`."""
        return self._last | _last_of(self.unets)

    def attach(self, anatomies: Mapping[nn.Module, Anatomy], new_guide: GuideFactory) -> None:
        """Send calls here; wait for those that are under way. If it fails, nothing is attached.

        Args:
            anatomies: Those of the pipeline's U-Nets, by U-Net as it calls them.
            new_guide: Gives each generation its guide.

        Raises:
            AlreadyEnabledError: If another helper that still exists is enabled on a U-Net.
        """
        for unet in anatomies:
            self._refuse_another(unet)
        self.detach()  # what is left of an earlier time, or of a helper that was deleted
        names = {unet: name for name, unet in unets_of(self._pipe).items()}
        callers = Callers(self._pipe)
        unets = tuple(
            AttachedUNet(
                name=names[unet],
                patch=self._patch_of(unet),
                anatomy=anatomy,
                new_guide=new_guide,
                scheduler_getter=scheduler_getter(self._pipe, names[unet]),
                paused=self._paused,
                callers=callers,
                declared=self._declarations.current,
                examples=self.examples,
            )
            for unet, anatomy in anatomies.items()
        )
        controlnets = self._controlnets_of(unets)
        parts: list[AttachedUNet | AttachedControlNet] = [*unets, *controlnets]
        with ExitStack() as undo:
            for each in parts:
                undo.callback(each.detach)
                each.attach()
            undo.pop_all()
        self.unets, self.controlnets = unets, controlnets
        self._declarations.attached()
        self._stats, self._last = Stats(), {}

    def detach(self) -> bool:
        """Leave all modules as they were, let go of what was recorded; whether there was any."""
        unets, self.unets = self.unets, ()
        controlnets, self.controlnets = self.controlnets, ()
        for controlnet in controlnets:
            controlnet.detach()
        for unet in unets:
            unet.detach()
        self._stats = sum((each.stats for each in unets), self._stats)
        self._last |= _last_of(unets)
        remove_left_behind(self._pipe)
        return bool(unets)

    def follow(self, new_guide: GuideFactory, *, is_change: bool) -> None:
        """Be led by another from the next call on, which is a first step.

        Args:
            new_guide: Gives each generation its guide.
            is_change: Whether the guides are other ones than before.
        """
        for each in self.unets:
            each.follow(new_guide, is_change=is_change)
        if is_change:
            last = self._last.items()
            self._last = {name: replace(each, is_outdated=True) for name, each in last}

    def generation(self, declared: DeclaredGeneration) -> Block:
        """A `with` block that is one generation of this thread or asyncio task.

        Raises:
            RuntimeError: If this is not attached.
        """
        return Block(self._declarations, declared, lambda: self.holds)

    def reset(self) -> None:
        """Forget the current generation of every thread."""
        for each in self.unets:
            each.reset()

    def _controlnets_of(self, unets: tuple[AttachedUNet, ...]) -> tuple[AttachedControlNet, ...]:
        """One for each ControlNet that can be cut along with the pipeline's only U-Net."""
        found: list[AttachedControlNet] = []
        for controlnet in controlnets_of(self._pipe) if len(unets) == 1 else ():
            # One that another pipeline has, too, is cut for the first of the two.
            if call_patch_of(controlnet) is None:
                with suppress(UnsupportedModelError):  # then it runs whole
                    found.append(AttachedControlNet(self._patch_of(controlnet), unets[0]))
        return tuple(found)

    def _patch_of(self, module: nn.Module) -> CallPatch:
        return CallPatch(module, modules_getter(self._pipe), installer=self._installer)

    def _refuse_another(self, unet: nn.Module) -> None:
        for module in layers_of(unet):
            patch = call_patch_of(module)
            if patch is not None and patch.installer() not in (None, self._installer()):
                raise AlreadyEnabledError(
                    f"another DeepCacheHelper is enabled on this {type(unwrapped(unet)).__name__}: "
                    "call its disable() first, or deepcache_patch.disable(pipe); or change it, "
                    "with its set() or deepcache_patch.enable(pipe, ...)"
                )

    def _lost(self, unets: tuple[AttachedUNet, ...]) -> list[AttachedUNet]:
        # What was compiled since calls what it was.
        parts = {each for part in modules_of(self._pipe).values() for each in layers_of(part)}
        return [each for each in unets if not (each.installed and each.unet in parts)]

    def _modules(self) -> set[nn.Module]:
        return {each.unet for each in self.unets} | {each.controlnet for each in self.controlnets}


def _last_of(unets: tuple[AttachedUNet, ...]) -> dict[str, LastGeneration]:
    found = {each.name: each.last_generation for each in unets}
    return {name: last for name, last in found.items() if last is not None}
