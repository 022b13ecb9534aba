"""Which call of the steps before a call is the next of: what it is given says so, not its order.

Each began with a use in public in which a call replayed another call's feature, without a word.
"""

import weakref

import pytest
import torch
from builders.kinds_of_calls import counted
from builders.loops import Loop, held_bytes, timesteps_of
from builders.marks import mostly_slow
from builders.unets import (
    TEXT_WIDTH,
    UNETS,
    inputs2d,
    inputs2d_condition,
    unet2d,
    unet2d_condition,
)
from diffusers import DDIMScheduler, DiffusionPipeline
from zoo import CASES

from deepcache_patch import OUTPUT, DeepCacheHelper, DeepCacheWarning, Explicit, Uniform

BRANCHES = pytest.mark.parametrize("branch", [OUTPUT, 0], ids=["output", "branch 0"])


def prompts(count):
    return [inputs2d_condition(seed=seed)["encoder_hidden_states"] for seed in range(count)]


def plain(unet, steps, inputs=None):
    loop = Loop(unet, inputs)
    loop.run(steps)
    return loop.outputs


def said(embeds):
    return {"encoder_hidden_states": embeds}


# --- conditioning that changes from step to step ------------------------------------------------


@pytest.mark.parametrize("branch", mostly_slow([OUTPUT, 0], [0]), ids=["output", "branch 0"])
def test_prompts_that_alternate_run_in_full_with_one_warning(branch):
    # With interval 2 all full steps had the first prompt, and the second one was lost.
    a, b = prompts(2)
    unet, steps = unet2d_condition(), [[said((a, b)[step % 2])] for step in range(8)]
    expected = plain(unet, steps)
    with DeepCacheHelper(unet, schedule=Uniform(2, branch)) as helper:
        loop = Loop(unet)
        with pytest.warns(DeepCacheWarning, match="encoder_hidden_states") as caught:
            assert loop.run(steps) == "F F F F F F F F"
        assert len(caught) == 1
        assert held_bytes(helper) == 0
    assert all(map(torch.equal, loop.outputs, expected))


@pytest.mark.parametrize(
    "options",
    mostly_slow([{"schedule": Uniform(2)}, {"schedule": Uniform(5)}, {}], 1),
    ids=["interval 2", "interval 5", "default"],
)
def test_a_callback_that_alternates_prompts_gives_the_plain_picture(options):
    case = CASES["sd"]
    pipe = case.load()
    pair = [pipe.encode_prompt(each, "cpu", 1, False)[0] for each in ("a dog", "a small red cat")]
    pair = [torch.cat([torch.zeros_like(each), each]) for each in pair]
    first = []

    def alternate(_pipe, step, _timestep, kwargs):
        if step == 0:
            # The pipeline's own is alive in the next step, but not after it. That is so in some
            # versions of Python anyhow, where the frame's variables hold it.
            first.append(kwargs["prompt_embeds"])
        else:
            first.clear()
        kwargs["prompt_embeds"] = pair[(step + 1) % 2]
        return kwargs

    run = {
        "steps": 12,
        "callback_on_step_end": alternate,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    expected = case.run(pipe, **run)
    with (
        DeepCacheHelper(pipe, **options) as helper,
        pytest.warns(DeepCacheWarning, match="encoder_hidden_states"),
    ):
        assert torch.equal(case.run(pipe, **run), expected)
    assert counted(helper) == (12, 0)


@BRANCHES
def test_one_edit_midway_costs_one_full_step(branch):
    a, b = prompts(2)
    unet, steps = unet2d_condition(), [[said(a if step < 4 else b)] for step in range(8)]
    expected = plain(unet, steps)
    with DeepCacheHelper(unet, schedule=Uniform(6, branch)):
        loop = Loop(unet)
        assert loop.run(steps) == "F s s s F s F s"
        assert torch.equal(loop.outputs[4], expected[4])


@BRANCHES
def test_an_edit_is_seen_in_the_last_two_steps_of_a_loop_that_was_broken_off(branch):
    # What is left of a longer loop after a reset, a failed call or a traced one was taken for a
    # generation of two steps, in which a conditioning that is another was not told from one that is
    # made anew: the second replayed what the first prompt had recorded.
    a, b = prompts(2)
    unet, timesteps = unet2d_condition(), timesteps_of(6)
    expected = plain(unet, [[said(a)]] * 5 + [[said(b)]])
    with DeepCacheHelper(unet, schedule=Uniform(6, branch)) as helper:
        loop = Loop(unet)
        for timestep in timesteps[:4]:
            loop.step(timestep, said(a))
        helper.reset()
        loop.step(timesteps[4], said(a))
        loop.step(timesteps[5], said(b))
    assert "".join(loop.kinds) == "F s s s F F"
    assert torch.equal(loop.outputs[5], expected[5])


@BRANCHES
def test_an_edit_is_seen_in_a_loop_of_two_steps(branch):
    # There another prompt got what the first had recorded.
    a, b = prompts(2)
    unet, steps = unet2d_condition(), [[said(a)], [said(b)]]
    expected = plain(unet, steps)
    with DeepCacheHelper(unet, schedule=Uniform(2, branch)):
        loop = Loop(unet)
        assert loop.run(steps) == "F F"
    assert all(map(torch.equal, loop.outputs, expected))


@BRANCHES
def test_an_edit_in_place_is_one(branch):
    (a,) = prompts(1)
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(6, branch)):
        loop = Loop(unet)
        for step, timestep in enumerate(timesteps_of(8)):
            if step == 4:
                a[:, 1:3] *= -1
            loop.step(timestep, said(a))
    assert "".join(loop.kinds) == "F s s s F s F s"


@pytest.mark.parametrize("count", [1, 2], ids=["one call", "two calls"])
@BRANCHES
def test_conditioning_made_anew_for_each_step_keeps_its_speed(branch, count):
    # Its memory is another at each step, or, by chance, the one that another call's had.
    unet, embeds = unet2d_condition(), prompts(count)
    with DeepCacheHelper(unet, schedule=Uniform(3, branch)):
        loop = Loop(unet)
        for timestep in timesteps_of(6):
            loop.step(timestep, *(said(each.clone()) for each in embeds))
            loop.outputs.clear()
    full, shallow = "F" * count, "s" * count
    assert "".join(loop.kinds) == " ".join([full, shallow, shallow] * 2)


def test_conditioning_written_anew_into_one_buffer_keeps_its_speed():
    unet, (a,) = unet2d_condition(), prompts(1)
    buffer = a.clone()
    with DeepCacheHelper(unet, schedule=Uniform(3)):
        loop = Loop(unet)
        for timestep in timesteps_of(6):
            loop.step(timestep, said(buffer.copy_(a)))
    assert "".join(loop.kinds) == "F s s F s s"


def test_conditioning_let_go_of_late_costs_two_full_steps():
    # A callback's dictionary, or a frame's variables, hold the last one for one more step. Two
    # prompts that take turns look so at first, if the very first is the pipeline's own.
    unet, (a,), late = unet2d_condition(), prompts(1), []
    with DeepCacheHelper(unet, schedule=Uniform(4)):
        loop = Loop(unet)
        for timestep in timesteps_of(8):
            late = [*late[-1:], a.clone()]
            loop.step(timestep, said(late[-1]))
    assert "".join(loop.kinds) == "F F F s F s s s"


def test_conditioning_is_not_kept_alive_by_what_is_remembered_of_it():
    unet, (a,) = unet2d_condition(), prompts(1)
    with DeepCacheHelper(unet, schedule=Uniform(9)) as helper:
        loop, given = Loop(unet), []
        for timestep in timesteps_of(6)[:5]:
            prompt = a.clone()
            given.append(weakref.ref(prompt))
            loop.step(timestep, said(prompt))
            del prompt
        assert helper.stats.full_calls == 1
        assert [each() for each in given] == [None] * 5


# --- calls that begin, end or change places midway ----------------------------------------------


def labelled(labels):
    return {"class_labels": labels}


def kept_labels():
    return [labelled(torch.full((2,), label)) for label in (0, 1)]


class FreshLabels(dict):
    """Makes the labels anew for each call, as by hand-written loops."""

    def __init__(self, label):
        super().__init__(class_labels=None)
        self.label = label

    def __ror__(self, other):
        return other | labelled(torch.full((2,), self.label))


def _by_label():
    return unet2d(num_class_embeds=3)


GUIDED = {
    "text": (unet2d_condition, inputs2d_condition, lambda: [said(each) for each in prompts(2)]),
    "labels": (_by_label, inputs2d, kept_labels),
    "fresh labels": (_by_label, inputs2d, lambda: [FreshLabels(0), FreshLabels(1)]),
}
guided = pytest.mark.parametrize("kind", ["text", "labels", "fresh labels"])


@guided
@BRANCHES
def test_guidance_that_begins_midway_runs_its_new_call_in_full(kind, branch):
    # The unconditional call came first, and replayed what the conditional one had recorded.
    build, inputs, given = GUIDED[kind]
    unet, (without, with_it) = build(), given()
    steps = [[with_it]] * 3 + [[without, with_it]] * 3
    expected = plain(unet, steps, inputs())
    with DeepCacheHelper(unet, schedule=Uniform(9, branch), replay="reuse"):
        loop = Loop(unet, inputs())
        # The conditional call goes on with its own record.
        assert loop.run(steps) == "F s s Fs ss ss"
    assert torch.equal(loop.outputs[3], expected[3])
    if branch == OUTPUT:
        assert torch.equal(loop.outputs[4], loop.outputs[0])
        assert torch.equal(loop.outputs[5], expected[3])


@guided
@BRANCHES
def test_guidance_that_ends_midway_does_not_hand_its_feature_on(kind, branch):
    build, inputs, given = GUIDED[kind]
    unet, (without, with_it) = build(), given()
    steps = [[without, with_it]] * 2 + [[with_it]] * 3
    expected = plain(unet, steps, inputs())
    with DeepCacheHelper(unet, schedule=Uniform(9, branch)):
        loop = Loop(unet, inputs())
        assert loop.run(steps) == "FF ss F s s"
    assert torch.equal(loop.outputs[4], expected[4])


@BRANCHES
def test_guidance_in_every_second_step_keeps_both_records(branch):
    unet, (without, with_it) = unet2d_condition(), map(said, prompts(2))
    steps = [[without, with_it], [with_it]] * 3
    with DeepCacheHelper(unet, schedule=Uniform(9, branch)):
        assert Loop(unet).run(steps) == "FF F ss F ss F"


@pytest.mark.parametrize(
    "given",
    [
        lambda embeds: {"added_cond_kwargs": {"text_embeds": embeds, "time_ids": TIME_IDS}},
        lambda embeds: {"added_cond_kwargs": {"text_embeds": TEXT, "time_ids": embeds[:, :6]}},
    ],
    ids=["pooled", "sizes"],
)
def test_pooled_conditioning_tells_calls_apart(given):
    unet, inputs = UNETS["condition-sdxl"].build(), UNETS["condition-sdxl"].inputs()
    width = inputs["added_cond_kwargs"]["text_embeds"].shape[1]
    without, with_it = (given(torch.randn(2, width)) for _ in range(2))
    steps = [[with_it]] * 2 + [[without, with_it]] * 2
    expected = plain(unet, steps, inputs)
    with DeepCacheHelper(unet, schedule=Uniform(9)):
        loop = Loop(unet, inputs)
        assert loop.run(steps) == "F s Fs ss"
    assert torch.equal(loop.outputs[2], expected[2])


TEXT = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
TIME_IDS = torch.ones(2, 6)


def test_the_views_of_a_step_know_which_of_them_they_are_when_calls_before_them_begin():
    # Two views with the same prompt, then guidance: by order, the first view's guided call had the
    # place of the second's.
    unet, (without, with_it) = unet2d_condition(), map(said, prompts(2))
    views = [{"sample": inputs2d_condition(seed=seed)["sample"]} for seed in (5, 6)]
    unguided = [view | with_it for view in views]
    both = [view | each for view in views for each in (without, with_it)]
    with DeepCacheHelper(unet, schedule=Uniform(9, OUTPUT), replay="reuse"):
        loop = Loop(unet)
        assert loop.run([unguided, both, both]) == "FF FsFs ssss"
    first, second = loop.outputs[:2]
    assert torch.equal(loop.outputs[3], first)
    assert torch.equal(loop.outputs[5], second)


# --- windows ------------------------------------------------------------------------------------


def windows(starts, width=4):
    """Windows of 4 rows each of a canvas, as views."""
    canvas = inputs2d_condition(size=(16, 8))["sample"]
    return [{"sample": canvas[:, :, start : start + width]} for start in starts]


@pytest.mark.parametrize("branch", mostly_slow([OUTPUT, 0], 1), ids=["output", "branch 0"])
def test_windows_that_move_run_in_full_with_one_warning(branch):
    # Every window replayed the feature of what had been in another place.
    unet = unet2d_condition()
    steps = [windows([shift, shift + 4]) for shift in (0, 2, 4, 6, 8, 0)]
    expected = plain(unet, steps)
    with DeepCacheHelper(unet, schedule=Uniform(9, branch)):
        loop = Loop(unet)
        with pytest.warns(DeepCacheWarning, match="the place of its sample") as caught:
            assert loop.run(steps) == "FF FF FF FF FF FF"
        assert len(caught) == 1
    assert all(map(torch.equal, loop.outputs, expected))


@BRANCHES
def test_windows_at_fixed_places_keep_their_speed(branch):
    unet = unet2d_condition()
    steps = [windows([0, 4, 8, 12]) for _ in range(6)]
    with DeepCacheHelper(unet, schedule=Uniform(3, branch)):
        assert Loop(unet).run(steps) == "FFFF ssss ssss FFFF ssss ssss"


def test_strided_windows_are_others_than_those_in_a_row():
    # A context's stride: same start, same shape.
    unet, canvas = unet2d_condition(), inputs2d_condition(size=(16, 8))["sample"]
    rows, strided = {"sample": canvas[:, :, :4]}, {"sample": canvas[:, :, :8:2]}
    with DeepCacheHelper(unet, schedule=Uniform(9)):
        assert Loop(unet).run([[rows], [rows], [strided], [strided]]) == "F s F s"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_entries_of_a_tensor_of_all_steps_are_one_picture(count):
    # LEDITS++ and other inversions keep the sample of each step in one tensor.
    unet, texts = unet2d_condition(), prompts(count)
    trajectory = torch.stack([inputs2d_condition()["sample"]] * 6)
    steps = [[{"sample": each} | said(text) for text in texts] for each in trajectory]
    with DeepCacheHelper(unet, schedule=Uniform(3)):
        kinds = Loop(unet).run(steps)
    assert kinds == " ".join([count * "F", count * "s", count * "s"] * 2)


def test_entries_of_several_pictures_in_a_step_are_not_those_of_one():
    unet = unet2d_condition()
    trajectory = torch.stack([inputs2d_condition()["sample"]] * 8)
    steps = [[{"sample": trajectory[2 * step + part]} for part in (0, 1)] for step in range(4)]
    with (
        DeepCacheHelper(unet, schedule=Uniform(9)),
        pytest.warns(DeepCacheWarning, match="the place of its sample"),
    ):
        assert Loop(unet).run(steps) == "FF FF FF FF"


# --- calls that no other step follows -----------------------------------------------------------


class Referring(DiffusionPipeline):
    """Its reference U-Net is called once for each picture, at a timestep of its own."""

    def __init__(self, reference_unet, unet, scheduler):
        super().__init__()
        self.register_modules(reference_unet=reference_unet, unet=unet, scheduler=scheduler)

    def __call__(self, steps=3, timestep=0):
        self.scheduler.set_timesteps(steps)
        arguments = inputs2d_condition()
        with torch.no_grad():
            given = {"timestep": torch.tensor(timestep)}
            self.reference_unet(**arguments | given)
            for each in self.scheduler.timesteps:
                arguments["sample"] = self.unet(**arguments | {"timestep": each}).sample


@pytest.mark.parametrize(("timestep", "features"), mostly_slow([(1234, 1), (0, 0)], quick=1))
def test_a_reference_unet_holds_no_more_with_each_picture(timestep, features):
    small = {"layers_per_block": 1, "block_out_channels": (8, 16)}
    unets = (unet2d_condition(seed=seed, **small) for seed in (1, 0))
    pipe = Referring(*unets, DDIMScheduler())
    one_feature = 2 * 8 * 8 * 8 * 4
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        attached = {each.name: each for each in helper._attachment.unets}["reference_unet"]
        held = []
        for _ in range(70):
            pipe(steps=1, timestep=timestep)
            held.append(sum(each.cache.nbytes for each in attached._sessions))
    assert set(held) == {features * one_feature}
    assert attached.stats.full_calls == 70


def test_a_stream_of_pictures_in_one_step_each_holds_nothing_and_is_not_warned_of():
    pipe = CASES["sd"].load()
    pipe.scheduler.set_timesteps(1)
    arguments = inputs2d_condition() | {"encoder_hidden_states": torch.zeros(2, 7, TEXT_WIDTH)}
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper, torch.no_grad():
        for _ in range(70):
            pipe.unet(**arguments | {"timestep": pipe.scheduler.timesteps[0]})
            assert held_bytes(helper) == 0
    assert counted(helper) == (70, 0)


def test_a_plan_goes_on_after_a_step_that_was_run_in_full_for_its_conditioning():
    a, b = prompts(2)
    unet, steps = unet2d_condition(), [[said(a if step < 2 else b)] for step in range(6)]
    with DeepCacheHelper(unet, schedule=Explicit(["full", 0, 0, OUTPUT, "full", 0])) as helper:
        Loop(unet).run(steps)
        assert helper.last_generations["unet"].plan == ("full", 0, "full", OUTPUT, "full", 0)
