"""What other libraries put round a U-Net, its layers or a ControlNet: in force with a helper.

Each patch is installed and removed before or after the helper. At every stage the picture is that
of a pipeline of its own where the patch was installed first, and what is left on the modules is
what the patch alone leaves.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from builders.marks import mostly_slow
from builders.patched import STEPS, Patched, alone, denoisers
from builders.patches import OTHERS
from conftest import trace

from deepcache_patch import DeepCacheHelper, Uniform

#: What a helper adds while it is enabled.
OURS = {"_compiled_call_impl", "compile"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`:UserWarning",
    "ignore:Adapter .* cannot be unmerged:UserWarning",
)


def assert_same(run: tuple[torch.Tensor, int], picture: torch.Tensor, seen: int) -> None:
    assert torch.equal(run[0], picture)
    assert run[1] == seen


ORDERS = {
    "other-first-and-last": ("install", "enable", "disable", "remove"),
    "other-first-ours-last": ("install", "enable", "remove", "disable"),
    "ours-first-other-last": ("enable", "install", "disable", "remove"),
    "ours-first-and-last": ("enable", "install", "remove", "disable"),
}


def _runs() -> Iterator[Any]:
    elsewhere = {
        ("sdxl", "unet"): ("closure", "accelerate", "adapter-fused"),
        ("sd-controlnet", "unet"): ("accelerate-on-blocks", "class-forward"),
        ("sd-controlnet", "controlnet"): ("closure", "accelerate", "blocks", "diffusers-hook"),
        ("ddpm", "unet"): ("torch-hooks", "parametrized"),
        ("text-to-video", "unet"): ("diffusers-on-resnets", "wrapt-function"),
    }
    chosen = {("sd", "unet"): tuple(OTHERS), **elsewhere}
    for place, others in chosen.items():
        for other, order in itertools.product(others, ORDERS):
            row = (*place, other, ORDERS[order])
            yield pytest.param(*row, id="-".join((*place, other, order)))


#: Ours outside, and inside.
QUICK_ROWS = ["sd-unet-closure-ours-first-and-last", "sd-unet-accelerate-other-first-ours-last"]


# A class whose `forward` was replaced by one of `*args, **kwargs` was no U-Net to `enable`.
@pytest.mark.parametrize(("case", "part", "other", "order"), mostly_slow(_runs(), QUICK_ROWS))
def test_every_order_of_coming_and_going_is_right_at_each_stage(case, part, other, order):
    if not OTHERS[other].removable:
        order = tuple(step for step in order if step != "remove")
    right = alone(case, part, other)
    patched = Patched(case, part, other)
    helper = DeepCacheHelper(patched.pipe, schedule=Uniform())
    actions = {
        "install": patched.install,
        "remove": patched.remove,
        "enable": helper.enable,
        "disable": helper.disable,
    }
    state, done, traces = "absent", [], []
    try:
        for action in order:
            traces.append([trace(model) for model in denoisers(patched.pipe)])
            actions[action]()
            done.append(action)
            state = {"install": "installed", "remove": "removed"}.get(action, state)
            expected = right[state]
            if helper.enabled:
                assert_same(patched.run(), expected.helped, expected.seen_helped)
                with helper.paused():
                    assert_same(patched.run(), expected.plain, expected.seen_plain)
                for model in denoisers(patched.pipe):
                    assert vars(model).keys() >= OURS
            else:
                if done[-2:] == ["enable", "disable"] and not patched.other.notes:
                    assert [trace(model) for model in denoisers(patched.pipe)] == traces[-2]
                assert_same(patched.run(), expected.plain, expected.seen_plain)
                assert patched.layouts() == expected.layouts
    finally:
        if done.count("install") > done.count("remove") and patched.other.removable:
            patched.remove()


QUICK = ("closure",)


@pytest.mark.parametrize("other", mostly_slow(OTHERS, QUICK))
def test_a_patch_sees_every_call_and_shows(other):
    patch, right = OTHERS[other], alone("sd", "unet", other)
    absent, installed = right["absent"], right["installed"]
    assert torch.equal(installed.plain, absent.plain) is not patch.shows
    assert torch.equal(installed.helped, absent.helped) is not patch.shows
    assert torch.equal(installed.plain, installed.helped) is patch.heeded
    if patch.counts or patch.heeded:
        assert installed.seen_plain == installed.seen_helped
    if patch.counts:
        assert installed.seen_plain == STEPS
    elif (
        installed.seen_plain and not patch.heeded
    ):  # of inner layers, those that a shallow call leaves out see none
        assert 2 * installed.seen_plain // STEPS < installed.seen_helped < installed.seen_plain
    if patch.removable and patch.exact:
        assert torch.equal(right["removed"].plain, absent.plain)
        assert torch.equal(right["removed"].helped, absent.helped)


@pytest.mark.parametrize("first", ["other", "ours"])
@pytest.mark.parametrize("other", mostly_slow(OTHERS, QUICK))
def test_interval_1_is_the_pipeline_with_the_patch_alone(other, first):
    expected = alone("sd", "unet", other)["installed"]
    patched = Patched("sd", "unet", other)
    helper = DeepCacheHelper(patched.pipe, schedule=Uniform(1))
    if first == "ours":
        helper.enable()
    patched.install()
    try:
        helper.enable()
        assert_same(patched.run(), expected.plain, expected.seen_plain)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (STEPS, 0)
    finally:
        if patched.other.removable:
            patched.remove()
