"""Whether a call is to be written down, transformed or captured is told by the state of torch."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from deepcache_patch.running.tracing import is_written_down

PLAIN = torch.zeros(2)


class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


class OwnFake(FakeTensorMode):
    """A mode of somebody's own, made from torch's."""


def asked_by(transform):
    """What is said within a transform of `torch.func`."""
    told = []

    def ask(sample):
        told.append(is_written_down(sample))
        return sample.sum()

    transform(ask)
    return told


def test_a_plain_call_is_run_for_its_own_sake():
    assert is_written_down(PLAIN) is False
    assert is_written_down(None) is False


def test_a_fake_tensor_is_told_outside_of_its_mode():
    assert is_written_down(FakeTensorMode().from_tensor(PLAIN)) is True


@pytest.mark.parametrize("mode", [FakeTensorMode, FunctionalTensorMode, OwnFake])
def test_a_mode_is_told_by_its_class_and_those_above_it_wherever_it_stands(mode):
    with Counting():
        assert not is_written_down(PLAIN)
        with mode(), Counting():
            assert is_written_down(PLAIN)
        assert not is_written_down(PLAIN)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_of_both_kinds_is_told():
    assert asked_by(lambda ask: make_fx(ask)(PLAIN)) == [True]
    assert asked_by(lambda ask: torch.jit.trace(ask, PLAIN, check_trace=False)) == [True]


def test_an_export_is_told_from_torch_2_7_on(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    assert is_written_down(PLAIN)
    monkeypatch.delattr(torch.compiler, "is_exporting")
    assert not is_written_down(PLAIN)


def test_what_torch_func_maps_or_differentiates_is_told(monkeypatch):
    assert asked_by(lambda ask: torch.func.grad(ask)(PLAIN)) == [True]
    assert asked_by(lambda ask: torch.func.vmap(ask)(PLAIN[None])) == [True]
    monkeypatch.delattr(torch._C._functorch, "peek_interpreter_stack")
    assert asked_by(lambda ask: torch.func.grad(ask)(PLAIN)) == [False]


def test_the_first_level_of_forward_derivatives_is_one():
    with forward_ad.dual_level():
        assert is_written_down(PLAIN)
    assert not is_written_down(PLAIN)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("captures", [False, True])
def test_a_graph_is_captured_once_cuda_has_started(monkeypatch, started, captures):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    assert is_written_down(PLAIN) is (started and captures)
