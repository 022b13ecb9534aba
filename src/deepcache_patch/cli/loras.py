"""LoRAs that a person names: what is typed, and how they get into a pipeline."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import first_line
from .files import looks_local


@dataclass(frozen=True)
class Lora:
    """A LoRA, as `--lora PATH[:SCALE]` names it: a file, a folder or a hub id, and its strength."""

    path: str
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.path}:{self.scale:g}"  # as it may be typed again

    def check(self) -> None:
        """Checks, before a model is loaded, that the place can be one.

        Raises:
            ValueError: There is no such file or folder, and it cannot be a hub id.
        """
        try:
            there = self._place.exists()
        except RuntimeError:  # ~somebody who has no home
            there = False
        if looks_local(self.path) and not there:
            raise ValueError(f"there is no file or folder --lora {self.path}")

    @property
    def _place(self) -> Path:
        return Path(self.path).expanduser()

    def add_to(self, pipe: Any, name: str, **safely: Any) -> None:
        """Loads it into the pipeline under a name.

        Args:
            pipe: The pipeline.
            name: The adapter's name.
            safely: What keeps files of weights from running code.

        Raises:
            ValueError: It cannot be loaded, or has nothing for this pipeline.
        """
        place: dict[str, Any] = {}
        source = str(self._place) if self._place.exists() else self.path
        if self._place.is_file():
            source, place = str(self._place.parent), {"weight_name": self._place.name}
        try:
            pipe.load_lora_weights(source, adapter_name=name, **place, **safely)
        except Exception as error:  # whatever files, servers and peft raise together
            raise ValueError(f"--lora {self.path} cannot be loaded: {first_line(error)}") from error
        if not any(name in names for names in pipe.get_list_adapters().values()):
            raise ValueError(
                f"--lora {self.path} holds nothing for {type(pipe).__name__}: was it made for "
                "another model?"
            )


def lora(text: str) -> Lora:
    """A LoRA as it is typed, with or without its scale."""
    path, sign, tail = text.rpartition(":")
    try:
        scale = float(tail) if sign else None
    except ValueError:  # a colon that is a part of the name, as after a drive's letter
        scale = None
    found = Lora(text) if scale is None else Lora(path, scale)
    if not found.path or not math.isfinite(found.scale):
        raise click.BadParameter(f"{text!r} is no PATH[:SCALE], such as style.safetensors:0.8")
    return found


def add_loras(pipe: Any, loras: Sequence[Lora], **safely: Any) -> None:
    """Loads all of them into the pipeline, each with its scale.

    Raises:
        ValueError: The pipeline takes none, or one cannot be loaded.
    """
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA: leave --lora out")
    from ..compare.about import LORA_FILES  # which needs torch

    names = [f"lora_{number}" for number in range(len(loras))]
    with warnings.catch_warnings():
        # peft asks whether several are meant.
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        for name, each in zip(names, loras, strict=True):
            each.add_to(pipe, name, **safely)
    pipe.set_adapters(names, [each.scale for each in loras])
    files = {name: each.path for name, each in zip(names, loras, strict=True)}
    setattr(pipe, LORA_FILES, files)  # what is pasted says where they are
