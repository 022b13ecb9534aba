"""Two patches of others and a helper come and go in any order.

At every stage the picture is that of a U-Net of its own to which the same was done without a
helper. One patch alone is in `test_other_patches`.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from builders.marks import mostly_slow
from builders.patched import loop, small
from builders.patches import OTHERS, Remove
from conftest import layout

from deepcache_patch import DeepCacheHelper, Uniform

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`:UserWarning",
    "ignore:Adapter .* cannot be unmerged:UserWarning",
)


def interleavings(nested: bool) -> list[tuple[str, ...]]:
    """All orders of installing and removing "a", "b" and ours."""
    events = ["+a", "-a", "+b", "-b", "+ours", "-ours"]
    found = []
    for order in itertools.permutations(events):
        at = {event: number for number, event in enumerate(order)}
        if not all(at[f"+{name}"] < at[f"-{name}"] for name in ("a", "b", "ours")):
            continue
        overlap = at["+a"] < at["+b"] < at["-a"] < at["-b"]
        overlap |= at["+b"] < at["+a"] < at["-b"] < at["-a"]
        if not (nested and overlap):
            found.append(order)
    return found


ONE_LIST = [("diffusers-new-forward", "diffusers-hook")]
PAIRS = [
    ("closure", "torch-hooks"),
    ("accelerate", "diffusers-hook"),
    ("closure", "closure"),
    ("accelerate", "torch-hooks"),
    ("adapter", "accelerate"),
    ("parametrized", "torch-hooks-inside"),
    ("wrapt-function", "class-forward"),
    ("diffusers-new-forward", "diffusers-hook"),
    ("blocks", "accelerate-on-blocks"),
    ("tomesd", "saved-closure"),
]


def told(pair: tuple[str, str]) -> list[pytest.MarkDecorator]:
    """What lets the helper say that it runs in full, if it does with one of these."""
    ignored = "ignore:a U-Net call runs in full. the function in the place of:UserWarning"
    heeded = any(OTHERS[kind].heeded for kind in pair)
    return [pytest.mark.filterwarnings(ignored)] if heeded else []


class Stage(NamedTuple):
    """A picture, who saw the calls, and, while no helper is enabled, what is on the modules."""

    picture: torch.Tensor
    seen: list[str]
    left: Any


def _tell(kinds: tuple[str, str], order: tuple[str, ...]) -> Iterator[Stage]:
    """Go through an order."""
    unet, seen = small(), []
    helper = DeepCacheHelper(unet, schedule=Uniform(3))
    removals: dict[str, Remove] = {}
    try:
        for event in order:
            sign, name = event[0], event[1:]
            if name == "ours":
                helper.enable() if sign == "+" else helper.disable()
            elif sign == "+":
                kind = kinds["ab".index(name)]
                removals[name] = OTHERS[kind].install(unet, functools.partial(seen.append, name))
            else:
                removals.pop(name)()
            seen.clear()
            helper.reset()
            yield Stage(loop(unet), list(seen), None if helper.enabled else layout(unet))
    finally:
        for remove in reversed(removals.values()):
            remove()


@pytest.mark.parametrize(
    ("kinds", "every"),
    mostly_slow(
        [
            pytest.param(PAIRS[0], 20, id="some"),
            *(pytest.param(pair, 1, id="+".join(pair), marks=told(pair)) for pair in PAIRS),
        ],
        ["some"],
    ),
)
def test_two_patches_and_a_helper_come_and_go_in_any_order(kinds, every):
    # Two that replace the same forward, and put back what they found, break each other when they
    # do not go in reverse order: such orders are left out. diffusers keeps a list of its own.
    nested = all(OTHERS[kind].stacks for kind in kinds) and kinds not in ONE_LIST
    plains: dict[tuple[str, ...], list[Stage]] = {}
    helped: dict[tuple[str, ...], torch.Tensor] = {}
    for order in interleavings(nested)[::every]:
        others = tuple(event for event in order if event[1:] != "ours")
        if others not in plains:
            plains[others] = list(_tell(kinds, others))
        for number, stage in enumerate(_tell(kinds, order)):
            state = tuple(event for event in order[: number + 1] if event in others)
            expected = plains[others][len(state) - 1] if state else Stage(loop(small()), [], None)
            if stage.left is not None:
                assert torch.equal(stage.picture, expected.picture), (order, number)
                assert stage.seen == expected.seen, (order, number)
                assert not state or stage.left == expected.left, (order, number)
                continue
            # Blocks' replaced functions note who saw them, so that no step is shallow then.
            in_full = any(
                OTHERS[kind].heeded and f"+{name}" in state and f"-{name}" not in state
                for name, kind in zip("ab", kinds, strict=True)
            )
            assert torch.equal(stage.picture, expected.picture) is in_full, (order, number)
            # Whenever the helper came: the same others in the same order give the same picture.
            assert torch.equal(helped.setdefault(state, stage.picture), stage.picture)
