"""`NoiseAware`: full steps where the noise levels say, known before the first, nothing learned.

Where the full steps are placed is found in `placing`; what a shallow step then gets is made by
`forecast` and `replay`.
"""

from dataclasses import dataclass

from .context import Context
from .forecast import Forecast
from .placing import FEW_STEPS, cheapest, count_of_full_steps, usual_levels
from .plans import OUTPUT, OneBranch, Plan, number_between, plan_with, whole_number
from .remarks import if_short


@dataclass(frozen=True)
class NoiseAware(OneBranch):
    """As many full steps as the interval leaves, where the noise levels ask for them.

    Let step i stand at sigma_i and its output be used over h_i = |ln sigma_i - ln sigma_(i+1)|, the
    last one over 1. Computed from what the full step a before it has left, it costs
    h_i · |ln(sigma_i + 0.15) - ln(sigma_a + 0.15)| · (1 + min(sigma_i, 8))^0.8. The plan is the one
    that costs the least in sum, exactly, by dynamic programming. Where the levels are not known,
    those of a usual generation are taken, evenly spaced. A generation of 8 steps or fewer runs in
    full, with a warning. Where nobody knows how many steps there will be, full steps are evenly
    spaced.

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
        FFF·F·F·F··F··F···F···F··
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
        plan = self._plan(levels, context.protected, branch)
        left_out = context.num_steps > max(1, len(context.protected))
        if self.interval > 1 and left_out and context.num_steps <= FEW_STEPS:
            context.warn_once(
                f"the generation has {context.num_steps} steps and runs in full: with "
                f"{FEW_STEPS} or fewer none can be left out without harm; to leave some out all "
                "the same, give schedule=Uniform(2), or --schedule uniform on the command line"
            )
        elif left_out and self.interval > context.num_steps:
            context.warn_once(self._beyond(context.num_steps))
        elif remark := if_short(context.num_steps, len(plan.full_steps)):
            context.warn_once(f"the generation has {context.num_steps} steps; {remark}")
        return plan

    def remark_on(self, plan: Plan, *, is_past: bool = False) -> str | None:
        """What to know of the plan: that it is too short to leave out anything, or so much."""
        if len(plan) <= FEW_STEPS:
            return f"generations of {FEW_STEPS} steps or fewer run in full"
        return self._beyond(len(plan)) if plan.branches and self.interval > len(plan) else None

    def _beyond(self, steps: int) -> str:
        return (
            f"interval={self.interval:g} is more than the {steps} steps that the generation has: "
            "as few as possible run in full; lower the interval, or the speedup"
        )

    def _plan(self, levels: tuple[float, ...], protected: frozenset[int], branch: int) -> Plan:
        steps = len(levels)
        count = count_of_full_steps(self.interval, steps, protected)
        if steps <= FEW_STEPS:
            count = steps
        return plan_with(cheapest(levels, max(1, count), protected), steps, branch)
