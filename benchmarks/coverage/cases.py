"""The pipelines that the tests run: whoever speaks of what is tested reads them off the tests."""

import importlib
import sys
from typing import Any

from benchmarks.provenance import ROOT


def from_tests(module: str) -> Any:
    """A module that stands in `tests` and is no test: "builders.cases" or "zoo"."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.pop(0)
