"""Traps of timesteps, schedulers, loops and shapes: what tells a helper which step a call is of.

Each was met by running a real pipeline.
"""

import copy

import pytest
import torch
from builders.kinds_of_calls import (
    TWICE,
    assert_as_fresh,
    assert_exact,
    calls_of,
    counted,
    kinds_of,
    scheduler_trace,
    told,
)
from builders.loops import kinds_of_steps, loop
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from builders.unets import inputs2d_condition, unet2d_condition
from builders.versions_needed import needs
from conftest import trace
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from zoo import CASES

from deepcache_patch import (
    FULL,
    OUTPUT,
    AlreadyEnabledError,
    Centred,
    DeepCacheHelper,
    Explicit,
    Uniform,
    UnsupportedModelError,
)

# --- shapes -------------------------------------------------------------------------------------


def test_trap_odd_sizes():
    # Where latents cannot be halved evenly, the U-Net reads off each skip how far to enlarge: what
    # stands in for a skip must have its shape.
    case = CASES["sd-inpaint-9"]  # four levels
    pipe = case.load()
    assert_exact(case, pipe, steps=1, height=24, width=40)  # latents of 12 × 20
    with DeepCacheHelper(pipe, schedule=Uniform(branch=2)):
        assert kinds_of(case, pipe, height=24, width=40) == "FssFs"


def test_trap_guidance_switched_off_midway():
    # The batch is halved then, and the recorded feature does not fit.
    case = CASES["sd"]
    pipe = case.load()

    def switch_off(pipe, step, _timestep, kwargs):
        if step == 3:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    options = {
        "callback_on_step_end": switch_off,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert kinds_of(case, pipe, steps=8, **options) == "FssFFsFs"
        assert kinds_of(case, pipe, steps=8) == "FssFssFs"
    assert_as_fresh("sd", {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}, {})


# --- schedulers that are copied -----------------------------------------------------------------


def test_trap_panorama():
    # It copies the scheduler's dictionary and puts it back for each of its views, whose calls come
    # one after the other in each step.
    case = CASES["panorama"]
    pipe = case.load()
    before = scheduler_trace(pipe.scheduler)
    with DeepCacheHelper(pipe, schedule=Uniform(), replay="reuse") as helper:
        assert scheduler_trace(pipe.scheduler) == before
        assert kinds_of(case, pipe) == "FFFssssssFFFsss"
        copied_dictionary = copy.deepcopy(vars(pipe.scheduler))
    assert vars(pipe.scheduler).keys() == copied_dictionary.keys()
    assert helper.stats.cache_nbytes == 3 * 2 * 8 * 2 * 64 * 4  # a feature for each view
    assert helper.stats.generations == 1
    assert_as_fresh("panorama", {"seed": 1}, {"view_batch_size": 2}, {})


@pytest.mark.parametrize("name", mostly_slow(["text-to-video-zero", "text-to-video-zero-sdxl"], 1))
def test_trap_copied_scheduler(name):
    # A deep copy of a wrapped scheduler is refused, or drives the original one.
    case = CASES[name]
    pipe = case.load()
    before = scheduler_trace(pipe.scheduler)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert scheduler_trace(pipe.scheduler) == before
        case.run(pipe)
        duplicate = copy.deepcopy(pipe.scheduler)
        timesteps = pipe.scheduler.timesteps
        duplicate.set_timesteps(7)
        assert pipe.scheduler.timesteps is timesteps
        assert (len(timesteps), len(duplicate.timesteps)) == (5, 7)
    assert_as_fresh(name, {"seed": 1}, {"steps": 7})


SEVERAL_CALLS = {
    # Full and shallow calls in five steps.
    "attend-and-excite": (31, 0),
    "ledits": (7, 3),
    "ledits-unmasked": (4, 6),
    "sag": (10, 0),
    "sd-pag": (2, 3),
    "i2vgen-xl": (2, 3),
    "animatediff-free-noise": (2, 3),
    "gligen-text-image": (4, 6),
}


# Quick: one that is never cut, and one that is as planned.
@pytest.mark.parametrize("name", mostly_slow(SEVERAL_CALLS, ["sag", "sd-pag"]))
def test_trap_several_calls_at_a_timestep(name):
    # One feature for all calls of a step would be another call's; their number varies from step to
    # step, and some have gradients.
    case = CASES[name]
    pipe = case.load()
    with told(), DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe)
    assert counted(helper) == SEVERAL_CALLS[name]
    with told():
        assert_as_fresh(name, {"seed": 1})


def test_trap_slots():
    # As above, by hand: the second call of a step gets what the second call recorded.
    case = CASES["gligen-text-image"]
    pipe = case.load()
    first, second = calls_of(pipe.unet, lambda: case.run(pipe, steps=1))
    halves = first, second | {"sample": first["sample"].flip(0)}
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper, torch.no_grad():
        outputs = [
            [pipe.unet(**half | {"timestep": timestep})[0] for half in halves] for timestep in TWICE
        ]
    assert counted(helper) == (2, 2)
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(outputs[0][0], outputs[0][1])


# --- schedules ----------------------------------------------------------------------------------


def test_trap_nonuniform_schedule():
    # A root of a negative number is complex in Python, and the published lists are made of real
    # parts; a root with a sign gives another list.
    published = (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)
    assert Centred(interval=5, center=15, power=1.4).plan(50).full_steps == published
    first, last = -(15 ** (1 / 1.4)), 35 ** (1 / 1.4)
    points = [first + (last - first) * number / 10 for number in range(10)]
    signed = [int(15 + abs(point) ** 1.4 * (1 if point > 0 else -1)) for point in points]
    assert tuple(signed) != published


# --- offloading ---------------------------------------------------------------------------------


def test_trap_multistep_solvers():
    # In few steps they take the jumps between shallow and full outputs for derivatives. There are
    # schedules that begin in full, and features are extrapolated only where steps are many.
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), "dpm-multistep")
    with DeepCacheHelper(pipe, schedule=Explicit([FULL, FULL, FULL, 0, FULL, 0, 0, 0])):
        assert kinds_of(case, pipe, steps=8) == "FFFsFsss"
    pictures = {}
    for steps in (8, 60):
        for replay in ("extrapolate", "reuse"):
            with DeepCacheHelper(pipe, schedule=Uniform(), replay=replay):
                pictures[steps, replay] = case.run(pipe, steps=steps)
    assert torch.equal(pictures[8, "extrapolate"], pictures[8, "reuse"])
    assert not torch.equal(pictures[60, "extrapolate"], pictures[60, "reuse"])


# --- timesteps ----------------------------------------------------------------------------------


BY_KEYWORD = {
    # Full and shallow calls of all U-Nets in five steps, and the keyword of the first one.
    "kandinsky": (2, 3, "timestep"),
    "kandinsky-v22": (2, 3, "timestep"),
    "dreamlite": (2, 3, "timestep"),
    "blip": (2, 3, "timestep"),
    "unclip": (5, 5, "timestep"),
    "sd-controlnet-xs": (2, 3, "timestep"),
    "ledits-unmasked": (4, 6, "timestep"),
    "stable-cascade-prior": (2, 3, "timestep_ratio"),
    "stable-cascade-decoder": (2, 3, "timestep_ratio"),
    "wuerstchen-decoder": (2, 3, "r"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs("diffusers", "0.39") if name == "dreamlite" else ())
        for name in BY_KEYWORD
    ],
)
def test_trap_keyword_timesteps(name):
    # What looks for the timestep in the second place finds nothing, or something else.
    *counts, keyword = BY_KEYWORD[name]
    case = CASES[name]
    pipe = case.load()
    keywords = []
    handle = case.unet(pipe).register_forward_pre_hook(
        lambda _module, _args, kwargs: keywords.extend(kwargs), with_kwargs=True
    )
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe)
    handle.remove()
    assert keyword in keywords
    assert counted(helper) == tuple(counts)


@pytest.mark.parametrize(
    "name", mostly_slow(["sd-img2img", "sd-inpaint", "sd-depth2img"], ["sd-inpaint"])
)
def test_trap_image_to_image(name):
    # With DeepCache, a second generation with another strength, or other steps, is not what a fresh
    # helper makes of it.
    assert_as_fresh(name, {"steps": 8, "strength": 0.6}, {"steps": 7}, {"steps": 8})


FOREIGN_TIMESTEPS = {
    # Generations, full and shallow calls in five steps.
    "sd-latent-upscale": (1, 2, 3),
    "score-sde-ve": (1, 4, 6),
    "karras-ve": (2, 5, 4),
    "diffedit": (3, 5, 4),
}


@pytest.mark.parametrize("name", mostly_slow(FOREIGN_TIMESTEPS, ["karras-ve", "score-sde-ve"]))
def test_trap_timesteps_that_are_not_the_schedulers(name):
    # Functions of sigma, vectors of sigmas, the list of another scheduler: they stand in no list
    # that could be searched.
    case = CASES[name]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe)
    assert (helper.stats.generations, *counted(helper)) == FOREIGN_TIMESTEPS[name]
    assert_as_fresh(name, {"seed": 1}, {"steps": 7}, {})


def test_trap_time_travel():
    # RePaint goes back to noisier latents and runs through the same timesteps again: what was
    # recorded under less noise is no good there.
    case = CASES["repaint"]
    pipe = case.load()
    timesteps = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: timesteps.append(int(args[1])))
    with DeepCacheHelper(pipe, schedule=Uniform(10)):
        kinds = kinds_of(case, pipe, steps=8)
    handle.remove()
    back = [i for i in range(1, len(timesteps)) if timesteps[i] > timesteps[i - 1]]
    assert len(back) == 3
    assert [i for i, kind in enumerate(kinds) if kind == "F"] == [0, *back]
    assert_as_fresh("repaint", {"seed": 1}, {"jump_n_sample": 1}, {})


def test_trap_parallel_sampling():
    # ParaDiGMS runs several timesteps in one batch: no step could be told for it.
    case = CASES["paradigms"]
    pipe = case.load()
    plain = case.run(pipe)
    with told() as said, DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert torch.equal(case.run(pipe), plain)
    assert "cannot be told from its timestep" in said[0]
    assert len(said) == 1
    assert helper.stats.shallow_calls == 0


def test_trap_gradients():
    # Pix2Pix-Zero and Attend-and-Excite call the U-Net for its gradients between the usual calls: a
    # replayed feature has none, and a slot taken would shift the others.
    unet = CASES["sd"].load().unet
    arguments = inputs2d_condition()

    def gradient(timestep):
        sample = arguments["sample"].clone().requires_grad_()
        unet(
            **arguments | {"timestep": timestep, "sample": sample}
        ).sample.square().sum().backward()
        return sample.grad

    outputs, plain = [], gradient(TWICE[0])
    with told() as said, DeepCacheHelper(unet, schedule=Uniform()) as helper:
        for timestep, before in zip(TWICE, (2, 1), strict=True):
            for _ in range(before):
                assert torch.equal(gradient(timestep), plain)
            with torch.no_grad():
                outputs.append(unet(**arguments | {"timestep": timestep}).sample)
            assert torch.equal(gradient(timestep), plain)
    assert "gradients are enabled" in said[0]
    assert torch.equal(*outputs)
    assert counted(helper) == (6, 1)


@pytest.mark.parametrize(
    ("name", "calls"), mostly_slow([("pix2pix-zero", 15), ("attend-and-excite", 31)], 1)
)
def test_trap_gradients_in_pipelines(name, calls):
    # As above; and they read attention maps, so all the rest runs in full, too.
    case = CASES[name]
    plain = case.run(case.load())  # Pix2Pix-Zero leaves its attention processors behind
    pipe = case.load()
    with told() as said, DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert torch.equal(case.run(pipe), plain)
    assert any("gradients are enabled" in each for each in said)
    assert counted(helper) == (calls, 0)


# --- loops --------------------------------------------------------------------------------------


def test_trap_several_loops():
    # One call of a pipeline may have several loops, the last with another batch or start.
    case = CASES["marigold-depth"]  # a loop for each member of an ensemble
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert kinds_of(case, pipe, steps=4, ensemble_size=3) == "FssF" * 3
    assert helper.stats.generations == 3

    case = CASES["animatediff"]
    pipe = case.load()
    pipe.enable_free_init(num_iters=2)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert kinds_of(case, pipe) == "FssFs" * 2
    assert helper.stats.generations == 2

    case = CASES["text-to-video-zero"]  # one frame, then more; the second loop starts at step 1
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        kinds = kinds_of(case, pipe)
    assert helper.stats.generations == 2
    assert kinds == "Fss" + "FssF"

    case = CASES["pix2pix-zero"]
    pipe = case.load()
    with told(), DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe)
    assert helper.stats.generations == 2


def test_trap_enabling_twice():
    # DeepCache loses the originals then for good; and an attach that fails leaves half a patch.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    plain = case.run(pipe)
    before = trace(pipe.unet), trace(pipe.controlnet)
    first, second = (
        DeepCacheHelper(pipe, schedule=Uniform()),
        DeepCacheHelper(pipe, schedule=Uniform(2)),
    )
    first.enable().enable()
    enabled = trace(pipe.unet), trace(pipe.controlnet)
    with pytest.raises(AlreadyEnabledError):
        second.enable()
    assert (trace(pipe.unet), trace(pipe.controlnet)) == enabled
    second.disable()
    assert kinds_of(case, pipe) == "FssFs"
    first.disable()
    first.disable()
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before
    assert torch.equal(case.run(pipe), plain)


def test_trap_failed_attach(monkeypatch):
    # As above, for an attach that fails at the last of several parts.
    pipe = CASES["sd-controlnet"].load()
    before = trace(pipe.unet), trace(pipe.controlnet)

    def fail(_controlnet):
        assert trace(pipe.unet) != before[0]
        raise MemoryError

    monkeypatch.setattr("deepcache_patch.running.controlnet.AttachedControlNet.attach", fail)
    with pytest.raises(MemoryError):
        DeepCacheHelper(pipe, schedule=Uniform()).enable()
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before


@pytest.mark.parametrize("name", ["amused", "amused-img2img", "amused-inpaint"])
def test_trap_amused(name):
    # A U-ViT without a timestep and without long skips: there is nothing to replay.
    pipe = CASES[name].load()
    before = trace(pipe.transformer)
    for what in (pipe, pipe.transformer):
        with pytest.raises(UnsupportedModelError, match="UVit2DModel"):
            DeepCacheHelper(what, schedule=Uniform())
    assert trace(pipe.transformer) == before


# --- loops that leave entries of their list out ---------------------------------------------------


class UNetAndScheduler(DiffusionPipeline):
    """What a loop of somebody's own has for a pipeline."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


def test_where_entries_are_left_out_nothing_is_forecast_by_noise_levels():
    # Steps were counted, and levels looked up by that: the forecast went by those of others.
    scheduler = EulerDiscreteScheduler(beta_end=0.012, beta_schedule="scaled_linear")
    pipe = UNetAndScheduler(unet2d_condition(), scheduler)
    scheduler.set_timesteps(40)

    def run(timesteps):
        made = loop(pipe.unet, timesteps=timesteps)
        return made, str(helper.last_generations["unet"].plan)

    with DeepCacheHelper(pipe, interval=3, replay="reuse") as helper:
        every, plan = run(scheduler.timesteps)
        assert helper.last_generations["unet"].plan.branches == (OUTPUT,)
        made, plan = run(scheduler.timesteps[::2])
        assert plan == "FF·F··F··F··F··F··F·"
        assert helper.last_generations["unet"].plan.branches == (0,)
        assert torch.equal(run(scheduler.timesteps)[0], every)
    explicit = Explicit([FULL if each == "F" else 0 for each in plan])
    with DeepCacheHelper(pipe.unet, schedule=explicit, replay="reuse"):
        assert torch.equal(loop(pipe.unet, timesteps=scheduler.timesteps[::2].clone()), made)


def test_a_loop_over_a_table_of_its_own_is_as_fast_as_its_interval():
    pipe = UNetAndScheduler(unet2d_condition(), DDIMScheduler())
    with DeepCacheHelper(pipe, schedule=Uniform(3)):
        assert kinds_of_steps(pipe.unet, timesteps=range(999, 0, -100)) == "FFsFssFssF"
