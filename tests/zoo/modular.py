"""Tiny modular pipelines of SDXL: one class whose blocks do what several pipelines do, with guiders
that call the U-Net once, twice or three times in a step. Older versions of diffusers lack them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from builders.cases import CASES as ORDINARY
from builders.cases import EDIT, PAINT, PROMPT, Case, picture
from builders.modular import GUIDERS, UNGUIDED, modular_sdxl, run_modular
from builders.unets import SIDE
from diffusers import StableDiffusionXLModularPipeline

from zoo.control import CASES as CONTROL
from zoo.control import HINT

_SIZE = {"height": 24, "width": 32}
_ITS_SIZE = {"height": SIDE, "width": SIDE}


def _case(
    name: str,
    load: Callable[[], Any],
    *,
    guider: str = "cfg",
    others: Mapping[str, Mapping[str, Any]],
    **defaults: Any,
) -> Case:
    usual = {"seed": {"seed": 1}, "steps": {"steps": 7}, "no-guidance": {"guider": UNGUIDED}}
    batch = {"batch": {"num_images_per_prompt": 2}}
    return Case(
        name=name,
        pipeline=StableDiffusionXLModularPipeline,
        load=lambda: modular_sdxl(load().components),
        run=functools.partial(
            run_modular, guider=GUIDERS[guider], defaults={**PROMPT, **_ITS_SIZE, **defaults}
        ),
        others={**usual, **batch, **others},
    )


_SDXL, _CONTROLLED = ORDINARY["sdxl"].load, CONTROL["sdxl-controlnet"].load
_STRENGTH = {"strength": {"strength": 0.6}}

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _case("modular-sdxl", _SDXL, others={"size": _SIZE, "end": {"denoising_end": 0.6}}),
        _case("modular-sdxl-img2img", _SDXL, strength=0.8, others=_STRENGTH, **EDIT),
        _case("modular-sdxl-inpaint", _SDXL, strength=0.9, others=_STRENGTH, **PAINT),
        _case(
            "modular-sdxl-controlnet",
            _CONTROLLED,
            control_image=HINT,
            others={
                "guess-mode": {"guess_mode": True},
                "control-end": {"control_guidance_end": 0.5},
            },
        ),
        _case(
            "modular-sdxl-controlnet-img2img",
            _CONTROLLED,
            control_image=HINT,
            strength=0.8,
            others={**_STRENGTH, "picture": {"image": picture(seed=3)}},
            **EDIT,
        ),
        *(
            _case(f"modular-sdxl-{name}", _SDXL, guider=name, others={"size": _SIZE})
            for name in GUIDERS
            if name != "cfg"
        ),
    )
}
