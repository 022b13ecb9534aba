"""Residuals that somebody weighs, masks or sums on their way are never missing or wrong."""

import functools
from contextlib import suppress

import pytest
import torch
from builders.kinds_of_calls import kinds_of_calls, told
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition
from conftest import counted_calls
from diffusers import StableDiffusionControlNetPipeline
from zoo import CASES

from deepcache_patch import FULL, DeepCacheHelper, Explicit, NoiseAware, Uniform
from deepcache_patch.errors import ChangedResidualsError
from deepcache_patch.running.controlnet import AttachedControlNet

STEPS = 10
SCHEDULES = [
    pytest.param(Uniform(3), id="branch 0"),
    pytest.param(NoiseAware(2), id="default"),
]


def masked(down, middle):
    masks = [torch.linspace(0, 1, each.shape[-1], dtype=each.dtype) for each in (*down, middle)]
    *down, middle = [each * mask for each, mask in zip((*down, middle), masks, strict=True)]
    return down, middle


def weighted_by_depth(down, middle):
    # As guess mode does: how many there are, decides.
    *weights, last = torch.logspace(-1, 0, len(down) + 1)
    return [each * weight for each, weight in zip(down, weights, strict=True)], middle * last


def weighted_in_place(down, middle):
    for each in (*down, middle):
        each.mul_(0.5)
    return down, middle


def weighted_middle(down, middle):
    return down, 0.5 * middle


def given_weights(down, middle):
    weights = [0.1 * (place + 1) for place in range(9)]
    return [each * weight for each, weight in zip(down, weights, strict=True)], middle


def shallow_ones_alone(down, middle):
    return [*down[:2], *map(torch.zeros_like, down[2:])], torch.zeros_like(middle)


def moved(down, middle):
    return [each.clone() for each in down], middle.clone()


def loop(pipe, change, *, every=1, guided_from=0, controlled_from=0, changed_from=0, nets=1):
    """Ten steps by hand: a ControlNet in every so many steps, and guidance from one on."""
    prompts = inputs2d_condition()["encoder_hidden_states"]
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, *inputs2d_condition()["sample"].shape[1:], generator=generator)
    hint = torch.rand(1, 3, 16, 16, generator=generator)
    controlnets = [pipe.controlnet, *([pipe.another] if nets == 2 else [])]
    pipe.scheduler.set_timesteps(STEPS)
    residuals = {}
    with torch.no_grad():
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            batch = 2 if step >= guided_from else 1
            both, conditioning = sample.repeat(batch, 1, 1, 1), prompts[:batch]
            if step >= controlled_from and step % every == 0:
                outputs = [
                    controlnet(
                        both,
                        timestep,
                        encoder_hidden_states=conditioning,
                        controlnet_cond=hint.repeat(batch, 1, 1, 1),
                        return_dict=False,
                    )
                    for controlnet in controlnets
                ]
                down, middle = outputs[0]
                if nets == 2:
                    other, its_middle = outputs[1]
                    down = [sum(pair) for pair in zip(down, other, strict=True)]
                    middle = middle + its_middle
                del outputs
                if change is not None and step >= changed_from:
                    down, middle = change(down, middle)
                residuals = {
                    "down_block_additional_residuals": down,
                    "mid_block_additional_residual": middle,
                }
            predicted = pipe.unet(
                both, timestep, encoder_hidden_states=conditioning, **residuals
            ).sample
            if batch == 2:
                unguided, guided = predicted.chunk(2)
                predicted = unguided + 3 * (guided - unguided)
            sample = pipe.scheduler.step(predicted, timestep, sample).prev_sample
    return sample


def full_at(*steps):
    return Explicit([FULL if step in steps else 0 for step in range(STEPS)])


class TwoControlNets(StableDiffusionControlNetPipeline):
    """A pipeline with two of them that are no `MultiControlNetModel`."""

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        controlnet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        another=None,
    ):
        parts = {name: part for name, part in locals().items() if name[0] != "_"}
        del parts["self"], parts["another"]
        super().__init__(**parts)
        self.register_modules(another=another)


def with_whole_controlnets(monkeypatch, pipe, schedule, change, **how):
    with monkeypatch.context() as patched, DeepCacheHelper(pipe, schedule=schedule) as helper:
        patched.setattr(AttachedControlNet, "_branch", lambda *_: None)
        picture = loop(pipe, change, **how)
        return picture, helper.stats.shallow_calls


LOOPS = {
    "every step": {},
    "every second step": {"every": 2},
    "guidance midway": {"guided_from": 5},
    "control midway": {"controlled_from": 4},
}


ROWS = [
    (masked, "every second step"),
    (masked, "guidance midway"),
    (weighted_by_depth, "every step"),
    (weighted_in_place, "every second step"),
    (weighted_middle, "guidance midway"),
    (given_weights, "control midway"),
    (shallow_ones_alone, "every second step"),
    (moved, "guidance midway"),
]


#: In place and not, in loops that differ.
QUICK_ROWS = [(weighted_in_place, "every second step"), (masked, "guidance midway")]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("change", "how"), mostly_slow(ROWS, QUICK_ROWS))
def test_a_controlnet_whose_residuals_are_changed_is_whole(change, how, schedule, monkeypatch):
    pipe, arguments = CASES["sd-controlnet"].load(), LOOPS[how]
    expected, shallow = with_whole_controlnets(monkeypatch, pipe, schedule, change, **arguments)
    assert shallow >= 3
    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        with told() as said, counted_calls(pipe.controlnet) as calls:
            pictures = [loop(pipe, change, **arguments) for _ in range(2)]
        assert helper.stats.shallow_calls == 2 * shallow
    assert all(torch.equal(each, expected) for each in pictures)
    assert calls["mid_block"] == calls[""] == calls["conv_in"]
    assert len(said) == 1
    assert said[0].startswith("ControlNetModel runs whole on every step")
    assert "DeepCacheHelper(pipe.unet)" in said[0]


@pytest.mark.parametrize("schedule", mostly_slow(SCHEDULES, ["default"]))
@pytest.mark.parametrize("how", mostly_slow(LOOPS, ["every step", "guidance midway"]))
def test_a_controlnet_whose_residuals_are_not_changed_is_cut(how, schedule, monkeypatch):
    pipe, arguments = CASES["sd-controlnet"].load(), LOOPS[how]
    expected, shallow = with_whole_controlnets(monkeypatch, pipe, schedule, None, **arguments)
    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        with kinds_of_calls(pipe.controlnet) as kinds:
            assert torch.equal(loop(pipe, None, **arguments), expected)
        assert helper.stats.shallow_calls == shallow
    assert "s" in kinds


@pytest.mark.parametrize("schedule", mostly_slow(SCHEDULES, ["branch 0"]))
@pytest.mark.parametrize("how", mostly_slow(["every second step", "guidance midway"], 1))
def test_two_controlnets_whose_residuals_are_summed_are_whole(how, schedule, monkeypatch):
    pipe, arguments = CASES["sd-controlnet"].load(), LOOPS[how] | {"nets": 2}
    pipe = TwoControlNets(another=CASES["sd-controlnet"].load().controlnet, **pipe.components)
    expected, _ = with_whole_controlnets(monkeypatch, pipe, schedule, None, **arguments)
    with (
        DeepCacheHelper(pipe, schedule=schedule),
        told() as said,
        kinds_of_calls(pipe.controlnet) as first,
        kinds_of_calls(pipe.another) as second,
    ):
        assert torch.equal(loop(pipe, None, **arguments), expected)
    assert set(first) == set(second) == {"F"}
    assert len(said) == 1


@pytest.mark.parametrize("change", mostly_slow([masked, weighted_in_place], 1))
def test_without_a_shallow_step_nothing_is_said(change):
    pipe = CASES["sd-controlnet"].load()
    plain = loop(pipe, change)
    with DeepCacheHelper(pipe, schedule=Uniform(1)):
        assert torch.equal(loop(pipe, change), plain)


@pytest.mark.parametrize(
    ("written", "kept"),
    mostly_slow(
        [(masked, True), (masked, False), (weighted_in_place, True), (weighted_middle, False)],
        [(weighted_in_place, True), (weighted_middle, False)],
    ),
)
def test_what_changes_midway_is_refused_by_name_where_residuals_are_missing(written, kept):
    # The ControlNet is cut in step 4, whose residuals a full step 5 gets once more.
    pipe, schedule = CASES["sd-controlnet"].load(), full_at(0, 5)
    held = []

    def change(down, middle):
        if kept:
            held.append((down, middle))
        return written(down, middle)

    how = {"every": 2, "changed_from": 4}
    with DeepCacheHelper(pipe, schedule=schedule):
        with pytest.raises(ChangedResidualsError, match=r"DeepCacheHelper\(pipe\.unet\)"):
            loop(pipe, change, **how)
        # Once more, as the error says: now it is whole.
        with told() as said, kinds_of_calls(pipe.controlnet) as kinds:
            loop(pipe, change, **how)
        assert len(said) == 1
        assert set(kinds) == {"F"}
    # The cure that it names. It knows no scheduler, so the same is replayed unchanged there.
    with DeepCacheHelper(pipe, schedule=schedule, replay="reuse"), told():
        with suppress(ChangedResidualsError):
            loop(pipe, change, **how)
        again = loop(pipe, change, **how)
    with DeepCacheHelper(pipe.unet, schedule=schedule, replay="reuse"):
        assert torch.equal(loop(pipe, change, **how), again)


def test_a_change_seen_in_a_shallow_step_makes_it_whole_from_then_on():
    pipe = CASES["sd-controlnet"].load()
    with (
        DeepCacheHelper(pipe, schedule=full_at(0, 7)),
        told() as said,
        kinds_of_calls(pipe.controlnet) as kinds,
    ):
        loop(pipe, masked, changed_from=3)
    assert "".join(kinds) == "FsssFFFFFF"
    assert len(said) == 1


def test_in_inference_mode_writes_are_noticed_before_residuals_are_made_anew():
    # It counts no writes.
    pipe = CASES["sd-controlnet"].load()
    how = {"every": 2, "changed_from": 4}
    with torch.inference_mode(), DeepCacheHelper(pipe, schedule=full_at(0, 5)):
        with pytest.raises(ChangedResidualsError, match="ControlNetModel"):
            loop(pipe, weighted_in_place, **how)
        loop(pipe, None, every=2)


def test_where_all_steps_become_full_midway_residuals_are_made_anew():
    pipe = CASES["sd-controlnet"].load()

    def through(target):
        with DeepCacheHelper(target, schedule=Uniform(3), replay="reuse") as helper:

            def run_in_full(down, middle):
                helper.set(interval=1)
                return down, middle

            # From step 4 on: its ControlNet call was cut, if at all.
            with kinds_of_calls(pipe.controlnet) as kinds:
                return loop(pipe, run_in_full, changed_from=4), "".join(kinds)

    cut, kinds = through(pipe)
    assert kinds.startswith("FssFsF")
    whole, kinds = through(pipe.unet)
    assert set(kinds) == {"F"}
    assert torch.equal(cut, whole)


def test_a_helper_that_is_enabled_anew_looks_anew():
    pipe = CASES["sd-controlnet"].load()
    helper = DeepCacheHelper(pipe, schedule=Uniform(3)).enable()
    with told():
        loop(pipe, masked)
    with kinds_of_calls(pipe.controlnet) as kinds:
        loop(pipe, None)
    assert set(kinds) == {"F"}
    helper.disable()
    helper.enable()
    with kinds_of_calls(pipe.controlnet) as kinds:
        loop(pipe, None)
    assert "".join(kinds) == "FssFssFssF"


def _by_hook(controlnet, change):
    def hook(_module, _args, output):
        return change(*output)

    handle = controlnet.register_forward_hook(hook)
    return handle.remove


def _by_forward(controlnet, change):
    inner = controlnet.forward

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        return change(*inner(*args, **kwargs))

    controlnet.forward = forward
    return lambda: vars(controlnet).pop("forward")


def _by_class(controlnet, change):
    kind = type(controlnet)

    def forward(self, sample, timestep, **kwargs):
        return change(*kind.forward(self, sample, timestep, **kwargs))

    def undo():
        controlnet.__class__ = kind

    controlnet.__class__ = type("Weighing", (kind,), {"forward": forward})
    return undo


@pytest.mark.parametrize("schedule", mostly_slow(SCHEDULES, ["default"]))
@pytest.mark.parametrize("how", mostly_slow([_by_hook, _by_forward, _by_class], 1))
def test_a_controlnet_that_weighs_in_its_own_call_is_whole(how, schedule, monkeypatch):
    pipe = CASES["sd-controlnet"].load()
    undo = how(pipe.controlnet, given_weights)
    expected, _ = with_whole_controlnets(monkeypatch, pipe, schedule, None)
    with DeepCacheHelper(pipe, schedule=schedule):
        with told() as said, counted_calls(pipe.controlnet) as calls:
            assert torch.equal(loop(pipe, None), expected)
        assert len(said) == 1
        assert calls["mid_block"] == calls["conv_in"] == STEPS
    undo()
    with DeepCacheHelper(pipe, schedule=schedule), counted_calls(pipe.controlnet) as calls:
        loop(pipe, None)
    assert calls["mid_block"] < calls["conv_in"] == STEPS


def test_what_a_broken_off_generation_gave_is_not_taken_for_changed_later():
    # A traceback keeps it, as a notebook does; guess mode gives residuals that nobody remembers.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    kept = []

    def stop(_pipe, step, _timestep, inputs):
        if step == 4:
            raise KeyboardInterrupt
        return inputs

    with DeepCacheHelper(pipe, schedule=Uniform(3)):
        try:
            case.run(pipe, steps=8, callback_on_step_end=stop)
        except KeyboardInterrupt as error:
            kept.append(error)
        case.run(pipe, steps=8, guess_mode=True)
        with kinds_of_calls(pipe.controlnet, pipe.controlnet.controlnet_mid_block) as kinds:
            case.run(pipe, steps=8)
    assert "".join(kinds) == "FssFssFs"
