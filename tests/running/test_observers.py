"""Attention processors and layers that may keep what they see are told from those that compute."""

import functools

import pytest
import torch
from builders.unets import unet2d_condition
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.features import StandIn
from deepcache_patch.running.watching import observers
from deepcache_patch.running.watching.observers import first_stateful, observer_of
from deepcache_patch.running.watching.walk import Parts

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
    return observer_of(Parts(unet), dissect(unet).cut(branch, StandIn(), {}))


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
    assert observer_of(Parts(unet), dissect(unet).cut(0, StandIn(), {})) is None


# --- what is said of whom ---------------------------------------------------------------------


class Plain(torch.nn.Module):
    def forward(self, hidden):
        return hidden


class Adds(torch.nn.Module):
    """Keeps something if it has a list."""

    def forward(self, hidden):
        self.maps.append(hidden)
        return hidden


class Collects(torch.nn.Module):
    def forward(self, skips):
        skips.append(1)


def keeps(hidden):
    MAPS.append(hidden)


def layers(**named):
    """A network of `Plain`, with what is named put on it, in order."""
    network = Plain()
    for name, each in named.items():
        setattr(network, name, each)
    return network


def layer(forward=None, processor=None, **attributes):
    made = Plain()
    if forward is not None:
        made.forward = forward
    if processor is not None:
        made.processor = processor
    vars(made).update(attributes)
    return made


def adding():
    made = Adds()
    made.maps = []
    return made


def keeper(network, kept=(), blocks=()):
    return first_stateful(network, network.modules(), set(kept), set(blocks))


BY_FORWARD = "the function in the place of Plain.forward"
BY_PROCESSOR = ("the attention processor KeepsInItself of last", "set diffusers' own processors")


def test_a_layer_that_may_keep_something_is_named_with_what_helps():
    assert keeper(layers(first=Plain(), last=layer(keeps))) == (
        f"{BY_FORWARD} of last", "take it out",
    )  # fmt: skip
    assert keeper(layers(first=Plain(), last=layer(_call_impl=keeps))) == (
        f"{BY_FORWARD} of last", "take it out",
    )  # fmt: skip
    assert keeper(layers(first=Plain(), last=adding())) == (
        "the class Adds of last", "use diffusers' own class",
    )  # fmt: skip
    assert keeper(layers(first=Plain(), last=layer(processor=KeepsInItself()))) == BY_PROCESSOR
    assert keeper(layers(first=Plain(), last=Plain())) is None


def test_the_network_itself_has_no_name():
    assert keeper(layer(keeps)) == (BY_FORWARD, "take it out")
    assert keeper(adding()) == ("the class Adds", "use diffusers' own class")


@pytest.mark.parametrize(
    "processor",
    [keeps_in_a_global, functools.partial(keeps_in_a_global), KeepsInItself().__call__],
    ids=["keeps_in_a_global", "partial", "__call__"],
)
def test_a_processor_is_named_by_its_name_or_its_class(processor, request):
    what, _ = keeper(layers(last=layer(processor=processor)))
    assert what == f"the attention processor {request.node.callspec.id} of last"


def test_those_after_a_layer_that_is_kept_or_known_are_looked_at():
    kept, known = layer(keeps), torch.nn.Identity()
    assert keeper(layers(kept=kept, known=known, last=adding()), [kept])[0].endswith(" of last")
    assert keeper(layers(kept=kept), [kept]) is None


def test_a_layer_of_a_library_is_looked_at_if_something_stands_in_its_place():
    known = torch.nn.Identity()
    known.forward = lambda hidden: keeps(hidden)
    assert keeper(layers(first=torch.nn.Identity(), last=known)) == (
        "the function in the place of Identity.forward of last", "take it out",
    )  # fmt: skip


def test_each_class_is_known_once_and_each_layer_looked_at(monkeypatch):
    asked = []
    known = observers.is_known_class
    monkeypatch.setattr(observers, "is_known_class", lambda kind: asked.append(kind) or known(kind))
    # Of two layers of a class only one has what its code writes to.
    assert keeper(layers(first=Adds(), last=adding()))[0] == "the class Adds of last"
    assert asked == [Plain, Adds]


def test_a_block_may_add_to_lists_of_one_call():
    block = Collects()
    assert keeper(layers(last=block), blocks=[block]) is None
    assert keeper(layers(last=block))[0] == "the class Collects of last"


class OfATensor(OnlyComputes):
    def __init__(self):
        self.scale = torch.ones(1)


def test_of_a_processor_of_ones_own_only_numbers_and_names_are_let_be():
    assert reason(OfATensor()) is not None
    assert reason(functools.partial(OfATensor().__call__)) is None
    library = AttnProcessor2_0()
    library.maps = [OfATensor()]
    assert reason(library) is None


def test_a_processor_that_is_a_layer_is_looked_at_as_one():
    assert reason(adding()).startswith("the attention processor Adds of mid_block.")
    assert reason(layer(keeps)).startswith("the attention processor Plain of mid_block.")
    assert reason(Plain()) is None


def test_all_that_is_said_of_one_that_keeps():
    assert reason(KeepsInItself()) == (
        "the attention processor KeepsInItself of mid_block.attentions.0.transformer_blocks.0.attn1"
        " may keep what it sees at each step, and shallow steps leave that layer out: set "
        "diffusers' own processors to be fast"
    )


def test_without_a_cut_every_layer_is_looked_at():
    last = layer(keeps)
    assert observer_of(Parts(layers(last=last)), None).startswith(f"{BY_FORWARD} of last may keep ")
    block = Collects()
    assert observer_of(Parts(layers(last=block)), None) is not None
    assert observer_of(Parts(layers(last=block)), None, {block}) is None


@pytest.mark.parametrize("home", ["DeepCache", "DeepCache.extension.deepcache"])
def test_the_other_package_is_told_by_who_made_the_forward(home):
    def forward(hidden):
        return hidden

    forward.__module__ = home
    assert observer_of(Parts(layer(forward)), None) == (
        "DeepCacheSDHelper of the DeepCache package is enabled, too, and each would replay what "
        "the other has replayed: call its disable() to be fast"
    )
    forward.__module__ = "somebodys.DeepCache"
    assert observer_of(Parts(layer(forward)), None) is None


def test_offloading_that_needs_every_layer_is_said_last(monkeypatch):
    monkeypatch.setattr(observers, "offloading_of", lambda modules: ("offloaded", [*modules]))
    network = layers(first=Plain())
    assert observer_of(Parts(network), None) == ("offloaded", [network, network.first])
    assert observer_of(Parts(layer(keeps)), None).startswith(BY_FORWARD)
