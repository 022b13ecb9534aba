"""U-Nets with one skip for each level: K-blocks, `UNet1DModel` and `Kandinsky3UNet`."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders.bare_models import assert_fits_by, refusal_of
from builders.layouts.levels import (
    CASES,
    inputs_k_blocks,
    inputs_one_dimensional,
    k_blocks,
    kandinsky3,
    one_dimensional,
    planner,
)
from builders.marks import mostly_slow
from builders.unets import unet2d, unet2d_condition
from conftest import (
    assert_exact_at_every_branch,
    assert_refreshes_every_shallower_branch,
    counted_calls,
    trace,
)
from torch import nn

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.anatomy.levels import (
    Kandinsky3Anatomy,
    KBlockAnatomy,
    OneDimensionalAnatomy,
)
from deepcache_patch.cutting.features import Recorder, StandIn

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("name", mostly_slow(CASES, {*CASES} - {"kandinsky3-3-layers"}))
def test_a_shallow_call_straight_after_a_full_one_is_equal_at_every_branch(name):
    assert_exact_at_every_branch(CASES[name].build(), CASES[name].inputs)


@pytest.mark.parametrize("name", CASES)
def test_skips_are_counted(name):
    anatomy = dissect(CASES[name].build())
    assert type(anatomy) is CASES[name].layout
    assert anatomy.num_skips == CASES[name].skips
    assert anatomy.branches == range(CASES[name].branches)


def test_without_a_middle_block_a_one_dimensional_u_net_has_one_branch_less():
    unet = one_dimensional()
    unet.mid_block = None
    assert dissect(unet).branches == range(2)
    assert_exact_at_every_branch(unet, inputs_one_dimensional)


# Blocks of each U-Net that run at its branches: how many of the down path, how many of the up path,
# and the name of what makes nothing but a deeper level's input, which does not run in the lowest
# down block.
RUN = {
    "k-blocks": ([1, 2, 3], [1, 2, 3], "downsamplers"),
    "k-blocks-no-attention-mid-block": ([1, 2, 3], [1, 2, 3], "downsamplers"),
    "sound": ([1, 2, 3], [1, 2, 3], None),
    "planner-4-levels": ([2, 3, 4], [1, 2, 3], "downsample"),
    "kandinsky3": ([1, 2, 3], [1, 2, 3], None),
}


@pytest.mark.parametrize("name", RUN)
def test_a_shallow_call_runs_what_lies_above_the_branch_once_and_nothing_else(name):
    unet, arguments = CASES[name].build(), CASES[name].inputs()
    anatomy = dissect(unet)
    with counted_calls(unet) as whole:
        unet(**arguments)
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            unet(**arguments)
        stand_in.feature = recorder.take()
        with counted_calls(unet) as shallow, anatomy.cut(branch, stand_in, {}).applied():
            unet(**arguments)
        downs, ups, after = RUN[name][0][branch], RUN[name][1][branch], RUN[name][2]
        kept = [f"down_blocks.{index}" for index in range(downs)]
        kept += [f"up_blocks.{index}" for index in range(len(unet.up_blocks))[-ups:]]

        def runs(module, kept=kept, cut=f"down_blocks.{downs - 1}.{after}"):
            level = re.match(r"(down|up)_blocks\.\d+", module)
            outside = not module.startswith("mid_block")
            return (level[0] in kept if level else outside) and not module.startswith(cut)

        assert shallow == {module: count for module, count in whole.items() if runs(module)}


@pytest.mark.parametrize("name", ["k-blocks", "sound", "planner-4-levels", "kandinsky3"])
def test_a_shallow_call_refreshes_every_shallower_branch(name):
    assert_refreshes_every_shallower_branch(CASES[name].build(), CASES[name].inputs)


def test_k_blocks_with_residuals_of_another_network_run_in_full():
    anatomy = dissect(k_blocks())
    assert anatomy.refusal(inputs_k_blocks()) is None
    given = inputs_k_blocks() | {"down_intrablock_additional_residuals": [torch.zeros(1)]}
    assert "down_intrablock_additional_residuals" in anatomy.refusal(given)


def test_a_k_block_without_a_downsampler_stays_as_it_is():
    unet = k_blocks(
        block_out_channels=(32, 64),
        down_block_types=("KDownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("KUpBlock2D",) * 2,
    )
    anatomy = dissect(unet)
    assert anatomy.branches == range(2)
    with anatomy.cut(1, StandIn(), {}).applied():
        assert unet.down_blocks[1].downsamplers is None
    with anatomy.cut(0, StandIn(), {}).applied():
        assert list(unet.down_blocks[0].downsamplers) == []


@pytest.mark.parametrize("name", ["k-blocks", "sound", "kandinsky3"])
@pytest.mark.parametrize("path", ["down_blocks", "up_blocks"])
def test_replaced_blocks_are_noticed(name, path):
    unet, other = CASES[name].build(), CASES[name].build()
    anatomy = dissect(unet)
    assert anatomy.is_current
    getattr(unet, path)[1] = getattr(other, path)[1]
    assert not anatomy.is_current


def _with(unet: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    change(unet)
    return unet


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: k_blocks(
                block_out_channels=(32, 64),
                down_block_types=("DownBlock2D", "KDownBlock2D"),
                up_block_types=("KUpBlock2D", "KUpBlock2D"),
                norm_num_groups=4,
            ),
            "UNet2DConditionModel cannot be cut: it has a DownBlock2D beside K-blocks",
        ),
        (
            lambda: _with(k_blocks(), lambda unet: unet.up_blocks[0].resnets.pop(0)),
            "UNet2DConditionModel cannot be cut: its down blocks emit [2, 2, 2, 2] tensors at the "
            "levels from the top, its up blocks take [2, 2, 2, 1]",
        ),
        (
            lambda: _with(
                k_blocks(), lambda unet: setattr(unet.down_blocks[1], "downsamplers", None)
            ),
            "UNet2DConditionModel cannot be cut: a down block above the deepest emits no skip "
            "connection",
        ),
        (
            lambda: _with(
                k_blocks(), lambda unet: setattr(unet.down_blocks[2], "downsamplers", None)
            ),
            "UNet2DConditionModel cannot be cut: a down block above the deepest emits no skip "
            "connection",
        ),
        (
            lambda: k_blocks(
                block_out_channels=(32,),
                down_block_types=("KDownBlock2D",),
                up_block_types=("KUpBlock2D",),
            ),
            "UNet2DConditionModel cannot be cut: there is nothing below its topmost level",
        ),
        (
            lambda: planner(3, up_block_types=()),  # a value function
            "UNet1DModel is not a U-Net that can be cut: it has none of the layouts that are "
            "known, such as down_blocks, mid_block and up_blocks",
        ),
        (
            lambda: _with(one_dimensional(), lambda unet: unet.down_blocks.pop(0)),
            "UNet1DModel cannot be cut: its down blocks emit 2 skip connections, its up blocks "
            "consume 3",
        ),
        (
            lambda: _with(
                one_dimensional(), lambda unet: unet.up_blocks.insert(0, nn.Identity())
            ),
            "UNet1DModel cannot be cut: it is not known how many skip connections a Identity has",
        ),
        (
            lambda: _with(
                one_dimensional(),
                lambda unet: setattr(unet.down_blocks[1], "downsamplers", nn.ModuleList()),
            ),
            "UNet1DModel cannot be cut: it is not known how many skip connections a DownBlock1D "
            "has",
        ),
        (
            lambda: _with(kandinsky3(), lambda unet: unet.up_blocks.pop(0)),
            "Kandinsky3UNet cannot be cut: it has 4 levels, but 4 down blocks and 3 up blocks",
        ),
        (
            lambda: kandinsky3(levels=1),
            "Kandinsky3UNet cannot be cut: there is nothing below its topmost level",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_the_reason(build, message):
    assert refusal_of(build()) == message


@pytest.mark.parametrize(
    ("layout", "build", "parts"),
    [
        (KBlockAnatomy, k_blocks, ("conv_in", "mid_block", "conv_out")),
        (OneDimensionalAnatomy, one_dimensional, ("out_block",)),
        (Kandinsky3Anatomy, kandinsky3, ("num_levels",)),
    ],
    ids=["k-blocks", "one-dimensional", "kandinsky3"],
)
def test_each_layout_is_known_by_its_parts(layout, build, parts):
    parts = ("down_blocks", "up_blocks", *parts)
    assert_fits_by(layout, build, parts=parts, arguments=("sample", "timestep"))


@pytest.mark.parametrize(
    ("layout", "build", "part"),
    [
        (OneDimensionalAnatomy, one_dimensional, "conv_in"),
        (Kandinsky3Anatomy, kandinsky3, "mid_block"),
    ],
    ids=["one-dimensional", "kandinsky3"],
)
def test_a_part_that_the_layout_has_not_makes_it_another(layout, build, part):
    assert not layout.fits(_with(build(), lambda unet: setattr(unet, part, nn.Identity())))


def test_kandinsky3_is_known_by_every_one_of_its_blocks():
    for path in ("down_blocks", "up_blocks"):
        unet = kandinsky3()
        del getattr(unet, path)[1].resnets_in
        assert not Kandinsky3Anatomy.fits(unet)


@pytest.mark.parametrize("layout", [KBlockAnatomy, OneDimensionalAnatomy, Kandinsky3Anatomy])
def test_nothing_else_fits(layout):
    fits = [case.layout for case in CASES.values() if layout.fits(case.build())]
    assert set(fits) == {layout}
    for other in (unet2d(), unet2d_condition(), nn.Linear(1, 1), None):
        assert not layout.fits(other)


@pytest.mark.parametrize(
    "name",
    mostly_slow(["k-blocks", "sound", "planner-4-levels", "kandinsky3"], ["k-blocks", "sound"]),
)
def test_the_helper_works_on_the_bare_model(name):
    unet, inputs = CASES[name].build(), CASES[name].inputs()

    def loop():
        sample = inputs["sample"]
        for timestep in (40, 30, 20, 10):
            arguments = inputs | {"sample": sample, "timestep": torch.tensor(timestep)}
            sample = sample - 0.1 * unet(**arguments).sample[:, : sample.shape[1]]
        return sample

    plain, before = loop(), trace(unet)
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper:
        cached = loop()
        # Steps 0 and 3 are full.
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)
    assert not torch.equal(cached, plain)
    with DeepCacheHelper(unet, schedule=Uniform(1)) as helper:
        assert torch.equal(loop(), plain)
        assert helper.stats.shallow_calls == 0
    assert trace(unet) == before
    assert torch.equal(loop(), plain)
