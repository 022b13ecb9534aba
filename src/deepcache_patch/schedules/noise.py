"""A scheduler's steps: how much noise is left, if more is added, if outputs are remembered.

The scheduler is never changed.
"""

import copy
import inspect
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import torch

#: A standard deviation that is as good as none.
_LEAST: Final = 1e-4

#: So many steps are tried; some samplers add noise only in every second one.
_TRIED: Final = 4

#: What was found of a scheduler, with the config that it had then. In the module, because plans,
#: forecasts and previews ask, of any helper, and it takes milliseconds to find out.
_FOUND: Final[weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, bool]]]] = (
    weakref.WeakKeyDictionary()
)


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

    Args:
        scheduler: Any, at any time; it need not have timesteps.

    Returns:
        False where it cannot be tried.
    """
    return _found(scheduler, "adds_noise", _is_found_to_add, otherwise=False)


def remembers(scheduler: Any) -> bool:
    """Whether a step depends on more than its own sample and output: a multistep method's does.

    Two copies take a different first step and then the same ones: if the results differ, it does.
    It is looked at once for each config.

    Args:
        scheduler: Any, at any time; it need not have timesteps.

    Returns:
        True where it cannot be tried.
    """
    return _found(scheduler, "remembers", _is_found_to_remember, otherwise=True)


def _found(scheduler: Any, name: str, tried: Callable[[Any], bool], *, otherwise: bool) -> bool:
    config = getattr(scheduler, "config", None)
    try:
        known = _FOUND.get(scheduler)
        if known is None or known[0] != config:
            known = config, {}
            _FOUND[scheduler] = known
        if name not in known[1]:
            known[1][name] = otherwise
            own = copied_scheduler(scheduler)
            if own is not None:
                own.set_timesteps(_TRIED + 2)  # or it would depend on how many, and how far it is
                known[1][name] = tried(own)
    except Exception:  # whatever a scheduler of somebody else's raises; it may have no hash
        return otherwise
    return known[1][name]


def _is_found_to_add(own: Any) -> bool:
    sample = torch.zeros(1, 1, 8, 1, device="cpu")
    for step in range(_TRIED):
        sample = _stepped(own, step, sample)
        if sample.nan_to_num().any():
            return True
    return False


def _is_found_to_remember(own: Any) -> bool:
    one = torch.ones(1, 1, 8, 1, device="cpu")
    runs = []
    for first in (one, 0 * one):
        again = copy.deepcopy(own)
        _stepped(again, 0, first)
        runs.append([_stepped(again, step, one) for step in range(1, _TRIED)])
    return not all(map(torch.equal, *runs))


@torch.no_grad()
def _stepped(own: Any, step: int, sample: torch.Tensor) -> torch.Tensor:
    """What a step makes of a sample, if the U-Net returns what it is given.

    Args:
        own: A scheduler; it takes the step. torch's own randomness is left alone.
        step: Which.
        sample: Before it, shape `(batch, channels, height, width)`.
    """
    timestep, options = own.timesteps[step], seeded(own)
    parts = 2 if str(own.config.get("variance_type")).startswith("learned") else 1
    output = torch.cat([own.scale_model_input(sample, timestep)] * parts, dim=1)
    with nullcontext() if options else torch.random.fork_rng(devices=[]):
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
