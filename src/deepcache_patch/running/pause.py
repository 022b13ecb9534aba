"""A pause: the plain pipeline, for one thread or asyncio task only."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Pause:
    """Whether calls run plainly at present; another answer in each thread and asyncio task."""

    def __init__(self) -> None:
        self._paused = ContextVar("paused", default=False)

    def is_on(self) -> bool:
        """Whether the caller is within a block."""
        return self._paused.get()

    @contextmanager
    def block(self) -> Iterator[None]:
        """A pause for the length of a `with` block.

        Raises:
            RuntimeError: If the block is left in another thread or task than it was entered in.
        """
        before = self._paused.set(True)
        try:
            yield
        finally:
            try:
                self._paused.reset(before)
            except ValueError as error:
                raise RuntimeError(
                    "paused() was entered in another thread or asyncio task: leave it there, too"
                ) from error
