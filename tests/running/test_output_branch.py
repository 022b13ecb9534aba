"""Above the output: steps in which nothing of the U-Net runs, and what they give."""

import warnings

import pytest
import torch
from builders.loops import held_bytes
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import counted_calls, trace
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from zoo import CASES

from deepcache_patch import (
    OUTPUT,
    DeepCacheHelper,
    DeepCacheWarning,
    Explicit,
    Extrapolate,
    NoiseAware,
    Reuse,
    Stats,
    Uniform,
)

#: A third of the steps in full, nothing of the others.
ABOVE = Uniform(3, OUTPUT)


def scheduler(**options):
    made = DDIMScheduler(**options)
    made.set_timesteps(6)
    return made


def run(unet, made, **options):
    """A loop by a scheduler; gives the sample, and the outputs of each step."""
    arguments, outputs = inputs2d_condition(**options), []
    with torch.no_grad():
        for timestep in made.timesteps:
            output = unet(**(arguments | {"timestep": timestep})).sample
            outputs.append(output)
            arguments["sample"] = made.step(output, timestep, arguments["sample"]).prev_sample
    return arguments["sample"], outputs


def test_only_full_steps_run_anything_of_the_unet():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=ABOVE) as helper, counted_calls(unet) as calls:
        run(unet, scheduler())
    assert {calls[name] for name in ("conv_in", "mid_block", "conv_norm_out", "conv_out")} == {2}
    assert helper.stats == Stats(1, 2, 4, helper.stats.cache_nbytes)
    assert helper.last_generations["unet"].plan == ("full", -1, -1, "full", -1, -1)


def test_what_is_reused_is_the_last_full_output_and_a_copy_of_it():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=ABOVE, replay="reuse"):
        _, outputs = run(unet, scheduler())
    assert torch.equal(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])
    assert torch.equal(outputs[4], outputs[3])


def test_changing_an_output_in_place_does_not_change_the_next():
    unet = unet2d_condition()
    arguments = inputs2d_condition()
    seen = []
    with DeepCacheHelper(unet, schedule=ABOVE, replay=Reuse()), torch.no_grad():
        for timestep in scheduler().timesteps[:3]:
            output = unet(**(arguments | {"timestep": timestep})).sample
            seen.append(output.clone())
            output.zero_()
    assert torch.equal(seen[1], seen[0])
    assert torch.equal(seen[2], seen[0])


@pytest.mark.parametrize(
    "name",
    mostly_slow(["sd", "sdxl", "sd-controlnet", "ldm-text2img", "ddpm"], ["sd", "ddpm"]),
)
def test_pipelines_run_by_the_plan_and_are_exact_when_it_is_full(name):
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe, steps=12)
    before = trace(pipe.unet)
    with DeepCacheHelper(pipe) as helper:
        case.run(pipe, steps=12)
        last = helper.last_generations["unet"]
    assert len(last.plan.full_steps) == 5
    assert last.plan.branches == (OUTPUT,)
    with DeepCacheHelper(pipe, interval=1):
        assert torch.equal(case.run(pipe, steps=12), plain)
    assert trace(pipe.unet) == before
    assert torch.equal(case.run(pipe, steps=12), plain)


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_returned_looks_like_what_the_unet_returns(asked):
    unet, arguments = unet2d_condition(), inputs2d_condition()
    kinds = []
    with DeepCacheHelper(unet, schedule=ABOVE), torch.no_grad():
        for timestep in scheduler().timesteps[:2]:
            output = unet(**(arguments | {"timestep": timestep, "return_dict": asked}))
            kinds.append((type(output), len(output), output[0].shape, output[0].dtype))
    assert kinds[0] == kinds[1]


def test_a_call_that_asks_for_another_kind_of_output_runs_in_full():
    unet, arguments = unet2d_condition(), inputs2d_condition()
    with DeepCacheHelper(unet, schedule=ABOVE) as helper, torch.no_grad():
        for asked, timestep in zip([True, False], scheduler().timesteps, strict=False):
            output = unet(**(arguments | {"timestep": timestep, "return_dict": asked}))
    assert type(output) is tuple
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 0)


def test_a_unet_that_returns_more_than_one_tensor_runs_in_full_and_says_so():
    unet = unet2d_condition()

    forward = unet.forward
    unet.forward = lambda *args, **kwargs: (forward(*args, **kwargs).sample, torch.zeros(1))
    arguments = inputs2d_condition()
    first, *others = (arguments | {"timestep": each} for each in scheduler().timesteps)
    with DeepCacheHelper(unet, schedule=ABOVE) as helper, torch.no_grad():
        with pytest.warns(DeepCacheWarning, match="returns more than one tensor"):
            unet(**first)
        for each in others:
            unet(**each)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (6, 0)


def test_another_shape_in_the_middle_runs_in_full():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=ABOVE) as helper, torch.no_grad():
        first, second, *_ = scheduler().timesteps
        unet(**(inputs2d_condition() | {"timestep": first}))
        larger = inputs2d_condition()
        larger = {
            name: torch.cat([each, each]) for name, each in larger.items() if name != "timestep"
        }
        unet(**larger, timestep=second)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 0)


def test_three_outputs_and_three_samples_are_kept_and_let_go_of():
    pipe = CASES["sd"].load()
    with DeepCacheHelper(pipe, schedule=NoiseAware(2)) as helper:
        CASES["sd"].run(pipe, steps=12)
        assert held_bytes(helper) == 0
    latents = 2 * 4 * 8 * 8 * 4  # guidance makes two of each; 8×8 latents in float32
    assert helper.stats.cache_nbytes == 3 * 2 * latents


def test_branches_and_the_output_may_take_turns():
    unet = unet2d_condition()
    plan = ["full", 0, OUTPUT, "full", OUTPUT, 0]
    with DeepCacheHelper(unet, schedule=Explicit(plan)) as helper, counted_calls(unet) as calls:
        run(unet, scheduler())
    assert helper.last_generations["unet"].plan == tuple(plan)
    assert (calls["mid_block"], calls["conv_out"]) == (2, 4)


def test_hooks_on_the_unet_see_the_calls_that_run():
    unet, seen = unet2d_condition(), []
    handle = unet.register_forward_hook(lambda *_: seen.append(1))
    with DeepCacheHelper(unet, schedule=ABOVE):
        run(unet, scheduler())
    handle.remove()
    assert len(seen) == 2


def test_a_processor_that_keeps_what_it_sees_is_heeded():
    pipe = CASES["sd"].load()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    class Keeping:
        def __init__(self):
            self.maps = []

        def __call__(self, attn, hidden_states, *args, **kwargs):
            self.maps.append(hidden_states)
            return hidden_states

    pipe.unet.up_blocks[-1].attentions[-1].transformer_blocks[0].attn1.set_processor(Keeping())
    with DeepCacheHelper(pipe) as helper, pytest.warns(DeepCacheWarning, match="may keep what it"):
        CASES["sd"].run(pipe, steps=12)
    assert helper.stats.shallow_calls == 0


RUNNING = [name for name in CASES if not name.startswith("amused")]


# All of them take minutes.
@pytest.mark.parametrize("name", mostly_slow(RUNNING, ["sd", "marigold-intrinsics", "ddpm"]))
def test_every_pipeline_runs_by_default_and_its_second_generation_is_a_fresh_ones(name):
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepCacheWarning)  # some pipelines run in full
        fresh = case.load()
        with DeepCacheHelper(fresh):
            expected = case.run(fresh, steps=10)
        pipe = case.load()
        with DeepCacheHelper(pipe) as helper:
            case.run(pipe, steps=12)
            again = case.run(pipe, steps=10)
            shallow = [last.plan.branches for last in helper.last_generations.values()]
    assert torch.isfinite(again).all()
    assert torch.equal(again, expected)
    assert set().union(*shallow) <= {OUTPUT, 0}


@pytest.mark.parametrize("branch", [OUTPUT, 0])
def test_no_trend_leads_from_one_prompt_to_another(branch):
    # Guidance in two calls, the first without the prompt; from the second full step on there is
    # only the call with it, which is now the first.
    unet, asked = unet2d_condition(), []

    class Watched(Extrapolate):
        def feature(self, step, recorded, levels):
            asked.append((step, [each.step for each in recorded]))
            return super().feature(step, recorded, levels)

    without, with_prompt = inputs2d_condition(seed=1), inputs2d_condition(seed=2)
    with DeepCacheHelper(unet, schedule=Uniform(2, branch), replay=Watched()), torch.no_grad():
        for step, timestep in enumerate(scheduler().timesteps):
            for arguments in (without, with_prompt)[step >= 2 :]:
                unet(**(arguments | {"timestep": timestep}))
    assert asked == [(1, [0]), (1, [0]), (3, [2]), (5, [4, 2])]


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize(("replay", "kept"), [("extrapolate", 3), ("reuse", 1)])
def test_so_many_outputs_are_kept_with_their_samples(kind, replay, kept):
    made, unet = kind(beta_schedule="scaled_linear", beta_end=0.012), unet2d_condition()
    made.set_timesteps(50)
    with DeepCacheHelper(unet, replay=replay) as helper:
        with helper.generation(scheduler=made):
            _, outputs = run(unet, made)
        assert helper.stats.cache_nbytes == 2 * kept * outputs[0].nbytes
