"""The command `branches`: the table of a U-Net's branches. Generates nothing."""

from __future__ import annotations

from . import options
from .mistakes import bad_input
from .terminal import say

_EXAMPLES = """\
example:
  deepcache-patch branches stable-diffusion-v1-5/stable-diffusion-v1-5
"""


@options.command(_EXAMPLES)
@options.model
@options.dtype
def branches(*, model: str, dtype: str | None) -> None:
    """Prints what a shallow call leaves out at each branch, its share of the U-Net's work, and the
    size of what is held. Generates nothing.
    """
    from ..helper import DeepCacheHelper
    from .loading import choose_device, choose_dtype, load_pipeline, quiet_loading

    quiet_loading()
    with bad_input():
        chosen = choose_dtype(dtype, choose_device())
        # Nothing runs, so the weights need not go to the device.
        pipe = load_pipeline(model, choose_device("cpu"), chosen)
        table = str(DeepCacheHelper(pipe).branches)
    say(table)
