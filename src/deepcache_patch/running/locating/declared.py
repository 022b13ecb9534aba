"""What a person declares of a generation whose loop is their own: `DeepCacheHelper.generation`.

Here what is declared is checked and kept; noise levels, in the place of the scheduler that would
know them. Which calls are within the block is found in `declared_blocks`, and where a call of such
a generation stands in `declared_steps`.
"""

import asyncio
import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any, Final

import torch

from ...errors import InvalidSettingError, warn
from ...schedules.forecast import PREDICTIONS
from ...schedules.noise import timesteps_of
from .timelines import SAME

#: No sampler is known whose noise levels fall evenly from above this: EDM's begin at 80.
_MOST_EVEN: Final = 100


class DeclaredGeneration:
    """A generation that somebody has declared.

    Attributes:
        scheduler: What knows its noise levels; `None` for that of the pipeline, if there is one.
        values: Its timesteps, where they were given as a list.
        by_order: Whether its steps are known by their noise levels alone, so that the timesteps
            that the U-Net gets say only whether a call is of the same step as the one before.
        sessions: What it has of each U-Net that was called in it.
        over: Whether its block was left.
        is_missed: Whether calls may have been made that were not seen: the helper was disabled.
        outer: The one in whose block its own was entered, if there is one.
        generator: The frame of the generator that its block is entered in, if it is in one.
        attachments: How often the helper had been enabled when the block was entered.
        is_passed_by: Whether calls came between two values of that generator.
    """

    def __init__(
        self,
        timesteps: torch.Tensor | None,
        scheduler: Any,
        *,
        values: list[float] | None = None,
        by_order: bool = False,
    ) -> None:
        self._timesteps = timesteps
        self.values = values
        self.scheduler = scheduler
        self.by_order = by_order
        self.sessions: dict[Any, Any] = {}
        self.over = self.is_missed = self.is_passed_by = False
        self.outer: DeclaredGeneration | None = None
        self.generator: FrameType | None = None
        self.attachments = 0
        self._task: asyncio.Task[Any] | None = None
        self._is_shared = False

    def again(self) -> "DeclaredGeneration":
        """Another generation of which the same is declared."""
        return DeclaredGeneration(
            self._timesteps, self.scheduler, values=self.values, by_order=self.by_order
        )

    @property
    def timesteps(self) -> torch.Tensor:
        """One for each step, shape `(steps,)`.

        Raises:
            InvalidSettingError: If the scheduler has lost them since.
        """
        found = self._timesteps if self.scheduler is None else timesteps_of(self.scheduler)
        if found is None:
            raise InvalidSettingError(
                f"the {type(self.scheduler).__name__} that generation() was given has no timesteps "
                "any more: call its set_timesteps(...)"
            )
        return found

    def is_anothers(self) -> bool:
        """Whether the call that is made now is of another asyncio task than those before.

        Tasks may follow each other, one for each step. Of those that are under way together, the
        first that has called is meant. Threads without a task (`asyncio.to_thread`) belong to it.
        """
        task = _current_task()
        if task is None:
            return False
        if self._task is None or (self._task.done() and not self._is_shared):
            self._task = task
        self._is_shared = self._is_shared or task is not self._task
        return task is not self._task

    def end(self, *, failed: bool = False) -> None:
        """The block is left, by an error or not: let go of everything, whatever a guide raises."""
        self.over = True
        with ExitStack() as all_of_them:
            all_of_them.callback(self._let_go)
            for unet, session in list(self.sessions.items()):
                all_of_them.callback(unet.end, session, failed=failed)

    def _let_go(self) -> None:
        self.sessions.clear()
        self._timesteps = self.values = self.scheduler = self.generator = self._task = None


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


class DeclaredNoise:
    """What stands for the scheduler of a loop of which only the noise levels are known.

    Its timesteps are the noise levels themselves. It makes no steps: which method the sampler goes
    by is not known, and what is learned by another one's steps makes the pictures worse.

    Args:
        sigmas: The noise's standard deviation at each step, where the data's is 1; falling, above
            0.
        prediction_type: What the U-Net's output means, one of `forecast.PREDICTIONS`, if it gets
            x / sqrt(1 + sigma²); `None` if that is not known, and nothing can be forecast.
    """

    def __init__(self, sigmas: Sequence[float], prediction_type: str | None = None) -> None:
        self.timesteps = torch.tensor(sigmas, dtype=torch.float64, device="cpu")
        self.sigmas = self.timesteps
        self.alphas_cumprod = 1 / (1 + self.sigmas**2)
        self.config: dict[str, Any] = {"prediction_type": prediction_type}


def declared_by(
    *, sigmas: Any = None, timesteps: Any = None, scheduler: Any = None, prediction_type: Any = None
) -> DeclaredGeneration:
    """What `DeepCacheHelper.generation` was given.

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
        if levels[0] > _MOST_EVEN and falls_evenly(levels):
            warn(
                f"the sigmas that generation() was given fall evenly from {levels[0]:g} to "
                f"{levels[-1]:g}, as timesteps do: if they are timesteps, give timesteps=, or the "
                "picture may be wrong"
            )
        return DeclaredGeneration(None, DeclaredNoise(levels, prediction_type), by_order=True)
    if timesteps is not None:
        values = _numbers("timesteps", timesteps)
        # A tensor is kept itself: what the loop takes out of it is known by its memory.
        is_tensor = isinstance(timesteps, torch.Tensor)
        found = timesteps if is_tensor else torch.tensor(values, dtype=torch.float64)
        return DeclaredGeneration(found, None, values=values)
    return DeclaredGeneration(None, _ready(scheduler))


def _numbers(name: str, values: Any) -> list[float]:
    try:
        if getattr(values, "ndim", 1) != 1:
            raise TypeError
        # A tensor is read at once: each read may wait for the device.
        listed = values.tolist() if isinstance(values, torch.Tensor) else values
        found = [float(each) for each in listed]
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


def falls_evenly(values: Sequence[float]) -> bool:
    """Whether these are timesteps by their looks: even steps down to about 0.

    Noise levels fall by ever less. Of three or fewer nobody can say.
    """
    falls = [before - after for before, after in itertools.pairwise(values)]
    return len(falls) > 2 and 0 < max(falls) <= 1.5 * min(falls) and values[-1] <= max(falls)


def _ready(scheduler: Any) -> Any:
    """A scheduler, if its steps are set.

    Raises:
        InvalidSettingError: If they are not, or it is no scheduler.
    """
    if isinstance(scheduler, type):
        raise InvalidSettingError(
            f"scheduler= takes an object, not the class {scheduler.__name__}: give the one that "
            "your loop goes by, after its set_timesteps"
        )
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
