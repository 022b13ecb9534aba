"""Which cases of a test `make test` runs; the others are marked slow, and run with `make test-all`.

Each behaviour keeps one or two quick cases, those that differ most.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

Row = type(pytest.param())


def mostly_slow(cases: Iterable[Any], quick: int | Collection[Any] = 2) -> list[Any]:
    """The cases in their order, slow but for those in `quick`, or the first so many; ids stay."""
    rows = [_row(case) for case in cases]
    named = range(quick) if isinstance(quick, int) else quick
    return [
        row if (number if isinstance(quick, int) else _name(row)) in named else _slow(row)
        for number, row in enumerate(rows)
    ]


def _row(case: Any) -> Any:
    if isinstance(case, Row):
        return case
    return pytest.param(*case) if type(case) is tuple else pytest.param(case)


def _name(row: Any) -> Any:
    """Its id, if it was given one; else its value, or all of them."""
    return row.id or (row.values[0] if len(row.values) == 1 else row.values)


def _slow(row: Any) -> Any:
    return row._replace(marks=[*row.marks, pytest.mark.slow])
