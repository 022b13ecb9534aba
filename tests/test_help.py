"""What `help()` begins with: what it is, and how it is used."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import deepcache_patch
from deepcache_patch import DeepCacheHelper
from deepcache_patch.cli.main import main


@pytest.mark.parametrize("what", [deepcache_patch, DeepCacheHelper])
def test_help_opens_with_an_example(what: type | ModuleType) -> None:
    summary, blank, example, first, *_ = (inspect.getdoc(what) or "").splitlines()
    assert summary.endswith(".")
    assert (blank, example) == ("", "Example:")
    assert first.startswith("    >>> ")


def test_python_and_the_command_say_whose_guidance_scale_they_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The same call made other pictures in Python than on the command line, and neither said so.
    assert (
        "The guidance scale is the pipeline's own unless it is given; the command `compare` takes "
        "that of the model's card before."
    ) in " ".join((inspect.getdoc(DeepCacheHelper.compare) or "").split())
    assert main(["compare", "--help"]) == 0
    said = "default: that of the model's card; if it names none, the pipeline's own"
    assert said in " ".join(capsys.readouterr().out.split())
