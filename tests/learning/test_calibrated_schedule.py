"""A learned schedule in a file and back, and what it refuses to be used for."""

import json
from dataclasses import replace
from functools import cache

import diffusers
import pytest
import torch
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.schedulers import SCHEDULERS, with_scheduler
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import trace

from deepcache_patch import (
    FULL,
    Auto,
    Calibrated,
    DeepCacheHelper,
    Extrapolate,
    InvalidSettingError,
    NoiseAware,
    Plan,
    Uniform,
)
from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.learning.calibrated_schedule import ValidFor, load_all, save_all
from deepcache_patch.learning.reached import Reached
from deepcache_patch.schedules.context import Context

SD, LDM = CASES["sd"], CASES["ldm"]


@cache
def loaded(name):
    """One pipeline for all tests that leave it as it was."""
    return CASES[name].load()


def learn(pipe, steps=10, *, case=SD):
    """What `Auto` learns from one generation."""
    auto = Auto()
    with DeepCacheHelper(pipe, schedule=auto):
        case.run(pipe, steps=steps)
    (learned,) = auto.learned
    return learned


@pytest.fixture(scope="module")
def learned():
    return learn(loaded("sd"))


@pytest.fixture
def file(learned, tmp_path):
    learned.save(tmp_path / "schedule.json")
    return tmp_path / "schedule.json"


def rounded(values):
    return [float(f"{value:.5g}") for value in values]


# --- the file -----------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(learned, file):
    loaded = Calibrated.load(file)
    assert loaded.setting == learned.setting
    assert loaded.entries == learned.entries
    assert isinstance(loaded.entries, Plan)
    assert loaded.weights.keys() == learned.weights.keys()
    # Of 6 shallow steps; the first has one full step before it, the last one goes by the trend.
    assert len(loaded.weights) == 4
    for steps, weights in learned.weights.items():
        assert list(loaded.weights[steps]) == rounded(weights)


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_saving_what_was_loaded_writes_the_same_bytes(kind, learned, file, tmp_path):
    again = tmp_path / "again.json"
    learned.save(kind(again))
    assert again.read_bytes() == file.read_bytes()
    Calibrated.load(kind(file)).save(again)
    assert again.read_bytes() == file.read_bytes()


def test_nothing_but_the_file_remains(learned, tmp_path):
    learned.save(tmp_path / "schedule.json")
    learned.save(tmp_path / "schedule.json")
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]


def test_what_is_written_over_is_replaced_in_one_go(learned, file):
    # Whoever has the old one open reads it to its end.
    with file.open() as old:
        replace(learned, weights={}).save(file)
        assert len(json.load(old)["schedules"][0]["weights"]) == 4
    assert Calibrated.load(file).weights == {}


def test_the_file_may_be_read_by_whoever_may_read_other_files(file, tmp_path):
    (tmp_path / "other.json").write_text("")
    assert file.stat().st_mode == (tmp_path / "other.json").stat().st_mode


def test_a_failed_save_leaves_nothing_behind(learned, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        learned.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_several_schedules_are_for_auto(learned, file):
    save_all(file, [learned, replace(learned, weights={})])
    assert [len(each.weights) for each in load_all(file)] == [4, 0]
    with pytest.raises(
        InvalidSettingError, match=rf"{file} holds 2 .* give it to Auto\(file=...\)"
    ):
        Calibrated.load(file)


def edited(file, edit):
    data = json.loads(file.read_text())
    edit(data["schedules"][0])
    file.write_text(json.dumps(data))


DAMAGES = {
    "empty": lambda file: file.write_text(""),
    "no JSON": lambda file: file.write_text("a plan"),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "cut off": lambda file: file.write_text(file.read_text()[:200]),
    "other JSON": lambda file: file.write_text("[1, 2]"),
    "null": lambda file: file.write_text("null"),
    "no version": lambda file: file.write_text("{}"),
    "no schedules": lambda file: file.write_text('{"version": 2}'),
    "schedules of another kind": lambda file: file.write_text('{"version": 2, "schedules": [3]}'),
    "no weights": lambda file: edited(file, lambda data: data.pop("weights")),
    "weights of a full step": lambda file: edited(
        file,
        lambda data: data["weights"][0].update(
            steps=[step for step, entry in enumerate(data["plan"]) if entry == FULL][2::-1],
            weights=[0.5],
        ),
    ),
    "no steps": lambda file: edited(file, lambda data: data["weights"][0].pop("steps")),
    "a weight of words": lambda file: edited(
        file, lambda data: data["weights"][0].update(weights=["much"])
    ),
    "a plan too short": lambda file: edited(file, lambda data: data["plan"].pop()),
    # What is wrong with a plan was once passed on as it was, without the name of the file.
    "a plan of words": lambda file: edited(file, lambda data: data.update(plan=["maybe"] * 10)),
    "an empty plan": lambda file: edited(file, lambda data: data.update(plan=[])),
    "timesteps of words": lambda file: edited(
        file, lambda data: data.update(timesteps=["soon"] * 10)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "read", [Calibrated.load, lambda file: Auto(file=file)], ids=["load", "auto"]
)
def test_a_damaged_file_is_refused_by_name(damage, read, file):
    DAMAGES[damage](file)
    with pytest.raises(InvalidSettingError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file} is no file of calibrated schedules, or a damaged")
    assert "or calibrate anew" in str(caught.value)


def test_a_file_of_another_version_is_refused_by_both_versions(file):
    file.write_text(file.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(
        InvalidSettingError, match=f"{file} has version 1 of the format, this package reads 2"
    ):
        Calibrated.load(file)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        Calibrated.load(tmp_path / "nowhere.json")


# --- what it fits -------------------------------------------------------------------------------


def test_a_loaded_schedule_runs_as_planned(learned, file):
    pipe = loaded("sd")
    before = trace(pipe.unet)
    with DeepCacheHelper(pipe, schedule=Calibrated.load(file)) as helper:
        first = SD.run(pipe, steps=10)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 6)
        assert torch.equal(SD.run(pipe, steps=10), first)
    assert trace(pipe.unet) == before


def test_it_fits_pictures_of_another_size_and_number(learned):
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule=learned) as helper:
        SD.run(pipe, steps=10, height=24, width=32, num_images_per_prompt=2)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 6)


def smaller_unet(pipe):
    pipe.unet = unet2d_condition(layers_per_block=1)


def other_unet(pipe):
    class OtherUNet(type(pipe.unet)):
        pass

    pipe.unet.__class__ = OtherUNet


def other_config(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.02)


KNOWN_BEFORE = {
    "scheduler": (
        lambda pipe: with_scheduler(pipe, "euler"),
        "scheduler is a EulerDiscreteScheduler, not a DDIMScheduler",
    ),
    "scheduler-config": (other_config, "scheduler has beta_end=0.02, not 0.012"),
    "no-scheduler": (
        lambda pipe: setattr(pipe, "scheduler", None),
        "scheduler is a NoneType, not a DDIMScheduler",
    ),
    "unet": (other_unet, "unet is a OtherUNet, not a UNet2DConditionModel"),
    "unet-config": (smaller_unet, "unet has layers_per_block=1, not 2"),
}


@pytest.mark.parametrize("name", KNOWN_BEFORE)
def test_another_unet_or_scheduler_is_refused_before_anything_is_patched(name, learned):
    change, difference = KNOWN_BEFORE[name]
    pipe = SD.load()
    change(pipe)
    before = trace(pipe.unet)
    cure = "calibrate it anew, or give schedule='default'"
    if name in ("scheduler", "scheduler-config"):
        cure = (
            "set the scheduler first: pipe.scheduler = DDIMScheduler.from_config("
            f"schedule.setting.scheduler), where schedule is this one; or {cure}"
        )
    message = f"this calibrated schedule does not fit: {difference}; {cure}"
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheHelper(pipe, schedule=learned)
    assert str(caught.value) == message
    assert trace(pipe.unet) == before


@pytest.mark.parametrize("name", [name for name in KNOWN_BEFORE if name != "no-scheduler"])
def test_and_by_enable_if_it_was_replaced_since(name, learned):
    change, difference = KNOWN_BEFORE[name]
    pipe = SD.load()
    helper = DeepCacheHelper(pipe, schedule=learned)
    change(pipe)
    before = trace(pipe.unet)
    with pytest.raises(InvalidSettingError, match=f"does not fit: {difference}"):
        helper.enable()
    assert trace(pipe.unet) == before
    assert not helper.enabled


@pytest.mark.parametrize("name", ["scheduler", "scheduler-config"])
def test_the_cure_for_another_scheduler_is_one(name, learned):
    pipe = SD.load()
    KNOWN_BEFORE[name][0](pipe)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(learned.setting.scheduler)
    with DeepCacheHelper(pipe, schedule=learned) as helper:
        SD.run(pipe, steps=10)
        assert helper.last_generations["unet"].plan == learned.entries


def test_a_bare_unet_is_refused(learned):
    with pytest.raises(InvalidSettingError, match="scheduler is a NoneType"):
        DeepCacheHelper(loaded("sd").unet, schedule=learned)


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"steps": 7}, "the generation has 7 steps, not 10"),
        ({"steps": 16}, "the generation has 16 steps, not 10"),
        (
            {"steps": None, "timesteps": [901, 850, *range(701, 0, -100)]},
            "step 1 has timestep 850, not 801",
        ),
    ],
    ids=["fewer", "more", "others"],
)
def test_another_list_of_timesteps_is_refused_when_the_generation_starts(arguments, difference):
    pipe = with_scheduler(SD.load(), "euler")
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, timestep_spacing="leading", steps_offset=1
    )
    schedule = learn(pipe)
    with DeepCacheHelper(pipe, schedule=schedule) as helper:
        for _ in range(2):  # it is asked at each start
            with pytest.raises(InvalidSettingError, match=f"does not fit: {difference}; calibr"):
                SD.run(pipe, **arguments)
        SD.run(pipe, steps=10)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 6)


def test_another_strength_has_other_timesteps():
    case = CASES["sd-img2img"]
    pipe, auto = case.load(), Auto()
    with DeepCacheHelper(pipe, schedule=auto):
        case.run(pipe, steps=12, strength=0.8)
    with (
        DeepCacheHelper(pipe, schedule=auto.learned[0]),
        pytest.raises(InvalidSettingError, match="the generation has 6 steps, not 9"),
    ):
        case.run(pipe, steps=12, strength=0.5)


def test_a_scheduler_replaced_while_enabled_is_refused_when_the_generation_starts(learned):
    pipe = SD.load()
    with DeepCacheHelper(pipe, schedule=learned):
        with_scheduler(pipe, "euler")
        with pytest.raises(InvalidSettingError, match="scheduler is a EulerDiscreteScheduler"):
            SD.run(pipe, steps=10)


def test_a_schedule_that_does_not_fit_leaves_the_one_before(learned):
    pipe = with_scheduler(SD.load(), "euler")
    with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper:
        with pytest.raises(InvalidSettingError, match="does not fit"):
            helper.follow(learned)
        assert helper.schedule == Uniform(2)
        SD.run(pipe, steps=10)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (5, 5)


def test_the_plan_of_another_number_of_steps_is_refused(learned):
    assert learned.plan(10) == learned.entries
    with pytest.raises(InvalidSettingError, match="calibrated for 10 steps, the generation has 9"):
        learned.plan(9)


def test_it_brings_its_own_replay(learned):
    with pytest.raises(InvalidSettingError, match="Calibrated brings its own replay: leave replay"):
        DeepCacheHelper(loaded("sd"), schedule=learned, replay="reuse")


@pytest.mark.parametrize("name", mostly_slow(SCHEDULERS, ["ddim", "heun", "lms"]))
def test_a_schedule_fits_an_equal_pipeline(name, tmp_path, monkeypatch):
    # Also with a number of steps that is odd, which some schedulers treat otherwise.
    pipe = loaded("ldm")
    config = pipe.scheduler.config
    monkeypatch.setattr(pipe, "scheduler", SCHEDULERS[name](config))
    learn(pipe, steps=11, case=LDM).save(tmp_path / "schedule.json")
    pipe.scheduler = SCHEDULERS[name](config)
    with DeepCacheHelper(pipe, schedule=Calibrated.load(tmp_path / "schedule.json")) as helper:
        LDM.run(pipe, steps=11)
    assert helper.stats.shallow_calls > 0


# It changes its config in `set_timesteps` if the number of steps is odd.
def test_a_schedule_fits_a_scheduler_that_changes_itself(tmp_path):
    def fresh():
        pipe = SD.load()
        pipe.scheduler = diffusers.DPMSolverSinglestepScheduler.from_config(pipe.scheduler.config)
        return pipe

    learn(fresh(), steps=11).save(tmp_path / "schedule.json")
    pipe = fresh()
    with DeepCacheHelper(pipe, schedule=Calibrated.load(tmp_path / "schedule.json")) as helper:
        SD.run(pipe, steps=11)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (5, 6)


def test_what_diffusers_notes_for_itself_does_not_count(learned):
    pipe = SD.load()
    here = ValidFor({**learned.setting.unet}, {**learned.setting.scheduler}, ())
    pipe.unet.register_to_config(_name_or_path="elsewhere")
    learned.check(pipe.unet, pipe.scheduler)
    assert not any(name.startswith("_") for name in (*here.unet, *here.scheduler))


# --- how it goes on -----------------------------------------------------------------------------


def x0(step, value):
    sample = torch.full((2, 3, 2, 2), value)
    return Recorded(step, FeatureKey.of(sample), sample, 1 - sample)  # of a U-Net that tells x0


def guide(weights):
    context = Context(5, (800.0, 600.0, 400.0, 200.0, 0.0), SCHEDULER)
    plan = Plan([FULL, FULL, FULL, -1, -1])
    setting = ValidFor.of(context)
    return Calibrated(setting, plan, weights).begin(context, Extrapolate())


SCHEDULER = diffusers.DDIMScheduler(prediction_type="sample")
SCHEDULER.set_timesteps(5)


def test_a_step_goes_on_with_its_weights():
    found = guide({(3, 2, 1, 0): (0.5, -2.0), (4, 2, 1): (3.0,)})
    assert [found.entry(step) for step in range(5)] == [FULL, FULL, FULL, -1, -1]
    assert found.keep == 3
    full = [x0(2, 8.0), x0(1, 4.0), x0(0, 2.0)]
    # 8 + 0.5 · (8 - 4) - 2 · (4 - 2)
    assert torch.equal(found.output(3, full, torch.ones(2, 3, 2, 2)), full[0].feature - 2)
    # 8 + 3 · (8 - 4)
    assert torch.equal(found.output(4, full[:2], torch.ones(2, 3, 2, 2)), full[0].feature + 12)


@pytest.mark.parametrize("missing", [0, 1])
def test_where_other_steps_were_recorded_it_goes_on_by_the_trend(missing):
    full = [x0(2, 8.0), x0(1, 4.0), x0(0, 2.0)]
    del full[missing]
    sample = torch.ones(2, 3, 2, 2)
    found = guide({(3, 2, 1, 0): (0.5, -2.0)}).output(3, full, sample)
    assert torch.equal(found, guide({}).output(3, full, sample))


def test_what_is_loaded_goes_on_as_what_was_saved(learned, file):
    # But for the digits.
    exact = replace(learned, weights={at: tuple(rounded(w)) for at, w in learned.weights.items()})
    pipe = loaded("sd")
    with DeepCacheHelper(pipe, schedule=exact):
        expected = SD.run(pipe, steps=10)
    with DeepCacheHelper(pipe, schedule=Calibrated.load(file)):
        assert torch.equal(SD.run(pipe, steps=10), expected)


def test_weights_change_the_picture(learned):
    pipe, pictures = loaded("sd"), []
    for schedule in (learned, replace(learned, weights={})):
        with DeepCacheHelper(pipe, schedule=schedule):
            pictures.append(SD.run(pipe, steps=10))
    assert not torch.equal(*pictures)


def test_without_weights_it_is_the_default(learned):
    pipe, pictures = loaded("sd"), []
    for schedule in (replace(learned, weights={}), NoiseAware()):
        with DeepCacheHelper(pipe, schedule=schedule):
            pictures.append(SD.run(pipe, steps=10))
    assert torch.equal(*pictures)


def test_guidance_dropped_midway_runs_in_full_once_and_goes_on(learned):
    pipe = loaded("sd")

    def cut_off(pipe, step, _timestep, kwargs):
        if step == 3:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    plan = Plan([FULL, -1, FULL, -1, -1, -1, FULL, -1, -1, -1])
    with DeepCacheHelper(pipe, schedule=replace(learned, entries=plan)) as helper:
        SD.run(
            pipe,
            steps=10,
            callback_on_step_end=cut_off,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 6)


# --- as an object -------------------------------------------------------------------------------


def test_it_equals_what_does_the_same_and_can_be_hashed(file):
    schedule = Calibrated.load(file)
    assert schedule == schedule
    assert len({schedule, Calibrated.load(file), replace(schedule, reached=Reached(2.0))}) == 1
    others = [replace(schedule, weights={(0,): (1.0,)}), replace(schedule, fingerprint=None)]
    others.append(replace(schedule, entries=Plan([FULL] * len(schedule.entries))))
    others.append(replace(schedule, setting=replace(schedule.setting, unet={"class": "Other"})))
    assert len({schedule, *others}) == 5


def test_its_name_does_not_spell_out_what_was_learned(learned):
    name = repr(DeepCacheHelper(loaded("sd"), schedule=learned))
    assert "array(" not in name
    assert "block_out_channels" not in name


def test_no_step_of_a_plain_loop_looks_like_one(learned):
    # A hand-written loop on a pipeline's U-Net has no timesteps of the scheduler's.
    pipe = loaded("sd")
    with (
        DeepCacheHelper(pipe, schedule=learned),
        torch.no_grad(),
        pytest.raises(InvalidSettingError, match="the generation has 0 steps, not 10"),
    ):
        pipe.unet(**(inputs2d_condition() | {"timestep": 3.5}))
