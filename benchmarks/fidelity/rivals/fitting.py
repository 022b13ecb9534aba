"""The threshold with which a method that decides as it goes keeps a budget."""

import math
from collections.abc import Callable


def fitted(
    full_calls: Callable[[float], int], budget: int, low: float, high: float, *, tries: int = 9
) -> float:
    """The threshold whose full calls come closest to the budget and do not exceed it.

    A larger threshold leaves out more, but not strictly: each call changes the next. So the search
    halves the range (in logarithms if it is above 0), and the best of what was tried counts.

    Args:
        full_calls: Runs one generation with a threshold and returns its full calls.
        budget: The most full calls.
        low: The smallest threshold.
        high: The largest, which is the answer if nothing that was tried keeps the budget.
        tries: Generations at most.
    """
    best, most = high, 0
    for _ in range(tries):
        middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
        calls = full_calls(middle)
        if most < calls <= budget:
            best, most = middle, calls
        if calls == budget:
            break
        low, high = (low, middle) if calls < budget else (middle, high)
    return best
