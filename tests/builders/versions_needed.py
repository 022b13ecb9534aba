"""Which versions of other packages a test needs, and where other versions keep what it looks at."""

import importlib
from importlib.metadata import version
from types import ModuleType

import pytest
import torch
from packaging.version import Version


def has(package: str, oldest: str) -> bool:
    """Whether the package is of this version or a newer one."""
    return Version(version(package)) >= Version(oldest)


def needs(package: str, oldest: str) -> pytest.MarkDecorator:
    """Skips the test, and says why, where the package is older."""
    return pytest.mark.skipif(not has(package, oldest), reason=f"needs {package} {oldest}")


def require(package: str, oldest: str, what: str) -> None:
    """Skips the test that has come here, and says what is missing, where the package is older."""
    if not has(package, oldest):
        pytest.skip(f"{what} needs {package} {oldest}")


def require_group_offloading() -> None:
    """Skips the test where diffusers' group offloading takes it that there is an accelerator."""
    if hasattr(torch, "accelerator") and not torch.accelerator.is_available():
        require("diffusers", "0.36", "group offloading without an accelerator, in this torch,")


def deprecated(module: str) -> ModuleType:
    """A module of diffusers' pipelines; newer versions have it among the deprecated ones."""
    try:
        return importlib.import_module(f"diffusers.pipelines.deprecated.{module}")
    except ModuleNotFoundError:
        return importlib.import_module(f"diffusers.pipelines.{module}")
