"""Where the skips of a U-Net are, and how to cut it there: one file for each layout.

`dissect` finds the layout of a U-Net and returns its anatomy. An anatomy counts the skips. For each
branch it gives the cut that makes the U-Net shallow, and the cut that records the deep feature.
`dissect_controlnet` does so for a ControlNet.

A new layout is a subclass of `Anatomy` in a file of its own, and a line in `_LAYOUTS`. What every
anatomy has stands in `base`; what the layouts with blocks of layers share stands in `layered`.
"""

from typing import Final

from torch import nn

from ...errors import UnsupportedModelError
from .base import Anatomy
from .blocks import BlockAnatomy
from .cascade import CascadeAnatomy, WuerstchenAnatomy
from .controlnet import BlockControlNetAnatomy, ControlNetAnatomy, HunyuanControlNetAnatomy
from .controlnet_xs import ControlNetXSAnatomy
from .levels import Kandinsky3Anatomy, KBlockAnatomy, OneDimensionalAnatomy
from .long_skips import HunyuanAnatomy, UniDiffuserAnatomy, UViTAnatomy
from .original import OriginalAnatomy
from .second_stream import SecondStreamAnatomy

__all__ = [
    "Anatomy",
    "ControlNetAnatomy",
    "dissect",
    "dissect_controlnet",
    "is_controlnet",
    "is_unet",
]

# The first that fits is taken.
_LAYOUTS: Final[tuple[type[Anatomy], ...]] = (
    KBlockAnatomy,  # before `BlockAnatomy`, whose parts they have
    Kandinsky3Anatomy,
    SecondStreamAnatomy,
    BlockAnatomy,
    OneDimensionalAnatomy,
    CascadeAnatomy,
    WuerstchenAnatomy,
    ControlNetXSAnatomy,
    HunyuanAnatomy,
    UniDiffuserAnatomy,
    UViTAnatomy,
    OriginalAnatomy,
)

_CONTROLNETS: Final[tuple[type[ControlNetAnatomy], ...]] = (
    BlockControlNetAnatomy,
    HunyuanControlNetAnatomy,
)


def is_unet(model: object) -> bool:
    """Whether the model has a layout that some anatomy here is made for."""
    return any(layout.fits(model) for layout in _LAYOUTS)


def dissect(unet: nn.Module) -> Anatomy:
    """Return the anatomy of a U-Net.

    Raises:
        UnsupportedModelError: If its layout, or one of its blocks, is not known.
    """
    for layout in _LAYOUTS:
        if layout.fits(unet):
            return layout(unet)
    raise UnsupportedModelError(
        f"{type(unet).__name__} is not a U-Net that can be cut: it has none of the layouts that "
        "are known, such as down_blocks, mid_block and up_blocks"
    )


def is_controlnet(model: object) -> bool:
    """Whether the model is a ControlNet, or several, of a layout that is known here."""
    return any(layout.fits(model) for layout in _CONTROLNETS)


def dissect_controlnet(controlnet: nn.Module) -> ControlNetAnatomy:
    """Return the anatomy of a ControlNet.

    Raises:
        UnsupportedModelError: If it is none, or if it is not known which skips a block emits.
    """
    for layout in _CONTROLNETS:
        if layout.fits(controlnet):
            return layout(controlnet)
    raise UnsupportedModelError(f"{type(controlnet).__name__} is not a ControlNet that can be cut")
