"""From words to a schedule: for the command line and the page, where a person types them."""

from __future__ import annotations

from typing import Any, Final

from ..errors import InvalidSettingError
from ..schedules.plans import Centred, Growing, Uniform

#: Which parameters each one has, by name; those that plan ahead first.
PARAMETERS: Final = {
    "uniform": ("interval", "branch"),
    "centred": ("interval", "branch", "center", "power"),
    "growing": ("full_steps", "branch", "power"),
    "auto": ("interval", "branch"),
    "adaptive": ("tolerance", "branch"),
}

#: Those whose plan is known before a generation.
PLANNED: Final = ("uniform", "centred", "growing")


def named_schedule(name: str, **given: Any) -> Any:
    """Returns the schedule of that name.

    Args:
        name: A key of `PARAMETERS`.
        given: Its parameters; `None` stands for its own default.

    Raises:
        InvalidSettingError: If the name is unknown, a parameter is another's, lacking, or out of
            range.
    """
    if name not in PARAMETERS:
        known = ", ".join(PARAMETERS)
        raise InvalidSettingError(f"there is no schedule {name!r}; there are {known}")
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in PARAMETERS[name]:
            theirs = " and ".join(each for each, keys in PARAMETERS.items() if key in keys)
            raise InvalidSettingError(f"{key} is a setting of {theirs}, not of {name}")
    if name == "growing" and "full_steps" not in given:
        raise InvalidSettingError("growing needs full_steps: how many steps run in full")
    if name in PLANNED:
        planned = {"uniform": Uniform, "centred": Centred, "growing": Growing}
        return planned[name](**given)

    from ..learning.auto import Auto
    from ..schedules.adaptive import Adaptive  # which need torch

    if name == "auto":
        return Auto(**given)
    return Adaptive(given.get("tolerance", 0.1), (given.get("branch", 0),))
