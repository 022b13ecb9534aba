"""From words to a pipeline that is ready to run: model folder or hub id, device, dtype, scheduler.
For the command line and other places where a person types them. Everything that can be wrong is a
`ValueError` of one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch

from ..errors import first_line
from .names import DTYPES, SCHEDULER_OPTIONS, SCHEDULERS


def choose_device(name: str | None = None) -> torch.device:
    """Returns the named device, or the best that there is: CUDA, XPU, MPS, then the CPU.

    Raises:
        ValueError: torch does not know the device, or cannot use it here.
    """
    if name is None:
        return torch.device(_present()[0])
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Torch says it in as many as ten lines; what helps is which ones would do.
        raise ValueError(
            f"device {name!r} cannot be used here; this machine has {', '.join(_present())}"
        ) from error
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Returns the named dtype, or float16 on CUDA and MPS and float32 elsewhere.

    Raises:
        ValueError: The name is unknown, or the device cannot compute in this dtype.
    """
    if name is None:
        return torch.float16 if device.type in ("cuda", "mps") else torch.float32
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; the known ones are {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    probe = torch.zeros(1, 1, 3, 3, dtype=torch.float32)
    try:
        probe = probe.to(device, dtype)
        torch.nn.functional.conv2d(probe, probe).item()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{device} cannot compute in {name}; try --dtype float32") from error
    return dtype


def load_pipeline(
    model: str, device: torch.device, dtype: torch.dtype, *, variant: str | None = None
) -> Any:
    """Loads a pipeline from a local folder or from the hub. Code of its own is never run.

    Args:
        model: The folder, or the hub id.
        device: Where it is to run.
        dtype: Of its weights.
        variant: Of the weights' files, such as "fp16"; those without a variant where `None`.

    Raises:
        ValueError: There is no such folder or hub id, or it holds no pipeline, or one with code.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise ValueError(f"there is no folder {model}") from error
    local = folder.is_dir()
    files: dict[str, Any] = {**_safely(), **({} if variant is None else {"variant": variant})}
    if local:
        if not (folder / "model_index.json").is_file():
            if (folder / "modular_model_index.json").is_file():
                raise ValueError(
                    f"{model} is a modular pipeline, which this does not load: load it in Python, "
                    "and call DeepCacheHelper(pipe).compare(...)"
                )
            raise ValueError(f"{model} is not a diffusers pipeline: it has no model_index.json")
    elif folder.exists():
        raise ValueError(f"{model} is a file; give the folder of a diffusers pipeline")
    elif model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ValueError(f"there is no folder {model}")
    if not local:
        try:
            folder = Path(diffusers.DiffusionPipeline.download(model, **files))
        except Exception as error:  # whatever a far server can raise
            # diffusers says at length that there is nothing in its cache; why it looked there, the
            # cause says: no network, no such model.
            reason = first_line(error.__cause__ or error).rstrip(".")
            raise ValueError(
                f"{model} is no folder, and not on the hub: {reason}. Without the hub, give the "
                "folder of a diffusers pipeline"
            ) from error
    try:
        _refuse_code(folder)
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype, **files)
    except Exception as error:  # whatever a damaged folder can raise
        raise ValueError(f"{model} cannot be loaded: {first_line(error)}") from error
    pipe.register_to_config(_name_or_path=str(folder) if local else model)
    if pipe.dtype != dtype:  # older versions of diffusers do not know the argument by this name
        pipe.to(dtype=dtype)
    return pipe.to(device)


def _safely() -> dict[str, bool]:
    """What keeps pickled weights from running code: `weights_only`, but torch 2.5 can be tricked.

    See CVE-2025-32434.
    """
    return {} if torch.__version__ >= "2.6" else {"use_safetensors": True}


def _refuse_code(folder: Path) -> None:
    """Checks that a folder names classes of diffusers and transformers, and brings none along.

    diffusers 0.42 refuses most code by itself; older versions import what the folder names.

    Raises:
        ValueError: It does not.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    name = index.get("_class_name") if isinstance(index, dict) else None
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ValueError(f"its model_index.json names {name!r}, which is no pipeline of diffusers")
    if (folder / "None.py").exists():  # where diffusers looks if no code is asked for
        raise ValueError("it brings code along, None.py")
    for part, named in index.items():
        if part.startswith("_") or not isinstance(named, list) or named == [None, None]:
            continue
        if len(named) != 2 or not all(isinstance(each, str) for each in named):
            raise ValueError(f"its {part} is {named!r}, not a library and a class")
        library, kind = named
        # transformers asks a person whether to run what its Auto classes find in a folder.
        if not _is_known(library) or (library, kind[:4]) == ("transformers", "Auto"):
            raise ValueError(f"its {part} is {named!r}: only classes of diffusers and transformers")
        if (folder / part / f"{library}.py").exists():
            raise ValueError(f"its {part} brings code along, {part}/{library}.py")
        if (folder / part / "model_index.json").exists():  # a pipeline within the pipeline
            _refuse_code(folder / part)


def _is_known(library: str) -> bool:
    own = isinstance(getattr(diffusers.pipelines, library, None), ModuleType)
    return own or library in ("diffusers", "transformers")


def use_scheduler(pipe: Any, name: str) -> None:
    """Gives the pipeline another scheduler, built from the settings of its own.

    Args:
        pipe: A pipeline.
        name: As for `scheduler_of`.

    Raises:
        ValueError: As `scheduler_of` does, or the pipeline has none.
    """
    own = getattr(pipe, "scheduler", None)
    if own is None:
        raise ValueError(f"{type(pipe).__name__} has no scheduler to exchange")
    pipe.scheduler = scheduler_of(name, own.config)


def scheduler_of(name: str, config: Mapping[str, Any]) -> Any:
    """Builds a scheduler from the settings of another one.

    Args:
        name: A key of `names.SCHEDULERS` or a scheduler class of diffusers.
        config: The settings.

    Raises:
        ValueError: The name is unknown, or the scheduler lacks a package.
    """
    try:
        found: Any = getattr(diffusers, SCHEDULERS.get(name.lower(), name), None)
    except (ImportError, RuntimeError):  # a module of diffusers that lacks a package
        found = None
    if not name or not hasattr(found, "from_config") or not found.__name__.endswith("Scheduler"):
        known = ", ".join(SCHEDULERS)
        raise ValueError(
            f"unknown scheduler {name!r}; known are {known}, and the classes of diffusers"
        )
    try:
        return found.from_config(config, **SCHEDULER_OPTIONS.get(name.lower(), {}))
    except (ImportError, TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{found.__name__} cannot be built here: {first_line(error)}") from error


def _present() -> list[str]:
    # Not `torch.mps`, which cannot tell before torch 2.5.
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return [*(kind for kind, runtime in kinds.items() if runtime.is_available()), "cpu"]


def quiet_loading() -> None:
    """Keeps stderr to the two generations, or to the one line that says what is wrong."""
    libraries: list[Any] = [diffusers.utils.logging]
    try:
        import transformers

        libraries.append(transformers.utils.logging)
    except ImportError:  # pixel pipelines do without
        pass
    for library in libraries:
        library.set_verbosity_error()
        if not sys.stderr.isatty():
            library.disable_progress_bar()
