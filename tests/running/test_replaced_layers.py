"""Layers that count or keep, whatever form that has: a forward in their place, a class, a function.

A controller that counts layers, and so steps, was left out of two steps in three without a word
(prompt-to-prompt, MasaCtrl, null-text): it counted a third of the steps, and its edit never ended.
Blocks of swapped classes that count their calls (HiDiffusion) drifted, too.
"""

import functools
import itertools
import types
import warnings
from collections import Counter

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from builders.loops import loop
from builders.marks import mostly_slow
from builders.unets import unet2d_condition
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from deepcache_patch import OUTPUT, DeepCacheHelper, DeepCacheWarning, Uniform

STEPS = 7
BRANCHES = [0, OUTPUT]


def small():
    return unet2d_condition(block_out_channels=(8, 16), layers_per_block=1)


def attentions(unet):
    return [module for module in unet.modules() if isinstance(module, Attention)]


def deep(unet):
    """Attention that a shallow step leaves out."""
    return unet.mid_block.attentions[0].transformer_blocks[0].attn1


def counts(unet, branch, loops=1):
    """The helper's counts, what was warned of, and the sample."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with DeepCacheHelper(unet, schedule=Uniform(3, branch)) as helper:
            for _ in range(loops):
                sample = loop(unet, steps=STEPS)
    told = [str(each.message) for each in caught if each.category is DeepCacheWarning]
    return (helper.stats.full_calls, helper.stats.shallow_calls), told, sample


class Controller:
    """Counts the layers that run, and the steps by their number."""

    def __init__(self, layers):
        self.layers, self.seen, self.step = layers, 0, 0

    def __call__(self, hidden):
        self.seen += 1
        if self.seen == self.layers:
            self.seen, self.step = 0, self.step + 1
        return hidden


class ControllerModule(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers, self.seen, self.step = layers, 0, 0

    def forward(self, hidden):
        return Controller.__call__(self, hidden)


def closure(layer, controller):
    old = layer.forward

    def forward(*args, **kwargs):
        return controller(old(*args, **kwargs))

    layer.forward = forward


def prompt_to_prompt(layer, controller):
    def over(self):
        def forward(hidden_states, encoder_hidden_states=None, attention_mask=None, **_options):
            made = AttnProcessor2_0()(self, hidden_states, encoder_hidden_states, attention_mask)
            return controller(made)

        return forward

    layer.forward = over(layer)


def method(layer, controller):
    old = layer.forward

    def forward(self, *args, **kwargs):
        return self.controller(old(*args, **kwargs))

    layer.controller = controller
    layer.forward = types.MethodType(forward, layer)


def wrapped(layer, controller):
    old = layer.forward
    layer.forward = functools.wraps(old)(lambda *a, **k: controller(old(*a, **k)))


def partial(layer, controller):
    def forward(old, controller, *args, **kwargs):
        return controller(old(*args, **kwargs))

    layer.forward = functools.partial(forward, layer.forward, controller)


def swapped_class(layer, controller):
    class Controlled(Attention):
        def forward(self, *args, **kwargs):
            return self.controller(super().forward(*args, **kwargs))

    layer.controller = controller
    layer.__class__ = Controlled


def swapped_class_of_call(layer, controller):
    class Controlled(Attention):
        def __call__(self, *args, **kwargs):
            return controller(super().__call__(*args, **kwargs))

    layer.__class__ = Controlled


def of_library(layer, controller):
    """A function of a name that says it is of a library."""
    closure(layer, controller)
    layer.forward.__module__ = "diffusers.models.attention_processor"


def behind_accelerate(layer, controller):
    closure(layer, controller)
    add_hook_to_module(layer, AlignDevicesHook(torch.device("cpu")))


def processor_module(layer, controller):
    """A module that is called by a `__call__` of its own."""

    class Processor(nn.Module):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_options):
            return controller(AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states))

    layer.set_processor(Processor())


FORMS = [
    *(closure, prompt_to_prompt, method, wrapped, partial, swapped_class, swapped_class_of_call),
    *(of_library, behind_accelerate, processor_module),
]


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(
    "kind", mostly_slow([Controller, ControllerModule], 1), ids=["object", "module"]
)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_controller_of_layers_counts_every_step(form, kind, branch):
    plain, unet = small(), small()
    controllers = [kind(len(attentions(unet))) for _ in range(2)]
    for each, controller in zip((plain, unet), controllers, strict=True):
        for layer in attentions(each):
            form(layer, controller)
    expected = loop(plain, steps=STEPS)
    counted, told, sample = counts(unet, branch)
    assert [each.step for each in controllers] == [STEPS, STEPS]
    assert counted == (STEPS, 0)
    assert torch.equal(sample, expected)
    assert len(told) == 1
    assert "may keep what it sees at each step" in told[0]


SEEN, NUMBER, LISTED = Counter(), 0, []


def in_a_global(old):
    def forward(*args, **kwargs):
        global NUMBER
        NUMBER += 1
        return old(*args, **kwargs)

    return forward


def in_a_nonlocal(old):
    number = 0

    def forward(*args, **kwargs):
        nonlocal number
        number += 1
        return old(*args, **kwargs)

    return forward


def in_a_counter(old):
    def forward(*args, **kwargs):
        SEEN["calls"] += 1
        return old(*args, **kwargs)

    return forward


def in_an_iterator(old):
    numbers = itertools.count()

    def forward(*args, **kwargs):
        return old(*args, **kwargs) * (next(numbers) + 1)

    return forward


def by_a_bound_append(old):
    add = [].append

    def forward(*args, **kwargs):
        made = old(*args, **kwargs)
        add(made)
        return made

    return forward


def by_a_function_of_a_global(old):
    def forward(*args, **kwargs):
        return note(old(*args, **kwargs))

    return forward


def note(value):
    LISTED.append(value)
    return value


def in_a_tensor(old):
    number = torch.zeros(())

    def forward(*args, **kwargs):
        number.add_(1)
        return old(*args, **kwargs)

    return forward


def in_a_function(old):
    def forward(*args, **kwargs):
        forward.calls = getattr(forward, "calls", 0) + 1
        return old(*args, **kwargs)

    return forward


def in_a_class(old):
    class Kept:
        calls = 0

        @classmethod
        def tick(cls):
            cls.calls += 1

    def forward(*args, **kwargs):
        Kept.tick()
        return old(*args, **kwargs)

    return forward


def through_another(old):
    maps = {}

    def keep(value):
        maps[len(maps)] = value
        return value

    def forward(*args, **kwargs):
        return keep(old(*args, **kwargs))

    return forward


KEEPING = [
    *(in_a_global, in_a_nonlocal, in_a_counter, in_an_iterator, by_a_bound_append),
    *(by_a_function_of_a_global, in_a_tensor, in_a_function, in_a_class, through_another),
]


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("form", KEEPING, ids=lambda form: form.__name__)
def test_a_forward_that_keeps_something_anywhere_sees_every_step(form, branch):
    unet = small()
    deep(unet).forward = form(deep(unet).forward)
    counted, told, _ = counts(unet, branch)
    assert counted == (STEPS, 0)
    assert len(told) == 1
    assert "Attention.forward of mid_block" in told[0]


def scaled(layer):
    old, scale = layer.forward, 0.5
    layer.forward = lambda *args, **kwargs: scale * old(*args, **kwargs)


def over_itself(layer):
    def forward(hidden_states, encoder_hidden_states=None, attention_mask=None, **_options):
        parts = []
        for half in hidden_states.chunk(2):
            parts.append(AttnProcessor2_0()(layer, half, None, attention_mask))
        made = torch.cat(parts)
        made[..., :1] = 0
        return made

    layer.forward = forward


def masked(layer):
    old, mask = layer.forward, torch.tensor([0.0, 1.0] * 8)
    layer.forward = lambda *args, **kwargs: mask * old(*args, **kwargs)


def as_method(layer):
    def forward(self, hidden_states, **kwargs):
        return self.processor(self, hidden_states, **kwargs) * len(self._modules)

    layer.forward = types.MethodType(forward, layer)


def scaled_class(layer):
    class Halved(Attention):
        strength = 0.5

        def forward(self, *args, **kwargs):
            return self.scaled(super().forward(*args, **kwargs))

        def scaled(self, hidden):
            return hidden * self.strength

        def set_strength(self, strength):
            self.strength = strength

    layer.__class__ = Halved


def compiled(layer):
    layer.forward = torch.compile(layer.forward, backend="eager")


def hooked(layer):
    add_hook_to_module(layer, AlignDevicesHook(torch.device("cpu")))


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(
    "form",
    [scaled, over_itself, masked, as_method, scaled_class, compiled, hooked],
    ids=lambda form: form.__name__,
)
def test_a_layer_that_only_computes_is_left_out_without_a_word(form, branch):
    unet = small()
    form(deep(unet))
    counted, told, _ = counts(unet, branch)
    assert told == []
    assert counted == (3, 4)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_forward_replaced_on_a_class_of_layers_is_heeded(branch, monkeypatch):
    unet, kept = small(), []

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **options):
        kept.append(hidden_states)
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask)

    monkeypatch.setattr(Attention, "forward", forward)
    counted, told, _ = counts(unet, branch)
    assert counted == (STEPS, 0)
    assert len(kept) == STEPS * len(attentions(unet))
    assert len(told) == 1


def counting(kind):
    """A class in the place of a block's, as HiDiffusion makes them."""

    class Counting(kind):
        def forward(self, *args, **kwargs):
            self.calls = vars(self).get("calls", 0) + 1
            return super().forward(*args, **kwargs)

    return Counting


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("when", mostly_slow(["before", "after"], ["after"]))
def test_blocks_of_a_swapped_class_count_every_step(when, branch):
    # Swapped before enable(), the proof called them once more; after it, nobody noticed.
    plain, unet = small(), small()
    expected, seen = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        helper = DeepCacheHelper(unet, schedule=Uniform(3, branch))
        if when == "after":
            helper.enable()
            loop(unet, steps=STEPS)
            assert helper.stats.shallow_calls == 4
        before = helper.stats
        for each in (plain, unet):
            for block in (*each.down_blocks, each.mid_block, *each.up_blocks):
                block.__class__ = counting(type(block))
        helper.enable()
        for _ in range(2):
            expected.append(loop(plain, steps=STEPS))
            seen.append(loop(unet, steps=STEPS))
        helper.disable()
        expected.append(loop(plain, steps=STEPS))
        seen.append(loop(unet, steps=STEPS))
    assert all(map(torch.equal, seen, expected))
    assert [block.calls for block in unet.up_blocks] == [3 * STEPS] * 2
    assert unet.mid_block.calls == 3 * STEPS
    assert helper.stats.full_calls - before.full_calls == 2 * STEPS
    assert len([each for each in caught if each.category is DeepCacheWarning]) == 1


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_class_that_is_swapped_within_a_generation_is_noticed_at_the_next_call(branch):
    unet, block_of = small(), lambda unet: unet.up_blocks[0]
    kinds, text = [], torch.zeros(2, 7, unet.config.cross_attention_dim)
    with DeepCacheHelper(unet, schedule=Uniform(6, branch)) as helper, torch.no_grad():
        for timestep in torch.arange(6, 0, -1) * 100:
            if timestep == 400:
                block_of(unet).__class__ = counting(type(block_of(unet)))
            before = helper.stats.full_calls
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                unet(torch.ones(2, 4, 8, 8), timestep, encoder_hidden_states=text)
            kinds.append(helper.stats.full_calls - before)
    assert kinds == [1, 0, 1, 1, 1, 1]
    assert block_of(unet).calls == 4
