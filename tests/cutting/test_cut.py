"""A cut swaps children for one call and always puts them back, in place and in order."""

import random
import signal

import pytest
import torch
from torch import nn

from deepcache_patch.cutting.cut import Cut, Swap, shorten


class Add(nn.Module):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, x):
        return x + self.amount


class Sum(nn.Module):
    """x -> x + 1 + 10 + 100, unless a child is `None`."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Add(1), Add(10), Add(100)
        self.absent = None  # a plain attribute: torch registers no child for it

    def forward(self, x):
        for child in (self.first, self.second, self.third, self.absent):
            x = x if child is None else child(x)
        return x


def state(module):
    return {
        name: dict(value) if name == "_modules" else value for name, value in vars(module).items()
    }


def test_the_parents_own_forward_sees_the_swapped_children():
    module = Sum()
    cut = Cut([Swap(module, "second", Add(20)), Swap(module, "third", None)])
    with cut.applied():
        assert module(0) == 21
    assert module(0) == 111


def test_children_are_back_in_place_and_in_order():
    module = Sum()
    before, order = state(module), list(module._modules)
    with Cut([Swap(module, "first", None)]).applied():
        assert list(module._modules) == order
    assert state(module) == before
    assert list(module._modules) == order


def test_a_child_that_was_none_from_the_start_is_swapped_where_it_lives():
    # A mid block that is None (SSD-1B) is an entry of the instance dictionary. A swap that knew
    # only `_modules` would raise, or leave an entry there that is hidden while the U-Net runs.
    module = Sum()
    before = state(module)
    with Cut([Swap(module, "absent", Add(1000))]).applied():
        assert module(0) == 1111
        assert "absent" not in module._modules
    assert state(module) == before


def test_everything_is_undone_when_the_call_fails():
    module = Sum()
    before = state(module)
    with pytest.raises(KeyboardInterrupt), Cut([Swap(module, "first", None)]).applied():
        raise KeyboardInterrupt
    assert state(module) == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
def test_ctrl_c_amid_the_swaps_leaves_nothing_swapped():
    # The swaps were made one by one, and a child was noted after it was swapped. Ctrl-C in between
    # left a U-Net cut for good, also after `disable()`: of 26,000 that came amid nothing but swaps,
    # 10,000 did.
    def interrupt(*_):
        raise KeyboardInterrupt

    def until_interrupted(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            with cut.applied():
                pass

    module = nn.Module()
    module.parts = nn.ModuleList([Add(1) for _ in range(20)])
    before = dict(module.parts._modules)
    cut = Cut([Swap(module.parts, name, None) for name in before])
    chance, found = random.Random(0), signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            with pytest.raises(KeyboardInterrupt):
                until_interrupted(chance.uniform(20e-6, 300e-6))
            assert module.parts._modules == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, found)


def test_a_swap_that_fails_undoes_those_before_it():
    module = Sum()
    before = state(module)
    with (
        pytest.raises(KeyError),
        Cut([Swap(module, "first", None), Swap(module, "no_such_child", None)]).applied(),
    ):
        pytest.fail("the cut was applied in part")
    assert state(module) == before


def test_the_same_child_swapped_twice_comes_back():
    module = Sum()
    first = module.first
    with Cut([Swap(module, "first", Add(2)), Swap(module, "first", Add(3))]).applied():
        assert module(0) == 113
    assert module.first is first


def test_a_cut_can_be_applied_again():
    module = Sum()
    cut = Cut([Swap(module, "first", None)])
    for _ in range(2):
        with cut.applied():
            assert module(torch.zeros(())) == 110
        assert module(torch.zeros(())) == 111


def test_a_list_is_swapped_only_if_something_else_is_kept_of_it():
    module, parts = nn.Module(), [Add(1), Add(10), Add(100)]
    module.parts = nn.ModuleList(parts)
    swaps = []
    shorten(swaps, module, "parts", iter(parts))
    assert swaps == []
    shorten(swaps, module, "parts", iter(parts[:2]))
    with Cut(swaps).applied():
        assert list(module.parts) == parts[:2]
    assert list(module.parts) == parts
