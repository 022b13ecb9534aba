"""All modules of a network: those that torch gives, in its order, each once."""

import pytest
from builders.unets import unet2d, unet2d_condition
from torch import nn
from wrapt import ObjectProxy

from deepcache_patch.running.walk import every_module


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
