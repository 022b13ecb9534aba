"""What the helper holds, and until when: to the end of a generation, or until it is broken off."""

import gc
import threading

import pytest
import torch
from builders.held import (
    CASES,
    CONTROLNET,
    SD,
    alive,
    bytes_left,
    cache_bytes,
    loop,
    stop_by_exception,
    stop_by_interrupt,
)
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition

from benchmarks.cost.lifetime import live_tensors
from benchmarks.networks import toys
from deepcache_patch import (
    Adaptive,
    Calibrated,
    DeepCacheHelper,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.schedules.plans import Explicit

#: A feature of SD at branch 0: (batch, channels, height, width) in float32.
FEATURE = 2 * 8 * 8 * 8 * 4

#: Loops that do not run the last of the timesteps that they go by, or go by none that are listed
#: anywhere. Where they end is known when the next one begins.
OPEN_END = {
    "karras-ve": "computes its noise levels itself",
    "modular-sdxl-cfg-midway": "its last step has a call less than the one before",
    "score-sde-ve": "computes its noise levels itself",
    "sd-latent-upscale": "computes its noise levels itself",
    "sdxl-denoising-end": "leaves the rest to a refiner",
    "stable-cascade-combined": "lists one timestep more than it runs",
    "stable-cascade-decoder": "lists one timestep more than it runs",
    "stable-cascade-prior": "lists one timestep more than it runs",
    "wuerstchen-combined": "lists one timestep more than it runs",
    "wuerstchen-decoder": "lists one timestep more than it runs",
    "unclip": "its last step is another U-Net's",
    "unclip-image-variation": "its last step is another U-Net's",
}


pytestmark = pytest.mark.usefixtures("quick_collections")


# --- the end of a generation --------------------------------------------------------------------


#: The others are run where the test is slow.
LOOPS = [
    "sd-img2img",
    "ddpm",
    "sd-controlnet-two",
    "stable-video-diffusion",
]
#: What is left where the pipeline gave its U-Net another list of timesteps than the one that its
#: scheduler has in the end: that list, of five whole numbers.
LISTS = {"panorama": 40, "text-to-video-zero": 40, "text-to-video-zero-sdxl": 40}


def assert_nothing_is_left(case):
    pipe = case.load()
    case.run(pipe)  # what libraries make in the first generation and keep
    plain = bytes_left(case.run, pipe)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        held = bytes_left(case.run, pipe)
        assert sum(cache_bytes(helper)) == 0
    assert held == plain
    assert helper.stats.cache_nbytes > 0


@pytest.mark.parametrize("name", mostly_slow(LOOPS, ["ddpm", "sd-controlnet-two"]))
def test_nothing_that_was_recorded_is_held_after_the_last_step(name):
    assert_nothing_is_left(CASES[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::deepcache_patch.DeepCacheWarning")
@pytest.mark.parametrize("name", sorted(CASES))
def test_what_every_pipeline_leaves_after_its_loop(name):
    case = CASES[name]
    pipe = case.load()
    case.run(pipe)
    plain = bytes_left(case.run, pipe)
    try:
        helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    except UnsupportedModelError:
        pytest.skip("refused")
    first, second = bytes_left(case.run, pipe), bytes_left(case.run, pipe)
    assert first == second
    assert (sum(cache_bytes(helper)) > 0) == (name in OPEN_END)
    if name not in OPEN_END:
        assert first == plain + LISTS.get(name, 0)
    helper.reset()
    assert bytes_left(lambda: (case.run(pipe), helper.reset())) == plain


SCHEDULES = {
    "reuse": {"schedule": Uniform(), "replay": "reuse"},
    "extrapolate": {"schedule": Uniform()},
    "explicit, two branches": {"schedule": Explicit(["full", 1, 0, "full", 1, 0, 1, 0])},
    "the last step in full": {"schedule": Explicit([*("full", 0, 0) * 2, 0, "full"])},
    "adaptive": {"schedule": Adaptive(0.5, (0, 1))},
}


QUICK = [SCHEDULES["extrapolate"], SCHEDULES["explicit, two branches"]]


@pytest.mark.parametrize("options", mostly_slow(SCHEDULES.values(), QUICK), ids=SCHEDULES)
def test_no_schedule_holds_anything_after_the_last_step(options):
    pipe = toys.smallest("cpu", torch.float32)
    pipe(8)
    plain = bytes_left(pipe, 8)
    with DeepCacheHelper(pipe, **options) as helper:
        held = bytes_left(pipe, 8)
        assert helper.stats.shallow_calls > 0
    assert held == plain


def test_the_study_of_auto_is_over_with_its_generation():
    pipe = toys.smallest("cpu", torch.float32)
    pipe(10)
    plain = bytes_left(pipe, 10)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        assert bytes_left(pipe, 10) == plain  # what it learned is numbers
        assert len(helper.schedule.learned) == 1
        assert bytes_left(pipe, 10) == plain
        assert helper.stats.shallow_calls == 6
    with DeepCacheHelper(pipe, schedule=helper.schedule.learned[0]) as helper:
        assert isinstance(helper.schedule, Calibrated)
        assert bytes_left(pipe, 10) == plain


@pytest.mark.parametrize("full", [True, False], ids=["full", "shallow"])
def test_the_last_step_also_releases_slots_that_ended_before_it(full):
    # Guidance in two calls that was cut off midway: the second slot's features, and with them the
    # last calls of the ControlNet, were kept until the next generation.
    unet, timesteps = unet2d_condition(), torch.arange(5, 0, -1) * 100
    schedule = Explicit(["full", 0, 0, 0, "full" if full else 0])
    with DeepCacheHelper(unet, schedule=schedule) as helper:
        loop(unet, slots=2, timesteps=timesteps, stop=4)
        assert cache_bytes(helper) == [2 * FEATURE]
        loop(unet, slots=2, last_slots=1, timesteps=timesteps)
        assert cache_bytes(helper) == [0]


# --- generations that end before their last step ------------------------------------------------


BROKEN_OFF = {
    "exception": stop_by_exception,
    "interrupt": stop_by_interrupt,
    "denoising_end": lambda case, pipe: case.run(pipe, steps=8, denoising_end=0.5),
}


@pytest.mark.parametrize("how", mostly_slow(BROKEN_OFF, ["exception"]))
def test_a_loop_that_is_broken_off_holds_one_cache_until_it_is_released(how, recorded):
    case = CASES["sdxl"]
    pipe = case.load()
    case.run(pipe)
    plain = bytes_left(BROKEN_OFF[how], case, pipe)
    feature = 8 * 8 * 8 * 4  # the tiny SDXL's guidance is 5, in a batch of 2
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        held = 2 * 2 * feature
        for _ in range(2):  # no more after two
            assert bytes_left(BROKEN_OFF[how], case, pipe) == plain + held
            assert cache_bytes(helper) == [2 * 2 * feature]
        seen = []

        def ended(_pipe, _step, _timestep, kwargs, seen=seen):
            seen.append(alive(recorded))
            return kwargs

        recorded.clear()
        BROKEN_OFF[how](case, pipe)
        assert alive(recorded) == 2
        # From the first call of the next generation on, only its own features.
        case.run(pipe, steps=5, callback_on_step_end=ended)
        assert seen == [1, 1, 1, 2, 0]
        BROKEN_OFF[how](case, pipe)
        helper.reset()
        assert alive(recorded) == 0
        BROKEN_OFF[how](case, pipe)
    assert alive(recorded) == 0
    del seen, helper
    assert bytes_left(BROKEN_OFF[how], case, pipe) == plain


def test_an_error_within_a_call_releases_everything_at_once(recorded, monkeypatch):
    pipe = CONTROLNET.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        stop_by_exception(CONTROLNET, pipe)
        assert alive(recorded) == 2
        with pytest.raises(RuntimeError), torch.no_grad():
            pipe.unet(**inputs2d_condition() | {"encoder_hidden_states": torch.zeros(2, 7, 3)})
        assert alive(recorded) == 0
        assert cache_bytes(helper) == [0]


def test_a_loop_without_a_list_of_timesteps_ends_when_the_next_begins(recorded):
    unet, seen = unet2d_condition(), []
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        for _ in range(2):
            for timestep in (500, 400, 300, 200, 100):
                loop(unet, timesteps=torch.tensor([timestep]))
                seen.append(alive(recorded))
        assert seen == [1, 1, 1, 2, 2] * 2
        helper.reset()
        assert alive(recorded) == 0


def test_a_loop_that_leaves_timesteps_out_ends_when_the_next_begins(recorded):
    unet, timesteps = unet2d_condition(), torch.arange(10, 0, -1) * 100
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        loop(unet, timesteps=timesteps[::2])
        assert alive(recorded) == 2
        loop(unet, timesteps=timesteps)
        assert alive(recorded) == 0
        assert helper.stats.generations == 2


def test_auto_lets_go_of_an_unfinished_study_when_the_next_generation_begins():
    pipe = SD.load()
    SD.run(pipe, steps=10)
    plain = bytes_left(SD.run, pipe, steps=10)
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        stop_by_interrupt(SD, pipe, after=3, steps=10)  # too short to teach anything
        gc.collect()
        assert live_tensors().nbytes > plain
        assert bytes_left(SD.run, pipe, steps=10) == plain
        assert len(helper.schedule.learned) == 1


def test_adaptive_holds_no_more_than_the_cache_where_a_loop_is_broken_off(recorded):
    pipe = SD.load()
    with DeepCacheHelper(pipe, schedule=Adaptive(0.5, (0, 1))) as helper:
        stop_by_interrupt(SD, pipe, after=6)
        references, bytes_held = alive(recorded), cache_bytes(helper)
        assert references > 0
        helper._attachment.unets[0].reset()
        assert alive(recorded) == 0
        assert sum(bytes_held) >= references * FEATURE / 2


# --- what threads leave -------------------------------------------------------------------------


def test_a_thread_that_ends_takes_what_it_had_recorded_with_it(recorded, no_collections):
    pipe = CONTROLNET.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        for _ in range(3):
            thread = threading.Thread(target=stop_by_interrupt, args=(CONTROLNET, pipe))
            thread.start()
            thread.join()
            assert alive(recorded) == 0
        assert len(helper._attachment.unets[0]._sessions) == 0
        assert len(recorded) == 3 * 2


def test_disable_releases_what_other_threads_hold(recorded):
    pipe, wait, done = SD.load(), threading.Event(), threading.Event()

    def work():
        stop_by_interrupt(SD, pipe)
        done.set()
        wait.wait()

    thread = threading.Thread(target=work)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        thread.start()
        done.wait()
        assert alive(recorded) == 2
    assert alive(recorded) == 0
    wait.set()
    thread.join()
