"""Figures as JSON can have them."""

import math
from collections.abc import Mapping
from typing import Any


def finite(data: Any, *, as_text: bool = False) -> Any:
    """The same with `None` for each number that is infinite or none: JSON knows no such.

    Args:
        data: A value of JSON's types; keys become text.
        as_text: Whether text stands for such a number, "inf", so that it can be told from `None`.
    """
    if isinstance(data, Mapping):
        return {str(name): finite(value, as_text=as_text) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value, as_text=as_text) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data) if as_text else None
    return data
