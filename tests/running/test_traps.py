"""Traps that have caught some way to speed up U-Nets, each with a test that it stays open.

Each was met by running a real pipeline. "DeepCache" is the package of that name, 0.1.1. What is
tested in depth elsewhere has its short test here all the same.
"""

import copy
import gc
import inspect
import itertools
import warnings
from contextlib import contextmanager

import pytest
import torch
from builders.schedulers import with_scheduler
from builders.unets import UNETS, inputs2d_condition
from builders.versions_needed import needs, require_group_offloading
from conftest import assert_exact_at_every_branch, counted_calls, trace
from diffusers import UNet2DConditionModel
from torch.overrides import TorchFunctionMode
from zoo import CASES

from deepcache_patch import (
    AlreadyEnabledError,
    Centred,
    DeepCacheHelper,
    DeepCacheWarning,
    Growing,
    InvalidSettingError,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.errors import ChangedResidualsError

#: Two steps at one timestep: a replay straight after the full step it was recorded in.
TWICE = torch.tensor([500, 500, 1])[:2]


@contextmanager
def kinds_of_calls(unet, deep=None):
    """Says of each call whether it ran `deep`, the middle block: "F", or "s" for a shallow one."""
    ran, kinds = [], []

    def deep_ran(*_):
        ran.append(1)

    def call_ended(*_):
        kinds.append("F" if ran else "s")
        ran.clear()

    handles = [
        (deep or unet.mid_block).register_forward_hook(deep_ran),
        unet.register_forward_hook(call_ended),
    ]
    try:
        yield kinds
    finally:
        for handle in handles:
            handle.remove()


def kinds_of(case, pipe, deep=None, **overrides):
    with kinds_of_calls(case.unet(pipe), deep) as kinds:
        case.run(pipe, **overrides)
    return "".join(kinds)


def calls_of(unet, run):
    """The arguments of each of the U-Net's calls in `run()`, by name, as copies."""
    calls = []
    names = tuple(inspect.signature(type(unet).forward).parameters)[1:]

    def before(_module, args, kwargs):
        arguments = dict(zip(names, args, strict=False)) | kwargs
        calls.append({name: copied(value) for name, value in arguments.items()})

    handle = unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return calls


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(copied(each) for each in value)
    return value


def assert_exact(case, pipe, **overrides):
    """With the arguments of a real call, a replay straight after a full call has its output."""
    unet = case.unet(pipe)
    first = calls_of(unet, lambda: case.run(pipe, **overrides))[0]
    with torch.no_grad():
        assert_exact_at_every_branch(unet, lambda: {name: copied(v) for name, v in first.items()})


def assert_as_fresh(name, *changes, **options):
    """After another generation, and after each of the changed ones, all is as with fresh parts."""
    case = CASES[name]
    pipe = case.load()
    with DeepCacheHelper(pipe, **options):
        case.run(pipe)
        for change in changes:
            fresh = case.load()
            with DeepCacheHelper(fresh, **options):
                expected = case.run(fresh, **change)
            assert torch.equal(case.run(pipe, **change), expected), change


def counted(helper):
    return helper.stats.full_calls, helper.stats.shallow_calls


@contextmanager
def told():
    """Collects this package's warnings; without it they are errors."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepCacheWarning)
        yield said
    said += [str(each.message) for each in caught]


def scheduler_trace(scheduler):
    """Everything that a patch could leave on a scheduler or on its classes."""
    own = [(name, id(value)) for name, value in vars(scheduler).items()]
    classes = [
        (cls, [(name, id(value)) for name, value in vars(cls).items()])
        for cls in type(scheduler).__mro__[:-1]
        if not name_is_magic(cls)
    ]
    return own, classes


def name_is_magic(cls):
    return cls.__module__ == "builtins"


# --- DeepCache 0.1.1 ----------------------------------------------------------------------------


class CountedReads(TorchFunctionMode):
    """Counts what waits for a device: every read of a tensor's values."""

    READS = frozenset(
        {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"}
        | {"__index__", "__array__", "__contains__"}
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.READS
        return func(*args, **(kwargs or {}))


def test_trap_timesteps():
    # DeepCache looks each timestep's value up in a list: the device is waited for at every step.
    case = CASES["sd"]
    pipe = case.load()

    def reads_of_each_step():
        counts = []

        def ended(_pipe, _step, _timestep, kwargs):
            counts.append(reads.count)
            return kwargs

        with CountedReads() as reads:
            case.run(pipe, steps=8, callback_on_step_end=ended)
        return [after - before for before, after in itertools.pairwise(counts)]

    plain = reads_of_each_step()
    with DeepCacheHelper(pipe) as helper:
        assert reads_of_each_step() == plain
    assert counted(helper) == (3, 5)
    with CountedReads() as reads:  # the counter works
        [*TWICE.tolist(), TWICE[0].item(), int(TWICE[0])]
    assert reads.count == 3


@pytest.mark.parametrize("scheduler", ["heun", "kdpm2", "pndm"])
def test_trap_repeated_timesteps(scheduler):
    # And the look-up takes a timestep that occurs again for its first occurrence.
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), scheduler)
    calls = len(kinds_of(case, pipe))
    assert calls == {"heun": 9, "kdpm2": 9, "pndm": 6}[scheduler]
    distinct = len(pipe.scheduler.timesteps.unique())
    assert distinct == {"heun": 5, "kdpm2": 9, "pndm": 5}[scheduler]
    with DeepCacheHelper(pipe):
        assert kinds_of(case, pipe) == ("Fss" * calls)[:calls]


def test_trap_timestep_by_keyword():
    # And the timestep has to be given by position.
    unet = CASES["sd"].load().unet
    with DeepCacheHelper(unet), torch.no_grad(), kinds_of_calls(unet) as kinds:
        for timestep in torch.tensor([900, 700, 500, 300]):
            unet(**inputs2d_condition() | {"timestep": timestep})
    assert kinds == ["F", "s", "s", "F"]


def test_trap_second_generation():
    # DeepCache keeps its start timestep and its features: with another strength it starts shallow.
    case = CASES["sd-img2img"]
    pipe = case.load()
    with DeepCacheHelper(pipe):
        assert kinds_of(case, pipe, steps=8) == "FssFss"  # strength 0.8
        assert kinds_of(case, pipe, steps=8, strength=0.6) == "FssF"
        assert kinds_of(case, pipe, steps=8) == "FssFss"
    assert_as_fresh("sd-img2img", {"steps": 8, "strength": 0.6})


def test_trap_branches():
    # DeepCache finds the place of a branch by `% 3`, right only for two layers in each block.
    pipe = CASES["sd-instruct-pix2pix"].load()  # three levels of one layer: six skips
    case = CASES["sd-instruct-pix2pix"]
    assert_exact(case, pipe, steps=1)
    with DeepCacheHelper(pipe, interval=10, branch=2):
        case.run(pipe, steps=1)
        case.run(pipe, steps=2, callback_on_step_end=None)
    kept = []
    with DeepCacheHelper(pipe, interval=10, branch=2), counted_calls(pipe.unet) as calls:

        def ended(_pipe, step, _timestep, kwargs):
            kept[:] = sorted(name for name in calls if name.count(".") == 3)
            calls.clear()
            return kwargs

        case.run(pipe, steps=2, callback_on_step_end=ended)
    # Skip 0 is made by conv_in, 1 by the first level's layer, 2 by its downsampler.
    assert [name for name in kept if "resnets" in name or "samplers" in name] == [
        "down_blocks.0.downsamplers.0",
        "down_blocks.0.resnets.0",
        "up_blocks.1.resnets.1",
        "up_blocks.1.upsamplers.0",
        "up_blocks.2.resnets.0",
        "up_blocks.2.resnets.1",
    ]


def test_trap_memory():
    # DeepCache keeps the outputs of 42 layers. One is enough, and the next shallow step's input.
    case = CASES["sd"]
    pipe = case.load()

    def bytes_held(step_to_look_at=1):
        found = []

        def ended(_pipe, step, _timestep, kwargs):
            if step == step_to_look_at:
                gc.collect()
                storages = {
                    each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
                    for each in gc.get_objects()
                    if type(each) is torch.Tensor and not each.is_meta
                }
                found.append(sum(storages.values()))
            return kwargs

        case.run(pipe, callback_on_step_end=ended)
        return found[0]

    bytes_held()
    plain = bytes_held()
    feature = 2 * 8 * 8 * 8 * 4  # (batch, channels, height, width) in fp32
    with DeepCacheHelper(pipe, replay="reuse") as helper:
        assert bytes_held() == plain + feature
    assert helper.stats.cache_nbytes == feature
    assert bytes_held() == plain


def test_trap_skip_mode():
    # With any other `skip_mode`, DeepCache skips from step 0 on, with nothing to replay.
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, interval=2) as helper:
        for mode in ("non-uniform", "quad", None):
            with pytest.raises(InvalidSettingError, match="skip_mode must be 'uniform'"):
                helper.set_params(cache_interval=3, cache_branch_id=0, skip_mode=mode)
        assert helper.schedule == Uniform(2, 0)
        assert kinds_of(case, pipe) == "FsFsF"


def test_trap_instance_forward():
    # After removal, DeepCache, diffusers and accelerate leave a `forward` in the instance's
    # dictionary, which is found instead of the class's from then on.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    plain = case.run(pipe)
    before = trace(pipe.unet), trace(pipe.controlnet)
    with DeepCacheHelper(pipe):
        case.run(pipe)
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before
    for model in (pipe.unet, pipe.controlnet):
        assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(case.run(pipe), plain)


# --- what writes, or adds, into the features ----------------------------------------------------


@pytest.mark.parametrize("branch", [4, 5])
def test_trap_freeu(branch):
    # FreeU scales the hidden states in place: what was recorded would be scaled already, and what
    # is replayed again at each replay.
    pipe = CASES["sd"].load()
    arguments = inputs2d_condition()
    with torch.no_grad():
        without = pipe.unet(**arguments).sample
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
        with DeepCacheHelper(pipe, interval=3, branch=branch, replay="reuse") as helper:
            timesteps = torch.tensor([500, 500, 500, 1])[:3]
            outputs = [pipe.unet(**arguments | {"timestep": t}).sample for t in timesteps]
    assert counted(helper) == (1, 2)
    assert not torch.equal(outputs[0], without)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


class Controlled:
    """A call of the ControlNet, then one of the U-Net, by hand; each with its own prompt."""

    def __init__(self, pipe):
        self.pipe = pipe

    def residuals(self, timestep, *, seed=0, **options):
        arguments = self.inputs(timestep, seed)
        hint = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        return self.pipe.controlnet(**arguments, controlnet_cond=hint, return_dict=False, **options)

    def step(self, timestep, residuals, *, seed=0):
        down, mid = residuals
        return self.pipe.unet(
            **self.inputs(timestep, seed),
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    def inputs(self, timestep, seed):
        # The very same tensors each time: whose call it is, is told from the prompt's memory.
        made = vars(self).setdefault(f"_made_{seed}", inputs2d_condition(seed=seed))
        return made | {"timestep": timestep}


@pytest.mark.parametrize("branch", range(9))
def test_trap_controlnet(branch):
    # The residual for the middle is added behind the middle block. There the replayed feature
    # stands, which has it already: shapes clash, or agree by accident.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        whole = by_hand.residuals(TWICE[0])
        plain = by_hand.step(TWICE[0], whole)
    # First of a ControlNet that is cut along, then of one that is not.
    for residuals in (by_hand.residuals, lambda _timestep: whole):
        with DeepCacheHelper(pipe, branch=branch) as helper, torch.no_grad():
            full, shallow = (by_hand.step(t, residuals(t)) for t in TWICE)
        assert counted(helper) == (1, 1)
        assert torch.equal(full, plain)
        assert torch.equal(shallow, plain)


def test_trap_controlnet_guess_mode():
    # There the scale of a residual depends on how many there are: a cut ControlNet would give
    # others. It runs whole.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        plain = by_hand.residuals(TWICE[0], guess_mode=True)
    with DeepCacheHelper(pipe, branch=2) as helper, torch.no_grad():
        by_hand.step(TWICE[0], by_hand.residuals(TWICE[0], guess_mode=True))
        down, mid = by_hand.residuals(TWICE[1], guess_mode=True)
        assert all(torch.equal(*pair) for pair in zip(down, plain[0], strict=True))
        assert torch.equal(mid, plain[1])
        by_hand.step(TWICE[1], (down, mid))
    assert counted(helper) == (1, 1)
    with DeepCacheHelper(pipe), kinds_of_calls(pipe.controlnet) as kinds:
        assert kinds_of(case, pipe, guess_mode=True) == "FssFs"
    assert "".join(kinds) == "FFFFF"
    with DeepCacheHelper(pipe), kinds_of_calls(pipe.controlnet) as kinds:  # without, it is cut
        assert kinds_of(case, pipe) == "FssFs"
    assert "".join(kinds) == "FssFs"


def test_trap_controlnet_cut_unet_full():
    # The U-Net zips its skips with the residuals it is given: missing ones are never missed. Here
    # the first of two calls of a step is left out, so the second is foreseen as the first, shallow,
    # and turns out to be one that has to run in full.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        plain = by_hand.step(TWICE[1], by_hand.residuals(TWICE[1], seed=1), seed=1)
    with DeepCacheHelper(pipe) as helper, torch.no_grad():
        for seed in (0, 1):
            by_hand.step(TWICE[0], by_hand.residuals(TWICE[0], seed=seed), seed=seed)
        down, mid = by_hand.residuals(TWICE[1], seed=1)
        assert len(down) == 1
        assert torch.equal(by_hand.step(TWICE[1], (down, mid), seed=1), plain)
    assert counted(helper) == (3, 0)


@pytest.mark.parametrize("counts", [(2, 1, 2, 1, 2), (1, 1, 1, 1, 2)])
def test_trap_controlnet_cut_unet_full_in_the_last_step(counts):
    # After as many calls as the step before had, the last step let go of everything. One more ran
    # in full, with the few residuals that a cut ControlNet had given: shapes clashed in diffusers.
    pipe = CASES["sd-controlnet"].load()
    by_hand, timesteps = Controlled(pipe), torch.arange(len(counts), 0, -1) * 100
    with torch.no_grad():
        plain = by_hand.step(timesteps[-1], by_hand.residuals(timesteps[-1]), seed=1)
    with DeepCacheHelper(pipe, interval=10) as helper, torch.no_grad():
        for timestep, count in zip(timesteps, counts, strict=True):
            residuals = by_hand.residuals(timestep)
            outputs = [by_hand.step(timestep, residuals, seed=seed) for seed in range(count)]
    assert torch.equal(outputs[1], plain)
    assert helper.stats.shallow_calls >= len(counts) - 1


def test_trap_controlnet_cut_unet_full_with_changed_residuals():
    # As above, but what was done to the residuals cannot be done to new ones.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with DeepCacheHelper(pipe), torch.no_grad():
        for seed in (0, 1):
            by_hand.step(TWICE[0], by_hand.residuals(TWICE[0], seed=seed), seed=seed)
        down, mid = by_hand.residuals(TWICE[1], seed=1)
        with pytest.raises(ChangedResidualsError, match="ControlNetModel"):
            by_hand.step(TWICE[1], ([0.5 * each for each in down], mid), seed=1)


@pytest.mark.parametrize("between", ["paused", "reset", "set_params"])
def test_trap_controlnet_cut_unet_full_by_order(between):
    # As above, but it is the caller who wants a full call, after the ControlNet was cut.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        plain = by_hand.step(TWICE[1], by_hand.residuals(TWICE[1]))
    with DeepCacheHelper(pipe) as helper, torch.no_grad():
        by_hand.step(TWICE[0], by_hand.residuals(TWICE[0]))
        down, mid = by_hand.residuals(TWICE[1])
        assert len(down) == 1
        if between == "paused":
            with helper.paused():
                output = by_hand.step(TWICE[1], (down, mid))
        else:
            getattr(helper, between)(**{"cache_interval": 2} if between == "set_params" else {})
            output = by_hand.step(TWICE[1], (down, mid))
    assert torch.equal(output, plain)


@pytest.mark.parametrize("name", ["sd-adapter", "sdxl-adapter"])
def test_trap_t2i_adapter(name):
    # The U-Net pops the adapter's features off a list as its down blocks run. One that a skipped
    # block leaves there could be added to the replayed feature, in place.
    case = CASES[name]
    pipe = case.load()
    first = calls_of(pipe.unet, lambda: case.run(pipe, steps=1))[0]
    features = first["down_intrablock_additional_residuals"]
    assert len(features) == {"sd-adapter": 3, "sdxl-adapter": 4}[name]
    for branch in dissect(pipe.unet).branches:
        with DeepCacheHelper(pipe, branch=branch) as helper, torch.no_grad():
            outputs = []
            for timestep in TWICE:
                arguments = {key: copied(value) for key, value in first.items()}
                outputs.append(pipe.unet(**arguments | {"timestep": timestep})[0])
        assert counted(helper) == (1, 1)
        assert torch.equal(*outputs), branch
    with DeepCacheHelper(pipe):
        assert kinds_of(case, pipe) == "FssFs"


# --- shapes -------------------------------------------------------------------------------------


def test_trap_odd_sizes():
    # Where latents cannot be halved evenly, the U-Net reads off each skip how far to enlarge: what
    # stands in for a skip must have its shape.
    case = CASES["sd-inpaint-9"]  # four levels
    pipe = case.load()
    assert_exact(case, pipe, steps=1, height=24, width=40)  # latents of 12 × 20
    with DeepCacheHelper(pipe, branch=2):
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
    with DeepCacheHelper(pipe):
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
    with DeepCacheHelper(pipe, replay="reuse") as helper:
        assert scheduler_trace(pipe.scheduler) == before
        assert kinds_of(case, pipe) == "FFFssssssFFFsss"
        copied_dictionary = copy.deepcopy(vars(pipe.scheduler))
    assert vars(pipe.scheduler).keys() == copied_dictionary.keys()
    assert helper.stats.cache_nbytes == 3 * 2 * 8 * 2 * 64 * 4  # a feature for each view
    assert helper.stats.generations == 1
    assert_as_fresh("panorama", {"seed": 1}, {"view_batch_size": 2}, {})


@pytest.mark.parametrize("name", ["text-to-video-zero", "text-to-video-zero-sdxl"])
def test_trap_copied_scheduler(name):
    # A deep copy of a wrapped scheduler is refused, or drives the original one.
    case = CASES[name]
    pipe = case.load()
    before = scheduler_trace(pipe.scheduler)
    with DeepCacheHelper(pipe):
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


@pytest.mark.parametrize("name", SEVERAL_CALLS)
def test_trap_several_calls_at_a_timestep(name):
    # One feature for all calls of a step would be another call's; their number varies from step to
    # step, and some have gradients.
    case = CASES[name]
    pipe = case.load()
    with told(), DeepCacheHelper(pipe) as helper:
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
    with DeepCacheHelper(pipe) as helper, torch.no_grad():
        outputs = [
            [pipe.unet(**half | {"timestep": timestep})[0] for half in halves] for timestep in TWICE
        ]
    assert counted(helper) == (2, 2)
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(outputs[0][0], outputs[0][1])


# --- other layouts ------------------------------------------------------------------------------


def test_trap_k_blocks():
    # The latent upscaler's blocks have one skip each, however many layers.
    case = CASES["sd-latent-upscale"]
    pipe = case.load()
    assert dissect(pipe.unet).num_skips == 3  # of four levels of two layers: the deepest has none
    assert_exact(case, pipe, steps=1)
    with DeepCacheHelper(pipe):
        assert kinds_of(case, pipe, pipe.unet.down_blocks[-1]) == "FssFs"


def test_trap_second_stream():
    # Beside the hidden state a picture runs through score-SDE's blocks, and is made in the deep
    # ones too.
    case = CASES["score-sde-ve"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    with DeepCacheHelper(pipe):
        assert kinds_of(case, pipe) == "FFssssFFss"


@pytest.mark.parametrize(
    "name", ["kandinsky3", "stable-cascade-decoder", "dance-diffusion", "sd-controlnet-xs"]
)
def test_trap_other_layouts(name):
    # Their blocks are others, so what is right for Stable Diffusion's cuts them in wrong places.
    case = CASES[name]
    pipe = case.load()
    before = trace(case.unet(pipe))
    with DeepCacheHelper(pipe) as helper:
        case.run(pipe)
    assert counted(helper) == (2, 3)
    assert trace(case.unet(pipe)) == before
    assert_exact(case, pipe, steps=2)


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


@pytest.mark.parametrize("enabled", ["before", "after"])
def test_trap_model_offload(enabled):
    # accelerate puts a `forward` on the instance, and takes it away after each generation. With
    # DeepCache, pictures after the first came out distorted.
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe):
        expected = [case.run(pipe, seed=seed) for seed in (0, 1)]
    pipe = case.load()
    helper = DeepCacheHelper(pipe)
    if enabled == "before":
        helper.enable()
    pipe.enable_model_cpu_offload(device="cpu")
    helper.enable()
    assert "forward" in vars(pipe.unet)
    for seed in (0, 1):
        assert torch.equal(case.run(pipe, seed=seed), expected[seed])
    assert counted(helper) == (4, 6)
    helper.disable()
    pipe.remove_all_hooks()
    assert torch.equal(case.run(pipe), case.run(case.load()))


def test_trap_block_level_group_offloading():
    # Its hooks sit on the blocks, so blocks of a cut U-Net must be the same objects.
    require_group_offloading()
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, branch=2):
        expected = [case.run(pipe, seed=seed) for seed in (0, 1)]
    pipe = case.load()
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    with DeepCacheHelper(pipe, branch=2) as helper:
        assert [torch.equal(case.run(pipe, seed=seed), expected[seed]) for seed in (0, 1)] == [
            True,
            True,
        ]
    assert counted(helper) == (4, 6)


def test_trap_multistep_solvers():
    # In few steps they take the jumps between shallow and full outputs for derivatives. There are
    # schedules that begin in full, and features are extrapolated only where steps are many.
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), "dpm-multistep")
    with DeepCacheHelper(pipe, schedule=Growing(full_steps=4, power=2)):
        assert kinds_of(case, pipe, steps=8) == "FFFsFsss"
    pictures = {}
    for steps in (8, 60):
        for replay in ("extrapolate", "reuse"):
            with DeepCacheHelper(pipe, replay=replay):
                pictures[steps, replay] = case.run(pipe, steps=steps)
    assert torch.equal(pictures[8, "extrapolate"], pictures[8, "reuse"])
    assert not torch.equal(pictures[60, "extrapolate"], pictures[60, "reuse"])


def test_trap_children_that_are_none():
    # A child that was None from the start lies in the module's own dictionary, not among its
    # children, and has to be found and put back there.
    unet = UNETS["condition-no-mid-block"].build()
    upscaler = CASES["sd-latent-upscale"].load().unet
    assert vars(unet)["mid_block"] is None
    assert vars(upscaler)["mid_block"] is None
    assert vars(unet.down_blocks[-1])["downsamplers"] is None
    assert vars(unet.up_blocks[-1])["upsamplers"] is None
    before = trace(unet)
    for branch in dissect(unet).branches:
        with DeepCacheHelper(unet, branch=branch) as helper, torch.no_grad():
            for timestep in TWICE:
                unet(**inputs2d_condition() | {"timestep": timestep})
                assert vars(unet)["mid_block"] is None
                assert "mid_block" not in unet._modules
        assert counted(helper) == (1, 1)
        assert trace(unet) == before
    case = CASES["sd-latent-upscale"]
    pipe = case.load()
    before = trace(pipe.unet)
    with DeepCacheHelper(pipe):
        case.run(pipe)
    assert trace(pipe.unet) == before


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
    with DeepCacheHelper(pipe) as helper:
        case.run(pipe)
    handle.remove()
    assert keyword in keywords
    assert counted(helper) == tuple(counts)


@pytest.mark.parametrize("name", ["sd-img2img", "sd-inpaint", "sd-depth2img"])
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


@pytest.mark.parametrize("name", FOREIGN_TIMESTEPS)
def test_trap_timesteps_that_are_not_the_schedulers(name):
    # Functions of sigma, vectors of sigmas, the list of another scheduler: they stand in no list
    # that could be searched.
    case = CASES[name]
    pipe = case.load()
    with DeepCacheHelper(pipe) as helper:
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
    with DeepCacheHelper(pipe, interval=10):
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
    with told() as said, DeepCacheHelper(pipe) as helper:
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
    with told() as said, DeepCacheHelper(unet) as helper:
        for timestep, before in zip(TWICE, (2, 1), strict=True):
            for _ in range(before):
                assert torch.equal(gradient(timestep), plain)
            with torch.no_grad():
                outputs.append(unet(**arguments | {"timestep": timestep}).sample)
            assert torch.equal(gradient(timestep), plain)
    assert "gradients are enabled" in said[0]
    assert torch.equal(*outputs)
    assert counted(helper) == (6, 1)


@pytest.mark.parametrize(("name", "calls"), [("pix2pix-zero", 15), ("attend-and-excite", 31)])
def test_trap_gradients_in_pipelines(name, calls):
    # As above; and they read attention maps, so all the rest runs in full, too.
    case = CASES[name]
    plain = case.run(case.load())  # Pix2Pix-Zero leaves its attention processors behind
    pipe = case.load()
    with told() as said, DeepCacheHelper(pipe) as helper:
        assert torch.equal(case.run(pipe), plain)
    assert any("gradients are enabled" in each for each in said)
    assert counted(helper) == (calls, 0)


# --- what else looks at, or changes, the parts of a pipeline ------------------------------------


def test_trap_maybe_free_model_hooks():
    # At the end of each call it installs accelerate's hooks anew, and what had been put round the
    # U-Net's `forward` since is gone: the second generation would be plain.
    case = CASES["sd"]
    pipe = case.load()
    pipe.enable_model_cpu_offload(device="cpu")
    with DeepCacheHelper(pipe) as helper:
        for _ in range(3):
            forward = vars(pipe.unet)["forward"]
            assert kinds_of(case, pipe) == "FssFs"
            assert vars(pipe.unet)["forward"] is not forward
            assert helper.enabled


def test_trap_signatures():
    # Pipelines look which of `eta`, `generator` and `sigmas` a method takes.
    case = CASES["sd"]
    pipe = with_scheduler(case.load(), "euler")

    def seen():
        called = (
            *(pipe.scheduler.step, pipe.scheduler.set_timesteps, pipe.scheduler.scale_model_input),
            *(pipe.unet, pipe.unet.forward, pipe.unet._call_impl, pipe.__call__),
        )
        extra = pipe.prepare_extra_step_kwargs(None, 0.5)
        return [inspect.signature(each) for each in called], extra

    before = seen()
    compiled_call = inspect.signature(pipe.unet._call_impl)
    with DeepCacheHelper(pipe) as helper:
        assert seen() == before
        assert inspect.signature(pipe.unet._compiled_call_impl) == compiled_call
        case.run(pipe, steps=None, sigmas=[10.0, 5.0, 2.0, 1.0, 0.5, 0.0])
    assert counted(helper) == (2, 3)
    pipe = case.load()  # DDIM, which takes `eta`
    with DeepCacheHelper(pipe):
        assert pipe.prepare_extra_step_kwargs(None, 0.5) == {"eta": 0.5, "generator": None}


def test_trap_stand_in_for_the_unet():
    # Pipelines ask whether their U-Net is an instance of a class, and save its class's name.
    case = CASES["sd"]
    pipe = case.load()
    unet, forward = pipe.unet, UNet2DConditionModel.forward
    seen = []

    def look(pipe, _step, _timestep, kwargs):
        seen.append((pipe.unet, type(pipe.unet), pipe.components["unet"]))
        return kwargs

    with DeepCacheHelper(pipe):
        case.run(pipe, callback_on_step_end=look)
        assert type(pipe.unet).__call__ is torch.nn.Module.__call__
    assert all(a is unet and b is UNet2DConditionModel and c is unet for a, b, c in seen)
    assert len(seen) == 5
    assert UNet2DConditionModel.forward is forward


def layers_run(case, pipe, branch, kind):
    """The parts of that kind that run in a shallow step, by name."""
    unet = case.unet(pipe)
    deep = unet.mid_block
    with DeepCacheHelper(pipe, branch=branch), counted_calls(unet) as calls:
        last = {}

        def ended(_module, _args, _output):
            last.clear()
            last.update(calls)
            calls.clear()

        handle = unet.register_forward_hook(ended)
        case.run(pipe, steps=2)
        handle.remove()
    assert not any(module is deep and name in last for name, module in unet.named_modules())
    return {
        name: count
        for name, count in last.items()
        if name.split(".")[-2:-1] == [kind] and name.count(".") == 3
    }


def test_trap_motion_model():
    # Its blocks call the resnets by keyword; and if its temporal layers went on running, most of
    # the work would remain.
    case = CASES["animatediff"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    assert layers_run(case, pipe, 0, "motion_modules") == {"up_blocks.2.motion_modules.1": 1}
    assert layers_run(case, pipe, 0, "resnets") == {"up_blocks.2.resnets.1": 1}
    assert layers_run(case, pipe, 2, "motion_modules") == {
        "down_blocks.0.motion_modules.0": 1,
        "up_blocks.1.motion_modules.1": 1,
        "up_blocks.2.motion_modules.0": 1,
        "up_blocks.2.motion_modules.1": 1,
    }


def test_trap_temporal_layers():
    # As above: with DeepCache 0.90 of I2VGenXL's work remains.
    case = CASES["i2vgen-xl"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    for kind in ("resnets", "temp_convs", "attentions", "temp_attentions"):
        assert layers_run(case, pipe, 0, kind) == {f"up_blocks.1.{kind}.2": 1}


def test_trap_audioldm2():
    # It has several attentions for each resnet.
    case = CASES["audioldm2"]
    pipe = case.load()
    assert_exact(case, pipe, steps=1)
    block = pipe.unet.up_blocks[0]
    each = len(block.attentions) // len(block.resnets)
    assert (each, len(block.resnets)) == (3, 2)
    # Two resnets of the upper level, and one of the lower with all its attentions.
    assert layers_run(case, pipe, 2, "resnets") == {
        "down_blocks.0.resnets.0": 1,
        "up_blocks.0.resnets.1": 1,
        "up_blocks.1.resnets.0": 1,
        "up_blocks.1.resnets.1": 1,
    }
    assert layers_run(case, pipe, 2, "attentions") == {
        f"up_blocks.0.attentions.{number}": 1 for number in range(3, 6)
    }


def test_trap_repeated_blocks():
    # Stable Cascade runs some blocks several times in one call: what counts is the last run.
    case = CASES["stable-cascade-decoder"]
    pipe = case.load()
    unet = pipe.decoder
    assert_exact(case, pipe, steps=1)
    with counted_calls(unet) as plain:
        case.run(pipe, steps=1)
    repeated = {level: plain[f"up_blocks.{level}.0"] for level in range(4)}
    assert repeated == {0: 3, 1: 3, 2: 2, 3: 2}
    with DeepCacheHelper(pipe, interval=10), counted_calls(unet) as calls:
        case.run(pipe, steps=4)
    # Four calls, one of them in full.
    assert {level: calls[f"up_blocks.{level}.0"] for level in range(4)} == {0: 3, 1: 3, 2: 2, 3: 8}


def test_trap_hunyuan_controlnet():
    # Its blocks pop the residuals off their list, and what is left at the end raises.
    case = CASES["hunyuandit-controlnet"]
    pipe = case.load()
    first = calls_of(pipe.transformer, lambda: case.run(pipe, steps=1))[0]
    assert len(first["controlnet_block_samples"]) == dissect(pipe.transformer).num_skips == 4
    assert_exact(case, pipe, steps=1)
    for branch in range(4):
        with DeepCacheHelper(pipe, branch=branch) as helper:
            case.run(pipe)
        assert counted(helper) == (2, 3)


@pytest.mark.parametrize("name", ["sag", "attend-and-excite", "ledits"])
def test_trap_attention_maps(name):
    # They read attention maps of middle and deep blocks at each step; a shallow one would leave
    # them the maps of an earlier step.
    case = CASES[name]
    pipe = case.load()
    plain = case.run(pipe) if name != "ledits" else None
    pipe = case.load()
    with told() as said, DeepCacheHelper(pipe) as helper:
        made = case.run(pipe)
    assert any("the attention processor" in each for each in said)
    if name == "ledits":  # its inversion, where nobody reads maps yet, is shallow
        assert counted(helper) == (7, 3)
    else:
        assert torch.equal(made, plain)
        assert helper.stats.shallow_calls == 0


# --- loops --------------------------------------------------------------------------------------


def test_trap_several_loops():
    # One call of a pipeline may have several loops, the last with another batch or start.
    case = CASES["marigold-depth"]  # a loop for each member of an ensemble
    pipe = case.load()
    with DeepCacheHelper(pipe) as helper:
        assert kinds_of(case, pipe, steps=4, ensemble_size=3) == "FssF" * 3
    assert helper.stats.generations == 3

    case = CASES["animatediff"]
    pipe = case.load()
    pipe.enable_free_init(num_iters=2)
    with DeepCacheHelper(pipe) as helper:
        assert kinds_of(case, pipe) == "FssFs" * 2
    assert helper.stats.generations == 2

    case = CASES["text-to-video-zero"]  # one frame, then more; the second loop starts at step 1
    pipe = case.load()
    with DeepCacheHelper(pipe) as helper:
        kinds = kinds_of(case, pipe)
    assert helper.stats.generations == 2
    assert kinds == "Fss" + "FssF"

    case = CASES["pix2pix-zero"]
    pipe = case.load()
    with told(), DeepCacheHelper(pipe) as helper:
        case.run(pipe)
    assert helper.stats.generations == 2


def test_trap_enabling_twice():
    # DeepCache loses the originals then for good; and an attach that fails leaves half a patch.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    plain = case.run(pipe)
    before = trace(pipe.unet), trace(pipe.controlnet)
    first, second = DeepCacheHelper(pipe), DeepCacheHelper(pipe, interval=2)
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

    def fail(_companion):
        assert trace(pipe.unet) != before[0]
        raise MemoryError

    monkeypatch.setattr("deepcache_patch.helper.AttachedCompanion.attach", fail)
    with pytest.raises(MemoryError):
        DeepCacheHelper(pipe).enable()
    assert (trace(pipe.unet), trace(pipe.controlnet)) == before


@pytest.mark.parametrize("name", ["amused", "amused-img2img", "amused-inpaint"])
def test_trap_amused(name):
    # A U-ViT without a timestep and without long skips: there is nothing to replay.
    pipe = CASES[name].load()
    before = trace(pipe.transformer)
    for what in (pipe, pipe.transformer):
        with pytest.raises(UnsupportedModelError, match="UVit2DModel"):
            DeepCacheHelper(what)
    assert trace(pipe.transformer) == before
