"""The file of schedule "auto": a later process starts calibrated, and what others wrote is kept."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from builders.learning import LDM, counted, loaded

from deepcache_patch import (
    Auto,
    DeepCacheHelper,
    DeepCacheWarning,
    InvalidSettingError,
    Uniform,
)
from deepcache_patch.learning import trials
from deepcache_patch.learning.calibrated_schedule import load_all
from deepcache_patch.learning.nearest import USUAL_WAY


def test_a_file_lets_another_process_start_calibrated(tmp_path):
    file = tmp_path / "learned.json"
    pipe = LDM.load()
    with DeepCacheHelper(pipe, schedule=Auto(file=file)) as helper:
        assert not file.exists()
        LDM.run(pipe, steps=10)
        written = file.read_bytes()  # already, and not only when the second generation begins
        LDM.run(pipe, steps=10)
    assert file.read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["learned.json"]
    (learned,) = helper.schedule.learned

    pipe = LDM.load()
    with DeepCacheHelper(pipe, schedule=Auto(file=str(file))) as helper:
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)
        (loaded,) = helper.schedule.learned
        assert loaded.to_dict() == learned.to_dict()
        assert file.read_bytes() == written
        LDM.run(pipe, steps=9)
    assert [len(each.setting.timesteps) for each in load_all(file)] == [10, 9]


def test_each_budget_in_one_file_is_its_own(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    runs = []
    for options in ({}, {"interval": 4}) * 2:
        with DeepCacheHelper(pipe, schedule=Auto(**options, file=file)) as helper:
            runs.append(counted(helper, partial(LDM.run, pipe, steps=10)))
    assert runs == [(10, 0), (10, 0), (4, 6), (2, 8)]
    assert len(json.loads(file.read_text())["schedules"]) == 2


def test_what_another_wrote_since_is_kept(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    schedules = [Auto(file=file), Auto(interval=4, file=file), Auto(file=file)]
    for schedule, steps in zip(schedules, (10, 10, 9), strict=True):
        with DeepCacheHelper(pipe, schedule=schedule):
            LDM.run(pipe, steps=steps)
    found = [(len(each.entries.full_steps), len(each.entries)) for each in load_all(file)]
    assert found == [(4, 10), (2, 10), (4, 9)]


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda auto: pickle.loads(pickle.dumps(auto))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_knows_what_was_learned(duplicate):
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule="auto") as helper:
        LDM.run(pipe, steps=9)
    with DeepCacheHelper(pipe, schedule=duplicate(helper.schedule)) as other:
        assert counted(other, partial(LDM.run, pipe, steps=9)) == (4, 5)


def test_another_plan_that_was_asked_for_is_not_for_auto_and_the_same_is(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "nearest_way", lambda *_: USUAL_WAY)
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    runs = []
    for full_steps in (3, 4):
        helper = DeepCacheHelper(pipe, schedule=Uniform())
        helper.calibrate(partial(LDM.run, pipe, steps=10), full_steps=full_steps).save(file)
        with DeepCacheHelper(pipe, schedule=Auto(file=file)) as helper:
            runs.append(counted(helper, partial(LDM.run, pipe, steps=10)))
    assert runs == [(10, 0), (4, 6)]


def test_a_file_that_cannot_be_written_does_not_cost_the_picture(tmp_path):
    pipe = loaded("ldm")
    plain = LDM.run(pipe, steps=10)
    folder = tmp_path / "folder"
    folder.mkdir()
    auto = Auto(file=folder / "learned.json")
    folder.rmdir()
    with (
        DeepCacheHelper(pipe, schedule=auto),
        pytest.warns(DeepCacheWarning, match="could not learn from this generation, or not keep"),
    ):
        assert torch.equal(LDM.run(pipe, steps=10), plain)


def test_a_file_without_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match="does not exist"):
        Auto(file=tmp_path / "no-such-folder" / "learned.json")
