"""A second run of a U-Net that nobody notices, and whether two outputs agree: part by part."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module
from torch import nn

from deepcache_patch.running.second_run import (
    copied,
    obstacle_to_a_second_run,
    put_back,
    same,
    tensors_of,
    unnoticed,
)


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


class OwnHook(ModelHook):
    """Somebody's own, of accelerate's kind."""


class Registry:
    """What diffusers hangs on a module that has hooks."""

    def __init__(self, **hooks):
        self.hooks = hooks


class Stateful(AlignDevicesHook):
    _is_stateful = True


# --- obstacles ----------------------------------------------------------------------------------


def test_nothing_stands_in_the_way_of_a_plain_module():
    assert obstacle_to_a_second_run(net()) is None
    assert obstacle_to_a_second_run(nn.Identity()) is None


def test_hooks_of_libraries_are_no_obstacle():
    module = net()
    add_hook_to_module(module[0], AlignDevicesHook(torch.device("cpu")))
    module[1]._diffusers_hook = Registry(
        one=type("Hook", (), {"__module__": "diffusers.hooks.x"})()
    )
    assert obstacle_to_a_second_run(module) is None


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (OwnHook(), "OwnHook"),
        (Stateful(), "Stateful"),
        (SequentialHook(AlignDevicesHook(), OwnHook()), "OwnHook"),
        (SequentialHook(SequentialHook(OwnHook())), "OwnHook"),
    ],
    ids=["own", "stateful", "one of several", "nested"],
)
def test_a_hook_that_would_notice_is_named(hook, name):
    module = net()
    module[0]._hf_hook = hook
    assert obstacle_to_a_second_run(module) == f"the hook {name} at 0"
    whole = net()
    whole._hf_hook = hook
    assert obstacle_to_a_second_run(whole) == f"the hook {name} at Sequential"


def test_so_is_one_of_diffusers_own_registry():
    module = net()
    module[1]._diffusers_hook = Registry(first=AlignDevicesHook(), second=OwnHook())
    assert obstacle_to_a_second_run(module) == "the hook OwnHook at 1"


def test_a_stateful_hook_of_a_library_would_notice_a_second_run():
    hook = AlignDevicesHook()
    hook._is_stateful = True
    module = net()
    module[0]._hf_hook = hook
    assert obstacle_to_a_second_run(module) == "the hook AlignDevicesHook at 0"


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ],
    ids=["after", "before"],
)
def test_a_hook_on_all_modules_is_one_if_it_may_keep_something(register):
    seen = []
    with register(lambda *_: seen.append(1)):
        assert obstacle_to_a_second_run(net()) == "a hook on all modules"
    with register(lambda *_: None):
        assert obstacle_to_a_second_run(net()) is None


class Elsewhere(nn.Module):
    def __init__(self, *devices):
        super().__init__()
        self.devices = devices

    def parameters(self, recurse=True):
        return [SimpleNamespace(device=SimpleNamespace(type=each)) for each in self.devices]


def test_the_random_state_of_a_device_that_cannot_be_set_is_an_obstacle():
    for kind in ("cpu", "meta", "mps", "cuda", "xpu"):
        assert obstacle_to_a_second_run(Elsewhere(kind)) is None
    assert obstacle_to_a_second_run(Elsewhere("cpu", "npu", "hpu")) == (
        "the random state of the device hpu"
    )


# --- unnoticed ----------------------------------------------------------------------------------


def states():
    _, keys, place, *_ = np.random.get_state()
    return random.getstate(), (keys.tolist(), place), torch.get_rng_state().tolist()


def test_random_numbers_are_drawn_as_if_nothing_had_run():
    module = net()
    before = states()
    with unnoticed(module):
        random.random()
        np.random.rand()
        torch.rand(1)
        assert all(a != b for a, b in zip(states(), before, strict=True))
    assert states() == before


def test_they_are_so_after_an_error_too():
    module = net()
    before = states()
    with pytest.raises(ZeroDivisionError), unnoticed(module):
        torch.rand(1 // int(torch.rand(1)))
    assert states() == before


class Backend:
    """An accelerator's random numbers."""

    def __init__(self, *, available=True, initialized=True):
        self.available, self.initialized, self.state = available, initialized, ["before"]

    def is_available(self):
        return self.available

    def is_initialized(self):
        return self.initialized

    def get_rng_state_all(self):
        return list(self.state)

    def set_rng_state_all(self, state):
        self.state = state


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_those_of_an_accelerator_that_is_in_use_are_too(name, monkeypatch):
    backend = Backend()
    monkeypatch.setattr(torch, name, backend)
    with unnoticed(net()):
        backend.state = ["after"]
    assert backend.state == ["before"]


@pytest.mark.parametrize(
    "backend",
    [None, Backend(available=False), Backend(initialized=False)],
    ids=["none", "absent", "unused"],
)
def test_one_that_is_not_in_use_is_let_be(backend, monkeypatch):
    monkeypatch.setattr(torch, "xpu", backend)
    if backend is None:
        monkeypatch.delattr(torch, "xpu")
    with unnoticed(net()):
        if backend is not None:
            backend.state = ["after"]
    assert backend is None or backend.state == ["after"]


def test_those_of_apples_devices_are_too(monkeypatch):
    apple = Backend()
    apple.get_rng_state, apple.set_rng_state = apple.get_rng_state_all, apple.set_rng_state_all
    monkeypatch.setattr(torch, "mps", apple)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with unnoticed(net()):
        apple.state = ["after"]
    assert apple.state == ["before"]


def test_buffers_have_the_values_that_they_had():
    module = net().train()
    mean = module[1].running_mean
    before = mean.clone()
    with unnoticed(module):
        module(torch.ones(2, 2) + torch.rand(2, 2))
        assert not torch.equal(mean, before)
    assert torch.equal(mean, before)
    assert module[1].num_batches_tracked == 0


def test_a_buffer_that_has_grown_or_has_no_values_is_let_be():
    module = nn.Module()
    module.register_buffer("grows", torch.zeros(2))
    module.register_buffer("empty", torch.zeros(2, device="meta"))
    with unnoticed(module), torch.no_grad():
        module.grows.resize_(3).fill_(1)
    assert module.grows.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["_forward_hooks", "_forward_pre_hooks"])
def test_hooks_that_may_keep_something_are_left_out_for_its_length(kind):
    module, seen = net(), []

    def harmless(*_):
        return None

    def keeping(*_):
        seen.append(1)

    register = "register_forward_hook" if kind == "_forward_hooks" else "register_forward_pre_hook"
    for each in (module, module[0]):
        getattr(each, register)(harmless)
        getattr(each, register)(keeping)
    getattr(module[1], register)(harmless)
    hooks = [vars(each)[kind] for each in module.modules()]
    with unnoticed(module):
        kept = [list(vars(each)[kind].values()) for each in module.modules()]
        assert kept == [[harmless]] * 3
        assert type(vars(module)[kind]) is type(hooks[0])
        assert vars(module[1])[kind] is hooks[2]
        module(torch.ones(2, 2))
    assert seen == []
    assert all(vars(m)[kind] is each for m, each in zip(module.modules(), hooks, strict=True))


# --- copies and comparisons ---------------------------------------------------------------------


def test_a_copy_has_containers_of_its_own():
    tensor, other = torch.zeros(1), object()
    value = {"a": [tensor, (tensor, {"b": [1]})], "other": other}
    made = copied(value, tensors=False)
    assert made == value
    assert made is not value
    assert made["a"] is not value["a"]
    assert made["a"][1][1]["b"] is not value["a"][1][1]["b"]
    assert type(made["a"][1]) is tuple
    assert made["a"][0] is made["a"][1][0] is tensor
    assert made["other"] is other


def test_a_copy_may_have_tensors_of_its_own():
    tensor = torch.ones(1)
    made = copied([tensor, (tensor,), {"a": tensor}], tensors=True)
    tensor.zero_()
    assert (made[0].item(), made[1][0].item(), made[2]["a"].item()) == (1, 1, 1)


def test_lists_and_tuples_of_kinds_of_their_own_are_not_taken_apart():
    class Output(dict):
        pass

    kept = Output(a=[1])
    named = torch.Size([1])
    assert copied(kept, tensors=True) is kept
    assert copied(named, tensors=True) is named
    assert type(copied(type("Own", (list,), {})([1]), tensors=True)) is list


class Plain:
    def __init__(self, **values):
        vars(self).update(values)


ONE, TWO = torch.ones(2), torch.full((2,), 2.0)
SAME = [
    (ONE, ONE.clone()),
    ({"a": ONE, "b": 1}, {"a": ONE.clone(), "b": 1}),
    ([ONE, "a"], [ONE.clone(), "a"]),
    ((ONE, None), (ONE, None)),
    (Plain(a=ONE), Plain(a=ONE.clone())),
    *((each, each) for each in (True, 1, 1.0, "a", None)),
]
DIFFERENT = [
    (ONE, TWO),
    (ONE, ONE.double()),
    (ONE, ONE[None]),
    (ONE, ONE.to("meta")),
    (ONE, None),
    ({"a": ONE}, {"a": TWO}),
    ({"a": ONE}, {"b": ONE}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": ONE}, {"a": ONE, "b": ONE}),
    ([ONE], [TWO]),
    ([ONE], [ONE, ONE]),
    ([ONE, TWO], [ONE]),
    ([ONE], (ONE,)),
    ((ONE,), (TWO,)),
    (Plain(a=ONE), Plain(a=TWO)),
    (Plain(a=ONE), Plain(b=ONE)),
    (1, 2),
    (1, True),
    (1, 1.0),
    ("a", "b"),
    (object(), object()),
    (1j, 1j),
]


@pytest.mark.parametrize(("first", "second"), SAME, ids=range(len(SAME)))
def test_outputs_agree_in_all_that_is_in_them(first, second):
    assert same(first, second) is True


@pytest.mark.parametrize(("first", "second"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_outputs_differ_in_one_thing(first, second):
    assert same(first, second) is False
    assert same([0, first], [0, second]) is False


def test_all_tensors_of_an_output_are_found():
    value = {"a": ONE, "b": [TWO, (ONE, 1)], "c": Plain(a=TWO, b=None)}
    found = tensors_of(value)
    assert [each.tolist()[0] for each in found] == [1, 2, 1, 2]
    assert found[0] is ONE
    assert tensors_of(1) == []
    assert tensors_of(object()) == []


def test_tensors_get_their_values_again_and_it_is_said_whether_they_had_others():
    tensors = [torch.ones(2), torch.ones(2)]
    values = [each.clone() for each in tensors]
    assert put_back(tensors, values) is False
    tensors[1].zero_()
    assert put_back(tensors, values) is True
    assert [each.tolist() for each in tensors] == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="shorter"):
        put_back(tensors, values[:1])
