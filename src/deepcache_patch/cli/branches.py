"""The command `branches`: the table of a U-Net's branches. Generates nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from . import options
from .files import model_folder
from .mistakes import bad_input
from .terminal import import_word, json_of, phase, say

_EXAMPLES = """\
example:
  deepcache-patch branches stable-diffusion-v1-5/stable-diffusion-v1-5
"""


@options.command(_EXAMPLES)
@options.model
@options.weights
@options.as_json("the table")
def branches(
    *,
    model: str,
    variant: str | None,
    revision: str | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Prints what a shallow call leaves out at each branch, its share of the U-Net's work, and the
    size of what is held. Generates nothing.
    """
    with bad_input():
        model_folder(model, revision)
    import_word()
    from ..helper import DeepCacheHelper
    from .loading import choose_device, choose_dtype, load_pipeline, quiet_loading

    quiet_loading()
    with bad_input():
        chosen = choose_dtype(dtype, choose_device(device))
        phase(f"loading {model}")
        # Nothing runs, so the weights need not go to the device.
        cpu = choose_device("cpu")
        pipe = load_pipeline(model, cpu, chosen, variant=variant, revision=revision)
        found = DeepCacheHelper(pipe).branches
    say(json_of(_as_data(found)) if as_json else str(found))


def _as_data(found: Any) -> Any:
    """The rows of a table, -1 first where there is one; of several U-Nets, by component's name."""
    if isinstance(found, dict):
        return {name: _as_data(table) for name, table in found.items()}
    rows = [*([] if found.output is None else [found.output]), *found]
    return {"title": found.title, "branches": [asdict(row) for row in rows]}
