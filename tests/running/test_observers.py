"""Attention processors that may keep what they see are told from those that only compute."""

import pytest
import torch
from builders.unets import unet2d_condition
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.features import StandIn
from deepcache_patch.running.observers import observer_of

MAPS = []


class OnlyComputes:
    def __init__(self):
        self.scale = 1.5

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_options):
        return AttnProcessor2_0()(attn, hidden_states * self.scale, encoder_hidden_states)


class WithWeights(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = torch.nn.Linear(1, 1)

    def forward(self, attn, hidden_states, encoder_hidden_states=None):
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)


class KeepsInItself:
    def __init__(self):
        self.maps = []

    def __call__(self, attn, hidden_states):
        return hidden_states


class KeepsOnTheLayer:
    def __call__(self, attn, hidden_states):
        attn.latest = hidden_states
        return hidden_states


class AddsToTheLayersList:
    def __call__(self, attn, hidden_states):
        attn.maps.append(hidden_states)
        return hidden_states


def keeps_in_a_global(attn, hidden_states):
    MAPS[:] = [hidden_states]
    return hidden_states


def only_computes(attn, hidden_states, encoder_hidden_states=None):
    return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)


def closed_over():
    kept = {}

    def keeps(attn, hidden_states):
        kept[attn] = hidden_states
        return hidden_states

    return keeps


def reason(processor, branch=0):
    unet = unet2d_condition()
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = processor
    return observer_of(unet, dissect(unet).cut(branch, StandIn(), {}))


@pytest.mark.parametrize(
    "processor",
    [AttnProcessor(), AttnProcessor2_0(), OnlyComputes(), WithWeights(), only_computes],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
def test_what_only_computes_is_let_be(processor):
    assert reason(processor) is None


@pytest.mark.parametrize(
    "processor",
    [KeepsInItself(), KeepsOnTheLayer(), AddsToTheLayersList(), keeps_in_a_global, closed_over()],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
def test_what_may_keep_maps_is_named(processor):
    # Its layer is left out on shallow steps: whoever reads the maps would get none, or old ones.
    name = getattr(processor, "__name__", type(processor).__name__)
    assert reason(processor).startswith(f"the attention processor {name} of mid_block.")


def test_a_layer_that_is_kept_may_be_watched():
    unet = unet2d_condition()
    unet.up_blocks[-1].attentions[-1].transformer_blocks[0].attn1.processor = KeepsInItself()
    assert observer_of(unet, dissect(unet).cut(0, StandIn(), {})) is None
