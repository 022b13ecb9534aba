"""Arguments of a pipeline's `__call__` as a person types them: `--call KEY=VALUE`, and those that
have an option of their own. No torch here: what is typed is checked before anything is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

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
        """The argument as it may be typed again."""
        is_text = isinstance(self.value, str) and _value(self.value) == self.value
        return f"{self.name}={self.value if is_text else json.dumps(self.value)}"


def argument(text: str) -> Argument:
    """An argument and its value."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise click.BadParameter(
            f"{text!r} is no KEY=VALUE, such as guidance_rescale=0.7 or clip_skip=2"
        )
    if name in _TAKEN:
        raise click.BadParameter(f"{name} has an option of its own: give {_TAKEN[name]}")
    return Argument(name, _value(value))


def _value(text: str) -> Any:
    """What the text is as JSON, or else the text."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # which Python would read, and JSON does not know
    except (ValueError, RecursionError):
        return text
    return value


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
