"""A scheduler's steps: how much noise is left, and whether more is added.

The scheduler is never changed.
"""

import copy
import inspect
import random
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

#: A standard deviation that is as good as none.
_LEAST: Final = 1e-4

#: So many steps are tried; some samplers add noise only in every second one.
_TRIED: Final = 4

#: Whether a scheduler adds noise, with the config that it had then. In the module, because the
#: forecasts of any helper ask, and it takes milliseconds to find out.
_FOUND: Final[weakref.WeakKeyDictionary[Any, tuple[Any, bool]]] = weakref.WeakKeyDictionary()


def noise_levels(
    scheduler: Any, timesteps: Sequence[float], *, is_own: bool = True
) -> tuple[float, ...] | None:
    """ln(sigma) at each step, sigma being the noise's standard deviation where the data's is 1.

    Args:
        scheduler: Any scheduler, or `None`.
        timesteps: Those of the generation's steps. If they are not the last of the scheduler's,
            they are taken for those of another one that the same U-Net is used with.
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

    Only a change of the config is noticed. An attribute or a `step` that is set by hand later is
    not: generations set attributes, too, and each would need a new trial.

    Args:
        scheduler: Any, at any time; it need not have timesteps.

    Returns:
        False where it cannot be tried.
    """
    config = getattr(scheduler, "config", None)
    try:
        known = _FOUND.get(scheduler)
        if known is not None and known[0] == config:
            return known[1]
        found = _is_seen_to_add(scheduler)
        _FOUND[scheduler] = config, found
    except Exception:  # it cannot be a key, or its config cannot be compared
        return _is_seen_to_add(scheduler)
    return found


def _is_seen_to_add(scheduler: Any) -> bool:
    sample = torch.zeros(1, 1, 8, 1, device="cpu")
    try:
        own = copied_scheduler(scheduler)
        if own is None:
            return False
        own.set_timesteps(_TRIED + 2)  # or it would depend on how many, and how far it is
        with same_randomness(own):
            for step in range(_TRIED):
                sample = _stepped(own, step, sample)
                if sample.nan_to_num().any():
                    return True
    except Exception:  # whatever a scheduler of somebody else's raises
        return False
    return False


@contextmanager
def same_randomness(scheduler: Any) -> Iterator[None]:
    """What a scheduler's steps draw in the block is as if it had not been drawn.

    The schedulers of diffusers draw from a generator that they are given. Only for others those of
    torch, numpy and Python are put back, because other threads may draw from these meanwhile.
    """
    if type(scheduler).__module__.startswith("diffusers.") and seeded(scheduler):
        yield
        return
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@torch.no_grad()
def _stepped(own: Any, step: int, sample: torch.Tensor) -> torch.Tensor:
    """What a step makes of a sample, if the U-Net returns what it is given.

    Args:
        own: A scheduler; it takes the step.
        step: Which.
        sample: Before it, shape `(batch, channels, height, width)`.
    """
    timestep, options = own.timesteps[step], seeded(own)
    parts = 2 if str(own.config.get("variance_type")).startswith("learned") else 1
    output = torch.cat([own.scale_model_input(sample, timestep)] * parts, dim=1)
    made: torch.Tensor = own.step(output, timestep, sample, **options, return_dict=False)[0]
    return made


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
