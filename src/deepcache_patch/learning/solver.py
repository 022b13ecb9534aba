"""Which steps to compute in full, and how to replay at the others, learned from full generations.

`Recording` gathers samples of the features; `solve` turns them into a `Solution`. Nothing here
knows a U-Net. In the formulas i is a shallow step, a the last full step before it, b the full step
before that; x' is x without its mean, channel by channel.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..schedules.plans import FULL, Plan, PlanEntry
from ..schedules.transfer import sent

Array = NDArray[Any]  # of float64, but for indices

#: How many numbers of a feature are looked at, and how many positions at least: memory is bounded.
SAMPLED: Final = 1 << 15
POSITIONS: Final = 64
#: How many numbers the search for a plan keeps: all pairs of steps, for some of the channels; and
#: all neighbouring triples of full steps.
SEARCHED: Final = 1 << 22
#: Neighbouring full steps are at most this many times their mean distance apart, or `NEAR` steps
#: if that is more.
WIDEST: Final = 4
NEAR: Final = 10
#: A trend is followed only where the next full step is at most this far, in ln(sigma): see
#: `deepcache_patch.schedules.replay.damping`. It was measured (docs/schedules.md).
REACH: Final = 0.35
#: Share of a variance that is added to it before it divides, against noise.
RIDGE: Final = 1e-3
#: No coefficient is larger, so that all of them are finite in float16.
LARGEST: Final = 65504


class Recording:
    """What full generations of the same steps were: a few positions of each feature.

    Args:
        num_steps: Of each generation.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._shapes: dict[int, torch.Size] = {}
        self._features: dict[int, list[list[torch.Tensor]]] = {}
        self._products: list[list[torch.Tensor]] = [[] for _ in range(num_steps)]

    def add(
        self,
        step: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        features: Mapping[int, torch.Tensor],
    ) -> None:
        """Take one full call of the U-Net.

        Args:
            step: Of the generation.
            sample: The U-Net's input, shape `(batch, channels, …)`.
            output: The U-Net's output, shape `(batch, channels, …)`.
            features: By branch, each of shape `(batch, channels, …)`. One of another shape than the
                first is ignored, so that positions of different steps belong together.
        """
        shared = min(sample.shape[1], output.shape[1])  # inpainting has more inputs than outputs
        given, answer = sample[:, :shared].float(), output[:, :shared].float()
        if given.shape == answer.shape:
            products = torch.stack([(answer * given).sum(), (given * given).sum()])
            self._products[step].append(products)
        for branch, feature in features.items():
            if self._shapes.setdefault(branch, feature.shape) == feature.shape:
                of_steps = self._features.setdefault(branch, [[] for _ in range(self.num_steps)])
                of_steps[step].append(_sampled(feature))

    def features(self, branch: int) -> Array:
        """What was seen of one branch, up to the first step that is missing.

        Returns:
            Shape `(steps, channels, positions)`.
        """
        of_steps = self._features.get(branch, [])
        counts = [len(parts) for parts in of_steps]
        whole = next((step for step, count in enumerate(counts) if count != counts[0]), len(counts))
        if not whole or not counts[0]:
            return np.zeros((0, 1, 1))
        stacked = torch.stack([torch.cat(parts, 1) for parts in of_steps[:whole]])
        return stacked.cpu().double().numpy()

    def slopes(self) -> list[float]:
        """<output, input> / <input, input> of the U-Net at each step; 1 where it is not known."""
        sums = [torch.stack(parts).sum(0).tolist() if parts else (1, 1) for parts in self._products]
        return [above / below if below else 1.0 for above, below in sums]


def _sampled(feature: torch.Tensor) -> torch.Tensor:
    """The same positions of every step, for all channels: float32, `(channels, positions)`."""
    by_channel = feature.detach().transpose(0, 1).flatten(1)
    channels, positions = by_channel.shape
    wanted = max(POSITIONS, SAMPLED // channels)
    if positions > wanted:
        chosen = torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:wanted]
        by_channel = by_channel[:, sent(chosen, feature.device)]
    return by_channel.float()


class Blend(NamedTuple):
    """How a shallow step's feature is made, channel by channel.

    F_i = F_a + gain·F_a + trend·(F_a - F_b) + offset

    Attributes:
        a: The last full step before.
        b: The full step before that; `a` itself in the first interval, where `trend` is 0.
        gain: Shape `(channels,)`, as are the two that follow.
        trend: At most the straight line's, and 0 where the next full step is far.
        offset: How the channel's mean moves, whatever the picture.
    """

    a: int
    b: int
    gain: Array
    trend: Array
    offset: Array


@dataclass(frozen=True, eq=False)
class Solution:
    """What a calibration found.

    Attributes:
        seen: How many steps it was learned from; those after them are full.
        plan: One entry for each step.
        blends: For each shallow step.
        error: The objective that the plan minimises; only good for comparing plans.
    """

    seen: int
    plan: Plan
    blends: dict[int, Blend]
    error: float


def solve(
    features: Array,
    weights: Sequence[float] | Array,
    levels: Sequence[float] | None,
    *,
    full_steps: int,
    branch: int,
    num_steps: int,
    protected: Collection[int] = (),
) -> Solution:
    """The plan with the least error among all that have so many full steps.

    The error of a plan is the sum over its shallow steps of (weight · share missed)², the share
    missed being the norm of what the best blend gets wrong over the norm of the feature.
    Minimised by dynamic programming over pairs of neighbouring full steps.

    Args:
        features: Of one branch, shape `(steps, channels, positions)`.
        weights: How much an error at each step moves the final picture: `noise.error_weights`.
        levels: ln(sigma) of each step, or `None`: see `REACH`.
        full_steps: How many, at least 1; as many as there are steps if that is less, and as many
            as must be full if that is more.
        branch: For the shallow steps.
        num_steps: Of the plan. Those that `features` does not reach are full.
        protected: Steps that must be full, at the start and at the end.
    """
    steps = len(features)
    must = {0, *(step for step in protected if step < steps)}
    count = min(max(full_steps, len(must)), steps)
    unseen: list[PlanEntry] = [FULL] * (num_steps - steps)
    if count == steps:
        return Solution(steps, Plan([FULL] * num_steps), {}, 0.0)
    fit = _Fit(features, levels)
    # How far apart those are that are chosen, and the end, if they were evenly spaced.
    mean = -(-(steps - len(must) + 1) // (count - len(must) + 1))
    reach = min(steps, max(NEAR, min(WIDEST * mean, int((SEARCHED / steps) ** 0.5)), mean))
    chosen, error = _search(fit, np.asarray(weights)[:steps], count, reach, sorted(must))
    plan = Plan([FULL if step in chosen else branch for step in range(steps)] + unseen)
    blends = {}
    for step in range(steps):
        if step not in chosen:
            before = [full for full in chosen if full < step]
            after = next((full for full in chosen if full > step), steps)
            blends[step] = fit.blend(step, before[-1], before[-2:][0], after)
    return Solution(steps, plan, blends, error)


class _Fit:
    """Least squares between the features of different steps."""

    def __init__(self, features: Array, levels: Sequence[float] | None) -> None:
        self.steps = len(features)
        self._means = features.mean(2)
        self._centred = features - self._means[:, :, None]
        self._levels = levels
        channels = max(1, SEARCHED // self.steps**2)
        few = slice(None, None, -(-features.shape[1] // channels))
        by_channel = self._centred[:, few].transpose(1, 0, 2)
        self._covariances = by_channel @ by_channel.transpose(0, 2, 1) / features.shape[2]
        variances = np.einsum("cii->ic", self._covariances)
        self._energies = (variances + self._means[:, few] ** 2).sum(1)

    def blend(self, i: int, a: int, b: int, after: int) -> Blend:
        """The best blend for one step; `after` is the next full step, or the end."""
        one, other, wanted = (self._centred[step] for step in (a, b, i))

        def product(x: Array, y: Array) -> Array:
            averaged: Array = (x * y).mean(1)
            return averaged

        gain, trend, _ = _least_squares(
            product(one, one), product(one, other), product(other, other),
            product(wanted, one), product(wanted, other), product(wanted, wanted),
            (i - a) / (a - b) if b < a and self.follows(a, after) else 0.0,
        )  # fmt: skip
        # A channel that was still at one step may move at the next: its gain has no bound.
        gain, trend = np.clip(gain, -LARGEST, LARGEST), np.clip(trend, -LARGEST, LARGEST)
        mean_a, mean_b, mean_i = (self._means[step] for step in (a, b, i))
        offset = mean_i - mean_a - gain * mean_a - trend * (mean_a - mean_b)
        return Blend(a, b, gain, trend, np.clip(offset, -LARGEST, LARGEST))

    def missed(self, a: int, b: Array, i: Array, follows: bool) -> Array:
        """The share of F_i that the best blend of F_a and F_b misses: `(len(b), len(i))`."""
        every = self._covariances
        limits = (i[None, :] - a) / np.maximum(a - b, 1)[:, None] * (b < a)[:, None]
        _, _, rest = _least_squares(
            every[:, a, a, None, None], every[:, a, b, None], every[:, b, b, None],
            every[:, None, i, a], every[:, b[:, None], i], every[:, None, i, i],
            limits * follows,
        )  # fmt: skip
        share: Array = np.sqrt(rest.sum(0) / np.maximum(self._energies[i], 1e-30))
        return share

    def follows(self, a: int, after: int) -> bool:
        """Whether a trend is followed from a up to the next full step."""
        if self._levels is None:
            return True
        return abs(self._levels[min(after, self.steps - 1)] - self._levels[a]) <= REACH


def _least_squares(
    aa: Array, ab: Array, bb: Array, ia: Array, ib: Array, ii: Array, limit: Any
) -> tuple[Array, Array, Array]:
    """Fit F'_i - F'_a = gain·F'_a + trend·(F'_a - F'_b), with |trend| up to `limit`.

    Args:
        aa: Mean of F'_a², by channel; the others likewise.
        ab: Mean of F'_a·F'_b.
        bb: Mean of F'_b².
        ia: Mean of F'_i·F'_a.
        ib: Mean of F'_i·F'_b.
        ii: Mean of F'_i².
        limit: At least 0.

    Returns:
        Gain, trend, and the mean square of what is left.
    """
    cross, slope = aa - ab, aa - 2 * ab + bb
    to_a, to_slope = ia - aa, ia - ib - aa + ab
    damped_a, damped_slope = aa * (1 + RIDGE) + 1e-30, slope * (1 + RIDGE) + 1e-30
    determinant = np.maximum(damped_a * damped_slope - cross**2, RIDGE * damped_a * damped_slope)
    trend = np.clip((to_slope * damped_a - to_a * cross) / determinant, -limit, limit)
    gain = (to_a - trend * cross) / damped_a
    rest = ii - 2 * ia + aa - 2 * (gain * to_a + trend * to_slope)
    rest = rest + gain**2 * aa + trend**2 * slope + 2 * gain * trend * cross
    return gain, trend, np.maximum(rest, 0)


def _search(
    fit: _Fit, weights: Array, count: int, reach: int, must: Sequence[int]
) -> tuple[list[int], float]:
    """The `count` full steps with the least error, no two neighbours more than `reach` apart.

    Those in `must` are among them.

    Everything is kept relative to a full step a: `back` is a - b, or 0 where there is no b, and
    `ahead` is how far the next full step, or the end, is from a.
    """
    steps = fit.steps
    cost = np.full((steps, reach + 1, reach + 1), np.inf)  # [a, back, ahead]
    for a in range(steps):
        back = np.arange(1, min(a, reach) + 1) if a else np.zeros(1, int)
        i = np.arange(a + 1, min(a + reach, steps))
        cost[a, back, 1] = 0
        for follows in (True, False):
            squares = (weights[i] * fit.missed(a, a - back, i, follows)) ** 2
            squares = np.nan_to_num(squares, nan=np.inf)
            squares[:, np.isin(i, must)] = np.inf
            sums = np.cumsum(squares, axis=1)
            here = np.array([fit.follows(a, step + 1) is follows for step in i], dtype=bool)
            cost[a, back[:, None], i[here] - a + 1] = sums[:, here]
    ends = steps - np.arange(steps)  # how far the end is from each step
    within = ends <= reach
    least = np.full((steps, reach + 1), np.inf)  # [a, back]: of everything before a
    least[0, 0] = 0
    choices = []
    for _ in range(count - 1):
        total = least[:, :, None] + cost
        choices.append(total.argmin(1))  # [a, ahead]: the best back
        reached = total.min(1)
        least = np.full_like(least, np.inf)
        for ahead in range(1, min(reach, steps - 1) + 1):
            least[ahead:, ahead] = reached[:-ahead, ahead]
    total = least + np.where(within[:, None], cost[np.arange(steps), :, ends * within], np.inf)
    place = np.unravel_index(int(total.argmin()), total.shape)
    last, behind = int(place[0]), int(place[1])
    chosen = [last]
    for choice in reversed(choices):
        # Reached from `behind` steps before, whose own best distance back was noted.
        last, behind = last - behind, int(choice[last - behind, behind])
        chosen.append(last)
    error = float(total.min())
    return sorted(chosen), error
