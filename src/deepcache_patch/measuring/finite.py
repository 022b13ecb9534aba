"""Figures as JSON can have them."""

import math
from collections.abc import Mapping
from typing import Any


def finite(data: Any) -> Any:
    """The same with `None` for each number that is infinite or none: JSON knows no such."""
    if isinstance(data, Mapping):
        return {str(name): finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
