"""All modules of a network: those that torch gives, in its order, each once; and walked once."""

import pytest
import torch
from builders.unets import inputs2d_condition, unet2d, unet2d_condition
from diffusers import DDIMScheduler
from torch import nn
from wrapt import ObjectProxy

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.cutting.cut import Cut, Swap
from deepcache_patch.running.watching import walk
from deepcache_patch.running.watching.walk import Parts, every_module


@pytest.mark.parametrize("make", [unet2d, unet2d_condition])
def test_they_are_those_that_torch_gives_in_its_order(make):
    unet = make()
    assert every_module(unet) == list(unet.modules())


def test_a_module_in_two_places_comes_once_where_it_is_first():
    shared = nn.Linear(2, 2)
    network = nn.Sequential(nn.Sequential(nn.ReLU(), shared), shared, nn.Sequential(shared))
    assert every_module(network) == list(network.modules())
    assert every_module(network).count(shared) == 1


def test_a_child_that_is_none_and_a_network_within_itself_are_no_trouble():
    network = nn.Sequential(nn.ReLU())
    network.register_module("nothing", None)
    network.register_module("itself", network)
    assert every_module(network) == [network, network[0]]


def test_a_proxy_stands_for_what_it_wraps():
    network = nn.Sequential(nn.ReLU())
    found = every_module(ObjectProxy(network))
    assert len(found) == 2
    assert found[0] is network


def test_a_proxy_in_the_place_of_a_layer_is_found_and_not_what_it_wraps():
    # Its class may be somebody's own, and keep what it sees; torch gives what it wraps.
    network = nn.Sequential(nn.ReLU())
    proxy = network[0] = ObjectProxy(network[0])
    assert every_module(network)[1] is proxy
    assert Parts(network).kinds == [nn.Sequential, ObjectProxy]


# --- whether it is still the network that was walked through -----------------------------------


class Another(nn.Linear):
    pass


def replace_a_layer(network):
    network[0][0] = nn.ReLU()


def replace_a_layer_by_a_proxy(network):
    network[0]._modules["0"] = ObjectProxy(network[0][0])


def put_a_layer_into_a_leaf(network):
    network[1].added = nn.ReLU()


def take_a_layer_out(network):
    del network[0][1]


def move_a_layer_to_the_next_list(network):
    network[2]._modules["0"] = network[0]._modules.pop("1")


def swap_a_class(network):
    network[1].__class__ = Another


CHANGES = [
    replace_a_layer,
    replace_a_layer_by_a_proxy,
    put_a_layer_into_a_leaf,
    take_a_layer_out,
    move_a_layer_to_the_next_list,
    swap_a_class,
]


def three_lists():
    inner = nn.Sequential(nn.ReLU(), nn.ReLU())
    return nn.Sequential(inner, nn.Linear(2, 2), nn.Sequential())


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_parts_are_current_until_the_network_is_another(change):
    network = three_lists()
    parts = Parts(network)
    assert parts.modules == list(network.modules())
    assert parts.is_current
    change(network)
    assert not parts.is_current
    assert Parts(network).is_current


@pytest.mark.parametrize("name", ["forward", "_call_impl", "processor", "_hf_hook"])
def test_a_mark_is_seen_whenever_it_was_put_there(name):
    network = three_lists()
    parts = Parts(network)
    assert parts.marked({nn.Linear}) == [network[1]]
    vars(network[0][1])[name] = print
    assert parts.is_current
    assert parts.marked({nn.Linear}) == [network[0][1], network[1]]


def test_a_child_that_is_a_processor_is_a_mark():
    network = three_lists()
    network[0].register_module("processor", nn.ReLU())
    assert Parts(network).marked(set()) == [network[0]]


def test_what_is_kept_by_a_cut_is_looked_for_once(monkeypatch):
    network = three_lists()
    parts, cut = Parts(network), Cut([Swap(network, "0", None)])
    assert parts.kept_by(cut) == {network, network[1], network[2]}
    monkeypatch.setattr(walk, "every_module", None)
    assert parts.kept_by(cut) == {network, network[1], network[2]}


@torch.no_grad()
def test_generations_walk_once_until_a_layer_is_another(monkeypatch):
    walked = []
    monkeypatch.setattr(walk, "every_module", lambda unet: walked.append(1) or every_module(unet))
    unet, scheduler = unet2d_condition(), DDIMScheduler()
    block = unet.mid_block.attentions[0].transformer_blocks[0]

    def generation():
        walked.clear()
        scheduler.set_timesteps(4)
        for timestep in scheduler.timesteps:
            unet(**inputs2d_condition() | {"timestep": timestep})
        return len(walked)

    with DeepCacheHelper(unet, schedule=Uniform()):
        assert generation() == 2  # and what is kept at the branch
        assert generation() == 0
        block.norm1 = torch.nn.Identity()
        assert generation() == 2
