"""Full or shallow: each reason alone, with a session and without a U-Net."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from deepcache_patch import FULL, OUTPUT, DeepCacheWarning
from deepcache_patch.cutting.answer import Answer
from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.running.decision import MAX_SLOTS, Call, FullOrShallow
from deepcache_patch.running.locating.declared import declared_by
from deepcache_patch.running.session import Session
from deepcache_patch.running.slots import Slot, marks
from deepcache_patch.schedules.context import Position

TIMESTEPS = torch.tensor([900, 700, 500, 300])
SAMPLE = torch.zeros(2, 4, 8, 8)
FEATURE = torch.ones(2, 8, 8, 8)


class Anatomy:
    """What `decision` asks of one."""

    is_current = True

    def __init__(self):
        self.refused = None

    def timestep(self, arguments):
        return arguments.get("timestep")

    def sample(self, arguments):
        return arguments.get("sample")

    def refusal(self, arguments):
        assert arguments["sample"] is SAMPLE
        return self.refused


class Cuts:
    def __init__(self):
        self.anatomy, self.revision = Anatomy(), 0
        self.watchers, self.asked = {}, []

    def watcher(self, branch):
        self.asked.append(branch)
        return self.watchers.get(branch)


class Proof:
    def __init__(self):
        self.doubts = {}

    def doubt(self, branch):
        return self.doubts.get(branch)


class Guide:
    """Says what a step is, and no more is asked of it here."""

    protected = frozenset()

    def __init__(self, *entries):
        self.entries = entries or (FULL, 0, 0, 0)
        self.num_steps = len(self.entries)

    def entry(self, step):
        return self.entries[step]


class House:
    """A decision and all that it weighs."""

    def __init__(self, *entries, by_pipeline=True, timesteps=TIMESTEPS):
        self.cuts, self.proof = Cuts(), Proof()
        self.session = Session(by_pipeline=lambda: by_pipeline)
        self.scheduler = SimpleNamespace(timesteps=timesteps)
        self.schedulers = [self.scheduler]
        self.decision = FullOrShallow(self.cuts, self.proof, lambda: self.schedulers)
        self.guide = Guide(*entries)

    def position(self, timestep, sample=SAMPLE, session=None):
        arguments = {"timestep": timestep, "sample": sample}
        return self.decision.position(session or self.session, arguments)

    def begin(self, *, step=1, entry=None, **recorded):
        """A generation that has come to a step, with what slot 0 has recorded in the first."""
        self.session.guide = self.guide
        self.position(TIMESTEPS[0])
        self.session.generation = 0
        self.session.enter(self.guide, 0)
        self.slot = self.session.slots.of(0, marks(SAMPLE, {}))
        self.put(**recorded)
        if step:
            self.session.enter(self.guide, step)
        return self

    def put(self, *, step=0, branch=0, sample=SAMPLE, answer=None, slot=0):
        made = Recorded(step, FeatureKey.of(sample), FEATURE, sample, answer)
        self.session.cache.put(slot, branch, made)

    def branch(self, step=1, slot=None, sample=SAMPLE, **arguments):
        at = Position(0, step, 0, 4)
        call = Call(self.guide, at, slot or self.slot, sample, {"sample": sample} | arguments)
        return self.decision.branch(self.session, call)

    def coming(self, timestep, sample=SAMPLE):
        with torch.no_grad():
            return self.decision.coming(self.session, timestep, sample)


pytestmark = pytest.mark.usefixtures("no_grad")


# --- position -----------------------------------------------------------------------------------


def test_a_call_of_a_loop_has_its_position():
    house = House()
    assert house.position(TIMESTEPS[0]) == Position(0, 0, 0, 4)
    assert house.position(TIMESTEPS[1]) == Position(0, 1, 0, 4)
    assert house.session.scheduler is house.scheduler


def test_of_several_schedulers_the_one_drives_whose_list_is_viewed():
    house = House()
    other = SimpleNamespace(timesteps=TIMESTEPS.clone())
    house.schedulers = [other, house.scheduler]
    house.position(TIMESTEPS[0])
    assert house.session.scheduler is house.scheduler


def test_the_scheduler_that_was_declared_drives():
    declared = DDIMScheduler()
    declared.set_timesteps(4)
    session = Session(declared_by(scheduler=declared))
    house = House()
    assert house.position(declared.timesteps[0], session=session) == Position(0, 0, 0, 4)
    assert session.scheduler is declared


@pytest.mark.parametrize(("timestep", "sample"), [(None, SAMPLE), (TIMESTEPS[0], None)])
def test_a_call_without_timestep_or_sample_is_of_no_loop(timestep, sample):
    house = House()
    assert house.position(timestep, sample) is None
    assert house.position(TIMESTEPS[0]) == Position(0, 0, 0, 4)


def test_what_the_anatomy_refuses_is_said_once():
    house = House()
    house.cuts.anatomy.refused = "it has wings"
    with pytest.warns(DeepCacheWarning, match="^a U-Net call runs in full: it has wings$") as said:
        assert [house.position(each) for each in TIMESTEPS] == [None] * 4
    assert len(said) == 1


def test_with_gradients_a_call_runs_in_full():
    house = House()
    with torch.enable_grad(), pytest.warns(DeepCacheWarning) as said:
        assert house.position(TIMESTEPS[0]) is None
    assert [str(each.message) for each in said] == [
        "a U-Net call runs in full: gradients are enabled: wrap the denoising loop in "
        "torch.no_grad()"
    ]


def test_a_call_that_is_refused_counts_where_steps_are_declared():
    session, house = Session(declared_by(sigmas=[9.0, 5.0, 1.0])), House()
    house.cuts.anatomy.refused = "it has wings"
    with pytest.warns(DeepCacheWarning):
        house.position(9.0, session=session)
    house.cuts.anatomy.refused = None
    assert house.position(5.0, session=session).step == 1


def test_what_is_of_no_loop_is_plain_without_a_word_and_nothing_is_kept():
    house = House(by_pipeline=False)
    house.position(TIMESTEPS[1])
    house.put()
    assert house.position(TIMESTEPS[3]) is None
    assert house.session.cache.nbytes == 0


def test_a_step_that_cannot_be_told_is_said_and_what_is_kept_stays():
    house = House()
    house.position(TIMESTEPS[0])
    house.put()
    with pytest.warns(DeepCacheWarning, match="its step cannot be told from its timestep"):
        assert house.position(torch.tensor([900, 700])) is None
    assert house.session.cache.nbytes > 0


def test_more_calls_at_a_timestep_than_are_kept_apart_run_in_full():
    house = House()
    found = [house.position(TIMESTEPS[0]) for _ in range(MAX_SLOTS)]
    assert [each.order for each in found] == list(range(64))
    with pytest.warns(DeepCacheWarning) as said:
        assert house.position(TIMESTEPS[0]) is None
    assert [str(each.message) for each in said] == [
        "a U-Net call runs in full: it is more than the 64th at the same timestep: in a loop of "
        "your own, call the helper's reset() before each picture"
    ]


def test_where_no_step_follows_nothing_is_said_of_that():
    house = House(timesteps=TIMESTEPS[:1])
    found = [house.position(TIMESTEPS[0]) for _ in range(MAX_SLOTS + 1)]
    assert found[-1] is None
    assert None not in found[:-1]


# --- branch -------------------------------------------------------------------------------------


def test_a_shallow_step_replays_what_its_slot_has_recorded():
    house = House().begin()
    branch, (recorded,) = house.branch()
    assert branch == 0
    assert recorded.feature is FEATURE


def test_a_full_step_replays_nothing():
    house = House(FULL, FULL, 0, 0).begin()
    assert house.branch() == (None, ())


def test_a_slot_that_has_recorded_nothing_runs_in_full():
    house = House().begin()
    other = Slot(1, 1, {})
    assert house.branch(slot=other) == (None, ())
    house.put(branch=1, slot=1)
    assert house.branch(slot=other) == (None, ())


def test_a_call_that_comes_earlier_in_its_step_runs_in_full():
    house = House().begin()
    house.slot.is_earlier = True
    assert house.branch() == (None, ())
    house.slot.is_earlier = False
    assert house.branch()[0] == 0


@pytest.mark.parametrize(
    "sample",
    [SAMPLE[:1], torch.zeros(2, 4, 8, 16), SAMPLE.double(), SAMPLE[:, :3]],
    ids=["batch", "size", "dtype", "channels"],
)
def test_a_call_of_another_shape_or_dtype_runs_in_full(sample):
    house = House().begin()
    assert house.branch(sample=sample) == (None, ())


def test_what_was_recorded_before_the_last_full_step_is_too_old():
    house = House(FULL, FULL, 0, 0).begin()
    house.session.enter(house.guide, 2)
    assert house.session.replayable_from == 1
    assert house.branch(2) == (None, ())
    house.put(step=1)
    assert house.branch(2)[0] == 0
    house.put(step=2)
    assert house.branch(2)[0] == 0


def test_above_the_output_a_call_has_to_ask_for_what_was_returned():
    house = House(FULL, OUTPUT, OUTPUT, OUTPUT)
    house.begin(branch=OUTPUT, answer=Answer(tuple, None, False))
    branch, (recorded,) = house.branch(return_dict=False)
    assert branch == OUTPUT
    assert recorded.feature is FEATURE
    for asked in ({}, {"return_dict": True}):
        assert house.branch(**asked) == (None, ())


def test_above_the_output_there_has_to_be_an_answer():
    house = House(FULL, OUTPUT, OUTPUT, OUTPUT).begin(branch=OUTPUT)
    assert house.branch() == (None, ())


@pytest.mark.parametrize(("changes", "count"), [(0, 0), (1, 0), (2, 1)])
def test_what_is_another_at_each_step_is_said_from_the_second_time_on(changes, count):
    house = House().begin()
    house.slot.differing = ("the prompt", "the size")
    house.session.slots.changes = changes
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert house.branch()[0] == 0
        house.branch()
    expected = (
        "a U-Net call runs in full: the prompt and the size is another at each step, and what was "
        "recorded is of the one before"
    )
    assert [str(each.message) for each in said] == [expected] * count


@pytest.mark.parametrize("others", [(), ("the prompt",)])
def test_that_is_not_said_of_a_full_step_or_of_the_same(others):
    house = House(FULL, FULL if others else 0, 0, 0).begin()
    house.slot.differing, house.session.slots.changes = others, 2
    house.branch()  # a warning is an error


@pytest.mark.parametrize("somebody", ["watches", "doubts"])
def test_where_shallow_calls_are_no_good_it_is_said_once(somebody):
    house = House().begin()
    reasons = house.cuts.watchers if somebody == "watches" else house.proof.doubts
    reasons[0] = "somebody looks"
    with pytest.warns(DeepCacheWarning, match="runs in full: somebody looks$") as said:
        assert [house.branch(), house.branch()] == [(None, ())] * 2
    assert len(said) == 1


def test_who_watches_is_asked_once_for_each_branch_and_look():
    house = House(FULL, 0, 1, 0).begin()
    house.branch()
    house.branch()
    assert house.cuts.asked == [0]
    house.session.enter(house.guide, 2)
    house.put(branch=1)
    house.branch(2)
    assert house.cuts.asked == [0, 1]
    house.cuts.revision += 1
    house.branch(2)
    assert house.cuts.asked == [0, 1, 1]


# --- the coming call ----------------------------------------------------------------------------


def test_the_coming_shallow_call_is_foreseen_and_nothing_of_it_is_remembered():
    house = House().begin(step=0)
    assert [house.coming(each) for each in (TIMESTEPS[1], 700)] == [0, 0]
    assert house.position(TIMESTEPS[1]) == Position(0, 1, 0, 4)


def test_it_may_differ_in_its_channels_and_in_no_more():
    house = House().begin(step=0)
    assert house.coming(TIMESTEPS[1], SAMPLE[:, :3]) == 0
    assert house.coming(TIMESTEPS[1], SAMPLE[:1]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda house: house.session.cache.clear(),
        lambda house: setattr(house.session, "guide", None),
        lambda house: setattr(house.session, "generation", 1),
        lambda house: setattr(house.cuts.anatomy, "is_current", False),
        lambda house: setattr(house.guide, "num_steps", 1),
        lambda house: setattr(house.guide, "entries", (FULL, FULL)),
        lambda house: house.cuts.watchers.update({0: "somebody looks"}),
        lambda house: setattr(house.session, "slots", type(house.session.slots)(iter(()))),
    ],
    ids=["nothing", "no guide", "another", "replaced", "longer", "full", "watched", "no slot"],
)
def test_else_it_is_a_full_one(change):
    house = House().begin(step=0)
    change(house)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert house.coming(TIMESTEPS[1]) is None


def test_with_gradients_it_is_a_full_one():
    house = House().begin(step=0)
    with torch.enable_grad():
        assert house.decision.coming(house.session, TIMESTEPS[1], SAMPLE) is None


def test_of_no_position_it_is_a_full_one():
    house = House().begin(step=0)
    assert house.coming(torch.tensor([900, 700])) is None


def test_the_coming_call_of_somebodys_loop_is_foreseen_too():
    house = House(by_pipeline=False).begin(step=0)
    assert house.coming(TIMESTEPS[1]) == 0
    assert house.coming(TIMESTEPS[3]) is None


def test_more_calls_than_are_kept_apart_are_not_foreseen():
    house = House().begin(step=0)
    house.position(TIMESTEPS[1])
    house.session.enter(house.guide, 1)
    for order in range(1, MAX_SLOTS + 1):
        house.session.slots._by_order[order] = house.slot
    for order in range(1, MAX_SLOTS):
        assert house.coming(TIMESTEPS[1]) == 0, order
        house.position(TIMESTEPS[1])
    assert house.coming(TIMESTEPS[1]) is None
