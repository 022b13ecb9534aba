"""Running a sweep: which generations are made, in which order; what is kept, and what is made of it
later; what is refused before anything is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import zoo
from builders.cases import CASES, PROMPT, picture
from builders.marks import mostly_slow
from builders.outcomes import flat
from builders.schedulers import with_scheduler
from builders.sweeps import row
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from PIL import Image
from torch import nn

from deepcache_patch import Adaptive, Auto, DeepCacheHelper, InvalidSettingError, Plan, Uniform
from deepcache_patch.compare import contest
from deepcache_patch.compare.about import MODEL_FILES
from deepcache_patch.measuring.media import Sound
from deepcache_patch.sweep import run
from deepcache_patch.sweep.folder import RowStore
from deepcache_patch.sweep.outcome import FILES, Sweep
from deepcache_patch.sweep.progress import duration
from deepcache_patch.sweep.run import INTERVALS, SweepInterrupted, adapters_of
from deepcache_patch.sweep.settings import SweepSetting, require_told_apart, settings_of

pytestmark = pytest.mark.usefixtures("kept_tables")

#: Three settings of which the first two need as many fewer steps.
ASKED: dict[str, Any] = {
    "schedule": ["default", "auto"],
    "interval": 2,
    "num_inference_steps": 12,
    "seeds": [3],
    **PROMPT,
}


NO_MORE: dict[str, Any] = {"branch": None, "steps": None}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of each generation, but for how much is done."""
    labels: list[str] = []
    timed_call = contest.timed_call

    def noted(*arguments: Any, label: str) -> Any:
        result = timed_call(*arguments, label=label)
        labels.append(label.partition(" (")[0])
        return result

    monkeypatch.setattr(contest, "timed_call", noted)
    return labels


def helper(**settings: Any) -> DeepCacheHelper:
    return DeepCacheHelper(CASES["sd"].load(), **settings)


# --- which generations are made -------------------------------------------------------------------


def test_all_run_in_turn_back_and_forth_and_fewer_steps_once_for_all(made: list[str]) -> None:
    sweep = helper().sweep(
        schedule=["uniform", "auto"],
        interval=[2, 3],
        num_inference_steps=[12, 10],
        repeats=2,
        **PROMPT,
    )
    assert [(each.name, each.steps) for each in sweep.settings] == [
        (f"{schedule}, interval {interval}", steps)
        for steps in (12, 10)
        for schedule in ("uniform", "auto")
        for interval in (2, 3)
    ]
    # Both branches run once before anything is timed.
    assert made[:4] == ["warm-up", "warm-up", "plain, 12 steps", "plain, 10 steps"]
    settings = [f"{each.name}, {each.steps} steps" for each in sweep.settings]
    assert [each for each in made if each in settings] == [*settings, *settings[::-1]]
    # Each learns once.
    learned = [each for each in settings if each.startswith("auto")]
    assert [each for each in made if each.startswith("cal")] == [
        f"calibration of {each}" for each in learned
    ]
    # Several settings share their fewer steps: once in a round.
    fewer = {row.fewer for row in sweep.settings}
    assert {each.steps for each in sweep.fewer} == fewer | {10}
    assert [each.steps for each in sweep.fewer] == sorted(fewer | {10}, reverse=True)
    assert all(made.count(f"plain, {steps} steps") == 2 for steps in fewer | {10, 12})
    assert len(made) == 2 + 2 * (1 + 8 + len(sweep.fewer)) + len(learned)
    assert all(len(each.times) == len(each.plain_times) == 2 for each in sweep.rows)


def test_a_row_is_what_a_comparison_finds() -> None:
    subject = helper(schedule=Uniform(3))
    found = subject.compare(seeds=[3, 4], num_inference_steps=12, **PROMPT)
    assert found.fewer is not None
    sweep = subject.sweep(
        schedule="uniform", interval=3, seeds=[3, 4], num_inference_steps=12, repeats=1, **PROMPT
    )
    (setting,), (fewer,) = sweep.settings, sweep.fewer
    assert (setting.psnr, setting.ssim, setting.work) == (found.psnr, found.ssim, found.work)
    assert (setting.fewer, fewer.psnr, fewer.work) == (
        *(found.fewer.steps, found.fewer.psnr, found.fewer.work),
    )
    assert np.asarray(setting.results[0]).tobytes() == (np.asarray(found.cached[0]).tobytes())
    assert (setting.full_calls, setting.shallow_calls) == (found.full_calls, found.shallow_calls)
    assert setting.plan == found.plan


def test_everything_is_against_the_largest_number_of_steps() -> None:
    sweep = helper().sweep(
        schedule="uniform", interval=2, num_inference_steps=[10, 12], repeats=1, **PROMPT
    )
    assert sweep.plain.steps == 12
    share = helper().branches[0].share
    assert [each.worth for each in sweep.settings] == [5 + 5 * share, 6 + 6 * share]
    assert {each.reference_calls for each in sweep.rows} == {12}


def test_the_helper_is_left_as_it_was() -> None:
    subject = helper(schedule=Uniform(5))
    subject.sweep(**ASKED, repeats=1, fewer_steps=False)
    assert (subject.enabled, subject.schedule) == (False, Uniform(5))
    assert "_compiled_call_impl" not in vars(subject.pipe.unet)


def test_an_interval_that_is_not_given_is_that_of_the_schedule() -> None:
    # Such a setting had no name.
    settings = settings_of(schedule=["default", "uniform"], interval=None, branch=None, steps=12)
    assert [each.name for each in settings] == ["interval 2.2", "uniform, interval 3"]
    assert settings[0].options() == ["--interval", "2.2", "--steps", "12"]
    assert [each.name for each in settings_of(schedule="auto", interval=[None, 3], **NO_MORE)] == [
        *("auto, interval 2.2", "auto, interval 3"),
    ]


class Mine:
    """A schedule of somebody's own that is printed without its settings."""

    def __init__(self, every: int) -> None:
        self.every = every

    def plan(self, num_steps: int) -> list[Any]:
        return [0 if step % self.every else "full" for step in range(num_steps)]

    def __repr__(self) -> str:
        return "Mine"


class Unprinted(Mine):
    """One that is printed with its place in memory."""

    __repr__ = object.__repr__


def test_numbers_of_numpy_are_kept_as_those_of_python(tmp_path: Path) -> None:
    """Regression: after minutes of work a row with such steps could not be written."""
    lists = {"num_inference_steps": np.array([12, 10]), "interval": np.array([2])}
    found = helper().sweep(**{**ASKED, **lists, "schedule": "default"}, repeats=1, folder=tmp_path)
    told = json.loads(found.to_json())["settings"]
    assert [(row["steps"], row["interval"]) for row in told] == [(12, 2), (10, 2)]


def test_schedules_that_are_printed_alike_are_two_and_equal_ones_are_one() -> None:
    # Of two that were printed alike, one ran.
    two, three = Mine(2), Mine(3)
    asked = [two, three, two, Uniform(3), Uniform(3)]
    settings = settings_of(schedule=asked, interval=None, branch=None, steps=[12, 10])
    assert [(each.name, each.given, each.steps) for each in settings] == [
        (name, given, steps)
        for steps in (12, 10)
        for name, given in (("Mine", two), ("Mine (2)", three), (str(Uniform(3)), Uniform(3)))
    ]
    assert len({each.key for each in settings}) == 6


@pytest.mark.parametrize("kind", [Adaptive, Auto])
def test_schedules_of_the_package_are_told_by_what_they_are_printed_as(kind: Any) -> None:
    settings = settings_of(schedule=[kind(), kind()], interval=None, branch=None, steps=12)
    assert len(settings) == 1
    require_told_apart(settings)


def test_both_of_two_that_are_printed_alike_run() -> None:
    asked = {**ASKED, "schedule": [Mine(2), Mine(3)], "repeats": 1, "fewer_steps": False}
    sweep = helper().sweep(**asked)
    assert [str(each.plan) for each in sweep.settings] == ["F·" * 6, "F··" * 4]


@pytest.mark.parametrize(
    ("schedule", "printed"),
    [([Mine(2), Mine(3)], "Mine"), (Unprinted(2), "<.*Unprinted object at 0x.*>")],
)
def test_schedules_that_a_folder_cannot_tell_apart_are_refused(
    schedule: Any, printed: str, made: list[str], tmp_path: Path
) -> None:
    # One made later at the same place in memory was taken for the one before.
    said = f"cannot tell the schedule {printed} from another one: give its class a __repr__"
    with pytest.raises(InvalidSettingError, match=said):
        helper().sweep(**{**ASKED, "schedule": schedule}, folder=tmp_path / "new")
    assert made == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("schedule", "intervals"),
    [("default", [2, 2.2, 3, 5]), ("uniform", [2, 3, 5]), ("adaptive", [2, 1.5, 3, 5])],
)
def test_the_interval_that_a_schedule_has_by_itself_is_among_those_that_are_tried(
    schedule: str, intervals: list[float]
) -> None:
    # The default setting of the library was in no sweep unless it was asked for.
    settings = settings_of(schedule=schedule, interval=INTERVALS, **NO_MORE)
    assert [each.interval for each in settings] == intervals


def test_a_list_says_which_steps_there_are(made: list[str]) -> None:
    pipe = with_scheduler(CASES["sd"].load(), "ddpm")
    subject, timesteps = DeepCacheHelper(pipe), [*range(990, 90, -100)]
    sweep = subject.sweep(interval=2, timesteps=timesteps, seeds=[3], repeats=1, **PROMPT)
    assert made == ["warm-up", "plain, 9 steps", "interval 2"]
    (setting,) = sweep.settings
    assert (sweep.plain.steps, setting.steps, len(setting.plan)) == (9, 9, 9)
    assert setting.fewer_left_out == "timesteps= says which steps there are"
    assert "num_inference_steps" not in sweep.python(setting)


def test_a_calibrated_schedule_is_of_the_steps_that_strength_leaves() -> None:
    # A sweep compared its steps to all of them, and a comparison to none.
    pipe = with_scheduler(CASES["sd-img2img"].load(), "ddim")
    call = {**PROMPT, "image": picture(), "strength": 0.5, "seeds": [3]}
    auto = Auto(2.5)
    DeepCacheHelper(pipe, schedule=auto).compare(num_inference_steps=24, fewer_steps=False, **call)
    (learned,) = auto.learned
    assert len(learned.entries) == 12
    subject = DeepCacheHelper(pipe, schedule=learned)
    sweep = subject.sweep(
        schedule=learned, num_inference_steps=24, repeats=1, fewer_steps=False, **call
    )
    assert sweep.settings[0].plan == learned.entries
    for run_of in (subject.compare, lambda **call: subject.sweep(schedule=learned, **call)):
        with pytest.raises(InvalidSettingError, match="for 12 steps, and here are 6: give as many"):
            run_of(num_inference_steps=12, **call)


@pytest.mark.parametrize("enabled", mostly_slow([False, True], 1))
def test_the_counts_of_the_helper_are_its_own(enabled: bool) -> None:
    subject = helper(schedule=Uniform(3))
    with subject:
        CASES["sd"].run(subject.pipe, steps=5)
    counts, last = subject.stats, subject.last_generations["unet"].plan
    assert counts.full_calls > 0
    if enabled:
        subject.enable()  # where they begin anew
        counts = subject.stats
    subject.sweep(**{**ASKED, "schedule": "default"}, repeats=1, fewer_steps=False)
    subject.compare(num_inference_steps=4, fewer_steps=False, **PROMPT)
    assert (subject.enabled, subject.stats) == (enabled, counts)
    assert enabled or subject.last_generations["unet"].plan == last
    subject.disable()


def test_fewer_steps_are_left_out_where_nobody_wants_them(made: list[str]) -> None:
    sweep = helper().sweep(**ASKED, repeats=1, fewer_steps=False)
    assert sweep.fewer == ()
    assert made == [
        *("warm-up", "plain, 12 steps", "interval 2, 12 steps"),
        *("calibration of auto, interval 2, 12 steps", "auto, interval 2, 12 steps"),
    ]


# --- what is kept ---------------------------------------------------------------------------------


def same(one: Sweep, other: Sweep) -> bool:
    """Whether all figures and all pixels are the same."""
    pixels = [
        [np.asarray(result).tobytes() for row in (each.plain, *each.rows) for result in row.results]
        for each in (one, other)
    ]
    return pixels[0] == pixels[1] and one.to_json() == other.to_json()


def test_a_second_run_makes_nothing(made: list[str], tmp_path: Path) -> None:
    first = helper().sweep(**ASKED, repeats=1, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "rows"}
    made.clear()
    second = helper().sweep(**ASKED, repeats=1, folder=tmp_path)
    assert same(second, first)
    assert made == []
    assert (first.is_restored, second.is_restored) == (False, True)


def test_a_second_run_makes_what_is_missing_and_no_more(made: list[str], tmp_path: Path) -> None:
    helper().sweep(**ASKED, repeats=1, folder=tmp_path)
    made.clear()
    more = helper().sweep(**{**ASKED, "interval": [2, 3]}, repeats=1, folder=tmp_path)
    fewer = more.settings[1].fewer
    assert not more.is_restored
    assert made == [
        *("warm-up", "plain, 12 steps"),
        *("interval 3, 12 steps", f"plain, {fewer} steps"),
        *("calibration of auto, interval 3, 12 steps", "auto, interval 3, 12 steps"),
    ]
    # A damaged row is made anew; so is the time of a further round. What was learned is there.
    (tmp_path / "rows" / "auto-interval-2-12-steps-1.png").write_bytes(b"")
    made.clear()
    helper().sweep(**ASKED, repeats=1, folder=tmp_path, fewer_steps=False)
    assert made == ["warm-up", "plain, 12 steps", "auto, interval 2, 12 steps"]
    made.clear()
    again = helper().sweep(**ASKED, repeats=2, folder=tmp_path, fewer_steps=False)
    assert [each.partition(" of ")[0] for each in made] == [
        *("warm-up", "plain, 12 steps"),
        *("auto, interval 2, 12 steps", "interval 2, 12 steps"),
    ]
    assert [len(each.times) for each in again.settings] == [2, 2]


def test_ctrl_c_keeps_what_there_is_and_the_next_run_goes_on(
    made: list[str], tmp_path: Path
) -> None:
    subject = helper()

    def stop(pipe: Any, step: int, _timestep: Any, values: Any) -> Any:
        # The fourth is the calibration of the second setting.
        if len(made) == 4 and step == 3:
            raise KeyboardInterrupt
        return values

    with pytest.raises(SweepInterrupted) as broken:
        subject.sweep(**ASKED, repeats=1, folder=tmp_path, callback_on_step_end=stop)
    assert isinstance(broken.value, KeyboardInterrupt)
    sweep = broken.value.sweep
    assert sweep is not None
    assert ([each.name for each in sweep.settings], sweep.missing) == (["interval 2"], 1)
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(sweep.to_json())
    assert "Broken off: 1 of 2" in (tmp_path / "sweep.html").read_text()
    assert (subject.enabled, vars(subject.pipe.unet).get("_compiled_call_impl")) == (False, None)
    made.clear()
    whole = helper().sweep(**ASKED, repeats=1, folder=tmp_path, callback_on_step_end=stop)
    assert whole.missing == 0
    assert made == [
        *("warm-up", "plain, 12 steps"),
        *("calibration of auto, interval 2, 12 steps", "auto, interval 2, 12 steps"),
    ]


def test_ctrl_c_before_anything_is_finished_has_nothing_to_tell() -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted) as broken:
        helper().sweep(**ASKED, callback_on_step_end=stop)
    assert broken.value.sweep is None


def test_what_failed_for_lack_of_memory_is_tried_again_by_the_next_run(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reason of a failure was kept with the row, so that no later run made fewer steps.
    asked = {**ASKED, "schedule": "default", "repeats": 2, "folder": tmp_path}
    plain = contest.Contest.plain

    def no_memory(self: Any, steps: int | None = None, label: str = "plain") -> Any:
        if steps is not None:
            raise torch.OutOfMemoryError("out of memory\nand more lines")
        return plain(self, steps, label)

    with monkeypatch.context() as patch:
        patch.setattr(contest.Contest, "plain", no_memory)
        first = helper().sweep(**asked)
    (setting,) = first.settings
    assert (setting.fewer, first.fewer) == (None, ())
    assert str(setting.fewer_left_out).endswith("steps failed: out of memory")
    assert "left out: " in first.table()
    made.clear()
    (setting,) = helper().sweep(**asked).settings
    assert setting.fewer_left_out is None
    assert made == ["warm-up", *["plain, 12 steps", f"plain, {setting.fewer} steps"] * 2]


def test_rows_of_which_nobody_knows_what_they_are_of_are_refused(
    made: list[str], tmp_path: Path
) -> None:
    RowStore(tmp_path, {"a": 1}).keep("x", row(2, 30))
    (tmp_path / "rows" / "request.json").unlink()
    with pytest.raises(
        InvalidSettingError, match=r"holds rows without request\.json.*: remove it, "
    ):
        helper().sweep(**ASKED, folder=tmp_path)
    assert made == []


def test_weights_and_adapters_are_read_for_a_folder_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any) -> Any:
        pytest.fail("nobody asked for it")

    monkeypatch.setattr(run, "adapters_of", unwanted)
    monkeypatch.setattr(run.Fingerprint, "of", unwanted)
    helper().sweep(**{**ASKED, "schedule": "default"}, repeats=1, fewer_steps=False)


def other_weights(pipe: Any) -> None:
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(2)


def with_freeu(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


@pytest.mark.parametrize(
    ("changes", "change", "said"),
    [
        ({"seeds": [4]}, None, r"seeds: \[3\] there, \[4\] here"),
        ({"seeds": [*range(40)]}, None, "seeds"),
        ({"prompt": "a" * 99}, None, f"prompt: 'a small red circle' there, '{'a' * 79}… here"),
        ({"prompt": "a hen"}, None, "prompt: 'a small red circle' there, 'a hen' here"),
        ({"num_inference_steps": [12, 13]}, None, "steps: 12 there, 13 here"),
        ({"guidance_scale": 3.0}, None, "guidance_scale: 7.5 there, 3.0 here"),
        ({}, other_weights, r"weights \(unet\)"),
        ({}, with_freeu, r"adapters \(unet\): '\w+' there, '\w+' here"),
    ],
)
def test_a_folder_of_another_request_is_refused(
    changes: Any,
    change: Callable[[Any], None] | None,
    said: str,
    made: list[str],
    tmp_path: Path,
) -> None:
    RowStore(tmp_path, request_of()).keep("x", row(2, 30))
    subject = helper()
    if change:
        change(subject.pipe)
    with pytest.raises(InvalidSettingError, match=f"sweep that differs in {said}; give another f"):
        subject.sweep(**{**ASKED, **changes}, folder=tmp_path)
    assert made == []


def request_of() -> Any:
    from deepcache_patch.compare.contest import Contest
    from deepcache_patch.sweep.run import _about, _request

    call = {"num_inference_steps": 12, **PROMPT}
    found = Contest(helper(), call, seeds=[3], repeats=1)
    return _request(found, _about(found, []))


def test_a_request_of_any_kind_is_the_same_again(tmp_path: Path) -> None:
    # An infinite number became text in the file, and was another one in the next process.
    request = {"a": float("-inf"), "b": flat((1, 2, 3)), "c": (1, 2), "d": tmp_path, "e": None}
    RowStore(tmp_path, request).keep("x", row(2, 30))
    RowStore(tmp_path, request)
    with pytest.raises(InvalidSettingError, match="differs in b: "):
        RowStore(tmp_path, {**request, "b": flat((1, 2, 4))})


def test_a_folder_goes_by_the_weights_not_by_the_files_that_were_asked_for(
    tmp_path: Path, made: list[str]
) -> None:
    ours = helper()
    asked: Any = {**ASKED, "schedule": "default", "fewer_steps": False, "folder": tmp_path}
    ours.sweep(**asked, repeats=1)
    setattr(ours.pipe, MODEL_FILES, {"variant": "fp16"})
    made.clear()
    assert len(ours.sweep(**asked, repeats=1).settings) == 1
    assert made == []


def test_numbers_of_numpy_are_told_apart(tmp_path: Path) -> None:
    RowStore(tmp_path, {"call": {"guidance_scale": np.float32(1.5)}}).keep("x", row(2, 30))
    with pytest.raises(InvalidSettingError, match=r"guidance_scale: 1\.5 there, 9\.5 here"):
        RowStore(tmp_path, {"call": {"guidance_scale": np.float32(9.5)}})


def test_what_cannot_be_told_apart_is_refused_where_rows_are_kept(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="this object from another one: leave fol"):
        RowStore(tmp_path, {"call": object()})


def test_an_adapter_or_another_scale_of_it_is_another_request() -> None:
    class Lora(nn.Linear):
        scaling: ClassVar = {"style": 1.0}

    def layer(scale: float, factor: float) -> nn.Module:
        part = nn.ModuleDict({"lora_A": Lora(2, 2, bias=False)})
        nn.init.constant_(part["lora_A"].weight, factor)
        part["lora_A"].scaling = {"style": scale}
        return part

    digests = [adapters_of(layer(*each)) for each in ((1, 1), (1, 1), (0.5, 1), (1, 2))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_freeu_and_another_attention_processor_are_another_request() -> None:
    # A folder of pictures without FreeU was taken for one with it: nothing ran.
    pipe = CASES["sd"].load()
    before = adapters_of(pipe.unet)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    first = adapters_of(pipe.unet)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.7)
    assert len({before, first, adapters_of(pipe.unet)}) == 3
    pipe.disable_freeu()  # which leaves None
    assert adapters_of(pipe.unet) == before
    pipe.unet.set_attn_processor(PAGIdentitySelfAttnProcessor2_0())
    assert adapters_of(pipe.unet) != before


@pytest.mark.parametrize("name", ["sd", "sd-pag"])
def test_a_helper_that_is_enabled_or_has_run_changes_no_request(name: str) -> None:
    subject = DeepCacheHelper({**CASES, **zoo.CASES}[name].load())
    before = adapters_of(subject.pipe.unet)
    subject.enable()
    assert adapters_of(subject.pipe.unet) == before
    subject.pipe(num_inference_steps=12, output_type="np", **PROMPT)
    assert subject.stats.shallow_calls > 0
    assert adapters_of(subject.pipe.unet) == before


def test_other_layers_with_pag_are_another_request(made: list[str], tmp_path: Path) -> None:
    # Nothing ran either: PAG takes its processors away after each call, so the U-Net does not tell.
    subject = DeepCacheHelper(zoo.CASES["sd-pag"].load())
    asked = {**ASKED, "schedule": "uniform", "repeats": 1, "fewer_steps": False}
    subject.sweep(**asked, folder=tmp_path)
    made.clear()
    assert subject.sweep(**asked, folder=tmp_path).is_restored
    subject.pipe.set_pag_applied_layers(["up"])
    with pytest.raises(InvalidSettingError, match=r"PAG's layers: \['mid'\] there, \['up'\] here"):
        subject.sweep(**asked, folder=tmp_path)
    assert made == []


def test_a_plan_is_kept_by_its_entries_and_made_anew_from_a_strip(tmp_path: Path) -> None:
    kept = row(2, 30, plan=Plan(["full", -1, 0, 11]))
    RowStore(tmp_path, {"a": 1}).keep("x", kept)
    read = RowStore(tmp_path, {"a": 1}).restored("x", None)
    assert read is not None
    assert read.plan == kept.plan
    file = tmp_path / "rows" / "x.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "plan": str(kept.plan)}))
    assert RowStore(tmp_path, {"a": 1}).restored("x", None) is None


def test_videos_and_sounds_are_kept_too(tmp_path: Path) -> None:
    video = tuple(flat((number, 9, 9), 16) for number in (1, 1, 2))
    tone = Sound(np.float32([[0, 0.5, -0.5, 1]]), 16000)
    for key, result in {"video": video, "sound": tone, "picture": flat((1, 2, 3), 8)}.items():
        kept = row(2, float("inf"), results=(result,), psnr=(float("inf"),))
        RowStore(tmp_path, {"a": 1}).keep(key, kept)
        read = RowStore(tmp_path, {"a": 1}).restored(key, None)
        assert read is not None
        assert (read.psnr, read.times) == (kept.psnr, kept.times)
        (found,) = read.results
        if isinstance(found, Sound):
            assert found.rate == 16000
            assert np.allclose(found.samples, tone.samples, atol=1e-4)
        else:
            frames = [found] if isinstance(found, Image.Image) else found
            expected = [result] if isinstance(result, Image.Image) else result
            assert [each.tobytes() for each in frames] == [each.tobytes() for each in expected]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"interval": 0}, "interval must be a number from 1 to 1000, not 0"),
        ({"interval": []}, "interval is an empty list: give at least one"),
        ({"interval": 2.5, "schedule": "uniform"}, "interval must be an integer of at least 1"),
        ({"schedule": "autp"}, "there is no schedule 'autp': did you mean 'auto'"),
        ({"branch": 99}, "branch 99 is out of range"),
        ({"num_inference_steps": [8]}, "would run all of 8 steps in full.*more than 8 steps"),
        ({"interval": 1}, "interval 1 would run all of 12 steps in full.*a larger interval"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, not 0"),
        ({"timesteps": [900, 500]}, "timesteps= says which steps there are"),
        ({"seeds": []}, "seeds is empty"),
        ({"repeats": 0}, "repeats must be an integer of at least 1, not 0"),
        ({"repeats": 1.5}, "repeats must be an integer of at least 1, not 1.5"),
        ({"prompt": []}, "prompt is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    asked: Any, said: str, made: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        helper().sweep(**{**ASKED, **asked}, folder=tmp_path / "new")
    assert made == []
    assert not (tmp_path / "new").exists()


def test_a_replay_that_a_schedule_brings_along_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="Auto brings its own replay"):
        helper(replay="reuse").sweep(**ASKED)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.1, "1 s"), (89, "89 s"), (600, "10 min"), (7500, "2 h 5 min")]
)
def test_a_time_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("setting", "does"),
    [
        ({"schedule": "auto", "interval": 2, "steps": 24}, True),
        ({"schedule": "auto", "interval": 2, "steps": 12}, False),
        ({"schedule": "auto", "branch": 0, "steps": 24}, False),
        ({"interval": 2, "steps": 24}, False),
    ],
)
def test_only_auto_learns_and_only_where_there_is_something(
    setting: dict[str, Any], does: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcache_patch.learning.auto.FEW_FULL_STEPS", 8)
    found = contest.Contest(helper(), PROMPT, seeds=None, repeats=1)
    asked = SweepSetting(**setting)
    assert found.learns(asked.made(), asked.steps) == does
