"""What several test files look at: which modules of a U-Net run, and what its modules hold."""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import hypothesis  # noqa: F401
import pytest
import torch
from torch import nn
from tqdm import TMonitor

from deepcache_patch.cli import terminal
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.features import FeatureCache, Recorder, StandIn, first_tensor
from deepcache_patch.learning import auto
from deepcache_patch.settings import adjustable

# The suite runs in several processes, so each takes one core.
torch.set_num_threads(1)


def pytest_collection_finish():
    """What the libraries are made of is never looked at again by a collection of garbage.

    It is half a million objects, and some tests collect at each step. hypothesis is imported here,
    before: it asks what refers to the generators of other libraries, and frozen objects never do.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def learning_from_few_full_steps():
    """Lets schedule="auto" learn from plans that are too short to be of use, but quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "FEW_FULL_STEPS", 1)
        yield


@contextmanager
def counted_calls(model: nn.Module):
    """Counts the calls of each of the model's modules, by name."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module) -> list[tuple]:
    """Everything that a patch could leave behind: each module's attributes and children."""
    return [
        (
            name,
            type(module),
            len(vars(module)),
            [(key, _state(value)) for key, value in vars(module).items()],
        )
        for name, module in model.named_modules()
    ]


def _state(value):
    # Dictionaries (children, hooks) by their keys and the identity of their values, in order.
    return (
        [(key, id(item)) for key, item in value.items()] if isinstance(value, dict) else id(value)
    )


def layout(module):
    """What `trace` compares, without identities: for two pipelines in the same state."""
    return [
        (name, type(part).__name__, [(key, _names(value)) for key, value in vars(part).items()])
        for name, part in module.named_modules()
    ]


def _names(value):
    # Hooks have numbers that all modules share.
    return [key if isinstance(key, str) else "" for key in value] if isinstance(value, dict) else ""


def assert_exact_at_every_branch(unet: nn.Module, inputs: Callable[[], dict[str, Any]]) -> None:
    """A shallow call straight after a full one has the full one's output, and uses the feature."""
    anatomy = dissect(unet)
    plain, before = first_tensor(unet(**inputs())), trace(unet)
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            full = first_tensor(unet(**inputs()))
        feature = recorder.take()
        outputs = []
        for stand_in.feature in (feature, feature.flip(0, 1)):
            arguments = inputs()
            arguments = anatomy.trimmed(branch, arguments) or arguments
            with anatomy.cut(branch, stand_in, {}).applied():
                outputs.append(first_tensor(unet(**arguments)))
        assert torch.equal(full, plain), f"branch {branch}"
        assert torch.equal(outputs[0], plain), f"branch {branch}"
        assert not torch.equal(outputs[1], plain), f"branch {branch}"
    assert trace(unet) == before


def assert_refreshes_every_shallower_branch(
    unet: nn.Module, inputs: Callable[..., dict[str, Any]]
) -> None:
    """A shallow call records what shallower branches need: replayed there, it has its output.

    Args:
        unet: A U-Net.
        inputs: Gives the arguments of a call; takes `seed`.
    """
    anatomy = dissect(unet)
    first, second = inputs(seed=1), inputs(seed=2)
    for branch in anatomy.branches[1:]:
        recorders = {number: Recorder() for number in range(branch + 1)}
        stand_in = StandIn()
        with anatomy.cut(None, stand_in, recorders).applied():
            unet(**first)
        features = {number: recorder.take() for number, recorder in recorders.items()}
        stand_in.feature = features[branch]
        del recorders[branch]
        with anatomy.cut(branch, stand_in, recorders).applied():
            at_branch = first_tensor(unet(**second))
        for shallower, recorder in recorders.items():
            stand_in.feature = recorder.take()
            assert not torch.equal(stand_in.feature, features[shallower])
            with anatomy.cut(shallower, stand_in, {}).applied():
                assert torch.equal(first_tensor(unet(**second)), at_branch)


@pytest.fixture
def kept_tables(monkeypatch):
    """Tables of branches are measured once: for tests that are of something else."""
    from builders.tables import kept_branches  # which imports this file

    monkeypatch.setattr(adjustable, "branches_of_pipeline", kept_branches)


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def same_kernels(monkeypatch):
    """On a machine with CUDA, the same kernels run each time."""
    # Not by `cudnn.flags`, whose defaults switch cuDNN off and change how TF32 is set.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.fixture(scope="module")
def quick_collections():
    """What the libraries are made of is not looked at in each collection."""
    # Bars of other tests leave a thread that wakes every ten seconds, to wait by another lock.
    for thread in threading.enumerate():
        if isinstance(thread, TMonitor):
            thread.exit()
    gc.collect()
    gc.freeze()
    yield
    # What the module has left is looked at once more; the libraries are not, from then on.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def recorded(monkeypatch):
    """Weak references to all deep features that are recorded in the test."""
    seen, put = [], FeatureCache.put

    def noted(cache, slot, branch, recorded, **options):
        seen.append(weakref.ref(recorded.feature))
        return put(cache, slot, branch, recorded, **options)

    monkeypatch.setattr(FeatureCache, "put", noted)
    return seen


@pytest.fixture
def phases(monkeypatch):
    """What the command line says that it does, without the time of day: here, and not on stderr."""
    said = []
    # Of what is said on stderr, only the phases are said from there.
    monkeypatch.setattr(terminal, "complain", lambda text: said.append(text.partition(" ")[2]))
    return said


@pytest.fixture
def no_collections():
    """Only reference counts free anything in the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
