"""How much noise is left at a scheduler's steps. It is looked at, and never changed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

#: A standard deviation that is as good as none.
_LEAST = 1e-4


def noise_levels(
    scheduler: Any, timesteps: Sequence[float], *, is_own: bool = True
) -> tuple[float, ...] | None:
    """ln(sigma) at each step, sigma being the noise's standard deviation where the data's is 1.

    Args:
        scheduler: Any scheduler, or `None`.
        timesteps: Of the steps of the generation. If they are not the last of the scheduler's, they
            are taken for those of another one that the same U-Net is used with.
        is_own: Whether they can be the scheduler's. If not, what it holds at the moment, perhaps
            for another thread, does not matter.

    Returns:
        One number for each step; `None` where the scheduler does not say.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if is_own and ends_with(scheduler, timesteps) and isinstance(sigmas, torch.Tensor):
        known = len(scheduler.timesteps)
        values = sigmas[known - len(timesteps) : known].double().cpu().numpy()
        # DPM++ SDE has those of whole steps alone, each twice; its timesteps tell the midpoints.
        doubled = (np.diff(values) == 0) & (np.diff(timesteps) != 0)
        if known <= len(sigmas) <= known + 1 and not doubled.any():
            return tuple(np.log(np.maximum(values, _LEAST)).tolist())
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, torch.Tensor) or not timesteps:
        return None
    alphas = table.double().cpu().numpy()
    if not 0 <= min(timesteps) <= max(timesteps) <= len(alphas) - 1:
        return None
    levels = np.log(np.maximum(np.sqrt((1 - alphas) / np.maximum(alphas, 1e-12)), _LEAST))
    return tuple(np.interp(timesteps, np.arange(len(alphas)), levels).tolist())


def timesteps_of(scheduler: Any) -> torch.Tensor | None:
    """The scheduler's list of timesteps, shape `(steps,)`; `None` if it has none."""
    timesteps = getattr(scheduler, "timesteps", None)
    listed = isinstance(timesteps, torch.Tensor) and timesteps.ndim == 1
    return timesteps if listed else None


def ends_with(scheduler: Any, timesteps: Sequence[float]) -> bool:
    """Whether these are the last of the scheduler's own timesteps."""
    known = timesteps_of(scheduler)
    if known is None:
        return False
    return bool(timesteps) and known.tolist()[-len(timesteps) :] == list(timesteps)
