"""The tracker tells generation, step and slot from the timesteps alone."""

import diffusers
import pytest
import torch
from torch.overrides import TorchFunctionMode

from deepcache_patch.running.locating.steps import StepTracker

TIMESTEPS = torch.tensor([900, 700, 500, 300, 100])


def where(position):
    return None if position is None else (position.generation, position.step, position.order)


def walk(tracker, calls, timesteps=TIMESTEPS):
    return [where(tracker.locate(timestep, timesteps)) for timestep in calls]


class CountedReads(TorchFunctionMode):
    """Counts the calls that copy a value to the host."""

    READS = (
        *("item", "tolist", "cpu", "numpy", "to", "nonzero", "equal", "allclose", "is_nonzero"),
        *("__bool__", "__int__", "__float__", "__index__", "__contains__", "unique"),
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.READS
        return func(*args, **(kwargs or {}))


def test_a_generation_runs_on_the_very_list_that_its_timesteps_are_of():
    tracker = StepTracker()
    walk(tracker, TIMESTEPS[:2])
    assert tracker.runs_on(TIMESTEPS)
    assert not tracker.runs_on(TIMESTEPS.clone())
    assert not tracker.runs_on(None)


def test_views_are_located_by_their_offset():
    assert walk(StepTracker(), TIMESTEPS) == [(0, step, 0) for step in range(5)]


def test_no_value_is_read_on_the_step_path():
    tracker = StepTracker()
    with CountedReads() as reads:
        walk(tracker, TIMESTEPS)
        walk(tracker, [timestep.expand(4) for timestep in TIMESTEPS])
    assert reads.count == 0
    with CountedReads() as reads:  # the counter works: a copy has to be read
        tracker.locate(TIMESTEPS[0].clone(), None)
    assert reads.count == 1


def test_the_length_is_what_is_left_of_the_timesteps():
    tracker = StepTracker()
    assert tracker.locate(TIMESTEPS[2], TIMESTEPS).num_steps == 3
    assert tracker.locate(TIMESTEPS[3], TIMESTEPS).num_steps == 3


def test_the_length_is_known_where_timesteps_are_matched_by_value():
    assert StepTracker().locate(700, TIMESTEPS).num_steps == 4


def test_a_timestep_in_the_unets_dtype_is_matched_in_that_dtype():
    # 981 is 980 in bfloat16, which is no entry of the list.
    timesteps = torch.tensor([981, 961, 941])
    tracker = StepTracker()
    for step, timestep in enumerate(timesteps.to(torch.bfloat16)):
        position = tracker.locate(timestep.clone(), timesteps)
        assert (where(position), position.num_steps) == ((0, step, 0), 3)


def test_the_values_of_a_list_are_read_once():
    # On a GPU each reading waits for the device.
    tracker, calls = StepTracker(), TIMESTEPS.tolist()
    with CountedReads() as reads:
        walk(tracker, calls)
    assert reads.count == 2  # a cast and its values
    again = TIMESTEPS + 50
    position = tracker.locate(750, again)
    assert (where(position), position.num_steps) == ((1, 0, 0), 4)
    copied = TIMESTEPS.clone()
    with CountedReads() as reads:
        walk(tracker, copied)
    assert reads.count == 1


def test_numbers_and_tensors_of_the_lists_own_kind_share_its_values():
    tracker, timesteps = StepTracker(), TIMESTEPS.float()
    walk(tracker, [900], timesteps)
    with CountedReads() as reads:
        walk(tracker, [torch.tensor(700.0), 500], timesteps)
    assert reads.count == 1  # of the tensor itself


def test_the_value_that_was_given_counts_beside_an_entry_that_it_was_taken_for():
    # 899 is 900 but for rounding, and the next is not: both are one value, as near as they are.
    tracker, timesteps = StepTracker(), torch.tensor([900.0, 600.0, 300.0, 0.0])
    assert walk(tracker, [899.0, 898.995], timesteps) == [(0, 0, 0), (0, 0, 1)]


def test_where_another_list_was_read_between_an_entry_has_no_value_to_compare():
    tracker, again = StepTracker(), torch.tensor([500, 500, 100])
    assert where(tracker.locate(800, TIMESTEPS)) == (0, 0, 0)  # beside its entries
    assert tracker.locate(500, again) is None  # twice in its list
    assert where(tracker.locate(TIMESTEPS[2], TIMESTEPS)) == (1, 0, 0)


def test_a_loop_that_starts_late_starts_with_step_0():
    assert walk(StepTracker(), TIMESTEPS[2:]) == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


def test_new_timesteps_are_a_new_generation_wherever_they_start():
    # DeepCache 0.1.1 kept the cache of the last generation: image-to-image with another strength
    # started on a stale feature.
    tracker = StepTracker()
    walk(tracker, TIMESTEPS[:2])
    again = TIMESTEPS.clone()
    assert walk(tracker, again[2:], again) == [(1, 0, 0), (1, 1, 0), (1, 2, 0)]


def test_a_jump_back_is_a_new_generation():
    tracker = StepTracker()
    assert walk(tracker, [TIMESTEPS[i] for i in (0, 1, 2, 1, 2)]) == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1], ids=["falling", "rising"])
def test_a_list_that_goes_back_itself_is_a_new_generation(sign):
    # RePaint's list has its jumps to more noise in it, through which the U-Net is not run: by their
    # offsets, the calls after a jump looked like the next steps, and replayed what was recorded
    # under less noise.
    timesteps = sign * torch.tensor([900, 700, 500, 700, 900, 700, 500, 300, 100])
    tracker = StepTracker()
    positions = []
    for index in (0, 1, 2, 5, 6, 7, 8):
        position = tracker.locate(timesteps[index], timesteps)
        tracker.remaining()  # as at the start of each generation
        positions.append((position.generation, position.step))
    assert positions == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert position.num_steps == 4


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([500, 50, 600, 100], [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ([500, 600, 100], [(0, 0), (1, 0), (1, 1)]),
        ([900, 700, 700, 500], [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ([0.9, 0.7, 0.5], [(0, 0), (0, 1), (0, 2)]),
        ([900, 500, 900], [(0, 0), (0, 1), (0, 2)]),
    ],
    ids=["falling", "rises-at-once", "a-value-twice", "below-1", "neither-way"],
)
def test_the_ends_of_a_list_tell_which_way_it_goes(values, places):
    timesteps, tracker, found = torch.tensor(values), StepTracker(), []
    for timestep in timesteps:
        position = tracker.locate(timestep, timesteps)
        tracker.remaining()
        found.append((position.generation, position.step))
    assert found == places


@pytest.mark.parametrize(
    "timesteps",
    [TIMESTEPS, torch.arange(10)[1::3], torch.arange(9)[4:8]],
    ids=["whole", "strided", "slice"],
)
def test_what_remains_are_the_values_from_the_generations_first_step_on(timesteps):
    tracker = StepTracker()
    assert tracker.remaining() is None
    tracker.locate(timesteps[1], timesteps)
    tracker.locate(timesteps[2], timesteps)
    assert tracker.remaining() == tuple(timesteps[1:].tolist())
    assert all(type(value) is float for value in tracker.remaining())
    tracker.locate(80.0)
    assert tracker.remaining() is None


@pytest.mark.parametrize(
    "form",
    [lambda t: t, lambda t: t.expand(4), lambda t: t[None]],
    ids=["number", "expanded", "1-element"],
)
def test_what_remains_of_a_list_of_the_callers_own_is_read_from_behind_the_timestep(form):
    tracker = StepTracker()
    tracker.locate(form(TIMESTEPS.clone()[1]))
    assert tracker.remaining() == (700, 500, 300, 100)


def test_calls_at_one_step_get_slots():
    calls = [TIMESTEPS[i] for i in (0, 0, 0, 1, 1, 2)]
    assert walk(StepTracker(), calls) == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0),
    ]  # fmt: skip


def test_steps_that_are_left_out_do_not_count():
    # Those with gradients, for example.
    assert walk(StepTracker(), [TIMESTEPS[0], TIMESTEPS[3]]) == [(0, 0, 0), (0, 1, 0)]


@pytest.mark.parametrize("third", [TIMESTEPS[3], 350], ids=["an entry", "none"])
def test_a_loop_that_has_left_its_list_has_no_known_steps(third):
    tracker = StepTracker()
    calls = [TIMESTEPS[0], TIMESTEPS[1], third, TIMESTEPS[4], TIMESTEPS[0], TIMESTEPS[1]]
    found = [tracker.locate(each, TIMESTEPS).num_steps for each in calls]
    assert found == [5, 5, None, None, 5, 5]


def test_a_timestep_that_is_rounded_does_not_leave_the_list():
    tracker = StepTracker()
    calls = [TIMESTEPS[0], TIMESTEPS[1], 498.2, TIMESTEPS[3]]
    assert [tracker.locate(each, TIMESTEPS).num_steps for each in calls] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.HeunDiscreteScheduler(),
        diffusers.PNDMScheduler(skip_prk_steps=True),
        diffusers.PNDMScheduler(),
    ],
    ids=["heun", "plms", "pndm"],
)
def test_timesteps_that_occur_twice_stay_apart(scheduler):
    scheduler.set_timesteps(6)
    values = scheduler.timesteps.tolist()
    assert len(set(values)) < len(values)
    assert walk(StepTracker(), scheduler.timesteps, scheduler.timesteps) == [
        (0, step, 0) for step in range(len(values))
    ]


def test_strided_timesteps_are_located():
    timesteps = torch.arange(10)[1::3]
    assert walk(StepTracker(), timesteps, timesteps) == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


@pytest.mark.parametrize(
    "form",
    [lambda t: t.expand(4), lambda t: t[None], lambda t: t.reshape(1).expand(3)],
    ids=["expanded", "1-element", "reshaped"],
)
def test_a_batch_of_one_timestep_is_located_by_offset(form):
    assert walk(StepTracker(), [form(t) for t in TIMESTEPS]) == [(0, i, 0) for i in range(5)]


def test_a_batch_of_different_timesteps_has_no_place():
    # ParaDiGMS hands one call several steps.
    tracker = StepTracker()
    assert walk(tracker, [TIMESTEPS[0:2], torch.tensor([900, 700])]) == [None, None]


@pytest.mark.parametrize(
    "form",
    [int, float, lambda t: t.clone(), lambda t: t.repeat(4), lambda t: t.to(torch.float32)],
    ids=["int", "float", "copy", "repeated", "cast"],
)
def test_what_is_no_view_is_matched_by_value(form):
    calls = [form(TIMESTEPS[i]) for i in (1, 1, 2, 4, 1)]
    assert walk(StepTracker(), calls) == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2, 0), (1, 0, 0),
    ]  # fmt: skip


def test_views_and_values_may_alternate():
    calls = [TIMESTEPS[0], int(TIMESTEPS[0]), TIMESTEPS[1], int(TIMESTEPS[1])]
    assert walk(StepTracker(), calls) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]


def test_a_value_that_occurs_twice_has_no_place_but_where_it_is_expected():
    # At the start it is one or the other; later it is the next entry.
    timesteps = torch.tensor([900, 500, 500])
    assert walk(StepTracker(), [500], timesteps) == [None]
    assert walk(StepTracker(), [900, 500, 500], timesteps) == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


def test_a_copy_of_all_timesteps_serves_as_well():
    # LDMSuperResolutionPipeline moves them to its device first.
    copied = TIMESTEPS.clone()
    tracker = StepTracker()
    assert walk(tracker, copied) == [(0, step, 0) for step in range(5)]
    assert walk(StepTracker(), copied, timesteps=None) == [(0, step, 0) for step in range(5)]
    assert tracker.locate(copied[4], TIMESTEPS).num_steps == 5


def test_timesteps_that_are_not_the_schedulers_go_by_their_order():
    # Latent upscaler, Karras-VE, score-SDE: sigmas, or functions of them, falling.
    calls = [80.0, 80.0, 31.5, torch.tensor([2.5, 2.5]), 2.5, 90.0, 1.0]
    assert walk(StepTracker(), calls) == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2, 0), (0, 2, 1), (1, 0, 0), (1, 1, 0),
    ]  # fmt: skip


def test_values_may_be_zero_or_below():
    # Logarithms of noise levels, for example.
    for calls in ([0.0, -1.0, -2.5], [-1.0, -2.0, -2.5]):
        assert walk(StepTracker(), calls, timesteps=None) == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


def test_a_value_that_rises_at_once_is_a_new_start():
    # A loop broken off after its first call: taken for a second call of that step, the next loop's
    # first would leave its second step to replay the feature of the loop before.
    calls = [10.0, 50.0, 40.0, 60.0, 60.0, 70.0]
    assert walk(StepTracker(), calls, timesteps=None) == [
        (0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 0, 1), (3, 0, 0),
    ]  # fmt: skip


def test_without_a_list_the_length_is_unknown():
    assert StepTracker().locate(80.0).num_steps is None


def test_a_pair_of_equal_timesteps_is_no_list():
    # torch.tensor([t, t]).chunk(2): the halves of a batch. By its offset, the second half would be
    # the next step, and replay the first half's feature.
    tracker = StepTracker()
    for step, value in enumerate((900, 700, 500)):
        halves = torch.tensor([value, value]).chunk(2)
        assert walk(tracker, halves) == [(0, step, 0), (0, step, 1)]


def test_a_table_of_all_timesteps_is_no_list():
    # By its offset, each falling timestep would be a jump back, and every call a first one.
    table = torch.arange(1000)
    calls = [table[value] for value in (980, 900, 900, 20)]
    expected = [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0)]
    assert walk(StepTracker(), calls, timesteps=None) == expected


def test_a_falling_list_of_the_callers_own_counts_the_steps_that_it_takes():
    table = torch.arange(999, -1, -1)
    calls = [table[index] for index in (0, 20, 40, 40, 0)]
    assert walk(StepTracker(), calls, timesteps=None) == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 2, 1), (1, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [[900, 500, 500, 100], [900, 500, 500], [900, 900, 500], [900, 100]],
    ids=["within", "last", "first", "none"],
)
def test_a_copy_of_repeated_timesteps_is_located_by_its_offset(values):
    timesteps = torch.tensor(values)
    for scheduled in (timesteps, None):
        tracker, copied = StepTracker(), timesteps.clone()
        found = [tracker.locate(timestep, scheduled) for timestep in copied]
        assert [where(position) for position in found] == [(0, i, 0) for i in range(len(values))]
        assert {position.num_steps for position in found} == {len(values)}


def test_a_view_from_beyond_the_timesteps_has_no_place():
    whole = torch.arange(9, -1, -1)
    tracker = StepTracker()
    assert where(tracker.locate(whole[3], whole[2:5])) == (0, 0, 0)
    for beyond in (whole[1], whole[5], whole[7]):
        assert tracker.locate(beyond, whole[2:5]) is None


def test_reset_starts_a_new_generation():
    tracker = StepTracker()
    walk(tracker, TIMESTEPS[:3])
    tracker.reset()
    assert walk(tracker, TIMESTEPS[3:]) == [(1, 0, 0), (1, 1, 0)]
