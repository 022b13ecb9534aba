"""The noise in a scheduler's steps: how much is left, and if more is added. It is never changed."""

import copy
import inspect
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import torch

#: A standard deviation that is as good as none.
_LEAST: Final = 1e-4

#: Of so many steps it is tried whether they add noise; some samplers do only in every second one.
_TRIED: Final = 4

#: Whether a scheduler adds noise, with the config that it had then. In the module, because plans,
#: forecasts and previews ask, of any helper, and it takes milliseconds to find out.
_ADDING: Final[weakref.WeakKeyDictionary[Any, tuple[Any, bool]]] = weakref.WeakKeyDictionary()


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
        # After them stands a closing 0, or two entries with which no step begins: Euler's
        # "log_linear".
        if known <= len(sigmas) <= known + 2 and not doubled.any():
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


def adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler's steps add noise, by themselves and not because of how they are called.

    A copy takes steps from a sample without anything in it, with outputs that say that there is
    nothing: whatever is there afterwards was added. It is looked at once for each config.

    Args:
        scheduler: Any, at any time; it need not have timesteps.

    Returns:
        False where it cannot be tried.
    """
    config = getattr(scheduler, "config", None)
    try:
        known = _ADDING.get(scheduler)
        if known is None or known[0] != config:
            known = config, _is_found_to_add(scheduler)
            _ADDING[scheduler] = known
    except Exception:  # whatever a scheduler of somebody else's raises; it may have no hash
        return False
    return known[1]


@torch.no_grad()
def _is_found_to_add(scheduler: Any) -> bool:
    own = copied_scheduler(scheduler)
    if own is None:
        return False
    own.set_timesteps(_TRIED + 1)  # or it would depend on how many it has, and on how far it is
    options = seeded(own)
    parts = 2 if str(own.config.get("variance_type")).startswith("learned") else 1
    sample = torch.zeros(1, 1, 8, 1, device="cpu")
    with nullcontext() if options else torch.random.fork_rng(devices=[]):
        for timestep in own.timesteps[:_TRIED]:
            output = torch.cat([own.scale_model_input(sample, timestep)] * parts, dim=1)
            sample = own.step(output, timestep, sample, **options, return_dict=False)[0]
            if sample.nan_to_num().any():
                return True
    return False


def copied_scheduler(scheduler: Any) -> Any:
    """A copy of a scheduler to take steps with, on the CPU; `None` for one that cannot be copied.

    Nor is one copied that has a function in the place of a method, which may drive the original; or
    one that holds a model, which would be copied, too.
    """
    for name, value in vars(scheduler).items():
        drives = callable(value) and hasattr(type(scheduler), name)
        if drives or isinstance(value, torch.nn.Module):
            return None
    try:
        own = copy.deepcopy(scheduler)
    except Exception:  # such as one that holds a lock
        return None
    for name, value in vars(own).items():  # after `add_noise`, some are on the device
        if isinstance(value, torch.Tensor):
            setattr(own, name, value.cpu())
    return own


def seeded(scheduler: Any) -> dict[str, torch.Generator]:
    """A generator, if its `step` takes one: torch's own is left alone."""
    takes_one = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(0)} if takes_one else {}
