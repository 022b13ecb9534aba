"""`Progress`: what is said while a sweep runs, which may take long: what is being made, how much is
done, and how long the rest will take. It stands before the pipeline's own progress bar.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Counts what is done.

    Args:
        total: What is to be done in all, in any unit; it need not be exact.
    """

    def __init__(self, total: float) -> None:
        self._total, self._done, self._seconds = total, 0.0, 0.0

    @contextmanager
    def of(self, name: str, amount: float) -> Iterator[str]:
        """One run; gives what is to be said of it."""
        share = min(self._done / self._total, 0.99) if self._total else 0.0
        rest = ""
        if self._done:  # else nobody can tell
            seconds = self._seconds / self._done * max(self._total - self._done, 0)
            rest = f", about {duration(seconds)} left"
        start = time.perf_counter()
        yield f"{name} ({share:.0%} done{rest})"
        self._seconds += time.perf_counter() - start
        self._done += amount


def duration(seconds: float) -> str:
    """A time as a person says it: "40 s", "12 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
