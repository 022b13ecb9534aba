"""The U-Net's output, forecast from its last full outputs, as a multistep solver would.

Only arithmetic on samples and outputs; the scheduler is looked at once, and never changed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch

from ..cutting.features import Recorded
from .context import Context

#: What the output of a U-Net may mean.
PREDICTIONS: Final = ("epsilon", "v_prediction", "sample")

#: ln(sigma) beyond which noise says nothing any more of what is under it.
_HIGHEST: Final = 5.0

#: How much of a trend still holds where the sampler adds noise; see docs/experiments.md.
_AFTER_NOISE: Final = 0.5

#: How many full steps a forecast goes on from.
KEEP: Final = 3

#: How much of what the forecasts between two full steps have missed is made good. Not all: a U-Net
#: takes a part of it back itself. Chosen on two models (docs/experiments.md).
_CORRECTED: Final = 0.7

#: So far may ln(sigma) fall between these two for all of that share.
_NEAR: Final = 0.25

#: From here on nothing is made good, because too much has happened meanwhile; between, on a line.
_FAR: Final = 0.45

#: What one forecast makes good of the rise of 1 / sigma, in units of the rise in its own step, at
#: most. With timesteps of one's own that step may be very short.
_MOST_AT_ONCE: Final = 4.0

#: By a shallow step and the full steps that it goes on from, the newest first: how much of each
#: change from one of these to the next newer is added to the newest.
Weights: TypeAlias = Mapping[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Forecast:
    """Forecasts outputs of one generation.

    The U-Net's input is taken to be sqrt(1 - s²)·x0 + s·noise with s² = sigma² / (1 + sigma²), as
    it is for all schedulers but those that `of` refuses. From a full step's input and output
    follows x0. That of a shallow step goes on from the last two, as a trend that dies out
    (exponential in ln(sigma), by `_rate`), since x0 settles while the noise falls. From it and the
    shallow step's own input follows the output.

    A full step shows what the forecasts before it have missed: their x0 lay between it and the full
    step before. The forecast of the step after it makes a part of that good, which numerical
    analysis calls a deferred correction. Divided by its share of noise, a sample gains x0 in
    proportion to how far 1 / sigma rises in a step of Euler's method or DDIM's.

    Where weights are given, these say how to go on in the place of both.

    Attributes:
        levels: ln(sigma) of each step.
        prediction: What the output means, one of `PREDICTIONS`.
        strength: Share of the trend that is followed, from 0 (x0 is kept) to 1.
        correction: Share of what was missed that is made good, from 0 to 1; times `strength`.
        weights: In the place of the trend, for the steps that are in it.
    """

    levels: tuple[float, ...]
    prediction: str
    strength: float = 1.0
    correction: float = 0.0
    weights: Weights = field(default_factory=dict)

    @classmethod
    def of(
        cls, context: Context, *, strength: float = 1.0, weights: Weights | None = None
    ) -> "Forecast | None":
        """For a generation; `None` where it is not sure what its samples and outputs mean.

        That is so without `alphas_cumprod` or a known `prediction_type`, with the noise levels of
        flow matching, and where noise rises: inversion calls the U-Net with a sample that has less
        of it than the timestep says.

        Where the sampler adds noise, only half of the given strength is followed, because noise
        moves x0 off its trend, and nothing is made good. Nor is it where a step of the sampler
        also uses what it remembers of those before.
        """
        scheduler = context.scheduler
        config = getattr(scheduler, "config", None)
        config = config if isinstance(config, Mapping) else {}
        prediction: Any = config.get("prediction_type")
        if prediction not in PREDICTIONS:
            return None
        known = isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor)
        if not known or config.get("use_flow_sigmas"):
            return None
        levels = context.levels
        if levels is None or (prediction == "epsilon" and max(levels) > _HIGHEST):
            return None
        if any(after > before for before, after in itertools.pairwise(levels)):
            return None
        correction = 0.0
        if context.adds_noise:
            strength *= _AFTER_NOISE
        elif context.is_single_step:
            correction = _CORRECTED
        return cls(levels, prediction, strength, correction, weights or {})

    def output(self, step: int, recorded: Sequence[Recorded], sample: torch.Tensor) -> torch.Tensor:
        """The output of a step.

        Args:
            step: Which.
            recorded: Full outputs with their samples, the newest first; one or more.
            sample: The step's input. Where it has more channels than the output, the others are a
                condition: it stands last, or first where the first channel does not change from
                step to step. For channels that do not change, and for what the output has beyond
                the sample's, such as a learned variance, the newest output is given.
        """
        newest = recorded[0]
        output, before = newest.feature, newest.sample
        place = channels(sample, output)
        if before is None or place is None:
            return output
        count = min(sample.shape[place], output.shape[place])
        made = self._made(step, recorded, sample, place, 0, count)
        others = [each for each in range(sample.ndim) if each != place]
        moving = (sample != before).any(others, keepdim=True)
        moved = _some(moving, place, 0, count)
        last = sample.shape[place] - count
        if last:  # a condition is there, too: after what is denoised, or before it
            late = self._made(step, recorded, sample, place, last, count)
            is_first = _some(moving, place, 0, 1)  # all on the device, for which nobody waits
            made = torch.where(is_first, made, late)
            moved = torch.where(is_first, moved, _some(moving, place, last, count))
        made = torch.where(moved, made, _some(output, place, 0, count))
        rest = output.shape[place] - count
        return torch.cat([made, _some(output, place, count, rest)], dim=place) if rest else made

    def reach(self, step: int) -> float:
        """How far x0 moves where the output of a step moves by 1."""
        return abs(self._in_x0(step)[1])

    def _made(
        self,
        step: int,
        recorded: Sequence[Recorded],
        sample: torch.Tensor,
        place: int,
        start: int,
        count: int,
    ) -> torch.Tensor:
        """The output, if these channels of the sample are what is denoised.

        It is a sum of inputs and outputs, in float32: all that is known on the host is put together
        before it, or each of the steps in between would be an operation of the device.
        """
        of_x, of_x0 = self._in_output(step)
        made = of_x * _some(sample, place, start, count).float()
        shares = self._shares(step, [each.step for each in recorded])
        for each, share in zip(recorded, shares, strict=False):  # older ones may have none
            assert each.sample is not None
            x, output = self._in_x0(each.step)
            made.add_(_some(each.sample, place, start, count), alpha=of_x0 * share * x)
            made.add_(_some(each.feature, place, 0, count), alpha=of_x0 * share * output)
        return made.to(recorded[0].feature.dtype)

    def ahead(
        self, step: int, steps: Sequence[int], denoised: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """x0 of a step, forecast from that of full steps, the newest first."""
        first, *others = map(torch.mul, denoised, self._shares(step, steps))
        return sum(others, first)

    def weights_of(self, step: int, steps: Sequence[int]) -> tuple[float, ...]:
        """Those that are given, or else that of the trend and of what it has missed before.

        Args:
            step: Which.
            steps: The full ones that it goes on from, the newest first, two at least.
        """
        given = self.weights.get((step, *steps))
        if given is not None:
            return given
        slope = self._slope(step, steps[0], steps[1])
        is_last = step + 1 == len(self.levels)  # what becomes of it is not known
        if step != steps[0] + 1 or len(steps) < KEEP or is_last:
            return (slope,)
        newest, older = self._missed(step, *steps[:KEEP])
        return (slope + newest, older) if newest or older else (slope,)

    def _missed(self, step: int, newest: int, older: int, oldest: int) -> tuple[float, float]:
        """What to add to the weights so as to make good what was missed before the newest.

        With r the rise in a step, w the trend's weight and v how much of the way from the older to
        the newest x0 had gone: sums of r·v and of -r·w over the steps between, divided by this r.
        """
        gap = self.levels[older] - self.levels[newest]
        share = self.strength * self.correction * min(1.0, (_FAR - gap) / (_FAR - _NEAR))
        missed = {each: self._rise(each) for each in range(older + 1, newest)}
        own = self._rise(step)
        if share <= 0 or gap <= 0 or own <= 0:
            return 0.0, 0.0
        share /= max(own, sum(missed.values()) / _MOST_AT_ONCE)
        rate = _rate(math.exp(self.levels[older]))
        moved = followed = 0.0
        for each, rise in missed.items():
            way = self.levels[older] - self.levels[each]
            moved += rise * math.expm1(-rate * way) / math.expm1(-rate * gap)
            followed += rise * self._slope(each, older, oldest)
        return share * moved, -share * followed

    def _rise(self, step: int) -> float:
        """How far 1 / sigma rises in a step that another follows."""
        return math.exp(-self.levels[step + 1]) - math.exp(-self.levels[step])

    def denoised(self, step: int, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """x0 of a step, by its input and output."""
        of_x, of_output = self._in_x0(step)
        return of_x * x + of_output * output

    def answer(self, step: int, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The output of a step, by its input and x0."""
        of_x, of_x0 = self._in_output(step)
        return of_x * x + of_x0 * denoised

    def _in_x0(self, step: int) -> tuple[float, float]:
        """How much of a step's input and of its output is in its x0."""
        alpha, noise = self._parts(step)
        if self.prediction == "epsilon":
            return 1 / alpha, -noise / alpha
        return (alpha, -noise) if self.prediction == "v_prediction" else (0.0, 1.0)

    def _in_output(self, step: int) -> tuple[float, float]:
        """How much of a step's input and of its x0 is in its output."""
        alpha, noise = self._parts(step)
        if self.prediction == "epsilon":
            return 1 / noise, -alpha / noise
        return (alpha / noise, -1 / noise) if self.prediction == "v_prediction" else (0.0, 1.0)

    def _shares(self, step: int, steps: Sequence[int]) -> list[float]:
        """How much of the x0 of each full step, the newest first, is in that of the step."""
        weights = self.weights_of(step, steps) if len(steps) > 1 else ()
        return [after - before for before, after in itertools.pairwise((-1.0, *weights, 0.0))]

    def _parts(self, step: int) -> tuple[float, float]:
        """How much of the data and of the noise is in the input of a step."""
        sigma = math.exp(self.levels[step])
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)

    def _slope(self, step: int, newest: int, older: int) -> float:
        """How far to go beyond the newest, in units of what lies between the two."""
        ahead = self.levels[newest] - self.levels[step]
        behind = self.levels[older] - self.levels[newest]
        if ahead <= 0 or behind <= 0:  # the pairs of Heun's method
            return 0.0
        rate = _rate(math.exp(self.levels[newest]))
        return -self.strength * math.expm1(-rate * ahead) / math.expm1(rate * behind)


def _some(tensor: torch.Tensor, place: int, start: int, count: int) -> torch.Tensor:
    """So many channels of it, from one on; itself if that is all."""
    is_all = count == tensor.shape[place]
    return tensor if is_all else tensor.narrow(place, start, count)


def _rate(sigma: float) -> float:
    """How fast x0 settles, in each ln(sigma): 1 where little noise is left, up to 4 under much.

    As measured: what the last change says of the next dies out so fast. Under strong noise what is
    drawn is still being decided, from little noise on x0 is a line in sigma.
    """
    return 1 + 3 * sigma / (1 + sigma)


def channels(sample: torch.Tensor, output: torch.Tensor) -> int | None:
    """Which dimension has the channels; `None` if the two have not enough in common."""
    if sample.shape == output.shape:
        return 1
    if sample.ndim != output.ndim:
        return None
    differ = [
        place
        for place, sizes in enumerate(zip(sample.shape, output.shape, strict=True))
        if len(set(sizes)) > 1
    ]
    return None if len(differ) > 1 else differ[0]
