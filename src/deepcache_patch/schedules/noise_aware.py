"""`NoiseAware`: full steps where the noise levels say, known before the first, nothing learned.

What a sampler integrates over is ln(sigma), not the number of the step. So that is where the plan
looks for its places, as far as x0 still moves, by one rule for every spacing. What a shallow step
then gets is in `forecast` and `replay`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .context import Context
from .forecast import Forecast
from .plans import OUTPUT, OneBranch, Plan, number_between, plan_with, whole_number

#: So few steps are all far apart: nothing that was tried wins over fewer steps there.
FEW_STEPS: Final = 8

#: Up to here what is left out shows, with this plan and with fewer steps.
SHORT: Final = 15

#: (1 + sigma)^this is how much more an error costs under noise, where it changes what is drawn.
#: Chosen on two models, to one of which early errors matter less; see docs/experiments.md.
_POWER: Final = 1.0

#: The same where the sampler adds noise: what comes later covers a part of an early error.
_POWER_UNDER_NOISE: Final = 0.8

#: Above this sigma it costs no more than there: nothing of the picture is to be seen yet.
_STRONG: Final = 8.0

#: Far below this sigma x0 hardly moves any more, however far ln(sigma) falls: Karras sigmas have
#: many steps down there, of which few need be full.
_FINE: Final = 0.05

#: How far the last step's output is used, in ln(sigma): what follows it is free of noise.
_LAST: Final = 1.0

#: ln(sigma) at the first and at the last step where nothing is known: those of Stable Diffusion.
_USUAL: Final = (2.5, -3.0)

#: How far apart two full steps may be, at least; see `cheapest`.
_WIDEST: Final = 64

#: More than any plan costs.
_FORBIDDEN: Final = 1e12


@dataclass(frozen=True)
class NoiseAware(OneBranch):
    """As many full steps as the interval leaves, where the noise levels ask for them.

    Let step i stand at sigma_i and its output be used over h_i = |ln sigma_i - ln sigma_(i+1)|, the
    last one over 1. Computed from what the full step a before it has left, it costs
    h_i · |ln(sigma_i + 0.05) - ln(sigma_a + 0.05)| · (1 + min(sigma_i, 8)). Where the sampler adds
    noise, the last factor is raised to the power of 0.8. The plan is the one that costs the least
    in sum, exactly, by dynamic programming. Where the levels are not known, those of a usual
    generation are taken, evenly spaced. A generation of 8 steps or fewer runs in full, with a
    warning. Where nobody knows how many steps there will be, full steps are evenly spaced.

    Args:
        interval: One full step in so many, at least 1, a whole number or not: at most
            steps / interval steps run in full, but never fewer than one. Steps that are protected
            (`first`, `last`) come on top, and are not counted as steps then.
        branch: Where the others are cut, at least 0; or -1, above the output: nothing of the U-Net
            runs, and its output is forecast. Where a forecast is not possible, because the
            scheduler does not say what the output means, -1 stands for 0.

    Raises:
        InvalidSettingError: If an argument is out of range.

    Example:
        >>> print(NoiseAware(interval=2.5).plan(25))
        FFF·F·F·F··F··F···F····F·
    """

    interval: float = 2.2
    branch: int = OUTPUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", number_between("interval", self.interval, 1, 1000))
        object.__setattr__(self, "branch", whole_number("branch", self.branch, OUTPUT))

    def plan(self, num_steps: int) -> Plan:
        """One entry for each of `num_steps >= 1` steps whose noise levels are not known."""
        count = whole_number("num_steps", num_steps, 1)
        return self._plan(usual_levels(count), frozenset(), self.branch)

    def plan_for(self, context: Context) -> Plan:
        """The plan of a generation, by its noise levels."""
        possible = self.branch != OUTPUT or Forecast.of(context) is not None
        branch = self.branch if possible else 0
        if context.is_guess:  # of the places only the next one counts: evenly spaced
            count = context.num_steps
            return plan_with((int(place * self.interval) for place in range(count)), count, branch)
        levels = context.levels or usual_levels(context.num_steps)
        plan = self._plan(levels, context.protected, branch, power_of(context))
        left_out = context.num_steps > max(1, len(context.protected))
        if self.interval > 1 and left_out and context.num_steps <= FEW_STEPS:
            context.warn_once(
                f"the generation has {context.num_steps} steps and runs in full: with "
                f"{FEW_STEPS} or fewer none can be left out without harm; to leave some out all "
                "the same, give schedule=Uniform(2), or --schedule uniform on the command line"
            )
        elif left_out and self.interval > context.num_steps:
            context.warn_once(
                f"interval={self.interval:g} is more than the {context.num_steps} steps that the "
                "generation has: as few as possible run in full; lower the interval, or the speedup"
            )
        elif remark := if_short(context.num_steps, len(plan.full_steps)):
            context.warn_once(f"the generation has {context.num_steps} steps; {remark}")
        return plan

    def remark_on(self, plan: Plan, *, is_past: bool = False) -> str | None:
        """What to know of the plan: that it leaves nothing out, because it is so short."""
        if len(plan) > FEW_STEPS:
            return None
        return f"generations of {FEW_STEPS} steps or fewer run in full"

    def _plan(
        self,
        levels: tuple[float, ...],
        protected: frozenset[int],
        branch: int,
        power: float = _POWER,
    ) -> Plan:
        steps = len(levels)
        count = within(self.interval, steps, protected)
        if steps <= FEW_STEPS:
            count = steps
        return plan_with(cheapest(levels, max(1, count), protected, power), steps, branch)


def remarks_on(schedule: Any, plan: Plan, *, is_past: bool = False) -> list[str]:
    """What to know of a plan, in sentences: what its schedule says of it, and if it is short.

    Args:
        schedule: Of any kind; it is asked by a method `remark_on`, if it has one.
        plan: Of generations with it.
        is_past: Whether it has run.
    """
    remark_on = getattr(schedule, "remark_on", None)
    own = None if remark_on is None else remark_on(plan, is_past=is_past)
    return [said for said in (own, if_short(len(plan), len(plan.full_steps))) if said]


def if_short(steps: int, full_steps: int) -> str | None:
    """What to know of a short plan, unless the interval is small: two thirds in full, or more."""
    few = FEW_STEPS < steps <= SHORT
    if not few or 3 * full_steps >= 2 * steps:
        return None
    return f"with {SHORT} steps or fewer pictures move far from the plain ones: try interval=1.5"


def within(interval: float, steps: int, protected: frozenset[int]) -> int:
    """How many of the steps an interval leaves in full.

    What is protected comes on top, or nothing would be left for the steps between.
    """
    return len(protected) + int((steps - len(protected)) / interval + 1e-9)


def power_of(context: Context) -> float:
    """Of 1 + sigma, in what a plan costs."""
    return _POWER_UNDER_NOISE if context.adds_noise else _POWER


def usual_levels(steps: int) -> tuple[float, ...]:
    """ln(sigma) of each step of a usual generation."""
    return tuple(np.linspace(*_USUAL, steps).tolist())


def how_long_used(levels: Any) -> Any:
    """How far the output of each step is used, in ln(sigma)."""
    return np.append(np.abs(np.diff(levels)), _LAST)


def early_weights(sigmas: Any, power: float) -> Any:
    """How much more an error costs under so much noise: of each sigma, 1 where there is none."""
    return (1 + np.asarray(sigmas)) ** power


def cheapest(
    levels: Sequence[float],
    full_steps: int,
    protected: frozenset[int] = frozenset(),
    power: float = _POWER,
) -> tuple[int, ...]:
    """The full steps of the cheapest plan; see `NoiseAware` for what a plan costs.

    Args:
        levels: ln(sigma) of each step.
        full_steps: How many run in full, at least 1.
        protected: Those that do in any case. Where they are more than `full_steps`, they are all.
        power: Of 1 + sigma: how much more an error costs under noise.

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
    evenly spaced, are not looked for: a thousand steps are planned in a tenth of a second.

    Args:
        places: Where each step stands, on any scale.
        weights: What each step costs for a distance of 1.
        full_steps: As of `cheapest`.
        protected: Likewise.
    """
    place, weight = np.asarray(places, float), np.array(weights, float)
    steps = len(place)
    protected = protected | {0}
    count = min(max(full_steps, len(protected)), steps)
    weight[sorted(protected)] = _FORBIDDEN
    # between[b, d]: all that lies between the full steps b - 1 - d and b; b may be the end.
    widest = min(steps, max(_WIDEST, 8 * steps // count))
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
