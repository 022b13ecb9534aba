"""Ratios of made-up times, and every part of the benchmark once, on a U-Net that does nothing."""

from argparse import Namespace

import pytest
import torch

from benchmarks.cost import overhead
from benchmarks.networks.toys import tiny


@pytest.fixture
def arguments():
    return Namespace(repeats=2, size=8, own_size=8, generations=1)


def test_a_ratio_is_the_median_of_the_turns():
    plain, other = [1.0, 2.0, 4.0], [1.5, 3.0, 4.0]
    assert overhead.ratio(plain, other)["ratio"] == 1.5
    assert overhead.ratio(plain, [2 * each for each in plain]) == {
        "ratio": 2.0,
        "low": 2.0,
        "high": 2.0,
    }


def test_an_interval_holds_the_ratio():
    plain = [1.0] * 101
    found = overhead.ratio(plain, [1 + turn / 100 for turn in range(101)])
    assert found["ratio"] == 1.5
    assert 1.3 < found["low"] < 1.5 < found["high"] < 1.7


def test_all_contestants_take_all_turns(arguments):
    found = overhead.call_ratios(tiny("cpu", torch.float32), arguments)
    assert found["turns"] == 2
    assert list(found["ratios"]) == ["plain again", "disabled", "paused", "interval 1", "recording"]


def test_every_kind_of_call_is_told_for_each_replay(arguments):
    pipe = tiny("cpu", torch.float32)
    calls = overhead.own_work(pipe, arguments)["calls"]
    kinds = dict.fromkeys(overhead.GENERATION)
    assert list(calls) == [
        "paused",
        *(f"{kind}, {replay}" for replay in ("reuse", "extrapolate") for kind in kinds),
    ]
    # Only the first shallow call looks for observers; a paused one hardly does anything.
    functions = {kind: row["functions"] for kind, row in calls.items()}
    assert 0 < functions["paused"] < functions["full, reuse"]
    assert functions["shallow, reuse"] < functions["first shallow, reuse"]
    assert "forward" not in vars(pipe.unet)
