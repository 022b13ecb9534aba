"""Which slot a call has by what it is given, without a U-Net: memory, values, places and hooks.

What whole loops make of it is told in `test_slots`.
"""

import itertools

import pytest
import torch

from deepcache_patch.running.slots import Slots, marks

SAMPLE = torch.zeros(2)


def given(text, sample=SAMPLE, hooks=(), **more):
    return marks(sample, {"text": text, **more}, hooks)


class Walk:
    """Calls step by step; says which slot each had."""

    def __init__(self):
        self.slots, self.over = Slots(itertools.count()), []

    def step(self, *calls):
        self.over = self.slots.next_step()
        self.found = [self.slots.of(order, each) for order, each in enumerate(calls)]
        return [each.number for each in self.found]


def text(value=0.0):
    return torch.full((2, 2), value)


def test_a_slot_that_is_new_takes_nobodys_place():
    walk = Walk()
    assert walk.slots.changes == 0
    slot = walk.slots.of(0, given(text()))
    assert (slot.number, slot.instead_of, slot.is_earlier, slot.differing) == (0, None, False, ())
    assert (slot.order, slot.is_called) == (0, True)
    assert walk.slots.at(0) is slot
    assert walk.slots.at(1) is None


def test_a_slot_in_anothers_place_names_it_and_what_differs():
    walk, first, second = Walk(), text(), text()
    walk.step(given(first))
    assert walk.step(given(second)) == [1]
    (slot,) = walk.found
    assert (slot.instead_of, slot.differing) == (0, ("text",))
    assert walk.step(given(second)) == [1]
    assert (slot.differing, walk.over, walk.slots.changes) == ((), [0], 1)


def test_parts_of_one_memory_are_told_apart():
    walk, both = Walk(), torch.zeros(2, 3)
    assert walk.step(given(both[:1]), given(both[1:])) == [0, 1]
    assert walk.step(given(both[1:])) == [1]
    assert walk.step(given(both[:1])) == [0]


def test_what_was_made_for_inference_has_no_state_and_is_known_by_its_memory():
    with torch.inference_mode():
        walk, first, second = Walk(), text(), text()
        assert walk.step(given(first), given(second)) == [0, 1]
        assert walk.step(given(second), given(first)) == [1, 0]


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.bool)],
    ids=lambda value: str(value.dtype),
)
def test_what_is_no_label_is_known_by_its_memory_however_short(value):
    walk, again = Walk(), value.clone()
    assert walk.step(given(value), given(again)) == [0, 1]
    assert walk.step(given(again)) == [1]


@pytest.mark.parametrize(("count", "slots"), [(64, [0]), (65, [1])])
def test_labels_are_known_by_their_values_if_they_are_few(count, slots):
    first, second = (torch.ones(count, dtype=torch.int64) for _ in range(2))
    walk = Walk()
    walk.step(given(first))
    assert walk.step(given(second)) == slots


def test_labels_that_are_others_are_another_slot_though_nobody_has_the_old_ones():
    walk = Walk()
    walk.step(given(torch.tensor([1])))
    assert walk.step(given(torch.tensor([2]))) == [1]
    assert walk.found[0].differing == ("text",)


@pytest.mark.parametrize("first", [True, False], ids=["ends", "begins"])
def test_conditioning_that_begins_or_ends_is_another(first):
    walk, prompt, more = Walk(), text(), {"pooled": text()}
    walk.step(given(prompt, **(more if first else {})))
    assert walk.step(given(prompt, **({} if first else more))) == [1]
    assert walk.found[0].differing == ("pooled",)


def test_other_hooks_are_another_slot_and_the_same_ones_are_not():
    walk, prompt = Walk(), text()
    calls = [given(prompt, hooks=hooks) for hooks in ((), ("a",), ("b",))]
    assert walk.step(*calls) == [0, 1, 2]
    assert walk.step(*calls[::-1]) == [2, 1, 0]
    assert walk.step(given(prompt, hooks=("c",))) == [3]
    assert walk.found[0].differing == ("the hooks of its layers",)


def test_a_slot_is_earlier_if_calls_before_it_are_left_out():
    walk, prompts = Walk(), [text() for _ in range(3)]
    walk.step(*map(given, prompts))
    assert walk.step(given(prompts[0]), given(prompts[2])) == [0, 2]
    assert [each.is_earlier for each in walk.found] == [False, True]


def test_a_call_where_another_has_gone_on_takes_nobodys_place():
    walk, a, b, c = Walk(), text(), text(), text()
    walk.step(given(a), given(b))
    assert walk.step(given(b), given(c)) == [1, 2]
    assert (walk.found[1].instead_of, walk.found[1].differing) == (None, ())


# --- conditioning made anew ---------------------------------------------------------------------


def test_what_was_let_go_of_late_is_another_once_somebody_keeps_it():
    # Each is let go of one step late, then one at once: what is kept from there on is another.
    walk, a, b = Walk(), text(), text()
    assert walk.step(given(a)) == [0]
    assert walk.step(given(b)) == [1]
    del a
    c = text()
    assert walk.step(given(c)) == [2]
    del b
    d = text()
    assert walk.step(given(d)) == [2]
    del c, d
    e = text()
    assert walk.step(given(e)) == [2]
    f = text()
    assert walk.step(given(f)) == [3]
    assert e is not f


def test_what_was_the_same_in_two_steps_is_not_taken_for_made_anew():
    walk, a = Walk(), text()
    walk.step(given(a))
    assert walk.step(given(a)) == [0]
    del a
    assert walk.step(given(text())) == [1]


def test_another_slot_does_not_know_what_was_the_same_in_two_steps():
    walk, a = Walk(), text()
    assert [walk.step(given(each)) for each in (a, a, text())] == [[0], [0], [1]]
    assert walk.step(given(text())) == [1]


# --- the second step ----------------------------------------------------------------------------


def test_another_prompt_is_another_slot_in_the_second_step_already():
    walk, a, b = Walk(), text(), text()
    assert walk.step(given(a)) == [0]
    assert walk.step(given(b, pooled=text())) == [1]
    assert walk.found[0].differing == ("pooled", "text")


def test_what_was_kept_in_the_second_step_is_not_let_go_of_late():
    walk, a, b = Walk(), text(), text()
    walk.step(given(a))
    walk.step(given(b))
    del a
    assert walk.step(given(text())) == [2]
    assert b is not None


def test_of_several_calls_in_two_steps_each_is_known_by_what_it_is_given():
    walk, prompts = Walk(), [text() for _ in range(3)]
    walk.step(given(prompts[0]), given(prompts[1]))
    assert walk.step(given(prompts[2])) == [2]


@pytest.mark.parametrize("what", ["place", "hooks"])
def test_another_place_or_other_hooks_are_another_slot_in_the_second_step_already(what):
    walk, a, canvas = Walk(), text(), torch.zeros(6)
    later = given(a, canvas[1:3]) if what == "place" else given(a, canvas[:2], hooks=("a",))
    walk.step(given(a, canvas[:2]))
    assert walk.step(later) == [1]


# --- the place of the sample --------------------------------------------------------------------


def test_a_sample_of_its_own_has_no_place():
    walk, a, canvas = Walk(), text(), torch.zeros(8)
    for sample in (canvas[2:4], torch.zeros(2), canvas[4:6]):
        assert walk.step(given(a, sample)) == [0]


@pytest.mark.parametrize("starts", [(0, 2), (2, 0)], ids=["to between", "from between"])
def test_a_part_between_two_entries_is_another_place(starts):
    walk, a, canvas = Walk(), text(), torch.zeros(8)
    walk.step(given(a, canvas[starts[0] : starts[0] + 4]))
    assert walk.step(given(a, canvas[starts[1] : starts[1] + 4])) == [1]
    assert walk.found[0].differing == ("the place of its sample",)


@pytest.mark.parametrize("size", [1, 3])
def test_entries_of_one_list_are_one_picture(size):
    walk, a, trajectory = Walk(), text(), torch.zeros(4, size)
    for sample in trajectory:
        assert walk.step(given(a, sample)) == [0]
