"""Results as JSON, for programs that read what a command prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..measuring.finite import finite

if TYPE_CHECKING:
    from ..schedules.plans import Plan


def json_of(data: Any) -> str:
    """Indented, as people read it; JSON knows no infinite number, so such a one is `null`."""
    return json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The entry of each step, and what is counted in them."""
    return {
        "steps": len(plan),
        "full_steps": list(plan.full_steps),
        "plan": list(plan),
    }
