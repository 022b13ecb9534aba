"""What a comparison or a sweep was of: the pipeline as it was set up, and what it was asked for.
JSON knows all of it but pictures and tensors in the call.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from ..measuring.environment import device_name
from ..patching.wrappers import layers_of
from ..running.pipeline.components import likeliest_scheduler, modules_of, unets_of
from ..running.watching.offloading import accelerate_hooks
from ..schedules.guide import AnySchedule, brings_replay
from .call_steps import default_of, pythons, steps_of

if TYPE_CHECKING:
    from .contest import Contest

#: Where a pipeline says which of the model's files were asked for: diffusers does not.
MODEL_FILES: Final = "_deepcache_patch_model_files"

#: Where a pipeline says from which files its adapters came: diffusers does not.
LORA_FILES: Final = "_deepcache_patch_lora_files"

#: Where a picture says from which file it came, as a `PictureFile`: Pillow does not.
PICTURE_FILE: Final = "_deepcache_patch_file"

#: What people set of a scheduler; asked for where the model's own settings are out of reach.
_SET: Final = ("algorithm_type", "use_karras_sigmas")

#: Settings of a scheduler that space its noise levels, and the words for them.
_SPACINGS: Final = {
    "use_karras_sigmas": "Karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


class PictureFile(str):
    """The name of a picture's file, which says more than the picture does.

    Attributes:
        size: Width and height to which the picture was resized; `None` if it was not.
    """

    size: tuple[int, int] | None

    def __new__(cls, name: str, size: tuple[int, int] | None = None) -> PictureFile:
        """The name as text, with the size beside it."""
        made = super().__new__(cls, name)
        made.size = size
        return made


def about(
    contest: Contest, device: torch.device, schedule: AnySchedule | None = None
) -> dict[str, Any]:
    """What was asked for, and where it ran; with the schedule, if one is the same for all."""
    pipe, helper, call = contest.pipe, contest.helper, contest.call
    name, unet = next(iter(unets_of(pipe).items()))
    scheduler = likeliest_scheduler(pipe, name)
    scheduler_name = "" if scheduler is None else type(scheduler).__name__
    followed = {
        "interval": getattr(schedule, "interval", None),
        "branch": getattr(schedule, "branch", None),
        "schedule": str(schedule),
        "replay": None if brings_replay(schedule) else str(helper.replay),
    }
    return {
        "model": getattr(pipe, "name_or_path", None) or type(pipe).__name__,
        "model_files": dict(getattr(pipe, MODEL_FILES, {})),
        "pipeline": type(pipe).__name__,
        "scheduler": scheduler_name.removesuffix("Scheduler"),
        "scheduler_settings": _changed_settings(pipe),
        "loras": _loras(pipe),
        "offload": _offload(pipe),
        "device": {"type": str(device), "name": device_name(device)},
        "dtype": str(getattr(unet, "dtype", "unknown")).removeprefix("torch."),
        "steps": steps_of(pipe, call),
        "guidance_scale": _named(call.get("guidance_scale", default_of(pipe, "guidance_scale"))),
        "first": helper.first,
        "last": helper.last,
        "seeds": list(contest.seeds),
        "repeats": contest.repeats,
        "call": {name: _named(value) for name, value in call.items()},
        **({} if schedule is None else followed),
    }


def sampler_of(about: Mapping[str, Any]) -> str:
    """The scheduler and how its noise levels were spaced anew: "DPMSolverMultistep Karras"."""
    changed = about.get("scheduler_settings") or {}
    spacings = (word for setting, word in _SPACINGS.items() if changed.get(setting))
    return " ".join((about["scheduler"], *spacings))


def model_file(pipe: Any, name: str) -> Path | None:
    """A file of the model that the pipeline was loaded from; `None` if it is not at hand.

    Nothing is fetched: it is in the model's folder, or in the cache of the hub already.

    Args:
        pipe: A pipeline; `name_or_path` is its folder, or its id on the hub.
        name: The file's, with the folders that it is in.
    """
    model = str(getattr(pipe, "name_or_path", None) or "")
    if not model:
        return None
    try:
        folder = Path(model)
        found: Any = folder / name if folder.is_dir() else try_to_load_from_cache(model, name)
        return Path(found) if isinstance(found, str | Path) and Path(found).is_file() else None
    except (OSError, ValueError):  # no such folder, and no id that the hub could have
        return None


def _named(value: Any) -> Any:
    """An argument; for a picture, or for one picture many times, its file if that is known.

    A number of numpy is one of Python's.
    """
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, Image.Image):
        return pythons(value)
    is_one = first is value or all(each is first for each in value)
    return getattr(first, PICTURE_FILE, value) if is_one else value


def _changed_settings(pipe: Any) -> dict[str, Any] | None:
    """The settings by which the scheduler differs from one of its class by the model's files.

    `None` where it is the model's own, or there is none by that name.
    """
    scheduler, saved = getattr(pipe, "scheduler", None), _saved_scheduler(pipe)
    if scheduler is None:
        return None
    parameters = inspect.signature(type(scheduler).__init__).parameters
    usual = {name: saved.get(name, each.default) for name, each in parameters.items()}
    found = {
        name: value
        for name, value in scheduler.config.items()
        if name in (usual if saved else {*_SET} & {*usual}) and str(value) != str(usual[name])
    }
    is_own = saved.get("_class_name") == type(scheduler).__name__
    return None if is_own and not found else found


def _saved_scheduler(pipe: Any) -> dict[str, Any]:
    """What the model's files say of its scheduler; nothing if they are not at hand."""
    file = model_file(pipe, "scheduler/scheduler_config.json")
    try:
        return {} if file is None else dict(json.loads(file.read_bytes()))
    except (OSError, TypeError, ValueError):  # it cannot be read, or is not one
        return {}


def _loras(pipe: Any) -> list[dict[str, Any]]:
    """The LoRAs that are in force: name, scale, and the file if it is known."""
    files, scales = getattr(pipe, LORA_FILES, {}), dict[str, float]()
    layers: list[Any] = [each for part in modules_of(pipe).values() for each in part.modules()]
    for layer in layers:
        if hasattr(layer, "lora_alpha") and not layer.disable_adapters:  # one of peft's
            for name in {*layer.active_adapters} & {*layer.scaling}:
                usual = layer.lora_alpha[name] / layer.r[name]
                scales[name] = round(layer.scaling[name] / usual, 6)
    return [
        {"name": name, "scale": scale, "file": files.get(name)} for name, scale in scales.items()
    ]


def _offload(pipe: Any) -> str | None:
    """What of the pipeline waits on the CPU: "model" or "sequential"; `None` for nothing."""
    # What was loaded with device_map= has the same hooks, and may wait on the CPU as well.
    parts = [each for each in modules_of(pipe).values() if not _is_mapped(each)]
    networks = [layer for part in parts for layer in layers_of(part)]
    hooks = (hook for each in networks for hook in accelerate_hooks(each))
    if any(type(hook).__name__ == "CpuOffload" for hook in hooks):
        return "model"
    if _is_mapped(pipe):
        return None
    inner = (hook for part in parts for each in part.modules() for hook in accelerate_hooks(each))
    return "sequential" if any(getattr(hook, "offload", False) for hook in inner) else None


def _is_mapped(part: Any) -> bool:
    return getattr(part, "hf_device_map", None) is not None
