"""One timed generation of any picture pipeline, through its own `__call__`: which arguments it
takes, how it makes one picture for each seed, what its progress bar says. Knows no helper.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .loop_clock import LoopClock

#: `generate` sets these itself, from the seeds.
_OWN_ARGUMENTS = ("generator", "batch_size", "num_images_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class Timing:
    """One generation: seconds in the denoising loop, seconds in all, and calls of the U-Net."""

    loop_seconds: float
    call_seconds: float
    calls: int


@dataclass(frozen=True)
class Generation:
    """What one generation made, and how long it took.

    Attributes:
        pictures: (pictures, height, width, channels), float32 in 0..1.
        timing: Seconds and calls.
        device: Where the U-Net ran.
    """

    pictures: np.ndarray
    timing: Timing
    device: torch.device


def accepted_arguments(pipe: Any) -> dict[str, inspect.Parameter]:
    """Returns the parameters that the pipeline's `__call__` names.

    What it would swallow in `**kwargs` does not count: diffusers ignores it there.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each for name, each in parameters.items() if each.kind not in variable}


def batched_call(pipe: Any, call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Completes `call` so that the pipeline makes `count` pictures in one batch.

    Raises:
        TypeError: An argument that the pipeline does not know, that it needs and did not get,
            or that follows from the seeds.
        ValueError: `count` is no multiple of the number of prompts.
    """
    name, accepted = type(pipe).__name__, accepted_arguments(pipe)
    for argument in call:
        if argument in _OWN_ARGUMENTS:
            raise TypeError(f"{argument} cannot be given here: it follows from the seeds")
        if argument not in accepted:
            known = ", ".join(each for each in accepted if each not in _OWN_ARGUMENTS)
            raise TypeError(f"{name} does not take {argument}; it takes {known}")
    for each in accepted.values():
        if each.default is inspect.Parameter.empty and each.name not in call:
            raise TypeError(f"{name} needs {each.name}=…")

    completed = dict(call)
    if "output_type" in accepted:
        completed["output_type"] = "np"
    prompts = call.get("prompt", call.get("prompt_embeds", "one"))
    sources = 1 if isinstance(prompts, str) else len(prompts)
    if count % sources:
        raise ValueError(f"{count} pictures cannot be shared out evenly to {sources} prompts")
    each_prompt = count // sources
    if isinstance(call.get("negative_prompt"), str) and isinstance(prompts, list):
        completed["negative_prompt"] = [call["negative_prompt"]] * sources
    if "num_images_per_prompt" in accepted:
        completed["num_images_per_prompt"] = each_prompt
    elif "prompt" in call and each_prompt > 1:
        listed = [prompts] if isinstance(prompts, str) else prompts
        completed["prompt"] = [prompt for prompt in listed for _ in range(each_prompt)]
    elif "batch_size" in accepted:
        completed["batch_size"] = count
    elif each_prompt > 1:
        raise TypeError(f"{name} makes one picture at a time: give one seed, not {count}")
    return completed


def generate(
    pipe: Any,
    denoiser: torch.nn.Module,
    call: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    label: str,
) -> Generation:
    """Runs the pipeline once, with a generator for each seed, and times it.

    The generators live on the CPU, so that a seed means the same picture on every device. Torch's
    global generators are seeded, too.

    Args:
        pipe: The pipeline.
        denoiser: The module that makes its denoising loop.
        call: Arguments as `batched_call` completed them.
        seeds: One for each picture.
        label: Stands before the progress bar.

    Raises:
        TypeError: The pipeline returns no pictures, or not one for each seed.
    """
    with labelled_progress(pipe, label), LoopClock(denoiser) as clock:
        start = time.perf_counter()
        output = seeded_call(pipe, call, seeds)
        # Pictures arrive as arrays on the CPU: the device has nothing left to do.
        call_seconds = time.perf_counter() - start
    images = getattr(output, "images", None)
    if images is None:
        fields = ", ".join(getattr(output, "keys", list)()) or type(output).__name__
        raise TypeError(
            f"{type(pipe).__name__} returns no pictures, but {fields}: only pictures can be "
            "compared so far"
        )
    if len(images) != len(seeds):  # the batch of an input picture, say, decides instead
        raise TypeError(
            f"{type(pipe).__name__} made {len(images)} pictures for {len(seeds)} seeds: give as "
            "many seeds as its inputs make pictures"
        )
    timing = Timing(clock.seconds, call_seconds, clock.calls)
    return Generation(as_floats(images), timing, clock.device)


def seeded_call(pipe: Any, call: Mapping[str, Any], seeds: Sequence[int]) -> Any:
    """Calls the pipeline with a generator for each seed; torch's global ones are seeded, too."""
    # Some pipelines, the LDM ones among them, hand no generator to the scheduler.
    torch.manual_seed(seeds[0])
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(**call, generator=generators)


@contextmanager
def labelled_progress(pipe: Any, label: str) -> Iterator[None]:
    """Puts `label` before the pipeline's own progress bar; its other settings stay."""
    before = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**(before or {}), "desc": label})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe.set_progress_bar_config(**before)


def as_floats(images: Any) -> np.ndarray:
    """Returns arrays, or PIL pictures where a pipeline knows no `output_type`, as floats."""
    stacked = np.stack([np.asarray(image) for image in images])
    if stacked.dtype == np.uint8:
        stacked = stacked / np.float32(255)
    if stacked.ndim == 3:
        stacked = stacked[..., None]
    return stacked.astype(np.float32).clip(0, 1)
