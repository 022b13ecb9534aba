"""The U-Net's output, forecast from its last full outputs, as a multistep solver would.

Only arithmetic on samples and outputs; the scheduler is looked at once, and never changed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.nn.functional import avg_pool2d

from ..cutting.features import Recorded
from .context import Context
from .noise import adds_noise
from .replay import safe_share

#: What the output of a U-Net may mean.
PREDICTIONS: Final = ("epsilon", "v_prediction", "sample")

#: ln(sigma) beyond which noise says nothing any more of what is under it.
_HIGHEST: Final = 5.0

#: How much of a trend still holds where the sampler adds noise; see docs/experiments.md.
_AFTER_NOISE: Final = 0.5

#: How many full steps a forecast goes on from.
KEEP: Final = 3

#: How far apart in ln(sigma) two full steps may lie so that the trend between them is followed: all
#: of it up to half of this, none beyond; see `safe_share`. Chosen on two models.
_REACH: Final = 0.8

#: By a shallow step and the full steps that it goes on from, the newest first: how much of each
#: change from one of these to the next newer is added to the newest.
Weights: TypeAlias = Mapping[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Forecast:
    """Forecasts outputs of one generation.

    The U-Net's input is taken to be sqrt(1 - s²)·x0 + s·noise with s² = sigma² / (1 + sigma²), as
    it is for all schedulers but those that `of` refuses. From a full step's input and output
    follows x0. x0 of a shallow step goes on from the last two, as a trend that dies out
    (exponential in ln(sigma), by `_rate`), since x0 settles while the noise falls. From it and the
    shallow step's own input follows the output.

    The trend is followed as far as it has held: less where the last full steps lie far apart, and,
    once three are known, less where x0 has not gone on along the trend before (see `_held`). Where
    guidance is strong, forecasts that are always wrong on the same side make x0 swing about: it
    goes to the one side, and at the next full step back. Then a forecast goes back along the
    trend, too, however far the last full steps lie apart.

    Weights that are given say how to go on in the place of the trend, as far as it has held; they
    do not say how to go back.

    Attributes:
        levels: ln(sigma) of each step.
        prediction: What the output means, one of `PREDICTIONS`.
        strength: Share of the trend that is followed, from 0 (x0 is kept) to 1.
        weights: In the place of the trend, for the steps that are in it.
    """

    levels: tuple[float, ...]
    prediction: str
    strength: float = 1.0
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
        moves x0 off its trend.
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
        if adds_noise(scheduler):
            strength *= _AFTER_NOISE
        return cls(levels, prediction, strength, weights or {})

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

        In float32. Nothing here waits for the device.
        """
        steps = [each.step for each in recorded]
        denoised = []
        for each in recorded:
            assert each.sample is not None
            x = _some(each.sample, place, start, count).float()
            output = _some(each.feature, place, 0, count).float()
            denoised.append(self.denoised(each.step, x, output))
        ahead = self.ahead(step, steps, denoised)
        if len(denoised) >= KEEP and self.strength:
            ahead = self._as_it_held(step, steps, denoised, ahead, place)
        made = self.answer(step, _some(sample, place, start, count).float(), ahead)
        return made.to(recorded[0].feature.dtype)

    def _as_it_held(
        self,
        step: int,
        steps: Sequence[int],
        denoised: Sequence[torch.Tensor],
        ahead: torch.Tensor,
        place: int,
    ) -> torch.Tensor:
        """What was forecast, as far as the trend has held; where x0 swings about, back from it."""
        newest, older = denoised[:2]
        held = self._held(steps, denoised, place)
        if held is None:
            return ahead
        back = self.strength * self._trend(step, *steps[:2]) * held.clamp(max=0)
        return torch.lerp(newest, ahead, held.clamp(min=0)) + back * (newest - older)

    def _held(
        self, steps: Sequence[int], denoised: Sequence[torch.Tensor], place: int
    ) -> torch.Tensor | None:
        """How much of the trend to follow, at each place of each picture: all if x0 has gone on.

        The trend before the newest full step said how far x0 would go until there. If x0 has gone
        the share s of that around a place, by the least squares, this is (1 + s) / 2, within -1
        and 1: none if it went back as far as it was to go on, below that how far to go back. The
        sample's shape, with one channel; `None` if nothing was said.
        """
        said = self._trend(steps[0], *steps[1:KEEP])
        if said <= 0:
            return None
        newest, older, oldest = denoised[:KEEP]
        change = older - oldest
        expected = said * _around(change.square().mean(place, keepdim=True))
        gone = _around(((newest - older) * change).mean(place, keepdim=True))
        share = gone / expected.clamp(min=1e-30)  # of what does not move, 0
        return ((1 + share) / 2).clamp(-1, 1)

    def ahead(
        self, step: int, steps: Sequence[int], denoised: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """x0 of a step, forecast from that of full steps, the newest first."""
        (first, share), *others = zip(denoised, self._shares(step, steps), strict=False)
        ahead = share * first
        for each, share in others:  # the oldest may have none
            ahead = torch.add(ahead, each, alpha=share)
        return ahead

    def weights_of(self, step: int, steps: Sequence[int]) -> tuple[float, ...]:
        """Those that are given, or else that of the trend.

        Args:
            step: Which.
            steps: The full ones that it goes on from, the newest first, two at least.
        """
        given = self.weights.get((step, *steps))
        if given is not None:
            return given
        share = self.strength * safe_share(self.levels[steps[1]] - self.levels[steps[0]], _REACH)
        return (share * self._trend(step, steps[0], steps[1]),)

    def denoised(self, step: int, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """x0 of a step, by its input and output."""
        of_x, of_output = self._in_x0(step)
        return torch.add(of_x * x, output, alpha=of_output)

    def answer(self, step: int, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The output of a step, by its input and x0."""
        of_x, of_x0 = self._in_output(step)
        return torch.add(of_x * x, denoised, alpha=of_x0)

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

    def _trend(self, step: int, newest: int, older: int) -> float:
        """How far beyond the newest the trend goes, in units of what lies between the two."""
        ahead = self.levels[newest] - self.levels[step]
        behind = self.levels[older] - self.levels[newest]
        if ahead <= 0 or behind <= 0:  # the pairs of Heun's method
            return 0.0
        rate = _rate(math.exp(self.levels[newest]))
        return -math.expm1(-rate * ahead) / math.expm1(rate * behind)


def _some(tensor: torch.Tensor, place: int, start: int, count: int) -> torch.Tensor:
    """So many channels of it, from one on; itself if that is all."""
    is_all = count == tensor.shape[place]
    return tensor if is_all else tensor.narrow(place, start, count)


def _around(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over each place and those next to it, in the last two dimensions."""
    if tensor.ndim < 3:
        return tensor
    around = avg_pool2d(tensor.flatten(0, -3), 3, 1, padding=1, count_include_pad=False)
    return around.view_as(tensor)


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
