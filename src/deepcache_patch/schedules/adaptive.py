"""`Adaptive`: no plan in advance; a feature is refreshed when it has probably drifted too far."""

from collections.abc import Mapping, Sequence

import torch

from ..errors import InvalidSettingError
from .guide import Context, FinishedCall, ReplayGuide
from .plans import FULL, OUTPUT, PlanEntry, number_between, whole_number
from .replay import Replay
from .transfer import HostCopy


class Adaptive:
    """Refreshes each branch when the drift that is estimated for it passes a tolerance.

    Whenever a branch is recorded, its relative change |F_new - F_old| / |F_new| over the steps
    between gives its drift in a step; since then it is taken to go on at that rate. A step runs at
    the shallowest branch that is still within the tolerance, which refreshes the branches above it,
    and in full if none is. The change is computed on the device and copied without waiting; it is
    used two steps later, whether it arrived sooner or not, so that equal inputs give equal plans.

    Args:
        tolerance: Relative change of a feature, from 0 (everything in full) to 1.
        branches: Those to choose from, rising.
        longest: The most steps from one full step to the next, at least 1.

    Raises:
        InvalidSettingError: If an argument is out of range.

    Example:
        >>> helper = DeepCacheHelper(pipe, schedule=Adaptive(0.1))  # doctest: +SKIP
    """

    #: How many steps after it was computed a change is used.
    delay = 2

    def __init__(
        self, tolerance: float = 0.1, branches: Sequence[int] = (0,), *, longest: int = 10
    ) -> None:
        self.tolerance = number_between("tolerance", tolerance, 0, 1)
        self.branches = tuple(sorted(whole_number("a branch", each, OUTPUT) for each in branches))
        self.longest = whole_number("longest", longest, 1)
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise InvalidSettingError(f"branches must be different integers, not {branches!r}")

    def begin(self, context: Context, replay: Replay) -> "AdaptiveGuide":
        """Lead through a generation."""
        return AdaptiveGuide(self, context, replay)

    def __repr__(self) -> str:
        return f"Adaptive({self.tolerance}, {self.branches}, longest={self.longest})"


class AdaptiveGuide(ReplayGuide):
    """Goes by the drift that it estimates."""

    def __init__(self, schedule: Adaptive, context: Context, replay: Replay) -> None:
        super().__init__(context, schedule.branches, replay)
        self._schedule = schedule
        self._protected = context.protected
        self._last_full = 0
        self._newest: dict[int, tuple[int, torch.Tensor]] = {}  # by branch: step and feature
        self._drifts: dict[int, list[tuple[int, HostCopy]]] = {}  # by branch: since which step

    def entry(self, step: int) -> PlanEntry:
        """The shallowest branch within the tolerance; full if none is, or the step is protected."""
        schedule = self._schedule
        if step not in self._protected and step - self._last_full < schedule.longest:
            for branch in schedule.branches:
                drift = self._drift(branch, step)
                if drift is not None and drift <= schedule.tolerance:
                    return branch
        self._last_full = step
        return FULL

    def observe(self, call: FinishedCall) -> None:
        """Begin to measure what the first call of a step recorded."""
        position = call.position
        if position.step + 1 == position.num_steps:
            # Nothing is kept when the generation is over.
            self._newest.clear()
            self._drifts.clear()
        elif position.slot == 0:
            self._measure(position.step, call.features)

    def _measure(self, step: int, features: Mapping[int, torch.Tensor]) -> None:
        for branch, feature in features.items():
            before, older = self._newest.get(branch, (step, feature))
            self._newest[branch] = (step, feature)
            if before < step and older.shape == feature.shape:
                change = _relative_change(older, feature) / (step - before)
                self._drifts.setdefault(branch, []).append((step, HostCopy(change)))

    def _drift(self, branch: int, step: int) -> float | None:
        """How far the branch's feature has probably moved; `None` while nobody knows."""
        drifts = self._drifts.get(branch, [])
        ready = [each for since, each in drifts if since + self._schedule.delay <= step]
        del drifts[: max(0, len(ready) - 1)]
        return ready[-1].value() * (step - self._newest[branch][0]) if ready else None


def _relative_change(older: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
    """|newer - older| / |newer|, on the device, in float32."""
    distance = (newer - older).float().norm()
    size = newer.float().norm().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.div(distance, size)
