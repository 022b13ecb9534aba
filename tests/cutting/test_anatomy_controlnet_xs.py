"""ControlNet-XS: skips go in pairs, one of the base path and one of the control path."""

import pytest
import torch
from builders.bare_models import (
    assert_fits_by,
    assert_helper_works,
    assert_runs_only,
    refusal_of,
)
from builders.layouts.controlnet_xs import UNETS, inputs, unet_xs
from builders.marks import mostly_slow
from builders.unets import unet2d_condition
from conftest import assert_exact_at_every_branch

from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.anatomy.controlnet_xs import ControlNetXSAnatomy
from deepcache_patch.cutting.features import Recorder, StandIn

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("name", UNETS)
def test_skips_are_counted(name):
    build, skips = UNETS[name]
    anatomy = dissect(build())
    assert isinstance(anatomy, ControlNetXSAnatomy)
    assert anatomy.num_skips == skips
    assert anatomy.branches == range(skips)


@pytest.mark.parametrize("control", [True, False], ids=["control", "no-control"])
@pytest.mark.parametrize("name", mostly_slow(UNETS, ["2-levels"]))
def test_a_shallow_call_is_exact_at_every_branch(name, control):
    assert_exact_at_every_branch(UNETS[name][0](), lambda: inputs(apply_control=control))


def test_wide_pictures_are_exact_at_every_branch():
    # A side must halve evenly: this U-Net has no upsample size.
    assert_exact_at_every_branch(unet_xs(), lambda: inputs((12, 20)))


def test_freeu_scales_the_feature_once():
    unet = unet_xs()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert_exact_at_every_branch(unet, inputs)


def test_what_the_control_path_adds_in_place_does_not_change_the_feature():
    # The first layer that is kept adds the control path's skip to the feature with `+=`.
    unet = unet_xs()
    anatomy, stand_in, recorder = dissect(unet), StandIn(), Recorder()
    for branch in anatomy.branches:
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            unet(**inputs())
        stand_in.feature = recorder.take()
        before = stand_in.feature.clone()
        with anatomy.cut(branch, stand_in, {}).applied():
            outputs = [unet(**inputs()).sample for _ in range(2)]
        assert torch.equal(*outputs)
        assert torch.equal(stand_in.feature, before)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["2-levels", "3-levels", "attention-everywhere"], ["2-levels", "attention-everywhere"]
    ),
)
def test_a_shallow_call_runs_what_lies_above_the_branch(name):
    unet = UNETS[name][0]()
    down = [
        [f"down_blocks.{index}.{path}_{part}" for path in ("base", "ctrl") for part in parts]
        for index, block in enumerate(unet.down_blocks)
        for parts in _layers(block, "base_")
    ]
    up = [
        [f"up_blocks.{index}.{part}" for part in parts]
        for index, block in enumerate(unet.up_blocks)
        for parts in _layers(block, "")
    ]
    middle = ["mid_block.base_midblock", "mid_block.ctrl_midblock", "mid_block.ctrl_to_base"]

    def kept(branch):
        whole = branch < 0
        yield from (part for parts in (down if whole else down[:branch]) for part in parts)
        yield from (part for parts in (up if whole else up[-1 - branch :]) for part in parts)
        yield from middle if whole else ()
        if whole:
            yield from (f"up_blocks.{i}.upsamplers" for i in range(len(unet.up_blocks) - 1))
        else:  # one between a block that is kept whole and the next
            first = len(unet.up_blocks) - 1 - branch // 3
            yield from (f"up_blocks.{i}.upsamplers" for i in range(first, len(unet.up_blocks) - 1))

    assert_runs_only(unet, inputs, kept)


def _layers(block, path):
    attended = isinstance(getattr(block, f"{path}attentions"), torch.nn.ModuleList)
    for layer in range(len(getattr(block, f"{path}resnets"))):
        yield [f"resnets.{layer}", *([f"attentions.{layer}"] if attended else [])]
    if getattr(block, f"{path}downsamplers", None) is not None:
        yield ["downsamplers"]


def test_a_block_of_which_nothing_is_kept_is_left_out():
    unet = unet_xs()
    anatomy = dissect(unet)
    # By hand: the skips 1 to 3, 4 to 6, and 7 and 8 are those of the down blocks.
    for branch, blocks in enumerate((0, 1, 1, 1, 2, 2, 2, 3, 3)):
        with anatomy.cut(branch, StandIn(), {}).applied():
            assert len(unet.down_blocks) == blocks


def test_blocks_may_have_different_numbers_of_layers():
    unet = unet_xs()
    lower, upper = unet.up_blocks[1:]
    for name in ("resnets", "attentions", "ctrl_to_base"):
        getattr(upper, name).append(getattr(lower, name).pop(-1))
    anatomy = dissect(unet)
    for branch in anatomy.branches:
        with anatomy.cut(branch, StandIn(), {}).applied():
            layers = [len(block.resnets) for block in unet.up_blocks]
        assert (
            layers
            == [[branch + 1], [branch - 3, 4], [branch - 5, 2, 4]][(branch > 3) + (branch > 5)]
        )


@pytest.mark.parametrize(
    ("part", "index", "reason"),
    [
        ("down_blocks.0.ctrl_resnets", 0, "Down{} has 1 ctrl_resnets instead of 2"),
        ("down_blocks.0.base_to_ctrl", 0, "Down{} has 2 base_to_ctrl instead of 3"),
        ("up_blocks.1.attentions", 1, "Up{} has 2 attentions instead of 3"),
    ],
)
def test_parts_that_do_not_go_with_the_layers_are_refused(part, index, reason):
    unet = unet_xs()
    del unet.get_submodule(part)[index]
    assert refusal_of(unet) == (
        "UNetControlNetXSModel cannot be cut: a ControlNetXSCrossAttn"
        + reason.format("Block2D in it")
    )


def test_skips_that_do_not_add_up_are_refused():
    unet = unet_xs()
    del unet.up_blocks[0]
    assert refusal_of(unet) == (
        "UNetControlNetXSModel cannot be cut: its down blocks emit 9 skip connections, its up "
        "blocks consume 6"
    )


def test_replaced_parts_are_noticed():
    for part in ("down_blocks", "up_blocks.1.resnets", "down_blocks.0.ctrl_to_base"):
        unet = unet_xs()
        anatomy = dissect(unet)
        assert anatomy.is_current
        unet.get_submodule(part)[0] = torch.nn.Identity()
        assert not anatomy.is_current


def test_other_models_do_not_fit():
    for other in (unet2d_condition(), torch.nn.Linear(1, 1), object()):
        assert not ControlNetXSAnatomy.fits(other)


def test_the_layout_is_known_by_its_parts():
    assert_fits_by(
        ControlNetXSAnatomy,
        unet_xs,
        parts=("base_conv_in", "ctrl_conv_in", "mid_block", "down_blocks", "up_blocks"),
        arguments=("sample", "timestep", "controlnet_cond"),
    )
    unet = unet_xs()
    del unet.down_blocks[1].base_resnets
    assert not ControlNetXSAnatomy.fits(unet)


def test_a_helper_leads_through_a_loop():
    assert_helper_works(unet_xs(), lambda t: inputs(timestep=t))
