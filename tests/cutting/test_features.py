"""Features are copied when recorded and when replayed, and kept under a key."""

import gc

import pytest
import torch
from torch import nn

from deepcache_patch.cutting.features import (
    FeatureCache,
    FeatureKey,
    Recorded,
    Recorder,
    StandIn,
    Tap,
)

SAMPLE = torch.zeros(2, 4, 8, 8)
KEY = FeatureKey.of(SAMPLE)


def test_what_is_recorded_is_not_changed_by_what_comes_next():
    # FreeU scales the hidden state in place: a recorded reference would change with it, and be
    # scaled again at every replay.
    recorder = Recorder()
    output = Tap(nn.Identity(), recorder)(torch.ones(3))
    output.mul_(2)
    assert torch.equal(recorder.take(), torch.ones(3))


def test_what_is_replayed_may_be_changed():
    stand_in = StandIn()
    stand_in.feature = torch.ones(3)
    stand_in(torch.zeros(1), None).mul_(2)
    assert torch.equal(stand_in(torch.zeros(1)), torch.ones(3))


def test_a_stand_in_without_a_feature_says_so():
    with pytest.raises(RuntimeError) as caught:
        StandIn()(torch.zeros(1))
    assert str(caught.value) == ("the stand-in for the middle block was run without a deep feature")


def test_a_tap_passes_everything_through_and_records_the_hidden_state():
    class Pair(nn.Module):
        has_cross_attention = True

        def forward(self, x, *, scale):
            return (x * scale, "rest")

    recorder = Recorder()
    tap = Tap(Pair(), recorder)
    hidden, rest = tap(torch.ones(2), scale=3)
    assert rest == "rest"
    assert torch.equal(recorder.latest, hidden)
    assert tap.has_cross_attention
    assert not hasattr(tap, "no_such_attribute")


def test_a_tap_does_not_change_the_names_of_weights():
    # accelerate looks the weights of a block up by name while the block runs.
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tap = Tap(inner, Recorder())
    assert tap.state_dict().keys() == inner.state_dict().keys()
    assert [name for name, _ in tap.named_modules()] == [name for name, _ in inner.named_modules()]


def test_a_recorder_gives_none_of_several_features():
    # A network that somebody runs twice in one call has two; each half got the last one's.
    recorder = Recorder()
    below, above = Tap(nn.Identity(), recorder), Tap(nn.Identity(), recorder)
    for count in (1, 2, 1):
        for number in range(count):
            above(below(torch.full((1,), float(number))))
        assert recorder.repeated is (count == 2)
        feature = recorder.take()
        assert feature is None if count == 2 else torch.equal(feature, torch.zeros(1))


def test_a_recorder_gives_its_tensor_once():
    recorder = Recorder()
    assert recorder.take() is None
    recorder.latest = torch.ones(1)
    assert recorder.take() is not None
    assert recorder.take() is None


@pytest.mark.parametrize("compiled", [False, True])
def test_what_compiled_code_recorded_is_copied_once_more(compiled, monkeypatch):
    # A CUDA graph writes to the same memory when it runs again.
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: compiled)
    recorder = Recorder()
    assert recorder.in_graph is False
    Tap(nn.Identity(), recorder)(torch.ones(2))
    assert recorder.in_graph is compiled
    latest = recorder.latest
    taken = recorder.take()
    assert (taken is latest) is not compiled
    assert torch.equal(taken, torch.ones(2))
    assert recorder.take() is None


@pytest.mark.parametrize(
    "other",
    [torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 8, 9), SAMPLE.half(), SAMPLE.to("meta")],
    ids=["batch", "size", "dtype", "device"],
)
def test_a_feature_is_valid_only_under_an_equal_key(other):
    assert FeatureKey.of(SAMPLE.clone()) == KEY
    assert FeatureKey.of(other) != KEY


def test_a_controlnet_s_sample_may_have_other_channels_only():
    assert KEY.is_like(torch.zeros(2, 9, 8, 8))
    assert KEY.is_like(torch.zeros(1, 4, 2, 8, 8))  # two frames
    assert FeatureKey.of(torch.zeros(1, 4, 2, 8, 8)).is_like(SAMPLE)
    for other in (torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 8, 9), SAMPLE.half()):
        assert not KEY.is_like(other)


def test_a_feature_is_found_by_slot_and_branch():
    cache = FeatureCache()
    recorded = Recorded(3, KEY, torch.ones(1))
    cache.put(0, 1, recorded)
    (found,) = cache.get(0, 1)
    assert found is recorded
    assert cache.get(1, 1) == cache.get(0, 0) == ()


@pytest.mark.parametrize(
    ("keep", "steps"), [(1, [[0], [3], [4]]), (2, [[0], [3, 0], [4, 3]])], ids=["one", "two"]
)
def test_the_newest_are_kept_the_newest_first(keep, steps):
    cache = FeatureCache()
    kept = []
    for step in (0, 3, 4):
        cache.put(0, 0, Recorded(step, KEY, torch.ones(1)), keep=keep)
        kept.append([each.step for each in cache.get(0, 0)])
    assert kept == steps


def test_features_of_another_key_are_not_kept_beside_the_newest():
    # Guidance switched off midway: no line goes through features of two shapes.
    cache = FeatureCache()
    key = FeatureKey.of(SAMPLE[:1])
    cache.put(0, 0, Recorded(0, KEY, torch.ones(2)), keep=2)
    cache.put(0, 0, Recorded(1, key, torch.ones(1)), keep=2)
    assert [each.step for each in cache.get(0, 0)] == [1]
    assert cache.nbytes == 4


def test_bytes_are_counted_and_released():
    cache = FeatureCache()
    cache.put(0, 0, Recorded(0, KEY, torch.zeros(10)))
    cache.put(0, 0, Recorded(1, KEY, torch.zeros(20)))
    cache.put(1, 0, Recorded(0, KEY, torch.zeros(5, dtype=torch.float16)), keep=2)
    cache.put(1, 0, Recorded(1, KEY, torch.zeros(7, dtype=torch.float16)), keep=2)
    assert cache.nbytes == 20 * 4 + (5 + 7) * 2
    cache.drop(0)
    assert cache.nbytes == (5 + 7) * 2
    cache.clear()
    assert cache.nbytes == 0


def test_a_tap_that_is_gone_is_no_longer_known():
    recorder = Recorder()
    tap = Tap(nn.Identity(), recorder)
    assert [reference() for reference in recorder.taps] == [tap]
    del tap
    gc.collect()
    assert recorder.taps == []
