"""How shallow steps should go on from full ones, fitted to generations that ran in full.

What matters is not how well each x0 is forecast but where the chain of all steps ends. So the
scheduler itself, a copy of it, takes its steps once as it did and once by the plan, both with the
x0 that were seen, and each shallow step is fitted such that the two meet again. No U-Net is called.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from .forecast import KEEP, Forecast, Weights
from .noise import copied_scheduler, same_randomness, seeded
from .plans import FULL, PlanEntry

#: How many times each square is added to itself before it divides: what is fitted stays near the
#: trend. Chosen on two models (docs/experiments.md).
DAMPING: Final = 8.0

#: No fitted weight is larger.
LARGEST: Final = 100.0


@torch.no_grad()
def fitted(
    denoised: torch.Tensor,
    scheduler: Any,
    forecast: Forecast,
    plan: Sequence[PlanEntry],
    damping: float = DAMPING,
) -> Weights:
    """Weights for `Forecast`, for the steps of a plan that go on from two full ones or more.

    Args:
        denoised: x0 of the first steps of a generation, `(steps, numbers)`, in float32, on a CPU.
        scheduler: The scheduler as it was before the first step. It is copied, not changed.
        forecast: What the weights stay near.
        plan: One entry for each step of the generation, more than were seen or as many.
        damping: How many times each square is added to itself before it divides, from 0.

    Returns:
        None for a scheduler that adds noise, or that cannot be followed, and where x0 is not
        finite.
    """
    try:
        with same_randomness(scheduler):
            found = _followed(denoised, scheduler, forecast, plan, damping)
    except Exception:  # whatever a scheduler of somebody else's raises for such a sample
        return {}
    usable = all(abs(each) <= LARGEST for weights in found.values() for each in weights)
    return found if usable else {}


def trend(forecast: Forecast, plan: Sequence[PlanEntry]) -> Weights:
    """The weights of a forecast that has learned none, for the steps of a plan that have some."""
    found: dict[tuple[int, ...], tuple[float, ...]] = {}
    full: tuple[int, ...] = ()
    for step, entry in enumerate(plan):
        if entry == FULL:
            full = (step, *full)[:KEEP]
        elif len(full) > 1:
            slope, key = forecast.weights_of(step, full), (step, *full)
            found[key] = (*slope, *[0.0] * (len(full) - 1 - len(slope)))
    return found


def _followed(
    denoised: torch.Tensor,
    scheduler: Any,
    forecast: Forecast,
    plan: Sequence[PlanEntry],
    damping: float,
) -> dict[tuple[int, ...], tuple[float, ...]]:
    own = copied_scheduler(scheduler)
    options = seeded(own)
    found: dict[tuple[int, ...], tuple[float, ...]] = {}
    full: list[tuple[int, torch.Tensor]] = []
    is_same_until = next((step for step, entry in enumerate(plan) if entry != FULL), len(plan))
    # Three generations: as it was, by the plan, and by the plan with one output nudged.
    samples = torch.zeros(3, 1, denoised.shape[1], 1, device="cpu", dtype=torch.float32)
    for step, timestep in enumerate(own.timesteps[len(own.timesteps) - len(plan) :]):
        if step == len(denoised):
            break
        shallow = plan[step] != FULL
        if step == is_same_until and not torch.equal(samples[0], samples[1]):
            return {}  # noise was added
        inputs = own.scale_model_input(samples, timestep)
        x0 = denoised[step][None, :, None]
        outputs = forecast.answer(step, inputs, x0.expand_as(inputs)).clone()
        if shallow:
            steps, known = [each for each, _ in full], [each for _, each in full]
            ahead = forecast.ahead(step, steps, known)
            if len(full) > 1 and step + 1 < len(plan):
                outputs[1:] = forecast.answer(step, inputs[1], ahead)
                outputs[2] += 1
                trial = copy.deepcopy(own).step(
                    outputs, timestep, samples, **options, return_dict=False
                )[0]
                nudge = (trial[0] - trial[1]) / (trial[2] - trial[1]).mean()
                meeting = forecast.denoised(step, inputs[1], outputs[1] + nudge)
                share = _share(forecast.levels, plan, step)
                wanted = torch.lerp(x0[0], meeting, share)
                slope = forecast.weights_of(step, steps)
                key = (step, *steps)
                found[key] = _nearest(wanted - ahead, known, slope, damping)
                ahead = replace(forecast, weights=found).ahead(step, steps, known)
        else:
            # The U-Net takes what is left of an error for data, as far as it is small against σ.
            sigma = np.exp(forecast.levels[step])
            drift = (inputs[1] - inputs[0]) * np.hypot(1, sigma)
            ahead = x0 + drift / (1 + sigma**2)
            full = [(step, ahead), *full][:KEEP]
        outputs[1:] = forecast.answer(step, inputs[1], ahead)
        samples = own.step(outputs, timestep, samples, **options, return_dict=False)[0]
    return found


def _share(levels: Sequence[float], plan: Sequence[PlanEntry], step: int) -> float:
    """How much of what a shallow step owes it makes good itself: by its length in ln(sigma).

    The others up to the next full step, and that one, have the rest: in a short step alone it would
    be out of all proportion.
    """
    until = next((each for each in range(step, len(plan)) if plan[each] == FULL), len(plan))
    end = min(until + 1, len(levels) - 1)
    left = levels[step] - levels[end]
    return (levels[step] - levels[step + 1]) / left if left > 0 else 0.0


def _nearest(
    missed: torch.Tensor,
    known: Sequence[torch.Tensor],
    slope: tuple[float, ...],
    damping: float,
) -> tuple[float, ...]:
    """The weights that leave the least of what the trend has missed, and stay near it."""
    changes = [newer - older for newer, older in itertools.pairwise(known)]
    matrix = torch.stack([each.flatten() for each in changes]).double().numpy()
    products = matrix @ matrix.T
    damped = products + np.diag(damping * np.diag(products) + 1e-12)
    more = np.linalg.solve(damped, matrix @ missed.flatten().double().numpy())
    near = np.pad(slope, (0, len(changes) - len(slope)))
    return tuple((near + more).tolist())
