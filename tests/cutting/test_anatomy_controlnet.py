"""A cut ControlNet makes the residuals of a shallow call, exactly, with what those need alone."""

import pytest
import torch
from builders.unets import inputs2d_condition, seeded, unet2d_condition
from conftest import counted_calls, trace
from diffusers import ControlNetModel
from diffusers.models.controlnets import MultiControlNetModel
from torch import nn

from deepcache_patch import UnsupportedModelError
from deepcache_patch.cutting.anatomy import dissect_controlnet, is_controlnet
from deepcache_patch.cutting.anatomy.controlnet import (
    BlockControlNetAnatomy,
    HunyuanControlNetAnatomy,
)


def controlnet(**config):
    with seeded(1):
        net = ControlNetModel.from_unet(unet2d_condition(**config)).eval()
        for name, parameter in net.named_parameters():
            if name.startswith("controlnet_"):  # they start with residuals of zero
                parameter.detach().normal_(std=0.1)
    return net


def several(*nets):
    return MultiControlNetModel(nets)


def residuals(net):
    picture = torch.linspace(0, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    with torch.no_grad():
        return net(**inputs2d_condition(), controlnet_cond=picture, return_dict=False)


@pytest.mark.parametrize("config", [{}, {"layers_per_block": 1}], ids=["2-layers", "1-layer"])
def test_the_residuals_of_the_kept_skips_are_exact_and_the_middle_ones_zero(config):
    net = controlnet(**config)
    before, (down, middle) = trace(net), residuals(net)
    anatomy = dissect_controlnet(net)
    assert type(anatomy) is BlockControlNetAnatomy
    assert anatomy.num_skips == len(down)
    for branch in range(anatomy.num_skips - 1):
        with counted_calls(net) as calls, anatomy.cut(branch).applied():
            kept, zero = residuals(net)
        assert len(kept) == branch + 1
        assert all(map(torch.equal, kept, down))
        assert torch.equal(zero, torch.zeros(1, 1, 1, 1))
        assert zero.dtype == middle.dtype
        ran = {name for name in calls if name.startswith("controlnet_down_blocks.")}
        assert ran == {f"controlnet_down_blocks.{skip}" for skip in range(branch + 1)}
        assert "controlnet_mid_block" not in calls
        assert not any(name.startswith("mid_block") for name in calls)
        assert trace(net) == before


@pytest.mark.parametrize("branch", [8, 9])
def test_at_the_deepest_branch_nothing_is_left_out(branch):
    assert dissect_controlnet(controlnet()).cut(branch).owners == set()


def test_the_middle_block_that_is_left_out_can_still_be_called():
    # Not every forward asks whether there is one, as those of diffusers do.
    net, sample = controlnet(), torch.ones(1, 8, 2, 2)
    with dissect_controlnet(net).cut(0).applied():
        assert net.mid_block(sample, None, attention_mask=None) is sample


def test_a_controlnet_without_a_middle_block_is_cut():
    net = controlnet()
    net.mid_block = None
    before = trace(net)
    with dissect_controlnet(net).cut(0).applied():
        assert net.mid_block is None
    assert trace(net) == before


def test_several_controlnets_are_cut_together():
    both = several(controlnet(), controlnet())
    anatomy = dissect_controlnet(both)
    assert anatomy.num_skips == 9
    with anatomy.cut(2).applied():
        assert [len(net.controlnet_down_blocks) for net in both.nets] == [3, 3]
        assert [len(net.down_blocks) for net in both.nets] == [1, 1]
    assert [len(net.controlnet_down_blocks) for net in both.nets] == [9, 9]


def test_controlnets_that_do_not_agree_have_no_number_of_skips():
    assert dissect_controlnet(several(controlnet(), controlnet(layers_per_block=1))).num_skips == -1
    net = controlnet()
    del net.controlnet_down_blocks[8]
    assert dissect_controlnet(net).num_skips == -1


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("", "controlnet_mid_block"),
        ("controlnet_down_blocks", "4"),
        ("down_blocks.1", "attentions"),
        ("down_blocks.1.resnets", "0"),
    ],
)
def test_replaced_parts_are_noticed(owner, name):
    for wrapped in (False, True):
        net = controlnet()
        anatomy = dissect_controlnet(several(net) if wrapped else net)
        assert anatomy.is_current
        net.get_submodule(owner)._modules[name] = nn.Identity()
        assert not anatomy.is_current


def test_an_exchanged_controlnet_is_noticed():
    both = several(controlnet(), controlnet())
    anatomy = dissect_controlnet(both)
    assert anatomy.is_current
    both.nets[1] = controlnet()
    assert not anatomy.is_current


def test_the_parts_tell_what_is_a_controlnet():
    assert is_controlnet(controlnet())
    assert is_controlnet(several(controlnet(), controlnet()))
    one_of_two = several(controlnet(), nn.Linear(1, 1))
    for other in (None, object(), unet2d_condition(), several(), one_of_two):
        assert not is_controlnet(other)
    for part in BlockControlNetAnatomy.parts:
        net = controlnet()
        delattr(net, part)
        assert not is_controlnet(net)
    net = nn.Module()
    for part in HunyuanControlNetAnatomy.parts:
        assert not HunyuanControlNetAnatomy.fits(net)
        setattr(net, part, nn.ModuleList())
    assert HunyuanControlNetAnatomy.fits(net)


def test_a_controlnet_whose_residuals_do_not_agree_with_its_skips_has_no_number_of_them():
    net = controlnet()
    assert dissect_controlnet(net).num_skips == len(net.controlnet_down_blocks)
    del net.controlnet_down_blocks[-1]
    assert dissect_controlnet(net).num_skips == -1


def test_what_is_no_controlnet_is_refused_by_name():
    with pytest.raises(UnsupportedModelError) as caught:
        dissect_controlnet(nn.Linear(1, 1))
    assert str(caught.value) == "Linear is not a ControlNet that can be cut"
