"""Whether code can keep something, told from the code."""

import queue
import weakref
from dis import get_instructions

import pytest
import torch
from builders.loops import kinds_of_steps
from builders.stateful import closing
from builders.unets import unet2d_condition
from torch import nn

from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform
from deepcache_patch.running.watching import bytecode
from deepcache_patch.running.watching.stateful import may_be_stateful, module_may_be_stateful

KEEP = [
    "c, _ = self.counts, 0; c[0] += 1",
    "c = self.counts if x is not None else None; c[0] += 1",
    "(c := self.counts); c[0] = c[0] + 1",
    "n = self.maps; n += 1",
    "torch.add(self.maps, 1, out=self.maps)",
    "self.maps.__iadd__(1)",
    "self.maps.add_(1)",
    # The first argument of a function within is not the layer, which has no such attribute.
    "def put(at, value):\n        at.store.append(value)\n    put(self.layer, x)",
    "put = lambda at, value: at.store.insert(0, value)\n    put(self.layer, x)",
]
COMPUTE = [
    "y = self.layer(x); y += x",
    "y = x * self.scale; y = y + 1",
    "a, b = x.chunk(2); a = a * 2",
    "n = 0; n += 1",
    "h, w = x.shape[0], x.shape[1]; x = x.reshape(h, w)",
    "y = self.layer(x); y = y.view(1, -1); y.mul_(2)",
    "made = []; made.append(x)",
    "y, made, z = self.layer(x), {}, x; made[0] = z",
]


def layer(body):
    """A layer of somebody's own, whose `forward` has this body."""
    known = {"torch": torch, "__name__": "somebodys"}
    exec(f"def forward(self, x):\n    {body}\n    return x", known)

    class Layer(nn.Module):
        forward = known["forward"]

        def __init__(self):
            super().__init__()
            self.counts, self.maps, self.scale = [0], torch.zeros(1), 2.0
            self.layer = nn.Linear(2, 2)

    return Layer()


@pytest.mark.parametrize("body", KEEP)
def test_what_writes_to_something_of_its_layer_keeps_something(body):
    assert module_may_be_stateful(layer(body))


@pytest.mark.parametrize("body", COMPUTE)
def test_what_writes_to_its_own_variables_alone_only_computes(body):
    assert not module_may_be_stateful(layer(body))


class Lazy:
    def __getattr__(self, name):
        raise RuntimeError("not loaded")


def test_what_cannot_be_looked_at_is_said_to_keep_something():
    gone = weakref.proxy(layer("pass"))
    lazy = Lazy()
    chain = None
    for _ in range(2000):
        chain = lambda x, inner=chain: inner  # noqa: E731
    for thing in (lambda x: gone, lambda x: lazy, chain):
        assert may_be_stateful(thing)


def test_a_class_that_a_library_has_made_from_ones_own_is_the_librarys():
    own = type("Own", (), {"__module__": "somebodys", "kept": []})
    made = type("Made", (own,), {"__module__": "torch.nn.utils.parametrize"})
    assert may_be_stateful(closing(own))
    assert not may_be_stateful(closing(made))


def test_what_a_class_of_ones_own_has_of_a_library_is_not_looked_at():
    # Such as `__class_getitem__`, which is nobody's function.
    assert not may_be_stateful(closing(type("Own", (queue.Queue,), {"__module__": "somebodys"})))


def test_each_code_is_looked_at_once(monkeypatch):
    # What its names stand for may be another by then, and is asked anew.
    looked = []

    def noted(code, **options):
        looked.append(code.co_name)
        return get_instructions(code, **options)

    monkeypatch.setattr(bytecode, "get_instructions", noted)
    known = {"__name__": "somebodys", "kept": None}
    exec("def only_here(attn, x, **_):\n    kept\n    return x * 1.25", known)
    unet = unet2d_condition()
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = known["only_here"]
    with DeepCacheHelper(unet, schedule=Uniform(3)) as helper:
        assert kinds_of_steps(unet) == "FssFssF"
        assert looked.count("only_here") == 2  # for what it writes to, and for what it reads
        helper.reset()
        assert kinds_of_steps(unet) == "FssFssF"
        known["kept"] = []
        helper.reset()
        with pytest.warns(DeepCacheWarning, match="the attention processor only_here of mid_block"):
            assert kinds_of_steps(unet) == "FFFFFFF"
    assert looked.count("only_here") == 2
