"""Means, worst tenths, and notes in place of figures that cannot be had."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks.published import metrics
from benchmarks.published.metrics import Metrics, summary
from deepcache_patch.errors import DeepCacheWarning


@pytest.fixture
def here():
    return Metrics(torch.device("cpu"))


def test_the_worst_tenth_is_the_lowest_of_what_is_better_when_higher():
    values = [30.0] * 9 + [10.0, 12.0]  # eleven: the worst tenth are two
    assert summary(values, higher_is_better=True) == (pytest.approx(292 / 11), 11.0)
    assert summary([0.1] * 9 + [0.3], higher_is_better=False) == (pytest.approx(0.12), 0.3)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([math.inf, 20.0, 40.0], (30.0, 20.0)),
        ([math.inf, math.inf], (None, None)),
        ([20.0], (20.0, 20.0)),
    ],
    ids=["one", "all", "none"],
)
def test_pictures_that_are_the_same_are_left_out_of_a_mean(values, found):
    assert summary(values, higher_is_better=True) == found


def test_without_the_packages_one_line_says_what_to_install(here, monkeypatch, tmp_path):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert here.lpips(64) is None
    assert here.fid(tmp_path, tmp_path) is None
    assert here.fid(tmp_path, tmp_path) is None
    assert here.notes == [
        "LPIPS is left out: pip install lpips",
        "FID is left out: pip install torch-fidelity",
    ]


def test_without_their_weights_one_line_says_why(here, monkeypatch, tmp_path):
    def fail(**_):
        raise OSError("cannot fetch the weights\nat all")

    def warn(device):
        metrics.warnings.warn("LPIPS is left out, because …", DeepCacheWarning, stacklevel=1)

    package = ModuleType("torch_fidelity")
    package.calculate_metrics = fail
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(metrics, "lpips", warn)
    assert here.lpips(64) is None
    assert here.fid(tmp_path, tmp_path) is None
    assert here.notes == [
        "LPIPS is left out, because …",
        "FID is left out, because torch-fidelity fails: cannot fetch the weights",
    ]


def test_small_pictures_have_no_lpips(here):
    assert here.lpips(31) is None
    assert here.notes == ["LPIPS is left out: it needs 32 pixels a side"]


def test_fid_is_of_the_two_folders(here, monkeypatch, tmp_path):
    asked = []
    package = ModuleType("torch_fidelity")
    package.calculate_metrics = lambda **given: (
        asked.append(given) or {"frechet_inception_distance": np.float64(1.5)}
    )
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    assert here.fid(tmp_path / "plain", tmp_path / "ours") == 1.5
    folders = {"input1": str(tmp_path / "ours"), "input2": str(tmp_path / "plain")}
    assert asked == [{**folders, "fid": True, "cuda": False, "verbose": False}]
