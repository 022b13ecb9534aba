"""NCSN++ of score-SDE: the second stream is recorded and replayed with the hidden state."""

import re

import pytest
import torch
from builders.bare_models import assert_fits_by, refusal_of
from builders.layouts.second_stream import CONFIGS, SKIPS, build, inputs
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
from deepcache_patch.cutting.anatomy.second_stream import SecondStreamAnatomy, _Added, _StreamTap
from deepcache_patch.cutting.features import Recorder, StandIn

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("name", CONFIGS)
def test_skips_are_counted(name):
    anatomy = dissect(build(name))
    assert type(anatomy) is SecondStreamAnatomy
    assert anatomy.num_skips == SKIPS[name]
    assert anatomy.branches == range(SKIPS[name] - (name == "no-mid-block"))


@pytest.mark.parametrize(
    "name", mostly_slow(CONFIGS, {*CONFIGS} - {"attention-in-between-2-layers"})
)
@pytest.mark.parametrize("size", [(8, 8), (12, 20)], ids=["8x8", "12x20"])
def test_a_shallow_call_straight_after_a_full_one_is_equal_at_every_branch(name, size):
    assert_exact_at_every_branch(build(name), lambda: inputs(size=size))


def test_the_second_stream_is_behind_the_hidden_state():
    unet = build("attention")
    anatomy = dissect(unet)
    recorders = {branch: Recorder() for branch in anatomy.branches}
    with anatomy.cut(None, StandIn(), recorders).applied():
        unet(**inputs())
    shapes = [tuple(recorder.take().shape[1:]) for recorder in recorders.values()]
    # Two layers in each up block, of 32, 32 and 8 channels; no second stream enters the deepest.
    assert shapes == [
        (8 + 3, 8, 8), (32 + 3, 8, 8),
        (32 + 3, 4, 4), (32 + 3, 4, 4),
        (32, 2, 2), (32, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_second_stream_is_used(name):
    unet = build(name)
    anatomy, stand_in = dissect(unet), StandIn()
    for branch in anatomy.branches:
        recorder = Recorder()
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            plain = unet(**inputs()).sample
        stand_in.feature = recorder.take()
        if stand_in.feature.shape[1] % 4:  # else there is no second stream
            stand_in.feature[:, -3:] += 1
            with anatomy.cut(branch, stand_in, {}).applied():
                assert not torch.equal(unet(**inputs()).sample, plain)


def expected_modules(unet, branch):
    """What runs at a branch, but for what is inside layers, counted along the skips by hand."""
    left, down = branch, []
    for index, block in enumerate(unet.down_blocks):
        parts = [n for n in ("resnets", "attentions") if hasattr(block, n)]
        for layer in range(len(block.resnets)):
            down += [f"down_blocks.{index}.{part}.{layer}" for part in parts] * (left > 0)
            left -= 1
        if block.downsamplers is not None:
            after = ("downsamplers.0", "resnet_down", "skip_conv")
            down += [f"down_blocks.{index}.{part}" for part in after] * (left > 0)
            left -= 1
    left, up = branch + 1, []
    for index, block in reversed(list(enumerate(unet.up_blocks))):
        layers = range(len(block.resnets))[-left:] if left > 0 else ()
        up += [f"up_blocks.{index}.resnets.{layer}" for layer in layers]
        left -= len(block.resnets)
        if layers:
            # No second stream comes to the lowest.
            up += [f"up_blocks.{index}.upsampler"] * (left > 0 and index > 0)
            up += [f"up_blocks.{index}.attentions.0"] * hasattr(block, "attentions")
            after = ("skip_norm", "act", "skip_conv", "resnet_up")
            up += [f"up_blocks.{index}.{part}" for part in after if getattr(block, part)]
    return {*down, *up}


@pytest.mark.parametrize("name", ["attention", "attention-in-between-2-layers", "3-layers"])
def test_a_shallow_call_runs_what_lies_above_the_branch_once_and_nothing_else(name):
    unet = build(name)
    anatomy = dissect(unet)
    with counted_calls(unet) as full:
        unet(**inputs())
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            unet(**inputs())
        stand_in.feature = recorder.take()
        with counted_calls(unet) as shallow, anatomy.cut(branch, stand_in, {}).applied():
            unet(**inputs())
        part = re.compile(r"(down|up)_blocks\.\d+\.((resnets|attentions|downsamplers)\.\d+|\w+)")
        ran = {module for module in shallow if part.fullmatch(module)}
        assert ran == expected_modules(unet, branch)
        assert not any(module.startswith("mid_block") for module in shallow)
        # What is inside a layer, and round the blocks, runs as often as in a full call.
        assert shallow == {module: full[module] for module in shallow}


@pytest.mark.parametrize("name", ["attention", "3-layers", "ordinary-deepest", "only-up"])
def test_a_shallow_call_refreshes_every_shallower_branch(name):
    # Where both branches begin in the same block, its `upsampler` does not run: the second stream
    # of the shallower one is the replayed one.
    assert_refreshes_every_shallower_branch(build(name), inputs)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("", "conv_out"),
        ("", "mid_block"),
        ("up_blocks.0", "skip_conv"),
        ("up_blocks.1", "upsampler"),
        ("up_blocks.2", "resnets"),
        ("down_blocks.1", "downsamplers"),
    ],
)
def test_replaced_parts_are_noticed(owner, name):
    unet, other = build("attention"), build("attention")
    anatomy = dissect(unet)
    assert anatomy.is_current
    setattr(unet.get_submodule(owner), name, getattr(other.get_submodule(owner), name))
    assert not anatomy.is_current


def test_a_second_stream_that_ends_below_the_top_is_refused():
    unet = unet2d(
        block_out_channels=(8, 16),
        down_block_types=("SkipDownBlock2D",) * 2,
        up_block_types=("SkipUpBlock2D", "UpBlock2D"),
    )
    assert refusal_of(unet) == (
        "UNet2DModel cannot be cut: a UpBlock2D above a SkipUpBlock2D does not pass the second "
        "stream on"
    )


def test_skips_that_do_not_add_up_are_refused():
    unet = build("attention")
    del unet.up_blocks[2].resnets[0]
    assert refusal_of(unet) == (
        "UNet2DModel cannot be cut: its down blocks emit 6 skip connections, its up blocks consume "
        "5"
    )


@pytest.mark.parametrize("change", ["attentions", "resnets", "resnet_up", "upsampler"])
def test_an_unknown_block_is_refused(change):
    unet = build("attention")
    block = unet.up_blocks[0]
    if change == "attentions":
        block.attentions.append(nn.Identity())
    else:
        delattr(block, change)
    assert refusal_of(unet) == (
        "UNet2DModel with a AttnSkipUpBlock2D cannot be cut: it is not known what goes with the "
        "second stream there"
    )


def test_a_block_without_layers_is_refused():
    unet = build("ordinary-deepest")
    unet.up_blocks[0] = nn.Module()
    assert refusal_of(unet) == (
        "UNet2DModel with a Module cannot be cut: it is not known which skip connections that "
        "block emits or consumes"
    )


def test_what_stands_round_a_layer_passes_every_argument_on():
    class Scaled(nn.Module):
        def forward(self, sample, *, scale):
            return sample * scale

    recorder, stand_in, sample = Recorder(), StandIn(), torch.ones(1, 2, 2, 2)
    recorder.latest = torch.zeros(1, 3, 2, 2)
    assert torch.equal(_StreamTap(Scaled(), recorder)(sample, scale=3), 3 * sample)
    assert torch.equal(recorder.latest, torch.cat([torch.zeros(1, 3, 2, 2), 3 * sample], 1))
    stand_in.feature = recorder.latest
    assert torch.equal(_Added(Scaled(), stand_in, 2, ())(sample, scale=4), 7 * sample)


def test_a_second_stream_without_a_hidden_state_says_so():
    tap = _StreamTap(nn.Identity(), Recorder())
    with pytest.raises(RuntimeError) as caught:
        tap(torch.ones(1, 3, 2, 2))
    assert str(caught.value) == "the second stream came before the hidden state"


def test_nothing_else_fits():
    assert all(SecondStreamAnatomy.fits(build(name)) for name in CONFIGS)
    for other in (unet2d(), unet2d_condition(), nn.Linear(1, 1), None):
        assert not SecondStreamAnatomy.fits(other)


def test_the_layout_is_known_by_its_parts():
    assert_fits_by(
        SecondStreamAnatomy,
        lambda: build("attention"),
        parts=("conv_in", "mid_block", "conv_out", "down_blocks", "up_blocks"),
        arguments=("sample", "timestep"),
    )


@pytest.mark.parametrize("branch", [0, 2, 4])
def test_the_helper_works_on_the_bare_model(branch):
    unet = build("attention")

    def loop():
        sample = inputs()["sample"]
        for timestep in (40.0, 30.0, 20.0, 10.0):
            sample = sample - 0.1 * unet(sample, torch.tensor(timestep)).sample
        return sample

    plain, before = loop(), trace(unet)
    with DeepCacheHelper(unet, schedule=Uniform(3, branch=branch)) as helper:
        cached = loop()
        # Steps 0 and 3 are full.
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)
    assert not torch.equal(cached, plain)
    with DeepCacheHelper(unet, schedule=Uniform(1)) as helper:
        assert torch.equal(loop(), plain)
        assert helper.stats.shallow_calls == 0
    assert trace(unet) == before
    assert torch.equal(loop(), plain)
