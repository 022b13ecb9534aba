"""What a U-Net returned, and the same with another tensor in it: for calls that run nothing."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch


class Answer(NamedTuple):
    """What a U-Net returned: one tensor alone, in a tuple, or in an output class of diffusers.

    Attributes:
        kind: The class of what was returned.
        name: The name of the tensor in it, where it has names.
        asked: The argument `return_dict` of the call, or `None`.
    """

    kind: type
    name: str | None
    asked: Any

    @classmethod
    def of(cls, output: Any, arguments: Mapping[str, Any]) -> "tuple[Answer, torch.Tensor] | None":
        """An answer and the tensor in it; `None` if there is anything beside one tensor."""
        name, tensor = None, output
        if isinstance(output, dict) and len(output) == 1:
            name, tensor = next(iter(output.items()))
        elif type(output) is tuple and len(output) == 1:
            tensor = output[0]
        if not isinstance(tensor, torch.Tensor):
            return None
        beside = (*_attributes_of(output), *_attributes_of(tensor))
        if any(each is not None and each is not tensor for each in beside):
            return None
        return cls(type(output), name, arguments.get("return_dict")), tensor

    def with_tensor(self, tensor: torch.Tensor) -> Any:
        """What the U-Net returned, with this tensor in it."""
        if self.name is not None:
            return self.kind(**{self.name: tensor})
        return (tensor,) if self.kind is tuple else tensor


def _attributes_of(thing: Any) -> Iterable[Any]:
    """What an object has in attributes of its own; an output class has its values there, too."""
    found: dict[str, Any] = getattr(thing, "__dict__", {})
    return found.values()
