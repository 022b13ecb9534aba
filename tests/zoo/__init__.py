"""Every U-Net pipeline of diffusers, each as a tiny one that is run through its own `__call__`."""

from dataclasses import replace
from types import ModuleType

import diffusers
from builders.cases import Case
from builders.copies import kept
from builders.versions_needed import has

from . import cascades, control, editing, kandinsky, pixels, stable_diffusion, video_audio

_FILES: list[ModuleType] = [stable_diffusion, control, kandinsky, cascades]
if hasattr(diffusers, "DreamLitePipeline"):
    from . import dreamlite

    _FILES.append(dreamlite)
_FILES += [video_audio, editing, pixels]
if has("diffusers", "0.42"):
    from . import modular

    _FILES.append(modular)

#: By readable id.
CASES: dict[str, Case] = {
    name: replace(case, load=kept(case.load))
    for file in _FILES
    for name, case in file.CASES.items()
}

if len(CASES) < sum(len(file.CASES) for file in _FILES):
    raise ValueError("two cases have the same name")
