"""What `help()` begins with: what it is, and how it is used."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import deepcache_patch
from deepcache_patch import DeepCacheHelper


@pytest.mark.parametrize("what", [deepcache_patch, DeepCacheHelper])
def test_help_opens_with_an_example(what: type | ModuleType) -> None:
    summary, blank, example, first, *_ = (inspect.getdoc(what) or "").splitlines()
    assert summary.endswith(".")
    assert (blank, example) == ("", "Example:")
    assert first.startswith("    >>> ")
