"""What a scheduler's steps mean: how much noise is left, and how far an error travels.

Everything here looks at a scheduler, or works with a copy of it; it never changes one.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

#: The perturbation whose effect is followed; schedulers are linear in it.
_NUDGE = 1e-3

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


def error_weights(
    scheduler: Any,
    timesteps: Sequence[float],
    slopes: Sequence[float],
    levels: Sequence[float] | None,
) -> Any:
    """How much an error of the U-Net's output at each step moves the final sample.

    The scheduler itself, a copy of it, takes all its steps with a stand-in for the U-Net that
    answers in proportion to its input; once plainly and, for each step, once with the output of
    that step nudged. Two stand-ins are tried, and their effects added: one with the measured
    slopes, which is the best linear denoiser for data of that variance, and one with their
    inverses, which removes everything, as from a direction in which the data do not vary. A
    multistep method's use of old outputs and a last step that nothing corrects show in both. What
    no linear stand-in shows is that an error made under strong noise changes what is drawn, and
    grows: that effect was measured (docs/schedules.md) and is the factor sqrt(1 + sigma).

    Args:
        scheduler: As it is before the first step, after `set_timesteps`.
        timesteps: The last of its timesteps, as many as the generation has steps.
        slopes: For each step <output, input> / <input, input> of the U-Net.
        levels: ln(sigma) of each step; `None` leaves the last factor out.

    Returns:
        float64 of shape `(steps,)`, the largest 1; all 1 where there is no scheduler, or one that
        cannot be followed in this way.
    """
    steps = len(timesteps)
    if not ends_with(scheduler, timesteps):
        return np.ones(steps)
    measured = np.asarray(slopes, dtype=np.float64)
    inverses = 1 / np.where(np.abs(measured) < 1e-2, 1.0, measured)
    try:
        weights = sum(_responses(scheduler, steps, each) for each in (measured, inverses))
    except Exception:  # whatever a scheduler of somebody else's raises for such a sample
        return np.ones(steps)
    total = np.abs(weights)
    if levels is not None:
        total = total * np.sqrt(1 + np.exp(np.asarray(levels)))
    if not np.all(np.isfinite(total)) or total.max() == 0:
        return np.ones(steps)
    return total / total.max()


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


@torch.no_grad()
def _responses(scheduler: Any, steps: int, slopes: Any) -> Any:
    """|d(final sample) / d(output of each step)|, all steps at once: one of them in each sample."""
    finals = []
    for nudge in (0.0, _NUDGE):
        own = copy.deepcopy(scheduler)
        for name, value in vars(own).items():  # after `add_noise`, some are on the device
            if isinstance(value, torch.Tensor):
                setattr(own, name, value.cpu())
        sample = torch.zeros(steps, 1, 1, 1, dtype=torch.float64)
        options = {}
        if "generator" in inspect.signature(own.step).parameters:
            options["generator"] = torch.Generator().manual_seed(0)
        for step, timestep in enumerate(own.timesteps[len(own.timesteps) - steps :]):
            output = slopes[step] * own.scale_model_input(sample, timestep)
            output[step] += nudge
            sample = own.step(output, timestep, sample, **options, return_dict=False)[0]
        finals.append(sample)
    return ((finals[1] - finals[0]) / _NUDGE).abs().flatten().double().numpy()
