"""Skips are counted in whatever layout there is; a cut runs what lies above the branch only."""

import warnings

import diffusers
import pytest
import torch
from builders.bare_models import assert_fits_by, refusal_of
from builders.marks import mostly_slow
from builders.unets import UNETS, inputs2d, inputs2d_condition, seeded, unet2d_condition
from conftest import (
    assert_exact_at_every_branch,
    assert_refreshes_every_shallower_branch,
    counted_calls,
)
from torch import nn

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.cutting.anatomy import BlockAnatomy, dissect
from deepcache_patch.cutting.features import Recorder, StandIn

pytestmark = pytest.mark.usefixtures("no_grad")

# The skips by hand: one for conv_in, one for each layer, one for each downsampler (all levels but
# the last have one).
SKIPS = {
    "2d-1-layer": 1 + 2 * 1 + 1,
    "2d-2-layers": 1 + 3 * 2 + 2,
    "2d-3-layers": 1 + 2 * 3 + 1,
    "2d-1-level": 1 + 2,
    "2d-4-levels": 1 + 4 * 1 + 3,
    "condition-2-layers": 1 + 3 * 2 + 2,
    "condition-layers-1-2-3": 1 + (1 + 2 + 3) + 2,
    "condition-sdxl": 1 + 3 * 2 + 2,
}


@pytest.mark.parametrize("name", SKIPS)
def test_skips_are_counted(name):
    anatomy = dissect(UNETS[name].build())
    assert anatomy.num_skips == SKIPS[name]
    assert anatomy.branches == range(SKIPS[name])


@pytest.mark.parametrize("name", ["2d-no-mid-block", "condition-no-mid-block"])
def test_without_a_middle_block_the_deepest_branch_would_leave_nothing_out(name):
    anatomy = dissect(UNETS[name].build())
    assert anatomy.branches == range(anatomy.num_skips - 1)


#: Those that differ most.
QUICK = [
    *("2d-no-mid-block", "2d-attention-resnet-samplers", "condition-2-layers"),
    *("condition-layers-1-2-3", "condition-odd-size", "condition-sdxl"),
]


@pytest.mark.parametrize("name", mostly_slow(UNETS, QUICK))
def test_a_shallow_call_straight_after_a_full_one_is_equal_at_every_branch(name):
    assert_exact_at_every_branch(UNETS[name].build(), UNETS[name].inputs)


def expected_modules(unet, branch):
    """What runs at a branch of a U-Net in SD's layout, counted along the skips by hand."""
    left, down = branch, []
    for index, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            down += [f"down_blocks.{index}.resnets.{layer}"] * (left > 0)
            left -= 1
        if block.downsamplers is not None:
            down += [f"down_blocks.{index}.downsamplers.0"] * (left > 0)
            left -= 1
    layers = [
        f"up_blocks.{index}.resnets.{layer}"
        for index, block in enumerate(unet.up_blocks)
        for layer in range(len(block.resnets))
    ]
    return set(down), set(layers[-(branch + 1) :])


@pytest.mark.parametrize(
    "name",
    [
        "2d-2-layers",
        "2d-3-layers",
        "condition-1-layer",
        "condition-2-layers",
        "condition-layers-1-2-3",
    ],
)
def test_a_shallow_call_runs_what_lies_above_the_branch_once_and_nothing_else(name):
    unet = UNETS[name].build()
    anatomy, arguments = dissect(unet), UNETS[name].inputs()
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with counted_calls(unet) as full, anatomy.cut(None, stand_in, {branch: recorder}).applied():
            unet(**arguments)
        stand_in.feature = recorder.take()
        with counted_calls(unet) as shallow, anatomy.cut(branch, stand_in, {}).applied():
            unet(**arguments)
        down, up = expected_modules(unet, branch)

        layers = {name for name in shallow if name.count(".") == 3}
        assert {
            name for name in layers if name.startswith("down") and "attentions" not in name
        } == down
        assert {name for name in layers if name.startswith("up") and ".resnets." in name} == up
        assert not any(name.startswith("mid_block") for name in shallow)
        assert {full[name] for name in (*layers, "mid_block")} == {1}
        # What is inside a layer, and round the blocks, runs as often as in a full call.
        assert shallow == {name: full[name] for name in shallow}


@pytest.mark.parametrize(
    "name", mostly_slow(["2d-2-layers", "condition-layers-1-2-3", "condition-4-levels"])
)
def test_a_shallow_call_refreshes_every_shallower_branch(name):
    assert_refreshes_every_shallower_branch(UNETS[name].build(), UNETS[name].inputs)


@pytest.mark.parametrize("size", [(8, 8), (9, 11)], ids=["8x8", "9x11"])
@pytest.mark.parametrize("layers", mostly_slow([1, 2, 3], [2]))
def test_controlnet_residuals_are_exact_at_every_branch(layers, size):
    # The residual of the middle block is added after it: on a shallow call the shapes clash, or
    # agree by accident and it is added a second time.
    unet = unet2d_condition(layers_per_block=layers)
    control = diffusers.ControlNetModel.from_unet(unet).eval()
    for name, parameter in control.named_parameters():
        if name.startswith("controlnet_"):  # they start with residuals of zero
            parameter.normal_(std=0.1)
    arguments = inputs2d_condition(size=size)
    height, width = (8 * side for side in size)
    down, middle = control(
        **arguments, controlnet_cond=torch.rand(2, 3, height, width), return_dict=False
    )
    arguments |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    assert_exact_at_every_branch(unet, lambda: arguments)


@pytest.mark.parametrize(
    "name", mostly_slow(["condition-2-layers", "condition-layers-1-2-3", "condition-sdxl"], 1)
)
@pytest.mark.parametrize("middle", [False, True], ids=["down", "down+middle"])
def test_adapter_features_are_exact_at_every_branch(name, middle):
    # They are popped off a list, one for each down block, and added in place; one that is left
    # over can match the replayed feature's shape and be added to it.
    unet = UNETS[name].build()
    shapes = []
    handles = [
        block.register_forward_hook(lambda _m, _a, output, block=block: shapes.append(
            output[1][len(block.resnets) - 1].shape
            if getattr(block, "has_cross_attention", False)
            else output[0].shape
        ))
        for block in unet.down_blocks
    ]  # fmt: skip
    unet(**UNETS[name].inputs())
    for handle in handles:
        handle.remove()
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(shape, generator=generator) for shape in shapes]
    if middle:
        features.append(torch.randn(shapes[-1], generator=generator))

    def arguments():  # fresh ones each time: the U-Net pops the list and adds in place
        adapted = [feature.clone() for feature in features]
        return UNETS[name].inputs() | {"down_intrablock_additional_residuals": adapted}

    assert_exact_at_every_branch(unet, arguments)


def test_freeu_scales_the_feature_once():
    unet = unet2d_condition()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert_exact_at_every_branch(unet, inputs2d_condition)


def test_nothing_is_trimmed_without_residuals():
    assert dissect(unet2d_condition()).trimmed(0, inputs2d_condition()) is None


def test_a_controlnets_residuals_are_those_of_the_skips_and_the_middle():
    anatomy, (down, middle) = dissect(unet2d_condition()), torch.ones(2, 3)
    skips, both = "down_block_additional_residuals", "mid_block_additional_residual"
    assert anatomy.residuals({}) == (None, None)
    # Without one for the middle they may be an adapter's features, by their older name.
    assert anatomy.residuals({skips: down}) == (down, None)
    assert anatomy.residuals({skips: down, both: middle}) == (down, middle)
    arguments = {"sample": 1, skips: None}
    given = anatomy.with_residuals(arguments, (down, middle))
    assert given == {"sample": 1, skips: down, both: middle}
    assert arguments == {"sample": 1, skips: None}


def test_what_is_trimmed_is_zero_for_the_middle_and_an_adapters_lowest_features():
    anatomy, middle = dissect(unet2d_condition()), torch.ones(2, 3, dtype=torch.float16)
    features, both = [torch.ones(1), torch.ones(2)], "mid_block_additional_residual"
    newer, older = "down_intrablock_additional_residuals", "down_block_additional_residuals"
    assert anatomy.trimmed(8, {both: middle, newer: features}) is None
    trimmed = anatomy.trimmed(0, {"sample": 1, both: middle, older: features})
    assert (trimmed["sample"], trimmed[older] is features) == (1, True)
    assert torch.equal(trimmed[both], torch.zeros((), dtype=torch.float16))
    assert trimmed[both].dtype == torch.float16
    assert anatomy.trimmed(0, {both: middle.to("meta")})[both].device.type == "meta"
    for name in (newer, older):
        for branch, blocks in ((0, 0), (1, 0), (2, 1), (4, 1), (5, 2), (7, 2)):
            trimmed = anatomy.trimmed(branch, {"sample": 1, name: features})
            assert trimmed == {"sample": 1, name: features[:blocks]}, (name, branch)


@pytest.mark.parametrize(
    ("owner", "name", "index"),
    [
        ("", "down_blocks", 0),
        ("", "up_blocks", 1),
        ("", "mid_block", None),
        ("up_blocks.0", "resnets", 0),
        ("up_blocks.1", "attentions", 2),
        ("up_blocks.1", "upsamplers", 0),
        ("down_blocks.0", "downsamplers", 0),
    ],
)
def test_replaced_parts_are_noticed(owner, name, index):
    unet, other = unet2d_condition(), unet2d_condition(seed=1)
    anatomy = dissect(unet)
    assert anatomy.is_current
    parent, replacement = unet.get_submodule(owner), getattr(other.get_submodule(owner), name)
    if index is None:
        setattr(parent, name, replacement)
    else:
        getattr(parent, name)[index] = replacement[index]
    assert not anatomy.is_current


def test_skips_that_do_not_add_up_are_refused():
    unet = unet2d_condition()
    unet.down_blocks[0].downsamplers = None
    assert refusal_of(unet) == (
        "UNet2DConditionModel cannot be cut: its down blocks emit 8 skip connections, its up "
        "blocks consume 9"
    )


def test_parts_that_do_not_go_with_the_layers_are_refused():
    unet = unet2d_condition()
    del unet.up_blocks[1].attentions[2]
    assert refusal_of(unet) == (
        "UNet2DConditionModel cannot be cut: a CrossAttnUpBlock2D in it has 2 attentions for 3 "
        "resnets"
    )


@pytest.mark.parametrize("resnets", [None, [], nn.ModuleList()], ids=["none", "list", "empty"])
@pytest.mark.parametrize("path", ["down_blocks", "up_blocks"])
def test_a_block_without_layers_is_refused(path, resnets):
    unet = unet2d_condition()
    block = nn.Module()
    if resnets is not None:
        block.resnets = resnets
    getattr(unet, path)[0] = block
    assert refusal_of(unet) == (
        "UNet2DConditionModel with a Module cannot be cut: it is not known which skip connections "
        "that block emits or consumes"
    )


def test_another_model_is_refused_by_name():
    assert not BlockAnatomy.fits(torch.nn.Linear(1, 1))
    assert refusal_of(torch.nn.Linear(1, 1)) == (
        "Linear is not a U-Net that can be cut: it has none of the layouts that are known, such as "
        "down_blocks, mid_block and up_blocks"
    )


def test_the_layout_is_known_by_its_parts():
    assert_fits_by(
        BlockAnatomy,
        unet2d_condition,
        parts=("conv_in", "conv_out", "down_blocks", "up_blocks"),
        arguments=("sample", "timestep"),
    )


class ForeignDown(nn.Module):
    def __init__(self, channels, layers, *, last):
        super().__init__()
        self.resnets = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(layers))
        down = nn.ModuleList([nn.Conv2d(channels, channels, 3, 2, 1)])
        self.downsamplers = None if last else down

    def forward(self, hidden, skips):
        for resnet in self.resnets:
            hidden = resnet(hidden).tanh()
            skips.append(hidden)
        for downsampler in self.downsamplers or ():
            hidden = downsampler(hidden)
            skips.append(hidden)
        return hidden


class ForeignUp(nn.Module):
    activates = False

    def __init__(self, channels, layers, *, last):
        super().__init__()
        self.resnets = nn.ModuleList(
            nn.Conv2d(2 * channels, channels, 3, 1, 1) for _ in range(layers)
        )
        up = nn.ModuleList([nn.ConvTranspose2d(channels, channels, 2, 2)])
        self.upsamplers = None if last else up

    def forward(self, hidden, skips):
        for resnet in self.resnets:
            hidden = resnet(torch.cat([hidden, skips.pop()], 1))
            hidden = hidden.tanh() if self.activates else hidden
        for upsampler in self.upsamplers or ():
            hidden = upsampler(hidden)
        return hidden


class ForeignUNet(nn.Module):
    """Somebody's own, of classes that nobody here knows."""

    def __init__(self, layers=2, extra=0):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, 1, 1)
        self.down_blocks = nn.ModuleList(ForeignDown(8, layers, last=last) for last in (0, 0, 1))
        self.mid_block = nn.Conv2d(8, 8, 1)
        self.up_blocks = nn.ModuleList(
            ForeignUp(8, layers + 1 + (extra if last else 0), last=last) for last in (0, 0, 1)
        )
        self.conv_out = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, sample, timestep):
        hidden = self.conv_in(sample)
        skips = [hidden]
        for block in self.down_blocks:
            hidden = block(hidden, skips)
        hidden = self.mid_block(hidden)
        for block in self.up_blocks:
            hidden = block(hidden, skips)
        return self.conv_out(hidden)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_class_that_is_not_known_is_accepted_by_its_structure(layers):
    with seeded(0):
        unet = ForeignUNet(layers)
    assert dissect(unet).num_skips == 1 + 3 * layers + 2
    assert_exact_at_every_branch(unet, inputs2d)


def test_a_class_that_is_not_known_is_refused_if_its_skips_do_not_add_up():
    assert refusal_of(ForeignUNet(2, extra=1)) == (
        "ForeignUNet cannot be cut: its down blocks emit 9 skip connections, its up blocks consume "
        "10"
    )


@pytest.mark.parametrize("activates", [False, True], ids=["plain", "more between the layers"])
def test_a_cut_of_classes_that_are_not_known_is_proved_by_a_call(activates, monkeypatch):
    # An activation that the block applies after each layer is in no list: the layer's own output
    # is not what enters the next one.
    monkeypatch.setattr(ForeignUp, "activates", activates)
    with seeded(0):
        unet = ForeignUNet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with DeepCacheHelper(unet, schedule=Uniform(branch=1)) as helper:
            for timestep in range(9, 3, -1):
                inputs = inputs2d(seed=timestep) | {"timestep": timestep}
                picture = unet(**inputs)
    counts = (helper.stats.full_calls, helper.stats.shallow_calls)
    assert counts == ((6, 0) if activates else (2, 4))
    assert len(caught) == activates
    assert torch.equal(picture, unet(**inputs)) == activates
    assert all("ForeignUNet has classes that are not diffusers'" in str(w.message) for w in caught)
