"""Memory savers of diffusers and accelerate beside the helper, enabled before it or after it.

On a machine with CUDA the pipelines' own methods are tested there, too; on a CPU the same hooks
run. The savers are in `savers`; the order in which weights are loaded is in `test_loading_order`.
"""

import functools
from typing import NamedTuple

import pytest
import torch
from builders.marks import mostly_slow
from builders.savers import (
    ALL_SAVERS,
    CASES,
    DEVICES,
    SAVERS,
    STREAMED,
    attributes,
    denoisers,
    loaded,
)
from conftest import trace

from deepcache_patch import DeepCacheHelper, Uniform

pytestmark = pytest.mark.usefixtures("same_kernels")

# The same hooks as others have, put there in other ways.
VARIANTS = (
    *("offload-with-hook", "dispatch", "aligned-parts", "groups-of-leaves-in-the-unet"),
    "float16-storage",
)
MOVERS = ("model-offload", "sequential-offload", "groups-of-leaves", "groups-of-blocks", "float8")

#: Every saver with the plainest pipeline, and those that move weights with the others.
PAIRS = [("sd", saver) for saver in SAVERS]
PAIRS += [(name, saver) for name in ("sd-controlnet", "sdxl", "animatediff") for saver in MOVERS]
RUNS = [(*pair, device) for device in DEVICES for pair in PAIRS]
if "cuda" in DEVICES:
    RUNS += [("sd-controlnet", saver, "cuda") for saver in STREAMED]

#: What moves weights in each way, and what only computes otherwise.
QUICK = [
    ("sd", "model-offload", "cpu"),
    ("sd", "groups-of-leaves", "cpu"),
    ("sd-controlnet", "groups-of-blocks", "cpu"),
    *(run for run in RUNS if run[2] != "cpu"),  # where there is a device, all of them on it
]


class Expected(NamedTuple):
    """The plain picture, the first of a fresh helper, and the attributes without a helper."""

    plain: torch.Tensor
    fast: torch.Tensor
    left: list[tuple]


@functools.cache
def expected_of(name: str, saver: str, device: str) -> Expected:
    case = CASES[name]
    pipe = case.load()
    ALL_SAVERS[saver].apply(pipe, device)
    plain, left = case.run(pipe), attributes(pipe)
    pipe = case.load()
    ALL_SAVERS[saver].apply(pipe, device)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        return Expected(plain, case.run(pipe), left)


@pytest.mark.parametrize("order", mostly_slow(["saver-first", "helper-first"], ["saver-first"]))
@pytest.mark.parametrize(("name", "saver", "device"), mostly_slow(RUNS, QUICK))
def test_every_picture_is_that_of_a_fresh_pipeline(name, saver, device, order):
    case, expected = CASES[name], expected_of(name, saver, device)
    assert not torch.equal(expected.plain, expected.fast)
    pipe = case.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    steps = [lambda: ALL_SAVERS[saver].apply(pipe, device), helper.enable]
    for step in steps if order == "saver-first" else reversed(steps):
        step()
    for count in (1, 2, 3):
        assert torch.equal(case.run(pipe), expected.fast)
        assert helper.stats.generations == count
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2 * count, 3 * count)
    helper.disable()
    assert torch.equal(case.run(pipe), expected.plain)
    # Nothing is left behind that the saver would not have left behind alone.
    assert attributes(pipe) == expected.left


UNDONE = [saver for saver, (_, undo) in SAVERS.items() if undo is not None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("saver", mostly_slow(UNDONE, ["groups-of-leaves"]))
@pytest.mark.parametrize("order", mostly_slow(["saver-first", "helper-first"], ["helper-first"]))
def test_both_are_removed_in_either_order(saver, order, device):
    name, (apply, undo) = "sd-controlnet", SAVERS[saver]
    case = CASES[name]
    alone = case.load()
    apply(alone, device)
    case.run(alone)
    undo(alone)
    bare = loaded(name, device)
    plain = case.run(bare)
    with DeepCacheHelper(bare, schedule=Uniform()):
        expected = case.run(bare)

    pipe = case.load()
    apply(pipe, device)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    case.run(pipe)
    if order == "saver-first":
        undo(pipe)
        pipe.to(device)
        assert torch.equal(case.run(pipe), expected)
        assert helper.stats.shallow_calls == 6
        helper.disable()
    else:
        helper.disable()
        undo(pipe)
        pipe.to(device)
    assert torch.equal(case.run(pipe), plain)
    assert attributes(pipe) == attributes(alone)


@pytest.mark.parametrize(
    "saver",
    mostly_slow([*UNDONE, "channels-last", "float8"], {*UNDONE, "channels-last"} - {*VARIANTS}),
)
def test_disable_leaves_what_the_saver_has_put_there(saver):
    pipe = CASES["sd-controlnet"].load()
    SAVERS[saver].apply(pipe, "cpu")
    before = [trace(model) for model in denoisers(pipe)]
    DeepCacheHelper(pipe, schedule=Uniform()).enable().disable()
    assert [trace(model) for model in denoisers(pipe)] == before


def test_hooks_that_each_call_installs_anew_leave_the_patch_alone():
    # The images after the first came out plain, or distorted, with other implementations: at the
    # end of every call, `maybe_free_model_hooks` removes accelerate's hooks and installs new ones.
    case = CASES["sd"]
    pipe = case.load()
    pipe.enable_model_cpu_offload(device="cpu")
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        hooks = [pipe.unet._hf_hook]
        for _ in range(2):
            case.run(pipe)
            hooks.append(pipe.unet._hf_hook)
        assert len(set(map(id, hooks))) == 3
        pipe.maybe_free_model_hooks()
        assert helper.enabled
        case.run(pipe)
    assert helper.stats.shallow_calls == 9
