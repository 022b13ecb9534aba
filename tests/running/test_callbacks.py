"""A caller's own timesteps, callbacks and schedulers while a helper is enabled."""

import copy

import pytest
import torch
from builders.changes import SD, STEPS, Change, all_differ, tell
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from conftest import counted_calls

from deepcache_patch import DeepCacheHelper, Uniform

# What peft says when a second adapter is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


# --- timesteps and callbacks --------------------------------------------------------------------


def _assert_right(load, run, changes=0):
    """A generation between others is that of a fresh helper, and plain at interval 1.

    A step whose conditioning is changed is full besides those of the schedule.
    """
    fresh = load()
    with counted_calls(fresh.unet) as calls:
        plain = run(fresh)
    steps = calls[""]
    with DeepCacheHelper(fresh, schedule=Uniform()):
        expected = run(fresh)
    assert not torch.equal(expected, plain)
    pipe = load()
    helper = DeepCacheHelper(pipe, schedule=Uniform(1)).enable()
    assert torch.equal(run(pipe), plain)
    helper.set(interval=3)
    SD.run(pipe, steps=7, seed=1)
    before = helper.stats
    assert torch.equal(run(pipe), expected)
    assert helper.stats.generations - before.generations == 1
    full = -(-steps // 3) + changes
    assert helper.stats.full_calls - before.full_calls == full
    assert helper.stats.shallow_calls - before.shallow_calls == steps - full > 0
    helper.disable()
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize(
    ("scheduler", "given"),
    mostly_slow(
        [
            ("euler", {"sigmas": [14.0, 7.5, 3.0, 1.2, 0.4]}),
            ("euler", {"timesteps": [980, 700, 420, 200, 30]}),
            ("dpm-multistep", {"timesteps": [980, 700, 420, 200, 30]}),
            ("lcm", {"timesteps": [999, 759, 499, 259, 99]}),
        ],
        1,
    ),
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_callers_own_timesteps_and_sigmas(scheduler, given):
    _assert_right(
        lambda: with_scheduler(SD.load(), scheduler),
        lambda pipe: SD.run(pipe, steps=None, **given),
    )


def _brighter(pipe, step, _timestep, kwargs):
    kwargs["latents"] = kwargs["latents"] + 0.1 * (step == 2)
    return kwargs


def _in_place(pipe, step, _timestep, kwargs):
    kwargs["latents"].mul_(1.2 if step in (1, 4) else 1.0)
    return kwargs


def _guidance(pipe, step, _timestep, kwargs):
    pipe._guidance_scale = 2.0 + step
    return kwargs


def _prompt(pipe, step, _timestep, kwargs):
    if step == 3:
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"].flip(1)
    return kwargs


@pytest.mark.parametrize(
    ("callback", "inputs", "changes"),
    mostly_slow(
        [
            (_brighter, ["latents"], 0),
            (_in_place, ["latents"], 0),
            (_guidance, ["latents"], 0),
            (_prompt, ["prompt_embeds"], 1),
        ],
        [(_in_place, ["latents"], 0), (_prompt, ["prompt_embeds"], 1)],
    ),
    ids=["latents", "latents-in-place", "guidance", "prompt"],
)
def test_a_callback_may_change_the_course_of_a_generation(callback, inputs, changes):
    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
    _assert_right(SD.load, lambda pipe: SD.run(pipe, steps=STEPS, **options), changes)


@pytest.mark.parametrize("last", mostly_slow([0, 2, 3], [0, 3]))
def test_an_interrupted_generation_does_not_reach_the_next(last):
    def interrupt(pipe, step, _timestep, kwargs):
        pipe._interrupt = step == last
        return kwargs

    fresh = SD.load()
    plain = SD.run(fresh, steps=STEPS, callback_on_step_end=interrupt)
    with DeepCacheHelper(fresh, schedule=Uniform()):
        expected = SD.run(fresh, steps=STEPS)
    pipe = SD.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        cut_short = SD.run(pipe, steps=STEPS, callback_on_step_end=interrupt)
        assert helper.stats.full_calls + helper.stats.shallow_calls == last + 1
        assert torch.equal(cut_short, plain) == (last == 0)
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)
        # The same number of steps from a later one: img2img's way to start.
        SD.run(pipe, steps=STEPS, callback_on_step_end=interrupt)
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)


# --- schedulers ---------------------------------------------------------------------------------


def test_a_scheduler_replaced_or_copied_between_generations_is_followed():
    story = [
        Change("plain", lambda pipe: None),
        Change("euler", lambda pipe: with_scheduler(pipe, "euler")),
        Change("copy", lambda pipe: setattr(pipe, "scheduler", copy.deepcopy(pipe.scheduler))),
        Change("unipc", lambda pipe: with_scheduler(pipe, "unipc")),
        Change("back", lambda pipe: with_scheduler(pipe, "ddim")),
    ]
    plain, euler, copied, unipc, back = tell(SD, story)
    assert all_differ([plain, euler, unipc])
    assert torch.equal(euler, copied)
    assert torch.equal(back, plain)


def test_a_copied_scheduler_is_as_far_as_its_original_and_unpatched():
    pipe = SD.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        SD.run(pipe, steps=STEPS)
        duplicate = copy.deepcopy(pipe.scheduler)
    assert vars(duplicate).keys() == vars(pipe.scheduler).keys()
    assert vars(pipe.scheduler).keys() == vars(SD.load().scheduler).keys()
    assert torch.equal(duplicate.timesteps, pipe.scheduler.timesteps)
