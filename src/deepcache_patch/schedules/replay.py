"""What a shallow step gets in the place of the deep feature that it does not compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch

from ..cutting.features import Recorded
from .plans import number_between

#: How far, in ln(sigma), a straight line may be followed: see `damping`. Theory gives 2; what
#: multistep solvers bear was measured (docs/experiments.md).
REACH: Final = 0.4


@runtime_checkable
class Replay(Protocol):
    """What `DeepCacheHelper` asks of a replay.

    Attributes:
        keep: How many recorded features it wants, 1 or 2, of each slot and branch.
    """

    keep: int

    def feature(
        self, step: int, recorded: Sequence[Recorded], levels: Sequence[float] | None
    ) -> torch.Tensor:
        """The deep feature for a step.

        Args:
            step: The shallow step.
            recorded: The newest recorded first; one at least, `keep` at most.
            levels: ln(sigma) of each step of the generation; `None` if it is not known.

        Returns:
            A tensor like the recorded one, which may be that very tensor.
        """
        ...


@dataclass(frozen=True)
class Reuse:
    """The paper's: the feature as it was recorded last."""

    @property
    def keep(self) -> int:
        """One feature."""
        return 1

    def feature(
        self, step: int, recorded: Sequence[Recorded], levels: Sequence[float] | None
    ) -> torch.Tensor:
        """The newest."""
        return recorded[0].feature


@dataclass(frozen=True)
class Extrapolate:
    """The straight line through the last two recorded features, followed only so far.

    F(i) = F_a + s·d·(F_a - F_b) for the step i after the recorded steps a > b, where
    s = strength·(i - a)/(a - b) and d is `damping`. Before there are two features it is `Reuse`.

    Args:
        strength: Share of the line's slope, from 0 (`Reuse`) to 1.

    Raises:
        InvalidSettingError: If it is out of range.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", number_between("strength", self.strength, 0, 1))

    @property
    def keep(self) -> int:
        """Two features."""
        return 2

    def feature(
        self, step: int, recorded: Sequence[Recorded], levels: Sequence[float] | None
    ) -> torch.Tensor:
        """On the line, as far as `damping` lets it."""
        newest = recorded[0]
        if len(recorded) == 1:
            return newest.feature
        older = recorded[1]
        distance = (step - newest.step) / (newest.step - older.step)
        weight = self.strength * damping(newest.step, step, levels) * distance
        return torch.lerp(older.feature, newest.feature, 1 + weight) if weight else newest.feature


def damping(recorded: int, step: int, levels: Sequence[float] | None) -> float:
    """The share of an extrapolation's slope that is safe to follow, from 0 to 1.

    Seen from the sampler, replaying what was recorded is Euler's method and following a line is the
    two-step method of Adams and Bashforth, whose region of stability is half as long: with a share
    b of the slope, full steps that are h apart in ln(sigma) stay stable up to h = reach / (1 + b),
    where the reach is 2 for a denoiser that is all deep features and a sampler of first order. What
    is followed further than that makes the error of one full step return larger in the next.

    Args:
        recorded: The step that recorded the newest feature.
        step: The shallow step after it.
        levels: ln(sigma) of each step; `None` means that nothing is known, and no damping.
    """
    if levels is None:
        return 1.0
    ahead = min(step + 1, len(levels) - 1)  # the output of this step is used up to the next
    return safe_share(abs(levels[ahead] - levels[recorded]), REACH)


def safe_share(gap: float, reach: float) -> float:
    """1 up to half of the reach, 0 from the reach on: min(1, reach / gap - 1); see `damping`."""
    return min(1.0, max(0.0, reach / gap - 1)) if gap else 1.0


#: By the names that `DeepCacheHelper(replay=...)` takes.
REPLAYS: dict[str, Any] = {"reuse": Reuse, "extrapolate": Extrapolate}
