"""What `print(helper)`, a notebook and the log say."""

import copy
import logging
import pickle
import re
import threading
import warnings

import pytest
import torch
from builders.cases import CASES
from builders.schedulers import with_scheduler
from builders.unets import inputs2d_condition, unet2d_condition
from zoo import CASES as ZOO

import deepcache_patch.running.stats
from deepcache_patch import (
    FULL,
    Adaptive,
    AlreadyEnabledError,
    Auto,
    DeepCacheHelper,
    DeepCacheWarning,
    Explicit,
    NoiseAware,
    Plan,
    Uniform,
)
from deepcache_patch.learning import auto

pytestmark = pytest.mark.usefixtures("kept_tables")

TIMESTEPS = torch.tensor([900, 700, 500, 300, 100])


def loop(unet, timesteps=TIMESTEPS):
    with torch.no_grad():
        for timestep in timesteps:
            unet(**(inputs2d_condition() | {"timestep": timestep}))


@pytest.fixture
def clock(monkeypatch):
    """Half a second passes from one look at the clock to the next."""
    now = iter(range(1000))
    monkeypatch.setattr(deepcache_patch.running.stats.time, "perf_counter", lambda: next(now) / 2)


@pytest.fixture
def lines(caplog):
    """The log at INFO, without the seconds."""
    caplog.set_level(logging.INFO, logger="deepcache_patch")

    def said():
        messages = [re.sub(r"in \S+ s", "in _ s", each.getMessage()) for each in caplog.records]
        caplog.clear()
        return messages

    return said


def test_before_the_first_generation_the_plan_is_an_example_of_fifty_steps():
    assert str(DeepCacheHelper(unet2d_condition(), schedule=Uniform(10), replay="reuse")) == (
        "DeepCacheHelper\n"
        "  pipeline  UNet2DConditionModel, not enabled: calls run plainly and are not counted\n"
        "  schedule  Uniform(interval=10, branch=0)\n"
        "  replay    Reuse()\n"
        "  plan      F·········F·········F·········F·········F········· (of 50 steps, "
        "for example)\n"
        "            5 of 50 steps in full, the others at branch 0: 20% of the U-Net's work, "
        "at most 4.96×\n"
        "  calls     0 in full, 0 shallow, in 0 generations\n"
        "  cache     0.00 MiB at most"
    )


def test_after_a_generation_it_says_what_ran_and_where_the_others_were_cut(clock):
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    loop(unet)
    nbytes = helper.stats.cache_nbytes
    assert str(helper) == (
        "DeepCacheHelper\n"
        "  pipeline  UNet2DConditionModel, enabled\n"
        "  unet      UNet2DConditionModel, patched\n"
        "  schedule  Uniform(interval=2, branch=0)\n"
        "  replay    Extrapolate(strength=1.0)\n"
        "  ran       F·F·F\n"
        "  calls     3 in full, 2 shallow, in 1 generation\n"
        f"  cache     {nbytes / 2**20:.2f} MiB at most\n"
        "  last      5 steps in 2.5 s, 2 steps/s\n"
        "            3 of 5 calls in full, the others at branch 0: 65% of the U-Net's work, "
        "at most 1.55×"
    )
    helper.disable()
    assert "  ran       F·F·F\n" in str(helper)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_after_a_change_what_ran_is_told_to_be_of_the_previous_settings(clock, is_enabled):
    # `print(helper)` showed it as if the new settings had made it.
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    loop(unet)
    if not is_enabled:
        helper.disable()
    helper.set(interval=3)
    lines = str(helper).splitlines()
    at = lines.index("  ran       F·F·F")
    assert lines[at + 1 : at + 3] == [
        "            with the previous settings",
        "  plan      F··F· (of 5 steps)",
    ]
    assert lines[-2:] == [
        "  last      5 steps in 2.5 s, 2 steps/s, with the previous settings",
        "            3 of 5 calls in full, the others at branch 0: 65% of the U-Net's work, "
        "at most 1.55×",
    ]
    assert helper.last_generations["unet"].is_outdated
    helper.enable()
    loop(unet)
    assert not helper.last_generations["unet"].is_outdated
    assert "before" not in str(helper)
    assert "  ran       F··F·" in str(helper).splitlines()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_what_ran_is_not_outdated_where_the_settings_are_what_they_were(is_enabled):
    # Every call of `set` or `follow` made it so, whether or not anything was changed by it.
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform(2)).enable()
    loop(unet)
    if not is_enabled:
        helper.disable()
    before = str(helper)
    helper.follow(helper.schedule)
    helper.set(interval=2, first=0).set(schedule=Uniform(2), replay="extrapolate")
    assert str(helper) == before
    for change in ({"first": 1}, {"replay": "reuse"}, {"branch": 1}):
        again = DeepCacheHelper(unet, schedule=Uniform(2))
        helper.disable()
        with again:
            loop(unet)
        again.set(**change)
        assert again.last_generations["unet"].is_outdated


def test_schedules_that_cannot_be_compared_are_others():
    class Odd(Explicit):
        def __eq__(self, other):
            raise ValueError("the truth value of an array is ambiguous")

    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Odd([FULL] * 5)) as helper:
        loop(unet)
        helper.follow(Odd([FULL] * 5))
        assert helper.last_generations["unet"].is_outdated


@pytest.mark.parametrize("branch", [0, 1])
def test_what_a_branch_saves_is_told_before_a_generation_and_after_it(branch):
    # At a deep branch nothing said that next to nothing is saved.
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform(2, branch)).enable()
    share = helper.branches[branch].share
    work = (25 + 25 * share) / 50
    assert (
        f"\n            25 of 50 steps in full, the others at branch {branch}: {work:.0%} of the "
        f"U-Net's work, at most {1 / work:.2f}×\n"
    ) in str(helper)
    loop(unet)
    work = (3 + 2 * share) / 5
    assert str(helper).endswith(
        f"\n            3 of 5 calls in full, the others at branch {branch}: {work:.0%} of the "
        f"U-Net's work, at most {1 / work:.2f}×"
    )


def test_where_branch_0_stands_for_the_output_it_says_why():
    # The schedule's line had branch=-1, another line branch 0, and none said why.
    why = "            branch 0 stands for -1: no scheduler says what the U-Net's output means"
    cure = "; for a loop of your own, use helper.generation(...)"
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet)
    assert f"{why}{cure}" in str(helper).splitlines()
    helper.enable()
    loop(unet, range(900, 0, -90))
    assert str(helper).splitlines().count(f"{why}{cure}") == 1
    assert "stands for" not in str(helper.set(branch=0))
    pipe = with_scheduler(CASES["sd"].load(), "ddim")
    assert "stands for" not in str(DeepCacheHelper(pipe))
    pipe.scheduler.register_to_config(prediction_type="unknown")
    assert why in str(DeepCacheHelper(pipe)).splitlines()


def test_above_the_output_the_share_of_the_work_is_known():
    pipe = CASES["sd"].load()
    with DeepCacheHelper(pipe, schedule=Uniform(4, branch=-1)) as helper:
        CASES["sd"].run(pipe, steps=8)
    assert str(helper).endswith(
        "\n            2 of 8 calls in full: 25% of the U-Net's work, at most 4.00×"
    )


def test_a_generation_that_was_broken_off_says_so_and_is_not_taken_for_a_short_one(clock):
    # Six steps of 25 were called a generation of 8 steps or fewer, which runs in full.
    pipe = with_scheduler(CASES["sd"].load(), "ddim")

    def stop(_pipe, step, _timestep, tensors):
        if step == 5:
            raise KeyboardInterrupt
        return tensors

    helper = DeepCacheHelper(pipe).enable()
    with pytest.raises(KeyboardInterrupt):
        pipe("a fox", num_inference_steps=25, height=16, width=16, callback_on_step_end=stop)
    assert helper.last_generations["unet"].not_run == 19
    assert str(helper).splitlines()[-2:] == [
        "  last      6 of 25 steps in 3 s, 2 steps/s; the other 19 have not run",
        "            4 of 6 calls in full: 67% of the U-Net's work, at most 1.50×",
    ]
    helper.set(interval=3)
    assert str(helper).count("(of 25 steps)") == 1


def test_a_calibration_is_called_one_and_says_what_for():
    pipe = with_scheduler(CASES["sd"].load(), "ddim")
    with DeepCacheHelper(pipe, schedule="auto", first=1) as helper:
        CASES["sd"].run(pipe, steps=9)
        assert helper.last_generations["unet"].calibration == "9 steps with DDIMScheduler"
        assert str(helper).endswith(
            "\n            9 of 9 calls in full: the calibration for 9 steps with DDIMScheduler"
        )
        CASES["sd"].run(pipe, steps=9)
        assert helper.last_generations["unet"].calibration is None
        assert str(helper).endswith(
            "\n            4 of 9 calls in full: 44% of the U-Net's work, at most 2.25×"
            "\n            with 15 steps or fewer pictures move far from the plain ones: try "
            "the default with interval=1.5"
        )


FIRST = "the first generation in each setting runs in full, to learn"


@pytest.mark.parametrize(
    ("schedule", "steps", "before", "after"),
    [
        (Auto(), 20, FIRST, None),
        (Auto(3), 20, *["6 full steps, too few to learn from: as the default"] * 2),
        (Auto(branch=0), 20, *["nothing is learned at branch 0: as the default"] * 2),
        (Auto(1), 20, None, None),
        (NoiseAware(3), 20, None, None),
    ],
    ids=str,
)
def test_auto_says_whether_it_learns(monkeypatch, schedule, steps, before, after):
    monkeypatch.setattr(auto, "FEW_FULL_STEPS", 8)
    pipe = with_scheduler(CASES["sd"].load(), "ddim")
    pipe.scheduler.set_timesteps(steps)

    def said(helper):
        lines = map(str.strip, str(helper).splitlines())
        told = (FIRST, ": as the default")
        return next((line for line in lines if line.endswith(told)), None)

    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        assert said(helper) == before
        for _ in range(2):
            CASES["sd"].run(pipe, steps=steps)
        assert said(helper) == after


@pytest.mark.parametrize(
    ("steps", "interval", "said"),
    [(8, 2.2, False), (9, 2.2, True), (15, 2.2, True), (16, 2.2, False), (12, 1.5, False)],
)
def test_a_plan_of_few_steps_says_that_the_pictures_move(steps, interval, said):
    remark = (
        "with 15 steps or fewer pictures move far from the plain ones: "
        "try the default with interval=1.5"
    )
    remark = f"\n            {remark}"
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, interval=interval)
    pipe.scheduler.set_timesteps(steps)
    assert (remark in str(helper)) == said
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    with helper, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepCacheWarning)
        CASES["sd"].run(pipe, steps=steps)
    assert str(helper).endswith(remark) == said


def test_controlnets_that_are_cut_along_are_named():
    pipe = ZOO["sd-controlnet"].load()
    assert DeepCacheHelper(pipe, schedule=Uniform()).attached == {}
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert helper.attached == {"unet": "UNet2DConditionModel", "controlnet": "ControlNetModel"}
    assert helper.attached == {}


def test_each_unet_has_a_plan_of_its_own():
    case = ZOO["stable-cascade-combined"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper:
        case.run(pipe, steps=4)
        names = list(helper.last_generations)
        text = str(helper)
    assert len(names) == 2
    for name in names:
        plan = helper.last_generations[name].plan
        assert f"  ran in {name}" in text
        assert plan == Plan([FULL if step % 2 == 0 else 0 for step in range(len(plan))])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Explicit([FULL, 0, 1]), "depends on the generation"),
        (Adaptive(0.1), "depends on the generation"),
        (Explicit([FULL] + [0, 1] * 24 + [0]), "F" + "01" * 24 + "0 (of 50 steps, for example)"),
    ],
)
def test_a_plan_that_is_not_known_yet_is_not_made_up(schedule, said):
    assert f"  plan      {said}\n" in str(DeepCacheHelper(unet2d_condition(), schedule=schedule))


def test_the_plan_is_of_the_steps_that_the_scheduler_is_set_to():
    pipe = CASES["sd"].load()
    pipe.scheduler.set_timesteps(7)
    assert "  plan      F··F··F (of 7 steps)\n" in str(DeepCacheHelper(pipe, schedule=Uniform()))
    with_scheduler(pipe, "heun").scheduler.set_timesteps(4)  # with two calls for all but the last
    assert "  plan      F··F··F (of 7 steps)\n" in str(DeepCacheHelper(pipe, schedule=Uniform()))


def test_long_plans_are_broken_into_lines_and_cut_short():
    pipe = CASES["ddpm"].load()
    pipe.scheduler.set_timesteps(1000)
    text = str(DeepCacheHelper(pipe, schedule=Uniform(4)))
    lines = text.splitlines()[4:8]
    line = "F···" * 15
    assert lines == [
        f"  plan      {line}",
        *[f"            {line}"] * 2,
        f"            {line[:-1]}… (of 1000 steps)",
    ]


def test_a_notebook_gets_the_same_rows_as_a_table():
    class Strange(Explicit):
        def __repr__(self):
            return "<script>"

    helper = DeepCacheHelper(unet2d_condition(), schedule=Strange([FULL]))
    html = helper._repr_html_()
    assert html.count("<tr>") == len(str(helper).splitlines()) - 1
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_enable_disable_and_each_generation_are_one_line_in_the_log(lines):
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform())
    said = "UNet2DConditionModel, Uniform(interval=3, branch=0)"
    helper.disable()
    assert lines() == []
    helper.enable().enable()
    assert lines() == [f"{said}: enabled"]
    ran = "unet: 5 steps in _ s, 2 full and 3 shallow calls: F··F·"
    loop(unet)
    assert lines() == [ran]
    helper.disable()
    helper.disable()
    assert lines() == [f"{said}: disabled"]


def test_a_generation_whose_end_nobody_knows_is_told_when_the_next_begins(lines):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()):
        lines()
        loop(unet, [900, 700])
        assert lines() == []
        loop(unet, [900, 700, 500])
        assert lines() == ["unet: 2 steps in _ s, 1 full and 1 shallow calls: F·"]
    ran = "unet: 3 steps in _ s, 1 full and 2 shallow calls: F··"
    assert lines() == [ran, "UNet2DConditionModel, Uniform(interval=3, branch=0): disabled"]


@pytest.mark.parametrize("name", ["sd", "sd-img2img", "ddpm"])
def test_a_pipelines_generation_is_told_at_its_last_step(name, lines):
    case = CASES[name]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        lines()
        case.run(pipe)
        (line,) = lines()
        (last,) = helper.last_generations.values()
        assert last.not_run == 0
        assert line == re.sub(r"in \S+ s", "in _ s", f"unet: {last}")
    assert lines() == [f"{type(pipe).__name__}, {helper.schedule}: disabled"]


def test_a_generation_that_fails_is_told_as_far_as_it_came(lines, monkeypatch):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()):
        lines()
        loop(unet, [900, 700])
        monkeypatch.setattr(unet.conv_in, "forward", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop(unet, [500])
        assert lines() == ["unet: 2 steps in _ s, 1 full and 1 shallow calls: F·"]


def _interrupted(*_):
    raise KeyboardInterrupt


def test_each_call_is_a_line_at_debug(caplog):
    caplog.set_level(logging.DEBUG, logger="deepcache_patch")
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(branch=1)):
        loop(unet, [900, 700])
    calls = [each.getMessage() for each in caplog.records if each.levelno == logging.DEBUG]
    assert calls == [
        "unet: step 0, call 0 of it: in full",
        "unet: step 1, call 0 of it: shallow, at branch 1",
    ]


def test_nothing_is_printed_without_logging_being_set_up(capfd):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()):
        loop(unet)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_helper_is_not_copied(copied):
    with pytest.raises(TypeError) as caught:
        copied(DeepCacheHelper(unet2d_condition(), schedule=Uniform()))
    assert str(caught.value) == (
        "a DeepCacheHelper cannot be copied or pickled, because it belongs to its pipeline: copy "
        "the pipeline, and make a new helper for it"
    )


def test_a_with_block_leaves_the_helper_as_it_was():
    """It was disabled after the block even if it had been enabled before."""
    helper = DeepCacheHelper(unet2d_condition(), schedule=Uniform()).enable()
    with helper:
        with helper:
            assert helper.enabled
        assert helper.enabled
    assert helper.enabled
    helper.disable()
    with helper:
        with helper:
            pass
        assert helper.enabled
    assert not helper.enabled


def test_a_call_that_is_refused_amid_a_generation_stands_in_its_plan(caplog):
    """The plan of a loop with such a call was a step short, and wrong from there on."""
    caplog.set_level(logging.DEBUG, logger="deepcache_patch")
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        loop(unet, [900, 700])
        with pytest.warns(DeepCacheWarning, match="gradients are enabled"):
            unet(**(inputs2d_condition() | {"timestep": 500}))
        loop(unet, [300])
        (last,) = helper.last_generations.values()
    assert str(last.plan) == "F·FF"
    assert (last.full_calls, last.shallow_calls) == (3, 1)
    assert "unet: a call of a step that is not known: in full" in caplog.messages


def test_calls_whose_step_is_not_known_are_counted_with_the_cure():
    pipe = ZOO["sd"].load()
    with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper:
        loop(pipe.unet, [900, 500, 100, 700])  # of no loop
        assert helper.stats.unplaced_calls == 3
        assert (
            "  calls     4 in full, 0 shallow, in 1 generation\n"
            "            3 of them in no known generation: for a loop of your own, use "
            "helper.generation(...)\n"
        ) in str(helper)
        helper.reset()
        loop(pipe.unet, list(range(951, 0, -100)))  # known as one at its sixth step
        assert helper.stats.unplaced_calls == 3 + 4
        with helper.generation(timesteps=range(951, 0, -100)):
            loop(pipe.unet, list(range(951, 0, -100)))
        assert helper.stats.unplaced_calls == 3 + 4
    with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper:
        ZOO["sd"].run(pipe)
        assert "in no known generation" not in str(helper)


def test_where_every_call_is_refused_no_plan_is_made_up():
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        with pytest.warns(DeepCacheWarning, match="gradients are enabled"):
            unet(**inputs2d_condition())
        assert helper.last_generations == {}
        assert "  plan" not in str(helper)
        assert "  calls     1 in full, 0 shallow, in 0 generations\n" in str(helper)


def test_disable_that_waits_for_a_call_knows_of_it_afterwards():
    """What ran was noted before the wait: a call that was counted stood in no plan."""
    unet, inside, go_on = unet2d_condition(), threading.Event(), threading.Event()
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()

    def wait(*_):
        inside.set()
        assert go_on.wait(60)

    handle = unet.conv_out.register_forward_pre_hook(wait)
    call = threading.Thread(target=loop, args=(unet, [900]))
    call.start()
    assert inside.wait(60)
    threading.Timer(0.2, go_on.set).start()
    helper.disable()
    call.join()
    handle.remove()
    assert helper.stats.full_calls == helper.last_generations["unet"].full_calls == 1


@pytest.mark.parametrize("name", ["sd", "unclip"])
def test_a_unet_that_was_replaced_is_named_with_the_cure(name):
    # It was "not enabled", and whoever had enabled it could not see why.
    pipe = ZOO[name].load()
    helper, first = DeepCacheHelper(pipe).enable(), ZOO[name].unets[0]
    assert ", enabled\n" in str(helper)
    setattr(pipe, first, copy.deepcopy(getattr(pipe, first)))
    said = f"not enabled for {first}, replaced since enable(): enable() again, or disable()"
    assert str(helper).splitlines()[1] == f"  pipeline  {type(pipe).__name__}, {said}"
    assert said in helper._repr_html_()
    helper.disable()
    assert ", not enabled: calls run plainly and are not counted\n" in str(helper)
    helper.enable()
    assert ", enabled\n" in str(helper)


def test_a_schedule_that_fails_can_be_printed():
    class Failing(Explicit):
        def plan(self, num_steps):
            raise KeyError(num_steps)

    helper = DeepCacheHelper(unet2d_condition(), schedule=Failing([FULL]))
    assert "  plan      depends on the generation\n" in str(helper)


def test_a_with_block_that_is_refused_leaves_nothing_for_the_next():
    unet = unet2d_condition()
    first, second = (
        DeepCacheHelper(unet, schedule=Uniform()).enable(),
        DeepCacheHelper(unet, schedule=Uniform()),
    )
    with pytest.raises(AlreadyEnabledError), second:
        pass
    first.disable()
    second.enable()
    with second:
        pass
    assert second.enabled
    second.disable()
    with second:
        pass
    assert not second.enabled
