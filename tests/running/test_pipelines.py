"""Whole generations of every pipeline with every scheduler that it can drive.

The pairs that are run here are the table of what works in the README: see `compatibility.py`.
"""

import math

import pytest
import torch
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.schedulers import SCHEDULERS, with_scheduler
from conftest import trace

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.running.pipeline.components import modules_getter

PAIRS = [(name, scheduler) for name, case in CASES.items() for scheduler in case.schedulers]


class CountedCalls:
    """Counts the U-Net calls of a generation, and those that ran the deepest down block."""

    def __init__(self, unet):
        self.calls = self.full = 0
        self._handles = [
            unet.register_forward_hook(lambda *_: self._add("calls")),
            unet.mid_block.register_forward_hook(lambda *_: self._add("full")),
        ]

    def _add(self, name):
        setattr(self, name, getattr(self, name) + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


#: Each scheduler with the quickest pipeline that it can drive, and one of each kind of pipeline.
QUICK = [("ldm", scheduler) for scheduler in CASES["ldm"].schedulers]
QUICK += [(name, "ddim") for name in ("sd", "sdxl", "ddpm", "ddim")]

#: One of each kind of U-Net, and one that begins midway.
QUICK_CASES = ["sd", "sdxl-refiner", "ldm", "ldm-superresolution", "ddpm"]


@pytest.mark.parametrize(("name", "scheduler"), mostly_slow(PAIRS, QUICK))
def test_a_generation_runs_one_step_in_three_in_full_and_disable_is_exact(name, scheduler):
    case = CASES[name]
    pipe = with_scheduler(case.load(), scheduler)
    unet, before = case.unet(pipe), trace(case.unet(pipe))
    with CountedCalls(unet) as plainly:
        plain = case.run(pipe, steps=8)
    assert plainly.full == plainly.calls

    helper = DeepCacheHelper(pipe, schedule=Uniform(3, branch=0)).enable()
    with CountedCalls(unet) as counted:
        case.run(pipe, steps=8)
    assert counted.calls == plainly.calls
    assert counted.full == math.ceil(plainly.calls / 3)
    assert helper.stats.full_calls == counted.full
    assert helper.stats.shallow_calls == counted.calls - counted.full
    assert helper.stats.generations == 1

    helper.disable()
    assert trace(unet) == before
    assert torch.equal(case.run(pipe, steps=8), plain)


@pytest.mark.parametrize("name", mostly_slow(CASES, QUICK_CASES))
def test_interval_1_is_the_plain_pipeline(name):
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(1)):
        assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("name", mostly_slow(CASES, QUICK_CASES))
def test_the_approximation_is_what_makes_the_difference(name):
    # If a shallow step ran everything, or nothing were replayed, the pictures would be equal.
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe, steps=8)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert not torch.equal(case.run(pipe, steps=8), plain)


# Each changes what makes a stale start show: DeepCache 0.1.1 keeps the start timestep and the cache
# of the last generation.
OTHER_GENERATIONS = {
    "seed": {"seed": 1},
    "steps": {"steps": 7},
    "batch": {"num_images_per_prompt": 2},
    "size": {"height": 24, "width": 32},
    "no-guidance": {"guidance_scale": 1.0},
    "strength": {"strength": 0.6},
}

SECOND = [
    *(("sd", change) for change in ("seed", "steps", "batch", "size", "no-guidance")),
    *(("sd-img2img", change) for change in ("seed", "steps", "strength")),
    *(("sd-inpaint", change) for change in ("seed", "strength")),
    *(("sd-depth2img", change) for change in ("seed", "strength")),
    *(("sd-instruct-pix2pix", change) for change in ("seed", "no-guidance")),
    *(("sdxl", change) for change in ("seed", "steps", "size", "no-guidance")),
    *(("sdxl-img2img", change) for change in ("seed", "strength")),
    *(("sdxl-inpaint", change) for change in ("seed", "strength")),
    *((name, "seed") for name in ("ldm", "ldm-text2img", "ldm-superresolution")),
    *((name, "steps") for name in ("ddpm", "ddim", "pndm")),
]


#: Each change once.
QUICK_SECOND = [
    *(("sd", "batch"), ("sd", "size"), ("sd-img2img", "strength")),
    *(("sdxl", "no-guidance"), ("ldm", "seed"), ("ddpm", "steps")),
]


@pytest.mark.parametrize(("name", "change"), mostly_slow(SECOND, QUICK_SECOND))
def test_a_second_generation_is_that_of_a_fresh_pipeline(name, change):
    case = CASES[name]
    other = {"steps": 8} | OTHER_GENERATIONS[change]
    fresh = case.load()
    with DeepCacheHelper(fresh, schedule=Uniform()):
        expected = case.run(fresh, **other)
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        case.run(pipe, steps=8)
        assert torch.equal(case.run(pipe, **other), expected)
        case.run(pipe, steps=8)
        assert torch.equal(case.run(pipe, **other), expected)


@pytest.mark.parametrize("scheduler", mostly_slow(["ddim", "heun", "pndm"], ["heun"]))
def test_a_generation_that_is_broken_off_does_not_reach_the_next(scheduler):
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), scheduler)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = case.run(pipe, steps=8)

        def stop(_pipe, step, _timestep, _kwargs):
            if step == 4:
                raise KeyboardInterrupt
            return {}

        with pytest.raises(KeyboardInterrupt):
            case.run(pipe, steps=8, callback_on_step_end=stop)
        assert torch.equal(case.run(pipe, steps=8), expected)


def test_an_interrupted_pipeline_starts_anew():
    case = CASES["sd"]
    pipe = case.load()

    def interrupt(pipe, step, _timestep, kwargs):
        pipe._interrupt = step == 3
        return kwargs

    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = case.run(pipe, steps=8)
        case.run(pipe, steps=8, callback_on_step_end=interrupt)
        assert torch.equal(case.run(pipe, steps=8), expected)


def test_a_replaced_scheduler_is_followed():
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), "euler")
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = case.run(pipe, steps=8)
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe, steps=8)
        with_scheduler(pipe, "euler")
        assert torch.equal(case.run(pipe, steps=8), expected)
    assert (helper.stats.generations, helper.stats.shallow_calls) == (2, 10)


def test_guidance_switched_off_midway_records_anew():
    # The batch halves at step 4, which the plan of interval 3 runs shallow: it has nothing to
    # replay, so it runs in full.
    case = CASES["sd"]
    pipe = case.load()

    def cut_off(pipe, step, _timestep, kwargs):
        if step == 3:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(
            pipe,
            steps=8,
            callback_on_step_end=cut_off,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
    # Full: 0, 3 and 6 by plan, 4 for its batch.
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 4)


def test_base_and_refiner_have_a_helper_each():
    base, refiner = CASES["sdxl-denoising-end"], CASES["sdxl-refiner"]
    base_pipe, refiner_pipe = base.load(), refiner.load()
    with (
        DeepCacheHelper(base_pipe, schedule=Uniform()) as first,
        DeepCacheHelper(refiner_pipe, schedule=Uniform()) as second,
    ):
        latents = base.run(base_pipe, steps=20)
        refiner.run(refiner_pipe, steps=20, image=latents)
    assert (first.stats.full_calls, first.stats.shallow_calls) == (4, 8)  # 12 steps of 20
    assert (second.stats.full_calls, second.stats.shallow_calls) == (3, 5)  # the other 8


def test_custom_timesteps_are_located():
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), "euler")
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe, steps=None, timesteps=[900, 650, 400, 200, 50])
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)


def test_the_tables_schedulers_are_all_run():
    assert {scheduler for _, scheduler in PAIRS} == set(SCHEDULERS)


def test_the_modules_of_a_pipeline_later_are_those_that_it_has_then():
    pipe = CASES["sd"].load()
    modules = modules_getter(pipe)
    unet, vae, encoder = pipe.unet, pipe.vae, pipe.text_encoder
    assert set(modules()) == {unet, vae, encoder}
    pipe.vae = None  # as people do to save memory
    assert set(modules()) == {unet, encoder}
    del pipe
    assert modules() == []
