"""The layout of guided-diffusion, CompVis, sgm, A1111 and ComfyUI: blocks of layers."""

import pytest
import torch
from builders.bare_models import (
    assert_fits_by,
    assert_helper_works,
    assert_runs_only,
    refusal_of,
)
from builders.layouts.original import (
    KINDS,
    SIZES,
    WIDTH,
    ComfyUNet,
    CompVisUNet,
    Layers,
    build,
    inputs,
)
from builders.unets import unet2d, unet2d_condition
from conftest import assert_exact_at_every_branch
from torch import nn

from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.anatomy.original import OriginalAnatomy
from deepcache_patch.cutting.features import Recorder, StandIn

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("name", SIZES)
def test_skips_are_counted(name):
    options, skips = SIZES[name]
    anatomy = dissect(build(CompVisUNet, **options))
    assert isinstance(anatomy, OriginalAnatomy)
    assert anatomy.num_skips == skips
    assert anatomy.branches == range(skips)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_a_shallow_call_is_exact_at_every_branch(name, kind):
    assert_exact_at_every_branch(build(kind, **SIZES[name][0]), lambda: inputs(kind))


@pytest.mark.parametrize("name", ["2-levels", "3-levels-2-layers"])
def test_odd_sizes_are_exact_where_layers_are_run_one_by_one(name):
    assert_exact_at_every_branch(
        build(ComfyUNet, **SIZES[name][0]), lambda: inputs(ComfyUNet, (9, 11))
    )


def test_without_a_middle_block_the_deepest_branch_would_leave_nothing_out():
    unet = build(ComfyUNet, middle=False)
    assert dissect(unet).branches == range(3)
    assert_exact_at_every_branch(unet, lambda: inputs(ComfyUNet))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shallow_call_runs_what_lies_above_the_branch(kind):
    unet = build(kind, channels=(4, 8, 6), layers=2)
    number = len(unet.input_blocks)

    def layers(path):
        # By layers, because ComfyUI does not call blocks.
        return [f"{path}.{i}" for i in range(len(unet.get_submodule(path)))]

    def kept(branch):
        count = branch + 1 if branch >= 0 else number
        for i in range(count):
            yield from layers(f"input_blocks.{i}")
            yield from layers(f"output_blocks.{number - 1 - i}")
        if branch < 0:
            yield from layers("middle_block")

    assert_runs_only(unet, lambda: inputs(kind), kept)


def test_a_shallow_call_refreshes_every_shallower_branch():
    for kind in KINDS:
        unet = build(kind)
        anatomy, stand_in = dissect(unet), StandIn()
        recorders = {branch: Recorder() for branch in anatomy.branches}
        with anatomy.cut(None, stand_in, recorders).applied():
            unet(**inputs(kind))
        deepest = anatomy.branches[-1]
        stand_in.feature = recorders.pop(deepest).take()
        with anatomy.cut(deepest, stand_in, recorders).applied():
            plain = unet(**inputs(kind, timestep=400.0))
        for branch, recorder in recorders.items():
            stand_in.feature = recorder.take()
            with anatomy.cut(branch, stand_in, {}).applied():
                assert torch.equal(unet(**inputs(kind, timestep=400.0)), plain)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"control": [torch.zeros(())]}, "control"),
        ({"control": []}, "control"),
        ({"control": None}, None),
        ({"transformer_options": {"patches": {"attn1_patch": [print]}}}, "patches"),
        ({"transformer_options": {"patches_replace": {"attn1": {}}}}, "patches"),
        ({"transformer_options": {"patches": {}, "cond_or_uncond": [0, 1]}}, None),
        ({"transformer_options": None}, None),
        ({}, None),
    ],
)
def test_calls_that_a_cut_would_change_are_refused(arguments, reason):
    refusals = {
        None: None,
        "control": "a ControlNet's residuals are popped off by the blocks, also by those left out",
        "patches": "it has patches that go by the numbers of the blocks",
    }
    refusal = dissect(build(ComfyUNet)).refusal(inputs(ComfyUNet, **arguments))
    assert refusal == refusals[reason]


def test_calls_with_a_controlnet_run_in_full():
    unet = build(ComfyUNet)
    timesteps = torch.tensor([900.0, 500.0, 100.0])

    def generate():
        return [
            unet(**inputs(ComfyUNet, timestep=timestep, control=[torch.ones(())]))
            for timestep in timesteps
        ]

    plain = generate()
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()
    with pytest.warns(DeepCacheWarning, match="ControlNet"):
        outputs = generate()
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 0)
    assert all(map(torch.equal, outputs, plain))


def test_skips_that_do_not_add_up_are_refused():
    unet = build(CompVisUNet)
    del unet.output_blocks[0]
    assert refusal_of(unet) == (
        "CompVisUNet cannot be cut: its input blocks emit 4 skip connections, its output blocks "
        "consume 3"
    )


def test_what_a_cut_would_leave_as_it_is_is_refused():
    unet = build(ComfyUNet, channels=(4,), middle=False)
    del unet.input_blocks[1], unet.output_blocks[0]
    assert refusal_of(unet) == (
        "ComfyUNet cannot be cut: with one skip connection and no middle block there is nothing to "
        "leave out"
    )


def test_replaced_blocks_are_noticed():
    for path in ("input_blocks", "output_blocks"):
        unet = build(CompVisUNet)
        anatomy = dissect(unet)
        assert anatomy.is_current
        getattr(unet, path)[0] = Layers()
        assert not anatomy.is_current


def test_other_models_do_not_fit():
    encoder = build(CompVisUNet)
    del encoder.output_blocks
    for other in (unet2d(), unet2d_condition(), encoder, nn.Linear(1, 1), object()):
        assert not OriginalAnatomy.fits(other)


def test_the_layout_is_known_by_its_parts():
    assert_fits_by(
        OriginalAnatomy,
        lambda: build(CompVisUNet),
        parts=("input_blocks", "middle_block", "output_blocks"),
        arguments=("x", "timesteps"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_helper_leads_through_a_loop(kind):
    assert_helper_works(build(kind), lambda t: inputs(kind, timestep=1000 * t))


def test_a_call_whose_predecessor_is_left_out_does_not_replay_its_feature():
    # Two calls in a step, without and with the prompt; when the first was left out, the second had
    # its place, and replayed its feature: the conditioning has another name here.
    unet = build(CompVisUNet)
    unguided, guided = (torch.randn(2, 5, WIDTH) for _ in range(2))
    x = inputs(CompVisUNet)["x"]
    with DeepCacheHelper(unet, schedule=Uniform(4)) as helper:
        for context in (unguided, guided):
            unet(x, torch.full((2,), 900.0), context=context)
        unet(x, torch.full((2,), 800.0), context=guided)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 0)
        for context in (unguided, guided):
            unet(x, torch.full((2,), 700.0), context=context)
        assert helper.stats.shallow_calls == 2
