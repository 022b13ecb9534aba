"""`helper.generation(...)` says of a loop of one's own what a scheduler says of a pipeline's."""

import asyncio
import gc
import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from builders.declared_loops import SIGMAS, STEPS, called, ddim, drawn, euler, noise
from builders.kinds_of_calls import messages
from builders.loops import held_bytes
from builders.unets import unet2d
from conftest import counted_calls
from diffusers import DDIMPipeline, DDIMScheduler, EulerDiscreteScheduler
from zoo import CASES

from deepcache_patch import (
    FULL,
    OUTPUT,
    Auto,
    DeepCacheHelper,
    DeepCacheWarning,
    Explicit,
    InvalidSettingError,
    NoiseAware,
    Uniform,
)
from deepcache_patch.schedules.guide import PlannedGuide

pytestmark = pytest.mark.usefixtures("no_grad")

# What it is for.


@pytest.mark.parametrize("schedule", ["noise-aware", "auto", Uniform(3, 1)], ids=str)
def test_with_the_scheduler_declared_a_loop_draws_what_the_pipeline_draws(schedule):
    pipe = DDIMPipeline(unet2d(), ddim())
    pipe.set_progress_bar_config(disable=True)
    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        for _ in range(2):  # "auto" learns from the first
            generator = torch.Generator().manual_seed(0)
            by_pipeline = pipe(
                num_inference_steps=STEPS, generator=generator, output_type="np"
            ).images
        plan, stats = helper.last_generations["unet"].plan, helper.stats
    with DeepCacheHelper(pipe.unet, schedule=schedule) as helper:
        for _ in range(2):
            scheduler = ddim()
            with helper.generation(scheduler=scheduler):
                sample = drawn(pipe.unet, scheduler)
        assert helper.last_generations["unet"].plan == plan
        assert helper.stats == stats
    own = (sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(own, by_pipeline)
    assert stats.shallow_calls > 0


@pytest.mark.parametrize("scheduler", [ddim(), euler()], ids=["ddim", "karras"])
@pytest.mark.parametrize(
    "passed",
    [
        lambda timestep: timestep,
        float,
        lambda timestep: torch.full((1,), float(timestep)),
        lambda timestep: timestep.clone(),
    ],
    ids=["entries", "numbers", "batches", "copies"],
)
def test_noise_levels_say_all_that_a_scheduler_says(scheduler, passed):
    unet, timesteps = unet2d(), scheduler.timesteps
    if isinstance(scheduler, DDIMScheduler):
        alphas = scheduler.alphas_cumprod[timesteps]
        sigmas = (((1 - alphas) / alphas) ** 0.5).tolist()
    else:
        sigmas = scheduler.sigmas
    pictures = []
    for declared in ({"scheduler": scheduler}, {"sigmas": sigmas, "prediction_type": "epsilon"}):
        scheduler.set_timesteps(STEPS)
        with DeepCacheHelper(unet) as helper, helper.generation(**declared):
            pictures.append(drawn(unet, scheduler, passed))
        assert helper.stats.generations == 1
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (5, 7)
        assert helper.last_generations["unet"].plan.branches == (OUTPUT,)
    # ln(sigma) of DDIM's is computed in float32 once, and in float64 once.
    assert torch.allclose(*pictures, rtol=1e-3, atol=1e-4)


def test_the_plan_is_that_of_the_noise_levels():
    unet = unet2d()
    plans = {}
    for prediction in ("epsilon", None):
        with (
            DeepCacheHelper(unet) as helper,
            helper.generation(sigmas=np.linspace(20, 0.1, STEPS), prediction_type=prediction),
        ):
            drawn(unet, ddim())
        plans[prediction] = list(helper.last_generations["unet"].plan)
    known = [math.log(sigma) for sigma in np.linspace(20, 0.1, STEPS)]
    expected = [
        FULL if step in NoiseAware()._plan(tuple(known), frozenset(), 0).full_steps else OUTPUT
        for step in range(STEPS)
    ]
    assert plans["epsilon"] == expected
    # What the output means is not known: branch 0 stands for -1.
    assert plans[None] == [FULL if entry == FULL else 0 for entry in expected]


def test_extrapolation_is_given_the_noise_levels():
    class Listening:
        keep = 2
        heard = None

        def feature(self, step, recorded, levels):
            self.heard = levels
            return recorded[0].feature

    unet, replay, sigmas = unet2d(), Listening(), [8.0, 4.0, 2.0, 1.0]
    with (
        DeepCacheHelper(unet, schedule=Uniform(2), replay=replay) as helper,
        helper.generation(sigmas=sigmas),
    ):
        for timestep in (900, 600, 300, 100):
            unet(noise(), timestep)
    assert replay.heard == pytest.approx([math.log(each) for each in sigmas])


def test_at_interval_1_nothing_changes():
    unet, plain = unet2d(), drawn(unet2d(), euler())
    with DeepCacheHelper(unet, interval=1) as helper:
        scheduler = euler()
        with helper.generation(sigmas=scheduler.sigmas, prediction_type="epsilon"):
            assert torch.equal(drawn(unet, scheduler), plain)
    assert helper.stats.shallow_calls == 0
    assert torch.equal(drawn(unet, euler()), plain)


# Where a generation ends.


def test_leaving_the_block_ends_the_generation():
    finished = []

    class Watching:
        own_replay = True

        def begin(self, context, replay):
            found = PlannedGuide(Explicit([FULL, 0] * 2), replay, context)
            found.finish = lambda: finished.append(context.num_steps)
            return found

    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Watching()) as helper:
        with helper.generation(**SIGMAS):
            for timestep in (900, 700, 400):
                unet(noise(), timestep)
            assert not finished
        assert finished == [4]
        assert held_bytes(helper) == 0

        def interrupted():
            yield 900
            assert held_bytes(helper) > 0
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            called(helper, unet, interrupted(), **SIGMAS)
        assert finished == [4, 4]
        assert held_bytes(helper) == 0
        gc.collect()
        assert not list(helper._attachment.unets[0]._sessions)
        assert helper.stats.generations == 2


def test_each_block_is_a_generation_of_the_same_timesteps():
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper:
        for _ in range(3):  # and each is broken off
            with helper.generation(**SIGMAS):
                for timestep in (900, 700, 400):
                    unet(noise(), timestep)
        assert helper.stats.generations == 3
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 6)


def test_after_an_error_in_a_call_the_loop_goes_on_from_its_step():
    unet = unet2d()
    levels = []

    class Listening(NoiseAware):
        def plan_for(self, context):
            levels.append(context.levels)
            return [FULL] + [0] * (context.num_steps - 1)

    with DeepCacheHelper(unet, schedule=Listening()) as helper, helper.generation(**SIGMAS):
        unet(noise(), 900)
        with pytest.raises(RuntimeError):
            unet(torch.zeros(1, 7, 8, 8), 700)
        for timestep in (700, 400):
            unet(noise(), timestep)
    logs = pytest.approx([math.log(each) for each in (8, 4, 2, 1)])
    assert levels[0] == logs
    assert levels[1] == pytest.approx([math.log(each) for each in (4, 2, 1)])
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 1)


@pytest.mark.parametrize("amid", ["paused", "follow", "gradients"])
def test_steps_that_run_plainly_are_counted(amid):
    unet = unet2d()
    heard = []

    class Listening(NoiseAware):
        def plan_for(self, context):
            heard.append(context.levels)
            return [FULL] * context.num_steps

    with DeepCacheHelper(unet, schedule=Listening()) as helper, helper.generation(**SIGMAS):
        unet(noise(), 900)
        if amid == "paused":
            with helper.paused():
                unet(noise(), 700)
        elif amid == "follow":
            unet(noise(), 700)
            helper.follow(Listening())
        else:
            with torch.enable_grad(), pytest.warns(DeepCacheWarning, match="gradients"):
                unet(noise(), 700)
            helper.reset()
        unet(noise(), 400)
    assert heard[-1] == pytest.approx([math.log(2), 0])


def test_calls_that_were_missed_end_a_generation_by_order():
    unet = unet2d()
    helper = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    with helper.generation(**SIGMAS):
        unet(noise(), 900)
        helper.disable()
        unet(noise(), 700)
        helper.enable()
        with pytest.warns(DeepCacheWarning, match="disabled within the block"):
            unet(noise(), 400)
        unet(noise(), 100)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 0)
    helper.disable()


# For whom it is.


def test_each_thread_has_a_generation_of_its_own():
    unet, alone = unet2d(), []
    scheduler = euler()
    with DeepCacheHelper(unet) as helper:
        with helper.generation(sigmas=scheduler.sigmas, prediction_type="epsilon"):
            alone.append(drawn(unet, scheduler))
        turns = threading.Barrier(3)

        def request(_):
            scheduler = euler()
            declared = {"sigmas": scheduler.sigmas, "prediction_type": "epsilon"}
            with torch.no_grad(), helper.generation(**declared):

                def passed(timestep):
                    turns.wait(timeout=60)
                    return timestep

                return drawn(unet, scheduler, passed)

        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(request, range(3)))
        assert helper.stats.generations == 4
    assert all(torch.equal(each, alone[0]) for each in together)


def test_each_task_has_a_generation_of_its_own_even_in_one_thread():
    unet, scheduler = unet2d(), euler()
    with DeepCacheHelper(unet) as helper:
        with helper.generation(sigmas=scheduler.sigmas, prediction_type="epsilon"):
            alone = drawn(unet, scheduler)

        async def request(in_threads):
            scheduler = euler()
            sample = noise(scheduler)
            with helper.generation(sigmas=scheduler.sigmas, prediction_type="epsilon"):
                for timestep in scheduler.timesteps:
                    given = scheduler.scale_model_input(sample, timestep)
                    await asyncio.sleep(0)
                    if in_threads:
                        with torch.no_grad():
                            output = (await asyncio.to_thread(unquestioned, given, timestep)).sample
                    else:
                        output = unet(given, timestep).sample
                    sample = scheduler.step(output, timestep, sample).prev_sample
            return sample

        def unquestioned(given, timestep):
            with torch.no_grad():
                return unet(given, timestep)

        async def requests():
            return await asyncio.gather(request(False), request(False), request(True))

        together = asyncio.run(requests())
        assert helper.stats.generations == 4
    assert all(torch.equal(each, alone) for each in together)


def test_a_generation_within_another_leaves_it_as_it_is():
    unet, scheduler = unet2d(), euler()
    declared = {"sigmas": scheduler.sigmas, "prediction_type": "epsilon"}
    with DeepCacheHelper(unet) as helper:
        with helper.generation(**declared):
            alone = drawn(unet, scheduler)
        inner = []

        def passed(timestep):
            if len(inner) < 3:
                inner.append(None)
                with helper.generation(scheduler=(within := ddim())):
                    inner[-1] = drawn(unet, within)
            return timestep

        with helper.generation(**declared):
            assert torch.equal(drawn(unet, euler(), passed), alone)
        assert helper.stats.generations == 2 + 3
    assert all(torch.equal(*pair) for pair in itertools.pairwise(inner))


def test_other_threads_are_in_no_block():
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(4)) as helper, helper.generation(sigmas=[8, 4]):
        unet(noise(), 900)

        def elsewhere():
            with torch.no_grad():
                unet(noise(), 700)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert helper.stats.generations == 2
        assert helper.stats.shallow_calls == 0


def test_a_block_that_is_left_in_another_thread_is_an_error():
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        block = helper.generation(sigmas=[8, 4])
        block.__enter__()
        unet(noise(), 900)
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(block.__exit__, None, None, None)
            with pytest.raises(RuntimeError, match="another thread or asyncio task"):
                left.result()
        assert held_bytes(helper) == 0  # it is over all the same


@pytest.mark.parametrize("declared", ["scheduler", "sigmas"])
def test_a_controlnet_is_cut_along(declared):
    pipe, scheduler = CASES["sd-controlnet"].load(), ddim()
    levels = (
        {"scheduler": scheduler} if declared == "scheduler" else {"sigmas": range(STEPS, 0, -1)}
    )
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=random)
    words = torch.randn(2, 5, pipe.unet.config.cross_attention_dim, generator=random)
    side = 8 * 2 ** (len(pipe.controlnet.config.conditioning_embedding_out_channels) - 1)
    picture = torch.rand(2, 3, side, side, generator=random)

    def call(timestep):
        given = {"encoder_hidden_states": words, "return_dict": False}
        down, middle = pipe.controlnet(sample, timestep, controlnet_cond=picture, **given)
        residuals = {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }
        return pipe.unet(sample, timestep, **given, **residuals)[0]

    with (
        DeepCacheHelper(pipe, schedule=Uniform(3)) as helper,
        helper.generation(**levels),
        counted_calls(pipe.controlnet) as calls,
    ):
        for timestep in scheduler.timesteps:
            call(int(timestep))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 8)
    assert calls["mid_block"] == 4
    assert calls["conv_in"] == STEPS


# What is learned.


def test_auto_learns_from_a_block_that_is_left_early():
    unet, auto, scheduler = unet2d(), Auto(2), ddim()
    with DeepCacheHelper(unet, schedule=auto) as helper:
        with helper.generation(scheduler=scheduler):
            for timestep in scheduler.timesteps[:-2]:
                unet(noise(), timestep)
        assert len(auto.learned) == 1


@pytest.mark.parametrize(
    ("declared", "branch"),
    [
        # By Euler's steps it would learn for another sampler, perhaps, than the one that runs.
        ({"sigmas": np.linspace(8, 1, STEPS), "prediction_type": "epsilon"}, OUTPUT),
        ({"sigmas": np.linspace(8, 1, STEPS)}, 0),
        ({"timesteps": ddim().timesteps}, 0),
    ],
    ids=["sigmas and prediction", "sigmas", "timesteps"],
)
def test_auto_says_where_it_has_nothing_to_learn_from(declared, branch):
    unet, auto, calls = unet2d(), Auto(2), [*ddim().timesteps]
    with DeepCacheHelper(unet, schedule=auto) as helper:
        with pytest.warns(DeepCacheWarning) as said:
            called(helper, unet, calls, **declared)
        called(helper, unet, calls, **declared)
        assert messages(said) == [
            "schedule='auto' learns nothing from what generation() was given, and goes by the "
            "default plan: only a scheduler=, whose output is noise, velocity or sample, says what "
            "becomes of an output"
        ]
        assert helper.last_generations["unet"].plan.branches == (branch,)
        assert helper.stats.full_calls == 2 * STEPS // 2
    assert not auto.learned


# What is refused.


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "one of sigmas=, timesteps= and scheduler=, not none of them"),
        ({"sigmas": [1], "timesteps": [1]}, "not sigmas= and timesteps="),
        ({"sigmas": []}, "sigmas is empty: give one number for each step"),
        ({"sigmas": [0.0]}, r"sigmas\[0\] is 0: give noise levels above 0"),
        ({"sigmas": [2, 0, 0]}, r"sigmas\[1\] is 0: give noise levels above 0; one closing 0"),
        ({"sigmas": [2, -1]}, r"sigmas\[1\] is -1: "),
        ({"sigmas": [2, math.nan, 1]}, r"sigmas\[1\] is nan: give a finite number"),
        ({"sigmas": [math.inf, 1]}, r"sigmas\[0\] is inf"),
        ({"sigmas": [1, 2, 3]}, r"sigmas\[1\] is 2, more than 1 before it: .*helper.paused\(\)"),
        ({"sigmas": "many"}, "sigmas must be a list of numbers, one for each step, not 'many'"),
        ({"sigmas": 3.0}, "sigmas must be a list of numbers"),
        ({"sigmas": torch.ones(2, 1)}, "sigmas must be a list of numbers"),
        ({"timesteps": []}, "timesteps is empty"),
        ({"timesteps": [1, math.nan]}, r"timesteps\[1\] is nan"),
        ({"timesteps": [9, 1], "prediction_type": "epsilon"}, "'epsilon' goes with sigmas="),
        ({"sigmas": [9, 1], "prediction_type": "eps"}, "'v_prediction', 'sample', or None, not"),
        (
            {"scheduler": [9, 1]},
            "takes a scheduler of diffusers, after its set_timesteps, not",
        ),
        (
            {"scheduler": DDIMScheduler},
            "takes an object, not the class DDIMScheduler: give the one that your loop goes by, "
            "after its set_timesteps",
        ),
        (
            {"scheduler": DDIMScheduler()},
            "DDIMScheduler does not know its steps yet: call its",
        ),
        ({"scheduler": EulerDiscreteScheduler()}, "EulerDiscreteScheduler does not know its steps"),
    ],
    ids=str,
)
def test_what_is_declared_wrongly_is_refused(declared, message):
    with (
        DeepCacheHelper(unet2d()) as helper,
        pytest.raises(InvalidSettingError, match=message),
    ):
        helper.generation(**declared)


EVEN = (
    "the sigmas that generation() was given fall evenly from {} to {}, as timesteps do: if they "
    "are timesteps, give timesteps=, or the picture may be wrong"
)


@pytest.mark.parametrize(
    ("timesteps", "ends"),
    [
        (ddim(25).timesteps, (960, 40)),  # and a closing 0
        (range(999, -1, -1), (999, 1)),
        ([999, 759, 499, 259], (999, 259)),
        (np.linspace(999, 0, 20), (999, 52.5789)),
        (ddim(20, timestep_spacing="trailing").timesteps[8:], (599, 49)),
    ],
    ids=["leading", "table", "four", "linspace", "the end of trailing"],
)
def test_timesteps_that_are_given_as_noise_levels_are_noticed(timesteps, ends):
    with DeepCacheHelper(unet2d()) as helper, pytest.warns(DeepCacheWarning) as said:
        helper.generation(sigmas=timesteps)
    assert [str(each.message) for each in said] == [EVEN.format(*ends)]


def test_noise_levels_of_samplers_are_not_taken_for_timesteps():
    with DeepCacheHelper(unet2d()) as helper:
        for most, least, steps in itertools.product((14.6, 80, 700, 4096), (0.002, 0.03), (4, 25)):
            share = np.linspace(0, 1, steps)
            for power in (3, 7):
                ends = most ** (1 / power), least ** (1 / power)
                helper.generation(sigmas=(ends[0] + share * (ends[1] - ends[0])) ** power)
            levels = most * (least / most) ** share
            for first, last in ((0, None), (0, -steps // 2), (steps // 2, None)):
                helper.generation(sigmas=levels[first:last])
        for even in (np.linspace(80, 0, 25), [14, 10, 6, 2], range(STEPS, 0, -1)):
            helper.generation(sigmas=even)
        for schedule in (euler(25), euler(25, rescale_betas_zero_snr=True)):
            helper.generation(sigmas=schedule.sigmas)


@pytest.mark.parametrize("sigmas", [euler().sigmas, euler().sigmas[:-1].tolist()])
def test_noise_levels_that_are_given_as_timesteps_run_in_full(sigmas):
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        with pytest.warns(DeepCacheWarning) as said:
            called(helper, unet, ddim().timesteps, timesteps=sigmas)
        assert [str(each.message) for each in said] == [
            "a U-Net call runs in full: its timestep 913 is above all that generation() was given, "
            "which fall from 14.6146 as noise levels do: give sigmas="
        ]
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (STEPS, 0)


@pytest.mark.parametrize(
    "timesteps",
    [range(4, 0, -1), [4, 4, 3, 3, 2, 2, 1], [3, 2, 1], [1.0, 0.5, 0.2, 0.1], [1, 2, 4, 8]],
    ids=["counts", "counts of two", "few", "shares", "rising"],
)
def test_counts_and_shares_may_stand_for_timesteps(timesteps):
    unet = unet2d()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        called(helper, unet, range(990, 0, -90)[: len(timesteps)], timesteps=timesteps)
    assert helper.stats.shallow_calls >= 1


def test_a_helper_that_is_not_enabled_is_given_nothing():
    with pytest.raises(RuntimeError, match=r"call enable\(\) before"):
        DeepCacheHelper(unet2d()).generation(**SIGMAS)
