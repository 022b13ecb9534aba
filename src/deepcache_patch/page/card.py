"""What a model's card says of how to call it: the front matter of its `README.md`, as the model hub
knows it. Nothing is fetched: the card is that of the folder, or one that is in the cache already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from huggingface_hub import metadata_load

from ..compare.about import model_file

_NUMBERS: Final = ("num_inference_steps", "guidance_scale", "height", "width")


@dataclass(frozen=True)
class Card:
    """What stands in a model's card.

    Attributes:
        defaults: Numbers for arguments of the call, by name: `inference: parameters:` in the card.
        prompts: Such as the model knows: the texts of `widget:` in the card.
    """

    defaults: Mapping[str, float] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()


def card_of(pipe: Any) -> Card:
    """Returns the card of the model that the pipeline was loaded from; an empty one if it has none.

    Args:
        pipe: A pipeline; `name_or_path` is its folder, or its id on the hub.
    """
    found = model_file(pipe, "README.md")
    if found is None:
        return Card()
    try:
        said = metadata_load(found) or {}
    except Exception:  # whatever a parser of YAML raises: a card is for people first
        return Card()
    inference = said.get("inference")
    given = inference.get("parameters") if isinstance(inference, dict) else None
    given = given if isinstance(given, dict) else {}
    examples = said.get("widget")
    examples = examples if isinstance(examples, list) else []
    texts = [each.get("text") for each in examples if isinstance(each, dict)]
    return Card(
        {name: given[name] for name in _NUMBERS if type(given.get(name)) in (int, float)},
        tuple(text for text in texts if isinstance(text, str) and text),
    )
