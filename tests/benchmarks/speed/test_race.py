"""Loops run in turns; their times are sums of medians; who fails is named, and the others go on."""

import json
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from benchmarks.networks.catalogue import build
from benchmarks.speed import run as speed
from benchmarks.speed.contestants import Field
from benchmarks.speed.race import Loop, race, typical
from deepcache_patch.cutting.features import StandIn

LOOP = Loop(steps=4, turn=2, batch=1, size=(16, 16), seed=0)


@pytest.fixture(scope="module")
def pipe():
    return build("ddpm-cifar10", width=0.1)


def entrant(seen, name, times):
    """One whose turns take what is given, in turn, whoever's generation it is."""
    times = iter(times)

    def generation():
        for _ in range(LOOP.turns):
            seen.append(name)
            yield next(times)

    return lambda _pipe, _stack: generation


def failing(at):
    def generation():
        for turn in range(LOOP.turns):
            if turn == at:
                raise KeyError("no such step")
            yield 1.0

    return lambda _pipe, _stack: generation


def test_a_time_is_the_sum_of_the_medians_of_its_turns():
    assert typical([[1.0, 9.0], [2.0, 1.0], [30.0, 2.0]]) == 2.0 + 2.0


def test_a_loop_is_timed_turn_by_turn(pipe):
    calls = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    turns = LOOP.generation(pipe)
    assert calls == []  # nothing runs before it is timed
    assert next(turns) > 0
    assert len(calls) == 2
    assert next(turns) > 0
    assert list(turns) == []
    assert len(calls) == 4
    handle.remove()


def test_somebody_elses_loop_runs_in_the_first_turn(pipe):
    ran = []
    first, *others = LOOP.whole(pipe, lambda: ran.append(1))
    assert first > 0
    assert others == [0.0]
    assert ran == [1]


def test_turns_are_in_a_drawn_order_and_the_warm_up_is_not_counted(pipe):
    seen = []
    field = {
        "a": entrant(seen, "a", [100.0, 1.0, 2.0, 3.0, 2.0]),
        "b": entrant(seen, "b", [100.0, 1.0, 1.0, 1.0, 1.0]),
    }
    outcome = race(pipe, LOOP, field, repeats=2, warm_up=1)
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert len(pairs) == 5
    assert set(pairs) == {("a", "b"), ("b", "a")}
    assert outcome == ({"a": 4.0, "b": 2.0}, {"a": 0.5, "b": 0.0}, {})


@pytest.mark.parametrize("at", [0, 1])
def test_who_raises_is_named_and_the_others_go_on(pipe, at):
    field = {"good": entrant([], "good", [1.0] * 8), "bad": failing(at)}
    outcome = race(pipe, LOOP, field, repeats=2, warm_up=1)
    assert outcome.seconds == {"good": 2.0}
    assert outcome.failed == {"bad": "KeyError: 'no such step'"}


def test_who_cannot_be_set_up_is_named_as_well(pipe):
    def impossible(_pipe, _stack):
        raise NotImplementedError("not for this")

    outcome = race(pipe, LOOP, {"x": impossible}, repeats=1, warm_up=1)
    assert outcome == ({}, {}, {"x": "NotImplementedError: not for this"})


def test_everyone_of_a_field_runs_and_the_pipeline_stays_as_it_is(pipe):
    before = {name: set(vars(module)) for name, module in pipe.unet.named_modules()}
    loop = replace(LOOP, steps=10)  # with 8 or fewer the default leaves nothing out
    field = Field(loop, "eager", interval=2, branch=0)
    outcome = race(pipe, loop, field.contestants(pipe), repeats=1, warm_up=1)
    ours = {"ours", "ours, extrapolating", "default"}
    assert outcome.seconds.keys() == ours | {"plain", "cut", "by hand", "DeepCache 0.1.1"}
    assert outcome.failed == {}
    assert {name: set(vars(module)) for name, module in pipe.unet.named_modules()} == before


def test_the_default_runs_as_many_full_steps_and_no_others(pipe):
    loop, calls = replace(LOOP, steps=10), []
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    with ExitStack() as stack, torch.no_grad():
        contestant = Field(loop, "eager", interval=2, branch=0).contestants(pipe)["default"]
        assert len(list(contestant(pipe, stack)())) == loop.turns
    handle.remove()
    assert len(calls) == 5


@pytest.mark.parametrize("name", ["ddpm-cifar10", "sd15-controlnet"])
def test_by_hand_runs_whole_where_ours_does(name):
    own = build(name, width=0.1)
    loop = Loop(steps=6, turn=1, batch=1, size=(16, 16), seed=0)
    whole, seen = (own.unet, own.controlnet), []
    with ExitStack() as stack, torch.no_grad():
        for _ in Field(loop, "eager", interval=3, branch=0)._by_hand(own, stack)():
            if (own.unet, own.controlnet) == whole:
                seen.append("F")
                continue
            seen.append("·")
            assert type(own.unet.mid_block) is StandIn
            if own.controlnet is not None:
                assert len(own.controlnet.down_blocks) < len(whole[1].down_blocks)
    assert "".join(seen) == "F··F··"


@pytest.mark.parametrize(
    ("steps", "full_steps", "full", "shallow", "bound"),
    [(3, 1, 4.0, 1.0, 2.0), (4, 2, 3.0, 1.0, 1.5), (5, 5, 7.0, 1.0, 1.0)],
)
def test_the_bound(steps, full_steps, full, shallow, bound):
    assert speed._bound(steps, full_steps, full, shallow) == bound


def run(monkeypatch, tmp_path, *arguments):
    given = ["--width", "0.1", "--size", "16", "--repeats", "1", "--output", str(tmp_path)]
    network = ["--networks", "ddpm-cifar10", "--branches", "0"]
    monkeypatch.setattr(sys, "argv", ["speed", *given, *network, *arguments])
    speed.main()
    return json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))


def test_a_report_says_what_was_run_and_can_be_added_to(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, "--intervals", "2", "--steps", "3", "--alone")
    report = run(monkeypatch, tmp_path, "--intervals", "3", "--steps", "2", "--update")
    first, second, others = report["rows"]
    assert [(row["interval"], row["steps"]) for row in report["rows"]] == [
        (2, 4),
        (3, 3),
        (None, 2),
    ]
    assert report["command"] == f"{first['command']} && {second['command']}"
    for row in (first, second):
        assert row["bound"] == row["bound_of_these_steps"]
        assert row["speedup"]["ours"] == row["seconds"]["plain"] / row["seconds"]["ours"]
        assert row["pictures_per_second"]["plain"] == 1 / row["seconds"]["plain"]
    assert set(others["failed"]) == {"tomesd 0.1.3", "T-GATE 1.0.0"}


@pytest.mark.parametrize(
    ("given", "multiple", "expected"),
    [
        ((10, None), 3, (12, 1)),
        ((10, None), 5, (10, 1)),
        ((10, 4), 1, (10, 10)),
        ((8, 4), 2, (8, 4)),
    ],
)
def test_the_steps_are_a_multiple_of_the_interval_and_of_the_turn(pipe, given, multiple, expected):
    arguments = speed.argparse.Namespace(steps=given[0], turn=given[1], size=None, seed=0)
    loop = speed._loop(pipe, arguments, 1, multiple=multiple)
    assert (loop.steps, loop.turn, loop.size) == (*expected, (32, 32))
