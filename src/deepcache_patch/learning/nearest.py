"""Which plan with so many full steps, and which way to go on from them, comes nearest to what the
plain pipeline makes.

What suits one model and sampler does not suit another, and no rule for all was found: so it is
tried, on pictures of which the plain ones are known.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from ..errors import InvalidSettingError
from ..schedules.fit import DAMPING, trend
from ..schedules.placing import POWER, cheapest, cheapest_by, usual_levels
from ..schedules.plans import plan_with
from .calibrated_schedule import Calibrated
from .study import Study

#: Weights of early steps that plans are tried with, as powers of 1 + sigma, the default's first;
#: without one, full steps are evenly spaced.
POWERS: Final = (POWER, 0.0, 1.0, 1.5, None)

#: How many ways are tried for one number of full steps, at most: a plan for each of these, and
#: three other ways to go on by the nearest.
TRIED: Final = len(POWERS) + 3


class Way(NamedTuple):
    """How to make a schedule with so many full steps.

    Attributes:
        power: The exponent of 1 + sigma, how much more an error costs under noise; `None` to space
            the full steps evenly.
        strength: How much of what the default follows of the trend, from 0 to 1; where x0 swings
            about, forecasts go back as the default's do.
        damping: That of the fit; `None` where nothing is, and the trend is followed.
    """

    power: float | None = POWER
    strength: float = 1.0
    damping: float | None = None

    def schedule(self, study: Study, full_steps: int) -> Calibrated:
        """Goes by so many full steps; those that the study did not come to are full, too.

        Raises:
            InvalidSettingError: If nothing was recorded.
        """
        seen = study.seen
        if not seen:
            raise InvalidSettingError("nothing was recorded: nothing can be learned")
        levels = (study.levels or usual_levels(study.num_steps))[:seen]
        protected = study.protected.intersection(range(seen))
        if self.power is None:
            full = cheapest_by(range(seen), [1] * seen, full_steps, protected)
        else:
            full = cheapest(levels, full_steps, protected, self.power)
        plan = plan_with((*full, *range(seen, study.num_steps)), study.num_steps, study.branch)
        if self.damping is not None:
            return study.learn(plan, damping=self.damping)
        if study.forecast is None or self.strength == 1:
            return study.goes_by(plan, {})
        forecast = replace(study.forecast, strength=self.strength * study.forecast.strength)
        return study.goes_by(plan, trend(forecast, plan))


#: What is taken where nothing can be tried: the default's plan, and what is fitted.
USUAL_WAY: Final = Way(damping=DAMPING)


def nearest_way(study: Study, full_steps: int, error: Callable[[Calibrated], float]) -> Way:
    """First the plan is chosen, then how to go on by it.

    Args:
        study: The study of the plain pictures.
        full_steps: How many there are.
        error: How far the pictures by a schedule are from the plain ones.
    """

    def error_of(way: Way) -> float:
        return error(way.schedule(study, full_steps))

    best = min(map(Way, POWERS), key=error_of)
    damped = (best._replace(damping=each) for each in (1.0, DAMPING))
    return min((best, best._replace(strength=0.5), *damped), key=error_of)
