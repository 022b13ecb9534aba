"""What a layer, or code that is given one, may keep: told from what the code names of it."""

import functools
import types

import pytest
import torch
from builders.stateful import Holding, Ticking, TickingOfClass, closing, computes, keeps, written
from torch import nn

from deepcache_patch.running.watching.stateful import may_be_stateful, module_may_be_stateful


def layer(body="pass", name="forward", base=nn.Module, **methods):
    made = type("Layer", (base,), {name: written(body, "self, x"), **methods})()
    made.scale, made.numbers, made.maps = 1, [1], []
    made.child = nn.Linear(1, 1)
    return made


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_layers_class_is_looked_at(name):
    assert not module_may_be_stateful(layer(name=name))
    assert module_may_be_stateful(layer("self.maps", name))


@pytest.mark.parametrize("name", ["forward", "_call_impl"])
def test_what_is_put_on_a_layer_is_looked_at(name):
    made = layer()
    setattr(made, name, computes)
    assert not module_may_be_stateful(made)
    setattr(made, name, keeps)
    assert module_may_be_stateful(made)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("self.scale", False),
        ("self.numbers", False),
        ("self.maps", True),
        ("self.child(x)", False),
        ("self.training", False),
        ("getattr(self, 'maps')", True),
    ],
)
def test_of_a_layer_that_is_looked_at_which_its_code_names(body, expected):
    assert module_may_be_stateful(layer(body)) is expected
    held = layer()
    by_another = types.FunctionType(written(body).__code__, {"__name__": "somebodys"})
    assert may_be_stateful(types.MethodType(by_another, held)) is expected


def test_a_child_that_code_names_is_looked_at():
    made = layer("self.child(x)")
    made.child = layer("self.maps")
    assert module_may_be_stateful(made)
    other = layer("self.scale")
    other.child = layer("self.maps")
    assert not module_may_be_stateful(other)


def test_a_layer_that_code_closes_over_is_looked_at_likewise():
    known = {"__name__": "somebodys"}
    exec(
        "def over(it):\n"
        "    return (lambda x: it.maps), (lambda x: it.scale), (lambda x: it.note(x))",
        known,
    )
    maps, scale, note = known["over"](layer())
    assert [may_be_stateful(each) for each in (maps, scale, note)] == [True, False, False]
    *_, note = known["over"](layer(note=written("self.maps = x")))
    assert may_be_stateful(note)


def test_methods_that_code_names_are_looked_at():
    note = written("self.maps = x")
    assert module_may_be_stateful(layer("self.note(x)", note=note))
    assert not module_may_be_stateful(layer("self.scale", note=note))


def test_methods_of_a_class_that_code_names_are_looked_at():
    assert may_be_stateful(written("kind.tick()", "x", kind=TickingOfClass))
    assert may_be_stateful(closing(TickingOfClass))
    assert not may_be_stateful(closing(Ticking))  # what it makes is new in each call
    assert may_be_stateful(written("kind.tick(x)", "x", kind=Ticking))


@pytest.mark.parametrize("name", ["_hf_hook", "_old_forward", "_diffusers_hook"])
def test_hooks_of_libraries_are_not_looked_at(name):
    made = layer(f"self.{name}")
    setattr(made, name, Holding([]))
    assert not module_may_be_stateful(made)


def test_the_same_method_of_two_layers_is_looked_at_with_each():
    # The first layer has no such attribute: nothing can be written to it.
    add = written("self.total.add_(x)")
    without, having = nn.Linear(1, 1), nn.Linear(1, 1)
    having.total = torch.zeros(1)
    methods = [types.MethodType(add, each) for each in (without, having)]
    assert not may_be_stateful(methods[0])
    assert may_be_stateful(methods[1])
    assert may_be_stateful(closing(tuple(methods)))


def test_lists_of_one_call_may_be_added_to_by_a_block():
    adds = layer("x.append(1)")
    assert module_may_be_stateful(adds)
    assert not module_may_be_stateful(adds, for_one_call=True)
    assert module_may_be_stateful(layer("x.insert(0, self.maps)"), for_one_call=True)


def test_what_a_layer_lacks_its_methods_cannot_add_to():
    adds, plain = written("self.lacking.append(x)"), written("pass")
    assert not module_may_be_stateful(layer("self.note(x)", note=plain))
    assert not module_may_be_stateful(layer("self.note(x)", note=adds))
    assert may_be_stateful(adds)
    for forward in (functools.wraps(adds)(written("pass")), functools.partial(adds)):
        made = type("Layer", (nn.Module,), {"forward": forward})()
        assert not module_may_be_stateful(made)
