"""A pipeline with one other patch: it is installed, run, removed, and known as it is alone."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from conftest import layout
from torch import nn
from zoo import CASES as ZOO

from builders.cases import CASES as TINY
from builders.marks import mostly_slow
from builders.patches import OTHERS, Remove
from builders.unets import inputs2d_condition, unet2d_condition
from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform

CASES = {**TINY, **ZOO}
STEPS = 5


def denoisers(pipe: Any) -> list[nn.Module]:
    found = (pipe.components.get(name) for name in ("controlnet", "unet"))
    return [each for each in found if each is not None]


class Alone(NamedTuple):
    """What a pipeline does in one state of the other patch: without a helper, and with one."""

    plain: torch.Tensor
    helped: torch.Tensor
    seen_plain: int
    seen_helped: int
    layouts: list[list[tuple]]


class Patched:
    """A pipeline, and one other patch of one of its models."""

    def __init__(self, case: str, part: str, other: str) -> None:
        self.case, self.other = CASES[case], OTHERS[other]
        self.pipe = self.case.load()
        self.model = self.pipe.components[part]
        self.heeded = self.other.heeded and part == "unet"
        # A function of somebody's round a ControlNet may weigh what it gives: it runs whole.
        self.is_told = self.heeded or (part, other) == ("controlnet", "closure")
        self.seen = 0
        self.remove_other: Remove | None = None

    def install(self) -> None:
        self.remove_other = self.other.install(self.model, self._see)

    def remove(self) -> None:
        self.remove_other()

    def _see(self) -> None:
        self.seen += 1

    def run(self, **overrides: Any) -> tuple[torch.Tensor, int]:
        self._start_anew()
        self.seen = 0
        with warnings.catch_warnings():
            if self.is_told:
                warnings.simplefilter("ignore", DeepCacheWarning)
            picture = self.case.run(self.pipe, steps=STEPS, **overrides)
        self._start_anew()
        return picture, self.seen

    def _start_anew(self) -> None:
        # diffusers' caches count calls until somebody resets them.
        for module in self.model.modules():
            if "_diffusers_hook" in vars(module):
                module._diffusers_hook.reset_stateful_hooks(recurse=False)

    def layouts(self) -> list[list[tuple]]:
        return [layout(model) for model in denoisers(self.pipe)]


@functools.cache
def alone(case: str, part: str, other: str) -> dict[str, Alone]:
    """By the state of the other patch, in a pipeline where the helper always comes last."""
    patched = Patched(case, part, other)
    states = {"absent": lambda: None, "installed": patched.install}
    if patched.other.removable:
        states["removed"] = patched.remove
    found: dict[str, Alone] = {}
    try:
        for state, change in states.items():
            change()
            plain, seen = patched.run()
            layouts = patched.layouts()
            with DeepCacheHelper(patched.pipe, schedule=Uniform()) as helper:
                helped, seen_helped = patched.run()
            in_full = patched.heeded and state == "installed"
            counts = (STEPS, 0) if in_full else (2, 3)
            assert (helper.stats.full_calls, helper.stats.shallow_calls) == counts
            found[state] = Alone(plain, helped, seen, seen_helped, layouts)
    finally:
        if len(found) == 2 and patched.other.removable:
            patched.remove()  # a patch of a class would stay in force
    return found


slowly = mostly_slow  # its name in some files


@torch.no_grad()
def loop(unet: nn.Module) -> torch.Tensor:
    inputs = inputs2d_condition(batch=1)
    sample, text = inputs["sample"], inputs["encoder_hidden_states"]
    for timestep in torch.tensor([900, 600, 300]):
        sample = sample - 0.3 * unet(sample, timestep, encoder_hidden_states=text).sample
    return sample


def small() -> nn.Module:
    return unet2d_condition(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)


def at_step(number: int, *actions: Callable[[], Any]) -> dict[str, Any]:
    """What a pipeline is called with for something to happen when a step has ended."""

    def act(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == number:
            for action in actions:
                action()
        return kwargs

    return {"callback_on_step_end": act}
