"""The samplers of k-diffusion, where it is installed, without what it needs for training.

`import k_diffusion` imports all of it, and so packages (clip, clean-fid, kornia, wandb) that do not
install beside the newest numpy and torch. Its samplers and wrappers need torchsde and torchdiffeq,
and torchvision by name only: `make test-k-diffusion` installs that much.
"""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

import pytest

_BY_NAME = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


def k_diffusion():
    """The package, with `sampling` and `external`; skips the test where it is not installed."""
    for name in ("k_diffusion", "torchsde", "torchdiffeq"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: make test-k-diffusion")
    known = sys.modules.get("k_diffusion")
    if known is not None:
        return known
    package = ModuleType("k_diffusion")
    package.__spec__ = importlib.util.find_spec("k_diffusion")
    package.__path__ = list(package.__spec__.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        sys.modules["k_diffusion"] = package
        for name in _BY_NAME:
            module = ModuleType(name)
            patch.setitem(sys.modules, name, module)
            owner, _, own = name.rpartition(".")
            if owner:
                setattr(sys.modules[owner], own, module)
        for name in ("sampling", "external"):
            importlib.import_module(f"k_diffusion.{name}")
    return package
