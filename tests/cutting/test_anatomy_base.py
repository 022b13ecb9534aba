"""What every anatomy shares: the arguments of a call, what is watched, and who is known."""

import numpy as np
import pytest
import torch
from builders.unets import unet2d
from torch import nn

from deepcache_patch import InvalidSettingError
from deepcache_patch.cutting.anatomy.base import Anatomy, has_lists, parameters_of
from deepcache_patch.cutting.cut import Cut


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, sample, timestep, encoder_hidden_states=None, scale=1):
        return sample


class Minimal(Anatomy):
    """Says nothing itself of calls, so it has what all anatomies have."""

    num_skips = 3
    branches = range(2)

    def __init__(self, unet, owners=()):
        super().__init__(unet)
        self._found(owners)

    @classmethod
    def fits(cls, model):
        return isinstance(model, Net)

    def cut(self, branch, stand_in, recorders):
        return Cut([])


def test_arguments_are_named_by_their_position_and_name():
    named = Minimal(Net()).arguments((1, 2), {"scale": 3})
    assert named == {"sample": 1, "timestep": 2, "scale": 3}


def test_the_first_arguments_are_handed_over_by_position():
    # Hooks of others read a call's positional arguments.
    arguments = {"scale": 4, "sample": 1, "encoder_hidden_states": 3, "timestep": 2}
    handed = Minimal(Net()).handed_over
    assert handed(arguments, 2) == ((1, 2), {"scale": 4, "encoder_hidden_states": 3})
    assert handed(arguments, 0) == ((), arguments)


def test_what_a_call_is_given_are_the_tensors_that_do_not_move_with_the_steps():
    prompt, pooled, picture, label = (torch.full((2,), each) for each in (1.0, 2.0, 3.0, 4.0))
    found = Minimal(Net()).conditioning(
        {
            "sample": torch.ones(1),
            "timestep": torch.ones(1),
            "timestep_cond": torch.ones(1),
            "down_block_additional_residuals": [torch.ones(1)],
            "encoder_hidden_states": [prompt, (picture,)],
            "added_cond_kwargs": {"text_embeds": pooled, "sigmas": torch.ones(1)},
            "class_labels": label,
            "attention_mask": None,
            "fps": 8,
        }
    )
    assert {name: float(each[0]) for name, each in found.items()} == {
        "encoder_hidden_states[0]": 1,
        "encoder_hidden_states[1][0]": 3,
        "added_cond_kwargs.text_embeds": 2,
        "class_labels": 4,
    }


def test_the_timestep_is_whatever_the_call_has():
    anatomy = Minimal(Net())
    assert anatomy.timestep({"timestep": 981}) == 981
    assert anatomy.timestep({"sample": 0}) is None


def test_where_a_layout_says_nothing_calls_stay_as_they_are():
    anatomy, arguments = Minimal(Net()), {"sample": 1}
    assert anatomy.trimmed(0, arguments) is None
    assert anatomy.refusal(arguments) is None
    assert anatomy.residuals(arguments) == (None, None)
    same = anatomy.with_residuals(arguments, [2])
    assert same == arguments
    assert same is not arguments


@pytest.mark.parametrize("branch", [0, 1, np.int64(1)])
def test_a_branch_in_range_is_taken(branch):
    Minimal(Net()).check_branch(branch)


@pytest.mark.parametrize("branch", [2, -1, "0", 1.0, None, True, False])
def test_a_branch_out_of_range_is_refused_with_the_range(branch):
    with pytest.raises(InvalidSettingError) as caught:
        Minimal(Net()).check_branch(branch)
    assert str(caught.value) == (
        f"branch {branch!r} is out of range: this Net has 3 skip connections, so branches 0 to 1; "
        "print(DeepCacheHelper(pipe).branches) shows them"
    )


def test_what_is_watched_are_the_children_of_every_owner():
    net, other = Net(), Net()
    anatomy = Minimal(net, (owner for owner in (net, net.blocks)))
    assert anatomy.is_current
    first = net.blocks[0]
    net.blocks[0] = nn.Identity()
    assert not anatomy.is_current
    net.blocks[0] = first
    assert anatomy.is_current
    net.more = other
    assert not anatomy.is_current
    del net.more
    assert anatomy.is_current
    del net.blocks[1]
    assert not anatomy.is_current


def test_a_model_is_known_if_all_its_classes_are():
    known, own = nn.ModuleList(), Net()
    assert Minimal(nn.Identity(), [known]).is_known
    assert Minimal(unet2d(), [known]).is_known
    assert not Minimal(nn.Identity(), [known, own]).is_known
    assert not Minimal(own, [known]).is_known


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (nn.ModuleList([nn.Identity()]), True),
        (nn.ModuleList(), False),
        ([nn.Identity()], False),
        (None, False),
    ],
    ids=["list", "empty", "no-modules", "none"],
)
def test_a_list_of_modules_has_something_in_it(value, counts):
    net = Net()
    net.ups = value
    assert has_lists(net, "blocks")
    assert not has_lists(net, "blocks", "absent")
    assert has_lists(net, "ups") is counts
    assert has_lists(net, "blocks", "ups") is has_lists(net, "ups", "blocks") is counts


PARAMETERS = ("sample", "timestep", "encoder_hidden_states", "scale")


def test_parameters_are_those_of_the_class():
    net = Net()
    net.forward = lambda sample: sample
    assert parameters_of(net) == PARAMETERS


def test_parameters_of_a_forward_that_takes_anything_are_those_of_the_one_it_calls():
    def announced(announce, forward, times=1):
        def anything(self, *args, **kwargs):
            announce(self, times)
            return forward(self, *args, **kwargs)

        return anything

    def with_sample(forward):
        def named(self, sample, *args, **kwargs):
            return forward(self, sample, *args, **kwargs)

        return named

    def announce(model, times):
        print(*[model] * times)

    class Announced(Net):
        forward = announced(announce, Net.forward)

    class Named(Net):
        forward = with_sample(Net.forward)

    assert parameters_of(Announced()) == PARAMETERS
    assert parameters_of(Named()) == ("sample", "args", "kwargs")


def test_parameters_of_a_proxy_are_those_of_what_it_stands_for():
    class Proxy:
        def __init__(self, inner):
            self.inner = inner

        @property
        def __class__(self):
            return type(self.inner)

    assert parameters_of(Proxy(Net())) == PARAMETERS
