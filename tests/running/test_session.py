"""What a session remembers of its generation, and what it lets go of, call by call."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from deepcache_patch import FULL
from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.running.locating.declared import declared_by
from deepcache_patch.running.locating.declared_steps import DeclaredSteps
from deepcache_patch.running.locating.steps import StepTracker
from deepcache_patch.running.session import Session
from deepcache_patch.schedules.context import Position

TIMESTEPS = torch.tensor([900, 700, 500])
SAMPLE = torch.zeros(2)
RECORDED = Recorded(0, FeatureKey.of(SAMPLE), torch.ones(2))

pytestmark = pytest.mark.usefixtures("no_grad")


class Guide:
    protected = frozenset()

    def __init__(self, *entries):
        self.entries, self.asked = entries, []

    def entry(self, step):
        self.asked.append(step)
        return self.entries[step]


def call(session, order=0, text=None, *, step=0, hooks=()):
    conditioning = {} if text is None else {"text": text}
    return session.slot_of(Position(0, step, order, 3), SAMPLE, conditioning, hooks)


def declared():
    return Session(declared_by(sigmas=[9.0, 5.0, 1.0]))


def test_a_session_begins_with_nothing():
    session = Session()
    assert session.declared is None
    assert type(session.tracker) is StepTracker
    assert (session.generation, session.guide, session.scheduler) == (-1, None, None)
    assert (session.entry, session.replayable_from, session.watched) == (FULL, 0, {})
    assert session.cache.nbytes == 0
    assert session.slots.at(0) is None
    assert session.course.so_far().plan == ()


def test_a_session_of_a_generation_that_was_declared_goes_by_what_was_declared():
    session = declared()
    assert session.declared is not None
    assert type(session.tracker) is DeclaredSteps
    assert session.locate(9.0, None).step == 0


def test_a_reset_forgets_the_generation():
    session = Session()
    session.locate(TIMESTEPS[0], TIMESTEPS)
    session.guide, session.scheduler = Guide(), SimpleNamespace()
    session.watched[0, 0] = "somebody looks"
    session.entry = 0
    session.cache.put(0, 0, RECORDED)
    first = call(session)
    session.reset()
    assert (session.guide, session.scheduler, session.watched) == (None, None, {})
    assert (session.entry, session.cache.nbytes, session.slots.at(0)) == (FULL, 0, None)
    assert call(session).number == first.number + 1  # none comes twice
    assert session.locate(TIMESTEPS[1], TIMESTEPS) == Position(1, 0, 0, 2)


def test_a_reset_finishes_how_the_generation_went():
    session = Session()
    finished = []
    session.course = SimpleNamespace(finish=lambda: finished.append(1))
    session.residuals = SimpleNamespace(forget=lambda: finished.append(2))
    session.reset()
    assert finished == [1, 2]


def test_looking_ahead_remembers_nothing():
    session = Session()
    ahead = [session.locate(each, TIMESTEPS, ahead=True) for each in (TIMESTEPS[0],) * 2]
    assert ahead == [Position(0, 0, 0, 3)] * 2
    found = [session.locate(TIMESTEPS[0], TIMESTEPS) for _ in range(2)]
    assert found == [Position(0, 0, 0, 3), Position(0, 0, 1, 3)]


def test_who_calls_is_asked():
    session = Session(by_pipeline=lambda: False)
    session.locate(TIMESTEPS[1], TIMESTEPS)
    assert session.locate(TIMESTEPS[0], TIMESTEPS) is None


# --- calls that ran plainly ---------------------------------------------------------------------


def test_calls_that_ran_plainly_are_counted_where_steps_are_declared():
    session = declared()
    session.tracker.passed(9.0)
    assert session.locate(5.0, None).step == 1


def test_what_is_written_down_has_no_value_to_be_read():
    session = declared()
    session.tracker.passed(torch.tensor(9.0))
    session.tracker.passed(5.0, is_written_down=True)
    assert session.locate(1.0, None).step == 2
    session = declared()
    session.tracker.passed(torch.tensor(9.0), is_written_down=True)
    assert session.locate(5.0, None) is None
    assert session.tracker.unclear.startswith("a call within the block of generation() was traced")


def test_a_call_without_a_timestep_counts_nowhere():
    session = declared()
    session.tracker.passed(None)
    session.tracker.passed(None, is_written_down=True)
    assert session.locate(9.0, None).step == 0


def test_elsewhere_they_do_not_count():
    session = Session()
    session.tracker.passed(TIMESTEPS[0])
    assert session.locate(TIMESTEPS[1], TIMESTEPS) == Position(0, 0, 0, 2)


def test_only_a_generation_that_was_declared_may_be_in_doubt():
    assert Session().tracker.doubt() is None
    session = declared()
    session.locate(9.0, None)
    assert session.tracker.doubt().kind == "too few"


# --- steps --------------------------------------------------------------------------------------


def test_a_guide_is_asked_once_for_each_step():
    session, guide = Session(), Guide(FULL, 0, FULL, 1)
    entries = []
    for step in (0, 0, 1, 1, 2, 3):
        session.enter(guide, step)
        entries.append((session.entry, session.replayable_from))
    assert entries == [(FULL, 0), (FULL, 0), (0, 0), (0, 0), (FULL, 2), (1, 2)]
    assert guide.asked == [0, 1, 2, 3]


def test_a_full_step_that_was_left_out_is_made_up_for():
    session, guide = Session(), Guide(FULL, 0, FULL, 1, 0, 2)
    session.enter(guide, 0)
    session.enter(guide, 3)
    assert (session.entry, session.replayable_from) == (FULL, 3)
    session.enter(guide, 5)
    assert (session.entry, session.replayable_from) == (2, 3)
    assert guide.asked == [0, 1, 2, 3, 4, 5]


def test_a_step_before_asks_for_itself_alone():
    session, guide = Session(), Guide(FULL, 0, 1, FULL)
    session.enter(guide, 2)
    session.enter(guide, 1)
    assert (session.entry, guide.asked) == (0, [0, 1, 2, 1])


def test_with_a_step_goes_what_slots_that_are_over_have_recorded():
    session, guide = Session(), Guide(FULL, 0, 0, 0)
    texts = [torch.zeros(2, 2) for _ in range(2)]
    session.enter(guide, 0)
    first = call(session, text=texts[0])
    session.cache.put(first.number, 0, RECORDED)
    session.enter(guide, 1)
    second = call(session, text=texts[1], step=1)
    session.cache.put(second.number, 0, RECORDED)
    assert (first.number, second.number) == (0, 1)
    assert session.cache.get(0, 0) == (RECORDED,)
    session.enter(guide, 2)
    assert session.cache.get(0, 0) == ()
    assert session.cache.get(1, 0) == (RECORDED,)


def test_what_is_forgotten_midway_makes_the_step_a_full_one():
    session, guide = Session(), Guide(FULL, 0, 0)
    for step in (0, 1):
        session.enter(guide, step)
    session.cache.put(0, 0, RECORDED)
    slots = session.slots
    session.watched[0, 0] = None
    session.forget(midway=True)
    assert (session.entry, session.replayable_from, session.cache.nbytes) == (FULL, 1, 0)
    assert session.watched == {}
    assert session.slots is not slots
    session.enter(guide, 1)
    assert (session.entry, guide.asked) == (FULL, [0, 1])
    session.enter(guide, 2)
    assert (session.entry, session.replayable_from) == (0, 1)


def test_what_is_forgotten_for_good_begins_with_the_first_step():
    session, guide = Session(), Guide(FULL, 0, FULL, 0)
    for step in (0, 1, 2):
        session.enter(guide, step)
    session.forget()
    assert (session.entry, session.replayable_from) == (FULL, 0)
    session.enter(guide, 0)
    assert guide.asked == [0, 1, 2, 0]


# --- slots and the last step --------------------------------------------------------------------


def test_slots_are_known_by_conditioning_and_hooks():
    session, text = Session(), torch.zeros(2, 2)
    numbers = [call(session, 0, text).number, call(session, 1, torch.ones(2, 2)).number]
    numbers.append(call(session, 2, text, hooks=("a",)).number)
    session.slots.next_step()
    numbers.append(call(session, 0, text, hooks=("a",)).number)
    assert numbers == [0, 1, 2, 2]


@pytest.mark.parametrize("length", [2, 3])
def test_another_prompt_has_another_slot_however_short_the_list(length):
    session, texts = Session(), [torch.zeros(2, 2) for _ in range(2)]
    for step, text in enumerate(texts):
        session.locate(TIMESTEPS[step], TIMESTEPS[:length])
        session.slots.next_step()
        found = call(session, text=text, step=step)
    assert found.number == 1


def through(session, *counts, last):
    """Steps with so many calls each, after which slots of the last one are told of as called."""
    guide = Guide(*[FULL] * len(counts))
    texts = [torch.zeros(2, 2) for _ in range(max(counts))]
    held = []
    for step, count in enumerate(counts):
        session.enter(guide, step)
        for order in range(count):
            slot = call(session, order, texts[order], step=step)
            session.cache.put(slot.number, 0, RECORDED)
            session.called(Position(0, step, order, len(counts) if last else None), slot)
            held.append(session.cache.nbytes // RECORDED.nbytes)
    return held


def test_in_the_last_step_each_call_lets_go_of_what_only_it_needed():
    assert through(Session(), 2, 2, last=False) == [1, 2, 2, 2]
    assert through(Session(), 2, 2, last=True) == [1, 2, 1, 0]
    assert through(Session(), 3, 3, last=True) == [1, 2, 3, 2, 1, 0]


def test_calls_that_the_step_before_did_without_may_never_come():
    # Guidance has ended: what its slot has recorded goes with the last call that is left.
    assert through(Session(), 2, 1, 1, last=True) == [1, 2, 2, 0]


def test_with_the_last_call_it_is_known_how_the_generation_went():
    finished = []
    for counts in ((2, 2), (2, 1)):
        session = Session()
        session.course = SimpleNamespace(finish=lambda: finished.append(1))
        through(session, *counts, last=True)
        finished.append(0)
    assert finished == [1, 0, 0]


def test_a_generation_of_one_step_is_over_with_each_call():
    session, finished = Session(), []
    session.course = SimpleNamespace(finish=lambda: finished.append(1))
    assert through(session, 2, last=True) == [0, 0]
    assert finished == [1, 1]


def test_slots_are_numbered_anew_by_none():
    session = Session()
    numbers = []
    for _ in range(3):
        numbers.append(call(session).number)
        session.forget()
    assert numbers == list(itertools.islice(itertools.count(), 3))
