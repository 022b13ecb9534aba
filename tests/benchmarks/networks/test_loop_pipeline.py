"""The loops of the networks run, can be cut by hand, and have twins."""

import pytest
import torch
from builders.marks import mostly_slow

from benchmarks.networks.catalogue import NETWORKS, build
from benchmarks.networks.loop_pipeline import hand_cut, twin
from benchmarks.networks.toys import tiny
from deepcache_patch import DeepCacheHelper, Uniform


def small(name):
    return build(name, width=0.05)


def smallest(pipe):
    return pipe.network.smallest


#: With a prompt, and without.
QUICK = ["sd15", "ddpm-cifar10"]


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, QUICK))
def test_the_loop_calls_the_network_once_in_a_step_with_both_halves_of_guidance(name):
    pipe, batches = small(name), []
    pipe.unet.register_forward_pre_hook(lambda _module, args: batches.append(len(args[0])))
    latents = pipe(3, size=smallest(pipe))
    assert batches == [2 if pipe.network.guided else 1] * 3
    assert latents.isfinite().all()
    assert len(latents) == 1


def test_the_same_seeds_give_the_same_latents():
    once, again = (small("sd15")(2, size=8, seed=3) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, small("sd15")(2, size=8, seed=4))


def test_step_by_step_is_the_whole_loop():
    pipe = small("sd15")
    steps = list(pipe.loop(3, size=8))
    assert len(steps) == 3
    assert torch.equal(steps[-1], pipe(3, size=8))


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, QUICK))
@torch.no_grad()
def test_a_call_that_is_cut_right_after_a_full_one_is_exact_and_leaves_no_trace(name):
    pipe = small(name)
    arguments = pipe.call_arguments(batch=2, size=smallest(pipe))
    full, children = pipe.predict(**arguments), list(pipe.unet.modules())
    for branch in pipe.network.branches:
        with hand_cut(pipe, branch, arguments):
            assert len(list(pipe.unet.modules())) < len(children)
            assert torch.equal(pipe.predict(**arguments), full)
        assert list(pipe.unet.modules()) == children


def test_a_cut_controlnet_runs_only_what_is_used():
    pipe = small("sd15-controlnet")
    arguments = pipe.call_arguments(size=8)
    blocks = []
    for number, block in enumerate(pipe.controlnet.down_blocks):
        block.register_forward_hook(lambda *_, number=number: blocks.append(number))
    with torch.no_grad(), hand_cut(pipe, 1, arguments):
        assert blocks == [0, 1, 2, 3]  # to record
        pipe.predict(**arguments)
    assert blocks == [0, 1, 2, 3, 0]


def test_a_twin_has_modules_of_its_own_and_the_same_weights():
    pipe = tiny("cpu", torch.float32)
    other = twin(pipe)
    assert not set(other.unet.modules()) & set(pipe.unet.modules())
    pairs = zip(other.unet.parameters(), pipe.unet.parameters(), strict=True)
    assert all(mine is its for mine, its in pairs)
    assert other.scheduler is not pipe.scheduler
    with DeepCacheHelper(other, schedule=Uniform()):
        assert "_compiled_call_impl" not in vars(pipe.unet)
