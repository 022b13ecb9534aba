"""What a person tells of a generation whose loop is their own: `DeepCacheHelper.generation`.

Here what is told is checked and kept, for one thread or asyncio task. Where a call of such a
generation stands is found in `told_steps`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch

from ..errors import InvalidSettingError
from ..schedules.noise import timesteps_of
from ..schedules.told_noise import PREDICTIONS, ToldNoise

#: Values that differ by no more, as a share of themselves, are the same.
SAME: Final = 1e-5


class Told:
    """A generation of which somebody has told.

    Attributes:
        scheduler: What knows its noise levels; `None` for that of the pipeline, if there is one.
        by_order: Whether its steps are told by their noise levels alone, so that the timesteps
            that the U-Net gets say only whether a call is of the same step as the one before.
        sessions: What it has of each U-Net that was called in it.
        over: Whether its block was left.
        is_missed: Whether calls may have been made that were not seen: the helper was disabled.
    """

    def __init__(
        self, timesteps: torch.Tensor | None, scheduler: Any, *, by_order: bool = False
    ) -> None:
        self._timesteps = timesteps
        self.scheduler = scheduler
        self.by_order = by_order
        self.sessions: dict[Any, Any] = {}
        self.over = self.is_missed = False

    @property
    def timesteps(self) -> torch.Tensor:
        """One for each step, shape `(steps,)`."""
        found = self._timesteps if self.scheduler is None else timesteps_of(self.scheduler)
        assert found is not None
        return found

    def end(self) -> None:
        """The block is left: let go of what was recorded."""
        self.over = True
        for unet, session in self.sessions.items():
            unet.end(session)
        self.sessions.clear()


class Telling:
    """Which generation is told at present; another answer in each thread and asyncio task."""

    def __init__(self) -> None:
        self._told: ContextVar[Told | None] = ContextVar("told", default=None)

    def current(self) -> Told | None:
        """The generation in whose block the caller is, the innermost; `None` outside of one."""
        told = self._told.get()
        return None if told is None or told.over else told

    @contextmanager
    def block(self, told: Told) -> Iterator[None]:
        """One generation for the length of a `with` block.

        Raises:
            RuntimeError: If the block is left in another thread or task than it was entered in.
        """
        before = self._told.set(told)
        try:
            yield
        finally:
            told.end()
            try:
                self._told.reset(before)
            except ValueError as error:
                raise RuntimeError(
                    "generation() was entered in another thread or asyncio task: leave it there, "
                    "too"
                ) from error


def told_by(
    *, sigmas: Any = None, timesteps: Any = None, scheduler: Any = None, prediction_type: Any = None
) -> Told:
    """What `DeepCacheHelper.generation` was told.

    Raises:
        InvalidSettingError: If it is not one of the three, or not what it has to be.
    """
    given = {"sigmas": sigmas, "timesteps": timesteps, "scheduler": scheduler}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise InvalidSettingError(
            "generation() takes one of sigmas=, timesteps= and scheduler=, not "
            f"{' and '.join(f'{name}=' for name in names) or 'none of them'}"
        )
    if prediction_type is not None and sigmas is None:
        raise InvalidSettingError(
            f"prediction_type={prediction_type!r} goes with sigmas=: a scheduler has its own"
        )
    if prediction_type not in (None, *PREDICTIONS):
        raise InvalidSettingError(
            f"prediction_type must be one of {', '.join(map(repr, PREDICTIONS))}, or None, not "
            f"{prediction_type!r}"
        )
    if sigmas is not None:
        levels = _falling(_numbers("sigmas", sigmas))
        return Told(None, ToldNoise(levels, prediction_type), by_order=True)
    if timesteps is not None:
        values = _numbers("timesteps", timesteps)
        # A tensor is kept itself: what the loop takes out of it is known by its memory.
        is_tensor = isinstance(timesteps, torch.Tensor)
        return Told(timesteps if is_tensor else torch.tensor(values, dtype=torch.float64), None)
    return Told(None, _ready(scheduler))


def _numbers(name: str, values: Any) -> list[float]:
    try:
        if getattr(values, "ndim", 1) != 1:
            raise TypeError
        found = [float(each) for each in values]
    except (TypeError, ValueError) as error:
        raise InvalidSettingError(
            f"{name} must be a list of numbers, one for each step, not {values!r}"
        ) from error
    if not found:
        raise InvalidSettingError(f"{name} is empty: give one number for each step")
    for place, each in enumerate(found):
        if not math.isfinite(each):
            raise InvalidSettingError(f"{name}[{place}] is {each}: give a finite number")
    return found


def _falling(sigmas: Sequence[float]) -> list[float]:
    """The noise levels of the steps: without the closing zero, and each but once.

    Raises:
        InvalidSettingError: If they do not fall, or not above 0.
    """
    found = list(sigmas[:-1] if sigmas[-1] == 0 and len(sigmas) > 1 else sigmas)
    for place, each in enumerate(found):
        if each <= 0:
            raise InvalidSettingError(
                f"sigmas[{place}] is {each:g}: give noise levels above 0; one closing 0 is left out"
            )
    for place, (before, after) in enumerate(itertools.pairwise(found), 1):
        if after > before * (1 + SAME):
            raise InvalidSettingError(
                f"sigmas[{place}] is {after:g}, more than {before:g} before it: give noise levels "
                "that fall. A loop over rising ones (inversion) is to be run in full: "
                "with helper.paused()"
            )
    return [
        each
        for place, each in enumerate(found)
        if place == 0 or each < found[place - 1] * (1 - SAME)
    ]


def _ready(scheduler: Any) -> Any:
    """A scheduler, if its steps are set.

    Raises:
        InvalidSettingError: If they are not, or it is no scheduler.
    """
    if not callable(getattr(scheduler, "set_timesteps", None)):
        raise InvalidSettingError(
            "scheduler= takes a scheduler of diffusers, after its set_timesteps, not "
            f"{type(scheduler).__name__}; for a loop without one give sigmas= or timesteps="
        )
    timesteps = timesteps_of(scheduler)
    # New ones have all the timesteps of the training. Those of a list of one's own do not count.
    config = getattr(scheduler, "config", None) or {}
    trained = config.get("num_train_timesteps", math.inf)
    is_set = timesteps is not None and len(timesteps) > 0
    is_new = getattr(scheduler, "num_inference_steps", 0) is None
    if not is_set or (is_new and timesteps is not None and len(timesteps) >= trained):
        raise InvalidSettingError(
            f"this {type(scheduler).__name__} does not know its steps yet: call its "
            "set_timesteps(...) before generation(scheduler=...)"
        )
    return scheduler
