"""`NoiseAware`: full steps where the noise levels say, known before the first, nothing learned.

What a sampler integrates over is ln(sigma), not the number of the step. So that is where the plan
looks for its places, by one rule for every spacing. What a shallow step then gets is in `forecast`
and `replay`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from ..errors import DeepCacheWarning
from .forecast import Forecast
from .guide import Context
from .plans import FULL, OUTPUT, Plan, number_between, whole_number

#: So few steps are all far apart: nothing that was tried wins over fewer steps there.
FEW_STEPS: Final = 8

#: How much more an error costs under strong noise, where it changes what is drawn: (1 + sigma)^g.
#: Chosen on one model and judged on others; docs/schedules.md has what was tried.
_EARLY: Final = 1.25

#: How far the last step's output is used, in ln(sigma): what follows it is free of noise.
_LAST: Final = 0.5

#: ln(sigma) at the first and at the last step where nothing is known: those of Stable Diffusion.
_USUAL: Final = (2.5, -3.0)

#: More than any plan costs.
_FORBIDDEN: Final = 1e12


@dataclass(frozen=True)
class NoiseAware:
    """As many full steps as the interval leaves, where the noise levels ask for them.

    Let step i stand at sigma_i and its output be used over h_i = |ln sigma_i - ln sigma_(i+1)|.
    Computed from what the full step a before it has left, it costs
    h_i · |ln sigma_i - ln sigma_a| · (1 + sigma_i)^1.25. The plan is the one that costs the least
    in sum, exactly, by dynamic programming. Where the levels are not known, those of a usual
    generation are taken, evenly spaced. A generation of 8 steps or fewer runs in full, with a
    warning.

    Args:
        interval: One full step in so many, at least 1, a whole number or not: at most
            steps / interval steps run in full, but never fewer than one, nor than are protected.
        branch: Where the others are cut, at least 0; or -1, above the output: nothing of the U-Net
            runs, and its output is forecast. Where a forecast is not possible, because the
            scheduler does not say what the output means, -1 stands for 0.

    Raises:
        InvalidSettingError: If an argument is out of range.

    Example:
        >>> print(NoiseAware(interval=2.5).plan(25))
        FF·F·F·F··F··F···F··F···F
    """

    interval: float = 2.2
    branch: int = OUTPUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", number_between("interval", self.interval, 1, 1000))
        object.__setattr__(self, "branch", whole_number("branch", self.branch, OUTPUT))

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that a plan may name."""
        return (self.branch,)

    def plan(self, num_steps: int) -> Plan:
        """One entry for each of `num_steps >= 1` steps whose noise levels are not known."""
        count = whole_number("num_steps", num_steps, 1)
        return self._plan(tuple(np.linspace(*_USUAL, count).tolist()), frozenset(), self.branch)

    def plan_for(self, context: Context) -> Plan:
        """The plan of a generation, by its noise levels."""
        levels = None if context.is_guess else context.levels()
        if levels is None:
            levels = tuple(np.linspace(*_USUAL, context.num_steps).tolist())
        possible = self.branch != OUTPUT or Forecast.of(context) is not None
        plan = self._plan(levels, context.protected, self.branch if possible else 0)
        if self.interval > 1 and context.num_steps <= FEW_STEPS:
            warnings.warn(
                f"the generation has {context.num_steps} steps and runs in full: with "
                f"{FEW_STEPS} or fewer none can be left out without harm; to leave some out all "
                "the same, give schedule=Uniform(2)",
                DeepCacheWarning,
                stacklevel=2,
            )
        return plan

    def _plan(self, levels: tuple[float, ...], protected: frozenset[int], branch: int) -> Plan:
        steps = len(levels)
        count = steps if steps <= FEW_STEPS else int(steps / self.interval + 1e-9)
        full = frozenset(cheapest(levels, max(1, count), protected))
        return Plan(FULL if step in full else branch for step in range(steps))


@lru_cache(maxsize=64)
def cheapest(
    levels: Sequence[float], full_steps: int, protected: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """The full steps of the cheapest plan; see `NoiseAware` for what a plan costs.

    Args:
        levels: ln(sigma) of each step, a tuple.
        full_steps: How many run in full, at least 1.
        protected: Those that do in any case. Where they are more than `full_steps`, they are all.

    Returns:
        The steps, rising; the first is 0.
    """
    steps = len(levels)
    protected = protected | {0}
    count = min(max(full_steps, len(protected)), steps)
    level = np.asarray(levels)
    used = np.append(np.abs(np.diff(level)), _LAST)
    cost = np.abs(level[None, :] - level[:, None]) * used * (1 + np.exp(level)) ** _EARLY
    cost[:, sorted(protected)] = _FORBIDDEN
    # between[a, b]: all that lies between the full steps a and b, in sum; b may be the end.
    between = np.full((steps, steps + 1), np.inf)
    for a in range(steps):
        between[a, a + 1 :] = np.concatenate([[0.0], np.cumsum(cost[a, a + 1 :])])
    # best[b]: the cheapest way to the full step b with so many full steps, b included.
    best = np.full(steps, np.inf)
    best[0] = 0
    before = []
    for _ in range(count - 1):
        ways = best[:, None] + between[:, :steps]
        before.append(np.argmin(ways, axis=0))
        best = np.min(ways, axis=0)
    found = [int(np.argmin(best + between[:, steps]))]
    for arrived in reversed(before):
        found.append(int(arrived[found[-1]]))
    return tuple(reversed(found))
