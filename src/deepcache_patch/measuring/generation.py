"""One timed generation of any pipeline, through its own `__call__`: which arguments it takes, how
it makes one result for each seed, what its progress bar says. Knows no helper.
"""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from .loop_clock import LoopClock

#: One line at INFO when a generation begins: what stands before its progress bar.
_LOGGER = logging.getLogger(__name__)

#: What follows from the seeds is set here.
_OWN_ARGUMENTS = (
    "generator",
    "batch_size",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "num_waveforms_per_prompt",
    "output_type",
    "return_dict",
)

#: With one of these a pipeline makes videos or sounds. Few of them make several at once.
_ONE_BY_ONE = (
    "num_frames",
    "video",
    "video_length",
    "num_videos_per_prompt",
    "audio_length_in_s",
    "num_waveforms_per_prompt",
)

#: Arguments of which a list has one for each prompt. IP-Adapters' has one for each adapter.
_OF_EACH: Final = re.compile(r"(\w+_)?prompt(_\d+)?|((?!ip_adapter)\w+_)?image")


@dataclass(frozen=True)
class Timing:
    """One generation: seconds in the denoising loop, seconds in all, and calls of the U-Net."""

    loop_seconds: float
    call_seconds: float
    calls: int

    def __add__(self, other: Timing) -> Timing:
        return Timing(
            self.loop_seconds + other.loop_seconds,
            self.call_seconds + other.call_seconds,
            self.calls + other.calls,
        )


def accepted_arguments(pipe: Any) -> dict[str, inspect.Parameter]:
    """Returns the parameters that the pipeline's `__call__` names.

    What it would swallow in `**kwargs` does not count: diffusers ignores it there. The call of a
    modular pipeline names none of its own: its blocks do, for all that they can be asked for.
    """
    of_blocks = getattr(pipe, "default_call_parameters", None)
    if isinstance(of_blocks, Mapping):
        return {
            name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in of_blocks.items()
            if name is not None  # a group of them
        }
    parameters = inspect.signature(pipe.__call__).parameters
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each for name, each in parameters.items() if each.kind not in variable}


def batched_call(pipe: Any, call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Completes `call` so that the pipeline makes `count` pictures in one batch.

    Raises:
        TypeError: An argument that the pipeline does not know, that it needs and did not get,
            or that follows from the seeds.
        ValueError: `count` is no multiple of the number of prompts, or without any of images.
    """
    _check(pipe, call)
    name, accepted = type(pipe).__name__, accepted_arguments(pipe)
    completed = _as_arrays(accepted, call)
    each_source = _shared_evenly(call, count)
    sources = count // each_source
    if isinstance(call.get("negative_prompt"), str) and isinstance(call.get("prompt"), list):
        completed["negative_prompt"] = [call["negative_prompt"]] * sources
    if "num_images_per_prompt" in accepted:
        completed["num_images_per_prompt"] = each_source
    elif "prompt" in call and count > 1:
        completed |= _one_for_each(call, count)
    elif "batch_size" in accepted:
        completed["batch_size"] = count
    elif each_source > 1:
        raise TypeError(f"{name} makes one picture at a time: give one seed, not {count}")
    return completed


def calls_of(
    pipe: Any, call: Mapping[str, Any], seeds: Sequence[int]
) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """Shares out the seeds to as few calls as the pipeline needs: arguments, and the call's seeds.

    Pictures come as one batch, videos and sounds one by one, each with its own prompt or picture.

    Raises:
        TypeError: As `batched_call` says.
        ValueError: As `batched_call` says.
    """
    accepted, count = accepted_arguments(pipe), len(seeds)
    if not any(name in accepted for name in _ONE_BY_ONE):
        return [(batched_call(pipe, call, count), tuple(seeds))]
    _check(pipe, call)
    completed, shared = _as_arrays(accepted, call), shared_out(call, count)
    return [
        ({**completed, **{name: values[at] for name, values in shared.items()}}, (seed,))
        for at, seed in enumerate(seeds)
    ]


def sources_in(call: Mapping[str, Any]) -> Sequence[Any] | None:
    """The list of what results are made from: the prompts, or without any the images.

    `None` where all results are made from the same.
    """
    first = next((name for name in ("prompt", "prompt_embeds", "image") if name in call), "")
    listed = call.get(first)
    return listed if isinstance(listed, list | tuple) else None


def shared_out(call: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """What each of `count` results is made of, by each list that has one for each source.

    Raises:
        ValueError: `count` is no multiple of the number of sources.
    """
    sources = sources_in(call)
    if not sources:
        return {}
    each_source = _shared_evenly(call, count)
    return {
        name: [each for each in value for _ in range(each_source)]
        for name, value in call.items()
        if isinstance(value, list | tuple)
        and len(value) == len(sources)
        and _OF_EACH.fullmatch(name)
    }


def _check(pipe: Any, call: Mapping[str, Any]) -> None:
    name, accepted = type(pipe).__name__, accepted_arguments(pipe)
    for argument in call:
        if argument in _OWN_ARGUMENTS:
            raise TypeError(f"{argument} cannot be given here: it is set by what is compared")
        if argument == "prompt" and not isinstance(call[argument], str) and not call[argument]:
            raise ValueError("prompt is empty: give a text, or a list of texts")
        if argument not in accepted:
            known = [each for each in accepted if each not in _OWN_ARGUMENTS]
            holding = [each for each in known if argument in each.split("_")]
            near = holding if len(holding) == 1 else get_close_matches(argument, known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise TypeError(f"{name} does not take {argument}{meant}; it takes {', '.join(known)}")
    for each in accepted.values():
        if each.default is inspect.Parameter.empty and each.name not in call:
            raise TypeError(f"{name} needs {each.name}=…")


def _as_arrays(accepted: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "output_type": "np"} if "output_type" in accepted else dict(call)


def _one_for_each(call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments that go with a prompt, each with one entry for each of `count` results."""
    given = {name: value for name, value in call.items() if _OF_EACH.fullmatch(name)}
    if isinstance(given["prompt"], str):
        given["prompt"] = [given["prompt"]]
    sources = len(given["prompt"])
    made: dict[str, Any] = {**shared_out(given, count)}
    for name, value in given.items():
        if isinstance(value, str | Image.Image):
            made[name] = [value] * count
        elif isinstance(value, torch.Tensor) and value.ndim == 4 and len(value) == sources:
            made[name] = value.repeat_interleave(count // sources, dim=0)
    return made


def num_sources(call: Mapping[str, Any]) -> int:
    """How many prompts there are, as texts or as embeddings, or without any images; else 1."""
    embeds: Any = call.get("prompt_embeds")
    listed = embeds if isinstance(embeds, torch.Tensor) else sources_in(call)
    return 1 if listed is None else max(1, len(listed))


def _shared_evenly(call: Mapping[str, Any], count: int) -> int:
    """How many of `count` results each prompt or picture has."""
    sources = num_sources(call)
    if count % sources:
        what = "prompts" if {"prompt", "prompt_embeds"} & set(call) else "images"
        raise ValueError(f"{count} pictures cannot be shared out evenly to {sources} {what}")
    return count // sources


def timed_call(
    pipe: Any,
    denoisers: Iterable[torch.nn.Module],
    call: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    label: str,
) -> tuple[Any, Timing, torch.device]:
    """Runs the pipeline once as `seeded_call` does; returns its output, times, and the device.

    Args:
        pipe: The pipeline.
        denoisers: The modules that make its denoising loops; the loops' times are added up.
        call: Arguments as `calls_of` or `batched_call` completed them.
        seeds: One for each result.
        label: Stands before the progress bar.

    Raises:
        RuntimeError: None of the denoisers was called, or their calls cannot be seen.
    """
    with labelled_progress(pipe, label), ExitStack() as clocks:
        all_clocks = [clocks.enter_context(LoopClock(module)) for module in denoisers]
        start = time.perf_counter()
        output = seeded_call(pipe, call, seeds)
        # Results arrive as arrays on the CPU: the device has nothing left to do.
        call_seconds = time.perf_counter() - start
    ran = [clock for clock in all_clocks if clock.calls] or all_clocks[:1]
    timing = Timing(
        sum(clock.seconds for clock in ran), call_seconds, sum(clock.calls for clock in ran)
    )
    return output, timing, ran[0].device


def seeded_call(pipe: Any, call: Mapping[str, Any], seeds: Sequence[int]) -> Any:
    """Calls the pipeline with a generator for each seed; torch's global ones are seeded, too.

    The generators live on the CPU, so that a seed means the same picture on every device.
    """
    # Some pipelines, the LDM ones among them, hand no generator to the scheduler.
    torch.manual_seed(seeds[0])
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    # Not all pipelines for videos take a list, even of one.
    return pipe(**call, generator=generators if len(generators) > 1 else generators[0])


@contextmanager
def labelled_progress(pipe: Any, label: str) -> Iterator[None]:
    """Puts `label` before the pipeline's own progress bar, and logs it; its other settings stay.

    Pipelines that are made of others have none: those that they are made of have one each.
    """
    _LOGGER.info("%s", label)
    before = {each: vars(each).get("_progress_bar_config") for each in with_inner(pipe)}
    for each, config in before.items():
        DiffusionPipeline.set_progress_bar_config(each, **{**(config or {}), "desc": label})
    try:
        yield
    finally:
        for each, config in before.items():
            if config is None:
                del each._progress_bar_config
            else:
                DiffusionPipeline.set_progress_bar_config(each, **config)


def with_inner(pipe: Any) -> list[Any]:
    """The pipeline, and those that it is made of: each has a progress bar of its own."""
    return [pipe, *(each for each in vars(pipe).values() if isinstance(each, DiffusionPipeline))]


def as_floats(images: Any) -> np.ndarray:
    """Returns arrays, or PIL pictures where a pipeline knows no `output_type`, as floats."""
    stacked = np.stack([np.asarray(image) for image in images])
    if stacked.dtype == np.uint8:
        stacked = stacked / np.float32(255)
    if stacked.ndim == 3:
        stacked = stacked[..., None]
    return stacked.astype(np.float32).clip(0, 1)
