"""In which block of `DeepCacheHelper.generation` is a call of the U-Net?

The innermost one of the caller's thread or asyncio task that is not over. A generator's block goes
on in whoever consumes it, between two of its values, as far as Python is concerned. Here only calls
that are made while the generator runs are in its block, so generators may take turns.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from types import FrameType

from ...errors import warn
from .told import Told


class Telling:
    """Which generation is told at present; another answer in each thread and asyncio task.

    Attributes:
        told: The one in whose block the caller is, as far as Python is concerned.
        attachments: How often calls were sent here: those between two times were missed.
    """

    def __init__(self) -> None:
        self.told: ContextVar[Told | None] = ContextVar("told", default=None)
        self.attachments = 0

    def attached(self) -> None:
        """Calls come here from now on. Those before were missed by the blocks that are open."""
        self.attachments += 1

    def current(self) -> Told | None:
        """The generation in whose block the caller is, the innermost; `None` outside of one."""
        told, skipped = self.told.get(), []
        if told is None:
            return None
        while told is not None and not _is_within(told):
            skipped.append(told)
            told = told.outer
        if told is None:
            for each in skipped:
                each.is_passed_by = True
        else:
            told.is_missed = told.attachments != self.attachments
        return told


class Block(ContextDecorator):
    """A `with` block that is one generation each time it is entered, one after the other.

    As a decorator it makes a generation of each call of the function, several at once included.

    Args:
        telling: The `Telling` of the helper.
        told: What each generation is told.
        is_enabled: Whether the helper is.

    Raises:
        RuntimeError: If the helper is not enabled.
    """

    def __init__(self, telling: Telling, told: Told, is_enabled: Callable[[], bool]) -> None:
        self._telling = telling
        self._told = told
        self._is_enabled = is_enabled
        self._entered: list[tuple[Told, Token[Told | None]]] = []  # one at most
        self._check_enabled()

    def _recreate_cm(self) -> "Block":  # asked by contextlib, for each call of the function
        return Block(self._telling, self._told, self._is_enabled)

    def __enter__(self) -> None:
        """Begin a generation.

        Raises:
            RuntimeError: If the helper is not enabled, the block is open already, or it is entered
                in an asynchronous generator.
        """
        self._check_enabled()
        if self._entered:
            raise RuntimeError(
                "this generation() is entered already, and each block is one loop: call "
                "generation() once more for a loop within it, or in another thread or task"
            )
        told = self._told.again()
        told.generator = _generator_around(sys._getframe(1))
        told.attachments = self._telling.attachments
        told.outer = _not_over(self._telling.told.get())
        self._entered.append((told, self._telling.told.set(told)))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it, by an error or not.

        Raises:
            RuntimeError: If it was entered in another thread or task.
        """
        told, before = self._entered.pop()
        innermost = self._telling.told.get()
        is_here = _is_among(told, innermost)
        passed_by = told.is_passed_by and not told.sessions
        try:
            told.end(failed=kind is not None)
        finally:
            if innermost is told:
                try:
                    self._telling.told.reset(before)
                    self._telling.told.set(_not_over(told.outer))  # it may have been left before
                except ValueError:
                    is_here = False
        if not is_here:
            raise RuntimeError(
                "generation() was entered in another thread or asyncio task: leave it there, too"
            )
        if passed_by and kind is None:
            warn(
                "generation() was entered in a generator, and no call of the U-Net came while this "
                "ran. Those that came between its values were not of the generation: enter the "
                "block where the calls are"
            )

    def _check_enabled(self) -> None:
        if not self._is_enabled():
            raise RuntimeError("generation() is of a helper that is enabled: call enable() before")


def _is_within(told: Told) -> bool:
    """Whether the caller is in the block."""
    if told.over or told.generator is None:
        return not told.over
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not told.generator:
        frame = frame.f_back
    return frame is not None


def _not_over(told: Told | None) -> Told | None:
    """The generation, or the nearest outside of it that is not over. Lets go of those that are."""
    while told is not None and told.over:
        told = told.outer
    if told is not None:
        told.outer = _not_over(told.outer)
    return told


def _is_among(told: Told, innermost: Told | None) -> bool:
    while innermost is not None and innermost is not told:
        innermost = innermost.outer
    return innermost is told


def _generator_around(frame: FrameType) -> FrameType | None:
    """The frame of the generator that a block stands in, if it is a generator's.

    Generators that `contextlib` has made context managers of are not: their blocks are those of
    whoever enters them.

    Args:
        frame: That which enters it.

    Raises:
        RuntimeError: If it is an asynchronous generator, of which nobody can say whether it waits
            for a call of its own or is between two values.
    """
    while frame.f_back is not None and (_is_contextlib(frame) or _is_contextlib(frame.f_back)):
        frame = frame.f_back
    flags = frame.f_code.co_flags
    if flags & inspect.CO_ASYNC_GENERATOR:
        raise RuntimeError(
            f"generation() was entered in the asynchronous generator {frame.f_code.co_name}, whose "
            "block would go on in those who consume it, between two of its values: enter it round "
            "the loop that consumes the generator"
        )
    return frame if flags & inspect.CO_GENERATOR else None


def _is_contextlib(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "contextlib"
