"""A patch or a helper that comes or goes within a generation; copies of a pipeline with both."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from builders.cases import CASES as TINY
from builders.marks import mostly_slow
from builders.patched import STEPS, Patched, at_step, loop, small
from builders.patches import adapter, dimmed
from conftest import layout

from deepcache_patch import FULL, DeepCacheHelper, Uniform

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`:UserWarning",
    "ignore:Adapter .* cannot be unmerged:UserWarning",
)


# --- within a generation ------------------------------------------------------------------------


class Written:
    """A schedule that is written down."""

    def __init__(self, *plan: Any) -> None:
        self.written = plan
        self.branches = (0,)

    def plan(self, num_steps: int) -> list[Any]:
        assert num_steps == len(self.written)
        return list(self.written)


WITHIN = ["closure", "accelerate", "diffusers-hook", "torch-hooks", "wrapt-function", "mock"]


@pytest.mark.parametrize("last", mostly_slow(range(3), (1,)))
@pytest.mark.parametrize("kind", mostly_slow(WITHIN, WITHIN[:1]))
def test_a_patch_may_come_or_go_within_a_generation(kind, last):
    # The reference is one closure, there from the beginning, that begins or ends to dim.
    case = TINY["sd"]

    def gated(helped: bool, begins: bool) -> torch.Tensor:
        pipe = case.load()
        forward, dims = pipe.unet.forward, [not begins]
        pipe.unet.forward = lambda *args, **kwargs: (
            dimmed(forward(*args, **kwargs)) if dims[0] else forward(*args, **kwargs)
        )
        with DeepCacheHelper(pipe, schedule=Uniform(3 if helped else 1)):
            flip = functools.partial(dims.__setitem__, 0, begins)
            return case.run(pipe, steps=STEPS, **at_step(last, flip))

    for helped in (True, False):
        patched = Patched("sd", "unet", kind)
        with DeepCacheHelper(patched.pipe, schedule=Uniform(3 if helped else 1)):
            picture, seen = patched.run(**at_step(last, patched.install))
            assert seen == STEPS - last - 1
            assert torch.equal(picture, gated(helped, True))
            picture, seen = patched.run(**at_step(last, patched.remove))
            assert seen == last + 1
            assert torch.equal(picture, gated(helped, False))


@pytest.mark.parametrize("kind", mostly_slow(WITHIN, WITHIN[:1]))
def test_a_helper_may_come_or_go_within_a_generation_of_a_patched_pipeline(kind):
    patched = Patched("sd", "unet", kind)
    patched.install()
    unet = patched.pipe.unet
    left = layout(unet)
    helper = DeepCacheHelper(patched.pipe, schedule=Uniform(3), replay="reuse")
    picture, seen = patched.run(**at_step(0, helper.enable))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)
    again, seen_again = patched.run(**at_step(1, helper.disable))
    assert layout(unet) == left
    assert seen == seen_again == STEPS

    # Where it comes in, a generation begins, as in image-to-image.
    plans = [(FULL, FULL, 0, 0, FULL), (FULL, 0, FULL, FULL, FULL)]
    for plan, expected in zip(plans, (picture, again), strict=True):
        fresh = Patched("sd", "unet", kind)
        fresh.install()
        with DeepCacheHelper(fresh.pipe, schedule=Written(*plan), replay="reuse"):
            assert torch.equal(fresh.run()[0], expected)


# --- copies -------------------------------------------------------------------------------------


COPIED = ["method", "accelerate", "diffusers-hook", "parametrized", "adapter", "torch-hooks"]


@pytest.mark.parametrize("kind", mostly_slow(COPIED, COPIED[:1]))
def test_a_copy_of_a_pipeline_with_both_is_one_with_the_patch_alone(kind):
    patched = Patched("sd", "unet", kind)
    patched.install()
    expected = layout(copy.deepcopy(patched.pipe).unet)
    plain = patched.case.run(copy.deepcopy(patched.pipe))
    with DeepCacheHelper(patched.pipe, schedule=Uniform()) as helper:
        patched.run()
        before = helper.stats
        copied = copy.deepcopy(patched.pipe)
        assert torch.equal(patched.case.run(copied), plain)
        assert helper.stats == before
    # Its own `compile`, that of the class, is all that it has more.
    assert vars(copied.unet).pop("compile") == copied.unet.compile
    assert layout(copied.unet) == expected


def test_a_pickled_unet_with_both_is_one_with_the_patch_alone():
    # Of the patches here only an adapter can be pickled at all.
    unet = small()
    adapter(unet, lambda: None)
    plain = loop(unet)
    with DeepCacheHelper(unet, schedule=Uniform()):
        helped = loop(unet)
        again = pickle.loads(pickle.dumps(unet))
    assert not torch.equal(helped, plain)
    assert torch.equal(loop(again), plain)


@pytest.mark.parametrize("kind", mostly_slow(COPIED, []))
def test_what_is_saved_with_both_is_what_is_saved_with_the_patch_alone(kind, tmp_path):
    patched = Patched("sd", "unet", kind)
    patched.install()
    pipe = patched.pipe
    patched.run()  # the tokenizer saves how it was called
    pipe.save_pretrained(tmp_path / "alone")
    with DeepCacheHelper(pipe, schedule=Uniform()):
        patched.run()
        pipe.save_pretrained(tmp_path / "both")
    folders = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "alone", tmp_path / "both")
    ]
    assert len(folders[0]) > 8
    assert folders[0] == folders[1]
