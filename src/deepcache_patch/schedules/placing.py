"""Where full steps cost the least: how many there may be, and at which noise levels they stand.

What a sampler integrates over is ln(sigma), not the number of the step. So that is where a plan
looks for its places, as far as x0 still moves, by one rule for every spacing.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np

#: So few steps are all far apart: nothing that was tried wins over fewer steps there.
FEW_STEPS: Final = 8

#: (1 + sigma)^this is how much more an error costs under noise, where it changes what is drawn.
#: Chosen on two models, to one of which early errors matter less; see docs/experiments.md.
POWER: Final = 0.8

#: Above this sigma it costs no more than there: nothing of the picture is to be seen yet.
_STRONG: Final = 8.0

#: Far below this sigma x0 hardly moves any more, however far ln(sigma) falls: Karras sigmas have
#: many steps down there, of which few need be full.
_FINE: Final = 0.15

#: How far the last step's output is used, in ln(sigma): what follows it is free of noise.
_LAST: Final = 1.0

#: ln(sigma) at the first and at the last step where nothing is known: those of Stable Diffusion.
_USUAL: Final = (2.5, -3.0)

#: How far apart two full steps may be, at least; see `cheapest`.
_WIDEST: Final = 64

#: How many plans are remembered: a server's generations are nearly all alike.
_REMEMBERED: Final = 16

#: More than any plan costs.
_FORBIDDEN: Final = 1e12


def count_of_full_steps(interval: float, steps: int, protected: frozenset[int]) -> int:
    """How many of the steps an interval leaves in full.

    What is protected comes on top, or nothing would be left for the steps between.
    """
    return len(protected) + int((steps - len(protected)) / interval + 1e-9)


def usual_levels(steps: int) -> tuple[float, ...]:
    """ln(sigma) of each step of a usual generation."""
    return tuple(np.linspace(*_USUAL, steps).tolist())


def how_long_used(levels: Any) -> Any:
    """How far the output of each step is used, in ln(sigma)."""
    return np.append(np.abs(np.diff(levels)), _LAST)


def early_weights(sigmas: Any, power: float) -> Any:
    """How much more an error costs under so much noise: of each sigma, 1 where there is none."""
    return (1 + np.asarray(sigmas)) ** power


@lru_cache(_REMEMBERED)
def cheapest(
    levels: tuple[float, ...],
    full_steps: int,
    protected: frozenset[int] = frozenset(),
    power: float = POWER,
) -> tuple[int, ...]:
    """The full steps of the cheapest plan; see `NoiseAware` for what a plan costs.

    Args:
        levels: ln(sigma) of each step.
        full_steps: How many run in full, at least 1.
        protected: Those that do in any case. Where they are more than `full_steps`, they are all.
        power: The exponent of 1 + sigma: how much more an error costs under noise.

    Returns:
        The steps, rising; the first is 0.
    """
    sigmas = np.exp(levels)
    weights = how_long_used(levels) * early_weights(np.minimum(sigmas, _STRONG), power)
    return cheapest_by(np.log(sigmas + _FINE), weights, full_steps, protected)


def cheapest_by(
    places: Any, weights: Any, full_steps: int, protected: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """As `cheapest`, where a step costs its weight times how far it is from the full one before.

    Two full steps that are further apart than 64 steps, and than 8 times as far as they would be if
    evenly spaced beside the protected ones, are not looked for: a thousand steps are planned in a
    tenth of a second.

    Args:
        places: Where each step stands, on any scale.
        weights: What each step costs for a distance of 1.
        full_steps: How many run in full, as for `cheapest`.
        protected: Those that do in any case, as for `cheapest`.
    """
    place, weight = np.asarray(places, float), np.array(weights, float)
    steps = len(place)
    protected = protected | {0}
    count = min(max(full_steps, len(protected)), steps)
    weight[sorted(protected)] = _FORBIDDEN
    # between[b, d]: all that lies between the full steps b - 1 - d and b; b may be the end.
    free, others = steps - len(protected), count - len(protected)
    widest = min(free + 1, max(_WIDEST, 8 * (free + 1) // (others + 1)))
    between = np.full((steps + 1, widest), np.inf)
    for a in range(steps):
        until = min(a + widest, steps)
        cost = np.abs(place[a + 1 : until] - place[a]) * weight[a + 1 : until]
        between[np.arange(a + 1, until + 1), np.arange(until - a)] = np.append(0, np.cumsum(cost))
    # best[b]: the cheapest way to the full step b with so many full steps, b included.
    best = np.full(steps, np.inf)
    best[0] = 0
    before = []
    for _ in range(count - 1):
        ways = _before_each(best, widest)[:steps] + between[:steps]
        chosen = np.argmin(ways, axis=1)
        best = ways[np.arange(steps), chosen]
        before.append(chosen)
    ends = _before_each(best, widest)[steps] + between[steps]
    found = [steps - 1 - int(np.argmin(ends))]
    for arrived in reversed(before):
        found.append(found[-1] - 1 - int(arrived[found[-1]]))
    return tuple(reversed(found))


def _before_each(best: Any, widest: int) -> Any:
    """Row b has what stands before b, the nearest first; b may be the end."""
    padded = np.concatenate([np.full(widest, np.inf), best])
    return np.lib.stride_tricks.sliding_window_view(padded, widest)[:, ::-1]
