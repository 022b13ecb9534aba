"""Arguments of a pipeline's `__call__` as a person types them: `--call KEY=VALUE`, and those that
have an option of their own. No torch here: what is typed is checked before anything is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, NoReturn

import click

from .mistakes import BadInputError

#: Options that only some pipelines know, by the name of the argument that each one sets.
CALL_OPTIONS: Final = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "guidance_scale": "--guidance-scale",
    "num_inference_steps": "--steps",
    "height": "--height",
    "width": "--width",
    "image": "--image",
    "strength": "--strength",
}

#: All that another option sets, so that `--call` does not.
_TAKEN: Final = {
    **CALL_OPTIONS,
    "generator": "--seed",
    "batch_size": "--images",
    "num_images_per_prompt": "--images",
    "num_videos_per_prompt": "--images",
    "num_waveforms_per_prompt": "--images",
}


class Argument(NamedTuple):
    """One argument of the pipeline's `__call__`."""

    name: str
    value: Any

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else json.dumps(self.value)
        return f"{self.name}={value}"  # as it may be typed again


def argument(text: str) -> Argument:
    """An argument and its value, which is JSON, or else a text."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise click.BadParameter(
            f"{text!r} is no KEY=VALUE, such as guidance_rescale=0.7 or clip_skip=2"
        )
    if name in _TAKEN:
        raise click.BadParameter(f"{name} has an option of its own: give {_TAKEN[name]}")
    try:
        return Argument(name, json.loads(value, parse_constant=_no_number))
    except (ValueError, RecursionError):
        return Argument(name, value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def as_call(
    given: Iterable[Argument], accepted: Mapping[str, Any], pipeline: str
) -> dict[str, Any]:
    """The arguments by name, as the pipeline takes them.

    Args:
        given: Those of `--call`.
        accepted: The parameters of the pipeline's `__call__`.
        pipeline: Its name.
    """
    call: dict[str, Any] = {}
    for name, value in given:
        if name not in accepted:
            near = get_close_matches(name, accepted, n=1)
            meant = _TAKEN.get(near[0], repr(near[0])) if near else ""
            cure = f"did you mean {meant}?" if near else f"it knows {', '.join(accepted)}"
            raise BadInputError(f"{pipeline} does not know --call {name}: {cure}")
        if name in call:
            raise BadInputError(f"--call {name} is given twice: give it once")
        # JSON has lists only, and SDXL adds tuples of sizes up.
        tuples = isinstance(value, list) and "tuple" in str(accepted[name].annotation).lower()
        call[name] = tuple(value) if tuples else value
    return call
