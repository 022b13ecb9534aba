"""What is known of a generation: when it begins, where a call stands in it, what a call made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from ..cutting.features import Recorded
from ..errors import warn
from .noise import noise_levels
from .window import NO_WINDOW, Window


@dataclass(frozen=True)
class Context:
    """What is known when a generation begins.

    Attributes:
        num_steps: How many steps it has.
        timesteps: The values of the steps; `None` if there is no list of them.
        scheduler: The pipeline's, after `set_timesteps`, or `None`.
        unet: The U-Net inside `torch.compile`'s wrapper; an empty one where none is there yet.
        is_own: Whether the timesteps are the scheduler's own list, not another pipeline's.
        is_guess: Whether `num_steps` is a guess, to be raised later.
        window: What runs in full whatever the schedule says.
        is_declared: Whether somebody has declared it, because the loop is their own.
        warned: What was said already by `warn_once`, since the helper was enabled.
    """

    num_steps: int
    timesteps: tuple[float, ...] | None
    scheduler: Any
    unet: nn.Module = field(default_factory=nn.Identity)
    is_own: bool = True
    is_guess: bool = False
    window: Window = NO_WINDOW
    is_declared: bool = False
    warned: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def protected(self) -> frozenset[int]:
        """The steps that run in full whatever the schedule says, as far as they are known."""
        return self.window.steps(self.num_steps, is_guess=self.is_guess)

    def warn_once(self, message: str) -> None:
        """Warns, unless a generation before has."""
        if message not in self.warned:
            self.warned.add(message)
            warn(message)

    @cached_property  # plan, replay and forecast ask for it, and a device has to be waited for
    def levels(self) -> tuple[float, ...] | None:
        """`noise_levels` of the steps."""
        if not self.timesteps:
            return None
        return noise_levels(self.scheduler, self.timesteps, is_own=self.is_own)


class Position(NamedTuple):
    """Where a U-Net call stands.

    Attributes:
        generation: Counts denoising loops, from 0.
        step: Counts the steps that this generation has run, from 0.
        order: Which U-Net call of the step this is, from 0.
        num_steps: How many steps this generation has if it runs every one to the end of its
            timesteps, more than `step`; `None` when there is no list of timesteps.
    """

    generation: int
    step: int
    order: int
    num_steps: int | None

    @property
    def is_last(self) -> bool:
        """Whether no step comes after this one, as far as that is known."""
        return self.step + 1 == self.num_steps


class FinishedCall(NamedTuple):
    """A U-Net call that is over, for a guide to look at.

    Attributes:
        position: Where it stood.
        sample: The U-Net's input, shape `(batch, channels, …)`.
        output: What the U-Net returned.
        features: What the call recorded, by branch, each of shape `(batch, channels, …)`.
        replaced: By branch: the earlier recordings of this slot, the newest first; a shallow call
            here would have replayed them.
        slot: A number that all calls of the generation have that are given the same.
        instead_of: The slot that the step before had in the place of this one, which is new;
            `None` for one that is not, or had no place.
    """

    position: Position
    sample: torch.Tensor
    output: Any
    features: Mapping[int, torch.Tensor]
    replaced: Mapping[int, Sequence[Recorded]] = {}
    slot: int = 0
    instead_of: int | None = None
