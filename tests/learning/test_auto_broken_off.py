"""Schedule "auto" where a generation stops early or fails, and where threads generate at once."""

import threading
from functools import partial

import pytest
import torch
from builders.cases import CASES
from builders.learning import LDM, SD, StoppedError, counted, loaded, stop_after
from builders.marks import mostly_slow

from deepcache_patch import (
    Auto,
    DeepCacheHelper,
)

# --- generations that stop early ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "learns"),
    mostly_slow([(0, False), (3, False), (4, True), (7, True)], [(3, False), (4, True)]),
    ids=["1", "4", "5", "8"],
)
def test_a_generation_that_is_broken_off_teaches_if_it_went_half_the_way(after, learns):
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        stop_after(pipe, after, steps=10)
        assert helper.schedule.learned == ()
        expected = (4, 6) if learns else (10, 0)
        assert counted(helper, partial(SD.run, pipe, steps=10)) == expected
        (learned,) = helper.schedule.learned
    # Where nothing was seen it goes on by the trend.
    assert max(step for step, *_ in learned.weights) <= (after if learns else 9)


def test_a_generation_that_failed_teaches_nothing():
    pipe = loaded("ldm")
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 5:
            raise StoppedError

    with DeepCacheHelper(pipe, schedule="auto") as helper:
        handle = pipe.unet.conv_out.register_forward_hook(fail)
        with pytest.raises(StoppedError):
            LDM.run(pipe, steps=10)
        handle.remove()
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (10, 0)
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)


def test_a_base_that_hands_over_to_its_refiner_learns_its_own_steps():
    base = CASES["sdxl-denoising-end"]
    pipe = base.load()
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        runs = [counted(helper, partial(base.run, pipe, steps=20)) for _ in range(3)]
        (learned,) = helper.schedule.learned
    with DeepCacheHelper(pipe) as helper:
        default = counted(helper, partial(base.run, pipe, steps=20))
    assert runs == [(12, 0), default, default]
    assert max(step for step, *_ in learned.weights) < 12


def test_a_base_that_hands_over_before_half_the_way_stays_full():
    base = CASES["sdxl-denoising-end"]
    pipe = base.load()
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        run = partial(base.run, pipe, steps=10, denoising_end=0.4)
        assert [counted(helper, run) for _ in range(3)] == [(4, 0)] * 3
        assert helper.schedule.learned == ()


# --- threads ------------------------------------------------------------------------------------


def in_turn(functions):
    """Runs each in a thread of its own and raises what they raise."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []


def test_two_threads_with_a_pipeline_each_share_what_is_learned():
    auto = Auto()
    pipes = [SD.load(), SD.load()]
    plain = SD.run(pipes[0], steps=10)
    helpers = [DeepCacheHelper(pipe, schedule=auto).enable() for pipe in pipes]
    together = threading.Barrier(2)
    pictures = {}

    def step_in_turn(_pipe, _step, _timestep, kwargs):
        together.wait(timeout=60)
        return kwargs

    def run(index):
        pictures[index] = SD.run(pipes[index], steps=10, callback_on_step_end=step_in_turn)

    # Both learn, at the same time.
    in_turn([partial(run, index) for index in range(2)])
    assert torch.equal(pictures[0], plain)
    assert torch.equal(pictures[1], plain)
    assert len(auto.learned) == 2
    in_turn([partial(run, index) for index in range(2)])
    for helper in helpers:
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (10 + 4, 6)
        helper.disable()


def test_two_threads_on_one_unet_are_two_generations():
    # Two pipelines share a U-Net, with a scheduler of the same kind each. One learned first.
    first, second = SD.load(), SD.load()
    second.unet = first.unet
    pictures = {}
    with DeepCacheHelper(first, schedule="auto") as helper:
        SD.run(first, steps=10)
        expected = [SD.run(first, steps=10, seed=seed) for seed in range(2)]
        together = threading.Barrier(2)

        def step_in_turn(_pipe, _step, _timestep, kwargs):
            together.wait(timeout=60)
            return kwargs

        def run(pipe, seed):
            pictures[seed] = SD.run(pipe, steps=10, seed=seed, callback_on_step_end=step_in_turn)

        before = helper.stats
        in_turn([partial(run, first, 0), partial(run, second, 1)])
        # The second pipeline has a list of timesteps that is not the helper's pipeline's own, but
        # equal to it: read once, and the same steps.
        assert helper.stats.full_calls - before.full_calls == 2 * 4
        assert helper.stats.shallow_calls - before.shallow_calls == 2 * 6
    assert torch.equal(pictures[0], expected[0])
    assert torch.equal(pictures[1], expected[1])


def test_a_second_thread_does_not_end_what_the_first_is_learning():
    first, second = SD.load(), SD.load()
    second.unet = first.unet

    with DeepCacheHelper(first, schedule="auto") as helper:

        def begin_another(_pipe, step, _timestep, kwargs):
            if step == 0:
                in_turn([partial(stop_after, second, 0, steps=10)])
            return kwargs

        SD.run(first, steps=10, callback_on_step_end=begin_another)
        assert counted(helper, partial(SD.run, first, steps=10)) == (4, 6)
