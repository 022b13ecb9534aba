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
from .declared import DeclaredGeneration


class Declarations:
    """Which generation is declared at present; another answer in each thread and asyncio task.

    Attributes:
        declared: The one in whose block the caller is, as far as Python is concerned.
        attachments: How often calls were sent here: those between two times were missed.
    """

    def __init__(self) -> None:
        self.declared: ContextVar[DeclaredGeneration | None] = ContextVar("declared", default=None)
        self.attachments = 0

    def attached(self) -> None:
        """Calls come here from now on. Those before were missed by the blocks that are open."""
        self.attachments += 1

    def current(self) -> DeclaredGeneration | None:
        """The generation in whose block the caller is, the innermost; `None` outside of one."""
        declared, skipped = self.declared.get(), []
        if declared is None:
            return None
        while declared is not None and not _is_within(declared):
            skipped.append(declared)
            declared = declared.outer
        if declared is None:
            for each in skipped:
                each.is_passed_by = True
        else:
            declared.is_missed = declared.attachments != self.attachments
        return declared


class Block(ContextDecorator):
    """A `with` block that is one generation each time it is entered, one after the other.

    As a decorator it makes a generation of each call of the function, several at once included.

    Args:
        declarations: The `Declarations` of the helper.
        declared: What each generation is.
        is_enabled: Whether the helper is.

    Raises:
        RuntimeError: If the helper is not enabled.
    """

    def __init__(
        self,
        declarations: Declarations,
        declared: DeclaredGeneration,
        is_enabled: Callable[[], bool],
    ) -> None:
        self._declarations = declarations
        self._declared = declared
        self._is_enabled = is_enabled
        # One at most.
        self._entered: list[tuple[DeclaredGeneration, Token[DeclaredGeneration | None]]] = []
        self._check_enabled()

    def _recreate_cm(self) -> "Block":  # asked by contextlib, for each call of the function
        return Block(self._declarations, self._declared, self._is_enabled)

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
        declared = self._declared.again()
        declared.generator = _generator_around(sys._getframe(1))
        declared.attachments = self._declarations.attachments
        declared.outer = _not_over(self._declarations.declared.get())
        self._entered.append((declared, self._declarations.declared.set(declared)))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it, by an error or not.

        Raises:
            RuntimeError: If it was entered in another thread or task.
        """
        declared, before = self._entered.pop()
        innermost = self._declarations.declared.get()
        is_here = _is_among(declared, innermost)
        passed_by = declared.is_passed_by and not declared.sessions
        try:
            declared.end(failed=kind is not None)
        finally:
            if innermost is declared:
                try:
                    self._declarations.declared.reset(before)
                    # The one around it may have been left before.
                    self._declarations.declared.set(_not_over(declared.outer))
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


def _is_within(declared: DeclaredGeneration) -> bool:
    """Whether the caller is in the block."""
    if declared.over or declared.generator is None:
        return not declared.over
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not declared.generator:
        frame = frame.f_back
    return frame is not None


def _not_over(declared: DeclaredGeneration | None) -> DeclaredGeneration | None:
    """The generation, or the nearest outside of it that is not over. Lets go of those that are."""
    while declared is not None and declared.over:
        declared = declared.outer
    if declared is not None:
        declared.outer = _not_over(declared.outer)
    return declared


def _is_among(declared: DeclaredGeneration, innermost: DeclaredGeneration | None) -> bool:
    while innermost is not None and innermost is not declared:
        innermost = innermost.outer
    return innermost is declared


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
