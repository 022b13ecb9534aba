"""What was compared, as Python to paste into a program of one's own: the helper with its settings,
and the call. The pipeline is named in a comment, since how it was loaded is not known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

#: How a call to make one of the package's schedules begins.
_SCHEDULE: Final = re.compile(r"(NoiseAware|Uniform|Centred|Adaptive|Auto|Explicit)\(")


def python_of(about: Mapping[str, Any]) -> str:
    """Returns a few lines of Python, without a newline at the end.

    They are whole where the schedule's `repr` makes it and the call has only texts, numbers and
    lists of them; for the rest `...` stands, with a comment.

    Args:
        about: As in `Comparison`.
    """
    known = _SCHEDULE.match(about["schedule"])
    names = ["DeepCacheHelper", *([known[1]] if known else [])]
    given = ["pipe", f"schedule={about['schedule'] if known else '...'}"]
    given += [f"{name}={about[name]}" for name in ("first", "last") if about.get(name)]
    given += ['replay="reuse"'] if about.get("replay") == "Reuse()" else []
    sampler = f", sampled by {about['scheduler']}" if about["scheduler"] else ""
    lines = [
        f"from deepcache_patch import {', '.join(names)}",
        "",
        f"# pipe: the {about['pipeline']} of {_one_line(about['model'])}{sampler}",
        f"helper = DeepCacheHelper({', '.join(given)})",
        "helper.enable()",
        f"output = pipe({arguments_of(about['call'])})",
    ]
    if not known:
        lines.insert(3, f"# schedule: {_one_line(about['schedule'])}")
    if "..." in map(_literal, about["call"].values()):
        lines.insert(-1, "# ...: what is no text or number is left out here")
    return "\n".join(lines)


def arguments_of(call: Mapping[str, Any]) -> str:
    """The arguments of a call as Python, with `...` for what is no text or number."""
    return ", ".join(_argument(name, _literal(value)) for name, value in call.items())


def _literal(value: Any) -> str:
    """The value as Python has it, or `...`."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        each = [_literal(one) for one in value]
        return "..." if "..." in each else f"[{', '.join(each)}]"
    return "..."


def _argument(name: str, value: str) -> str:
    return f"{name}={value}" if name.isidentifier() else f"**{{{name!r}: {value}}}"


def _one_line(text: Any) -> str:
    """For a comment: nothing in it may end the line."""
    return " ".join(str(text).split())
