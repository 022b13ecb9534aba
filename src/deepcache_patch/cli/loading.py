"""From words to a pipeline that is ready to run: model folder or hub id, device, dtype, scheduler,
offloading. For the command line and other places where a person types them. Everything that can be
wrong is a `ValueError` of one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch

from ..compare.about import MODEL_FILES
from ..errors import first_line
from ..measuring.generation import accepted_arguments, with_inner
from .files import model_folder
from .mistakes import require_package
from .names import DTYPES, SCHEDULER_OPTIONS, SCHEDULERS, no_such_scheduler
from .terminal import shows_bars


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
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> Any:
    """Loads a pipeline from a local folder or from the hub. Code of its own is never run.

    Args:
        model: The folder, or the hub id.
        device: Where it is to run.
        dtype: The type of its weights.
        variant: Which files of weights, such as "fp16"; those without a variant where `None`.
        revision: Branch, tag or commit on the hub; `None` for the newest.

    Raises:
        ValueError: There is no such folder or hub id, or it holds no pipeline, or one with code.
    """
    found = model_folder(model, revision)
    folder, local = found or Path(), found is not None
    files: dict[str, Any] = {**safely(), **({} if variant is None else {"variant": variant})}
    if not local:
        wanted = {} if revision is None else {"revision": revision}
        try:
            folder = Path(diffusers.DiffusionPipeline.download(model, **files, **wanted))
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
        reason = first_line(error)
        if variant is not None and f"variant={variant}" in reason:
            reason = f"it has no weights of --variant {variant}: leave the option out"
        raise ValueError(f"{model} cannot be loaded: {reason}") from error
    pipe.register_to_config(_name_or_path=str(folder) if local else model)
    asked = {"variant": variant, "revision": revision}
    setattr(pipe, MODEL_FILES, {name: each for name, each in asked.items() if each is not None})
    if pipe.dtype != dtype:  # older versions of diffusers do not know the argument by this name
        pipe.to(dtype=dtype)
    return pipe.to(device)


def safely() -> dict[str, bool]:
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
    # Where a package lacks, diffusers has something else under the name of a class that needs it.
    needed = [*getattr(found, "_backends", [])]
    parts = index.values() if isinstance(index, dict) else []
    if any(part[:1] == ["transformers"] for part in parts if isinstance(part, list)):
        needed.append("transformers")
    for package in needed:
        require_package(package, "it")
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
        name: A name that `scheduler_of` knows.

    Raises:
        ValueError: The name is one that `scheduler_of` refuses, or the pipeline has none.
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
    found = scheduler_class(name)
    try:
        return found.from_config(config, **SCHEDULER_OPTIONS.get(name.lower(), {}))
    except (ImportError, TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{found.__name__} cannot be built here: {first_line(error)}") from error


def scheduler_class(name: str) -> Any:
    """Returns the class of a scheduler of diffusers.

    Args:
        name: A name that `scheduler_of` knows.

    Raises:
        ValueError: The name is unknown.
    """
    try:
        found: Any = getattr(diffusers, SCHEDULERS.get(name.lower(), name), None)
    except (ImportError, RuntimeError):  # a module of diffusers that lacks a package
        found = None
    if not name or not hasattr(found, "from_config") or not found.__name__.endswith("Scheduler"):
        theirs = [each for each in dir(diffusers) if each.endswith("Scheduler")]
        raise ValueError(no_such_scheduler(name, theirs))
    return found


def image_to_image(pipe: Any) -> Any:
    """Returns the pipeline that makes pictures of a picture with the same parts.

    Args:
        pipe: A pipeline; one that takes a picture already is returned as it is.

    Raises:
        ValueError: diffusers has none for these parts.
    """
    if "image" in accepted_arguments(pipe):
        return pipe
    try:
        found = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    except Exception as error:  # whatever parts that do not fit can raise
        raise ValueError(
            f"{type(pipe).__name__} takes no picture, and diffusers has no pipeline with the same "
            "parts that does: leave --image out"
        ) from error
    found.register_to_config(_name_or_path=pipe.name_or_path)
    return found


def cpu_before(device: torch.device) -> torch.device:
    """Where models wait that are to be offloaded: the CPU.

    Raises:
        ValueError: They would run there, too.
    """
    if device.type == "cpu":
        raise ValueError(
            "--offload keeps models on the CPU until they run on another device, and this is "
            "the CPU: leave it out"
        )
    return torch.device("cpu")


def offload_models(pipe: Any, device: torch.device, kind: str) -> None:
    """Lets the models of a pipeline take turns on a device.

    Args:
        pipe: The pipeline, on the CPU.
        device: Where it is to run.
        kind: "model" for whole models, "sequential" for each layer.

    Raises:
        ValueError: This pipeline cannot be offloaded so.
    """
    try:
        getattr(pipe, f"enable_{kind}_cpu_offload")(device=device)
    except Exception as error:  # whatever diffusers and accelerate raise together
        reason = first_line(error)
        name = type(pipe).__name__
        raise ValueError(f"{name} cannot be offloaded by --offload {kind}: {reason}") from error


def _present() -> list[str]:
    # Not `torch.mps`, which cannot tell before torch 2.5.
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return [*(kind for kind, runtime in kinds.items() if runtime.is_available()), "cpu"]


def without_bars(pipe: Any) -> None:
    """Switches off the progress bars of a pipeline's loops."""
    for each in with_inner(pipe):
        diffusers.DiffusionPipeline.set_progress_bar_config(each, disable=True)


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
        if not shows_bars():
            library.disable_progress_bar()
