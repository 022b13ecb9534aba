"""The settings of a try as a script in Python, which makes the picture with the helper again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from ..compare.contest import CALIBRATION_SEEDS
from ..learning.auto import Auto
from ..learning.calibrated_schedule import Calibrated

#: What the command line may set of a scheduler beside its class.
_SET: Final = ("use_karras_sigmas", "algorithm_type")


def as_python(
    pipe: Any, call: Mapping[str, Any], *, seed: int, schedule: Any, replay: str | None
) -> str:
    """Returns a script that loads the pipeline's model and makes the picture with the helper.

    Args:
        pipe: The pipeline that made the picture.
        call: Arguments of its call.
        seed: Of the picture.
        schedule: That it was made with.
        replay: By name; `None` leaves it out.
    """
    name, scheduler = type(pipe).__name__, type(pipe.scheduler).__name__
    model = str(getattr(pipe, "name_or_path", None) or "folder/of/the/pipeline")
    made = (
        'Calibrated.load("schedule.json")' if isinstance(schedule, Calibrated) else repr(schedule)
    )
    ours = ", ".join(sorted(("DeepCacheHelper", type(schedule).__name__)))
    settings = f"schedule={made}" + (f", replay={replay!r}" if replay else "")
    config = ", ".join(["pipe.scheduler.config", *_set(pipe.scheduler)])
    lines = [
        "import torch",
        f"from diffusers import {', '.join(sorted((name, scheduler)))}",
        "",
        f"from deepcache_patch import {ours}",
        "",
        f"pipe = {name}.from_pretrained({model!r}, dtype={pipe.dtype}).to({str(pipe.device)!r})",
        f"pipe.scheduler = {scheduler}.from_config({config})",
        "",
        f"with DeepCacheHelper(pipe, {settings}):",
    ]
    start, indent = f"{seed}", "    "
    if isinstance(schedule, Auto):
        seeds = f"{seed + CALIBRATION_SEEDS}, {seed}"
        lines.append(f"    for seed in ({seeds}):  # the schedule learns from the first picture")
        start, indent = "seed", "        "
    lines += [
        f"{indent}picture = pipe(",
        *(f"{indent}    {key}={value!r}," for key, value in call.items()),
        f'{indent}    generator=torch.Generator("cpu").manual_seed({start}),',
        f"{indent}).images[0]",
        'picture.save("picture.png")',
    ]
    return "\n".join(lines) + "\n"


def _set(scheduler: Any) -> list[str]:
    """The settings that the class would not choose by itself, as arguments."""
    own = inspect.signature(type(scheduler).__init__).parameters
    values = {name: scheduler.config.get(name) for name in _SET if name in own}
    return [f"{name}={value!r}" for name, value in values.items() if value != own[name].default]
