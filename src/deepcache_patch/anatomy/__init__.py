"""What the layers of a U-Net are to DeepCache: one file for each layout.

`dissect` finds the layout of a U-Net. An anatomy knows its skips, and gives for each branch the cut
that makes the U-Net shallow and the layers whose output is the deep feature.
"""

from torch import nn

from ..errors import UnsupportedModelError
from .blocks import BlockAnatomy

__all__ = ["BlockAnatomy", "dissect", "is_unet"]


def is_unet(model: object) -> bool:
    """Whether the model has a layout that some anatomy here is made for."""
    return BlockAnatomy.fits(model)


def dissect(unet: nn.Module) -> BlockAnatomy:
    """Return the anatomy of a U-Net.

    Raises:
        UnsupportedModelError: If its layout, or one of its blocks, is not known.
    """
    if not is_unet(unet):
        raise UnsupportedModelError(
            f"{type(unet).__name__} is not a U-Net that can be cut: "
            "supported are UNet2DModel and UNet2DConditionModel of diffusers"
        )
    return BlockAnatomy(unet)
