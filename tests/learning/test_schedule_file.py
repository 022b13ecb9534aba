"""The file of calibrated schedules: whatever stands in it, it is loaded or refused by name."""

import copy
import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from builders.plan_files import REACHED, SCHEDULE, VALID, WHOLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcache_patch import (
    FULL,
    Auto,
    Calibrated,
    InvalidSettingError,
)
from deepcache_patch.cutting.features import FeatureKey, Recorded
from deepcache_patch.learning import schedule_file as calibrated_file
from deepcache_patch.learning.calibrated_schedule import ValidFor, load_all, save_all
from deepcache_patch.schedules.forecast import Forecast


@pytest.fixture
def file(tmp_path):
    return tmp_path / "schedule.json"


def refusal(file, error=InvalidSettingError):
    """What both ways in say; it is the same, in one line, and names the file."""
    said = []
    for read in (Calibrated.load, lambda path: Auto(file=path)):
        with pytest.raises(error) as caught:
            read(file)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 1
    assert str(file) in said[0]
    assert len(said[0]) < 600
    return said[0]


def changed(*places_and_value):
    """The valid file, with another value in one place."""
    data = copy.deepcopy(WHOLE)
    *places, last, value = ["schedules", 0, *places_and_value]
    inner = data
    for place in places:
        inner = inner[place]
    inner[last] = value
    return json.dumps(data)


def test_the_valid_file_is_valid(file):
    file.write_bytes(VALID)
    assert Calibrated.load(file).to_dict() == SCHEDULE
    assert Auto(file=file).learned[0].to_dict() == SCHEDULE


def reached(**changes):
    return changed("reached", {**REACHED, **changes})


NESTED = '{"version": 2, "schedules": %s}' % ("[" * 100_000 + "]" * 100_000)

HUGE = 10**400

DAMAGED = {
    # Each of the first seven was once let through, or passed on as another error: OverflowError,
    # RecursionError, and KeyError or TypeError in the generation.
    "huge-integer": (changed("timesteps", 0, HUGE), "timesteps has numbers that are not from"),
    "nested": (NESTED, "recursion"),
    "no-class": (changed("unet", {"act_fn": "silu"}), "unet has no class"),
    "huge-weight": (
        changed("weights", 0, "weights", [1e39]),
        "weights of entry 0 of weights has numbers that are not from -100.0 to 100.0",
    ),
    "infinity": (changed("weights", 0, "weights", [float("inf")]), "weights of entry 0 of weights"),
    "too-few-weights": (changed("weights", 1, "weights", [1]), "has 1 entries, not 2"),
    "too-many-weights": (changed("weights", 0, "weights", [1, 2]), "has 2 entries, not 1"),
    "strings-for-numbers": (
        changed("weights", 0, "weights", ["0.5"]),
        "weights of entry 0 of weights is no list of numbers",
    ),
    "nan": (changed("timesteps", 0, float("nan")), "NaN stands in it"),
    "nan-in-a-config": (changed("unet", "dropout", float("nan")), "NaN stands in it"),
    "infinite-timestep": (changed("timesteps", 4, float("inf")), "timesteps has numbers"),
    "true-for-a-version": ('{"version": true, "schedules": []}', "its version is True"),
    "float-for-a-version": ('{"version": 2.0, "schedules": []}', "its version is 2.0"),
    "true-for-a-step": (changed("weights", 0, "steps", 1, True), "is no list of numbers"),
    "float-for-a-step": (changed("weights", 0, "steps", 1, 1.0), "must be an integer of at"),
    "true-for-a-number": (changed("timesteps", 4, True), "timesteps is no list of numbers"),
    "true-for-a-branch": (changed("plan", 1, False), "entry 1 must be an integer"),
    "negative-branch": (changed("plan", 1, -2), "entry 1 must be an integer of at least -1, not"),
    "shallow-at-first": (changed("plan", [0, 0, FULL, 0, FULL]), "the first step must be full"),
    "string-for-a-plan": (changed("plan", FULL), "plan is no list"),
    "negative-step": (changed("weights", 0, "steps", [2, 1, -1]), "must be an integer of at le"),
    "later-step": (changed("weights", 0, "steps", [2, 3, 1]), "is of no shallow step that goes on"),
    "beyond-the-end": (changed("weights", 1, "steps", 0, 5), "numbers that are not from -4 to 4"),
    "full-step": (changed("weights", 0, "steps", [3, 1, 0]), "is of no shallow step that goes on"),
    "one-full-step": (changed("weights", 0, "steps", [2, 1]), "is of no shallow step that goes on"),
    "no-steps": (changed("weights", 0, "steps", []), "has 0 entries, not some"),
    "same-step-twice": (changed("weights", 1, "steps", [2, 1, 0]), "is of no shallow step that"),
    "weights-by-name": (changed("weights", {}), "weights is no list"),
    "steps-missing": (changed("timesteps", [1.0]), "timesteps has 1 entries, not 5"),
    "reached-in-words": (changed("reached", "2x"), "reached is no object"),
    "nothing-reached": (changed("reached", None), "reached is no object"),
    "part-of-what-was-reached": (changed("reached", {"speed": 2}), "reached lacks psnr, quartiles"),
    "string-for-a-speed": (reached(speed="2x"), "speed of reached must be a number from 0 to"),
    "negative-work": (reached(work=-1), "work of reached must be a number from 0 to"),
    "endless-decibels": (reached(psnr=1e300), "psnr of reached must be a number from 0 to"),
    "infinite-speed": (reached(speed=float("inf")), "speed of reached must be a number from 0 to"),
    "three-quartiles": (reached(quartiles=[1, 2, 3]), "quartiles of reached has 3 entries, not 2"),
    "true-for-a-timing": (reached(timings=True), "timings of reached must be an integer"),
    "huge-timings": (reached(timings=HUGE), "timings of reached must be a number from 0 to"),
    "fingerprint-as-a-list": (changed("fingerprint", [0.5]), "fingerprint is no object"),
    "no-fingerprint": (changed("fingerprint", None), "fingerprint is no object"),
    "number-for-numbers": (changed("fingerprint", {"a": 1}), "entry 0 of fingerprint is no list"),
    "no-numbers": (changed("fingerprint", {"a": []}), "entry 0 of fingerprint has 0 entries, not"),
    "endless-numbers": (changed("fingerprint", {"a": [float("inf")]}), "fingerprint has numbers"),
    "line-break-in-a-name": (changed("fingerprint", {"\n": [1]}), "fingerprint has names that can"),
    "unknown-key": (changed("colour", 1), "a schedule has unknown keys: colour"),
    "unknown-key-of-weights": (changed("weights", 0, "c", 1), "of weights has unknown keys: c"),
    "unknown-key-above": ('{"version": 2, "schedules": [], "x": 0}', "has unknown keys: x"),
    "twice": ('{"version": 2, "version": 2, "schedules": []}', "a key stands twice in an object"),
    "schedules-by-name": ('{"version": 2, "schedules": {}}', "schedules is no list"),
    "list-for-a-config": (changed("scheduler", []), "scheduler is no object"),
    "line-break-in-a-class": (changed("unet", "class", "A\nB"), "unet has names that cannot be pr"),
    "escape-in-a-name": (changed("unet", "\x1b[2J", 1), "unet has names that cannot be printed"),
    "endless-name": (changed("unet", "class", "A" * 201), "unet has names that cannot be printed"),
    "nested-config": (
        changed("unet", "a", json.loads("[" * 17 + "]" * 17)),
        "unet is nested more than 16 levels deep",
    ),
    "byte-order-mark": ("\ufeff" + VALID.decode(), "Unexpected UTF-8 BOM"),
    "utf-16": (VALID.decode().encode("utf-16"), "can't decode byte 0xff"),
    "not-utf-8": (VALID.replace(b"silu", b"s\xfflu"), "can't decode byte 0xff"),
    "too-many-digits": ('{"version": %s}' % ("9" * 5000), "Exceeds the limit"),
    "long-nonsense": ('{"version": "%s"}' % ("9" * 5000), "its version is '999"),
    "nul": (b"\0" * 100, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_wrong_is_said_in_one_line(name, file):
    content, reason = DAMAGED[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal(file)
    assert said.startswith(f"{file} is no file of calibrated schedules, or a damaged one (")
    assert reason in said
    assert said.endswith("): give one that calibrate() has written, or calibrate anew")


@pytest.mark.parametrize("version", [0, 1, -1, HUGE])
def test_another_version_is_told_apart_from_a_damage(version, file):
    # It may have other keys.
    file.write_text(json.dumps({"version": version, "plans": 3}))
    assert f"{file} has version {str(version)[:20]}" in refusal(file)


def test_a_large_file_is_refused_unread(file):
    with file.open("wb") as sparse:
        sparse.truncate(calibrated_file.LARGEST_FILE + 1)
    tracemalloc.start()
    said = refusal(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "it has more than 67108864 bytes" in said
    assert peak < 1_000_000


# A pipe was waited for without an end, and a device read without one.
@pytest.mark.parametrize("kind", ["pipe", "link-to-a-pipe", "device"])
def test_pipes_and_devices_are_refused_unread(kind, file, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = {"pipe": pipe, "link-to-a-pipe": file, "device": Path("/dev/zero")}[kind]
    file.symlink_to(pipe)
    assert "it is a pipe or a device" in refusal(place)


def test_a_folder_is_an_error_of_the_system(tmp_path):
    assert "Is a directory" in refusal(tmp_path, IsADirectoryError)


def test_a_file_that_fails_while_it_is_read_is_named():
    # The error of the system did not say which file.
    assert "Input/output error" in refusal(Path("/proc/self/mem"), OSError)


def test_a_link_to_a_file_is_followed(file, tmp_path):
    (tmp_path / "real.json").write_bytes(VALID)
    file.symlink_to("real.json")
    assert Calibrated.load(file).to_dict() == SCHEDULE


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_what_cannot_be_a_path_is_refused(path):
    with pytest.raises(InvalidSettingError, match="is no file of calibrated schedules"):
        Calibrated.load(path)


def test_what_is_saved_is_never_too_large_to_load(file, monkeypatch):
    # `Auto` adds to its file without an end.
    schedules = [
        Calibrated.from_dict({**SCHEDULE, "timesteps": [801.0, 601.0, 401.0, 201.0, float(number)]})
        for number in range(1, 5)
    ]
    monkeypatch.setattr(calibrated_file, "LARGEST_FILE", len(VALID) * 5 // 2)
    save_all(file, schedules)
    assert [each.setting.timesteps[-1] for each in load_all(file)] == [3, 4]
    written = file.read_bytes()
    assert len(written) <= len(VALID) * 5 // 2
    monkeypatch.setattr(calibrated_file, "LARGEST_FILE", len(VALID))
    with pytest.raises(InvalidSettingError, match=f"{file} would have .* bytes, .* is the most"):
        save_all(file, schedules)
    assert file.read_bytes() == written


def test_from_dict_checks_as_much_as_the_file():
    # It raised whatever was wrong: KeyError, TypeError, OverflowError.
    for data in ({}, None, 3, {**SCHEDULE, "plan": 3}, {**SCHEDULE, "timesteps": [HUGE] * 5}):
        with pytest.raises(InvalidSettingError):
            Calibrated.from_dict(data)


def test_a_long_difference_is_cut_off():
    here = ValidFor({"class": "A", "a": 0}, {"class": "B"}, ())
    there = ValidFor({"class": "A", "a": "long" * 10**6}, {"class": "B"}, ())
    assert len(there.difference(here)) < 300


# --- fuzzing ------------------------------------------------------------------------------------


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.integers()
    | st.sampled_from([HUGE, -HUGE, 2**63, 101, 1e308, -0.0, float("nan"), float("inf")])
    | st.floats()
    | st.sampled_from([FULL, "0", "1", "3", "a", "steps", "class", "", "\ud800", "\n", "\x1b[2J"])
    | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def places(data, inside=()):
    """Every place in the file."""
    yield inside
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from places(data[key], (*inside, key))


OPTIONAL = {"reached": REACHED, "fingerprint": {"conv_in.weight": [0.25, -3e-05]}}

NEWEST = {"version": 2, "schedules": [{**SCHEDULE, **OPTIONAL}]}

PLACES = list(places(NEWEST))[1:]


@st.composite
def mutated(draw):
    """The valid file with up to three changes, and then maybe with some bytes changed or cut."""
    data = copy.deepcopy(NEWEST)
    for _ in range(draw(st.integers(0, 3))):
        *above, key = draw(st.sampled_from(PLACES))
        try:
            inner = data
            for place in above:
                inner = inner[place]
            change = draw(st.sampled_from(["replace", "replace", "delete", "double", "add"]))
            if change == "delete":
                del inner[key]
            elif change == "double" and isinstance(inner, list):
                inner.insert(key, inner[key])
            elif change == "add" and isinstance(inner, dict):
                inner[draw(st.text() | st.sampled_from(["2", "4", "-1", "01"]))] = inner[key]
            else:
                inner[key] = draw(ANYTHING)
        except (LookupError, TypeError):
            pass  # an earlier change has done away with the place
    content = bytearray(json.dumps(data).encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(content)))
        some = st.sampled_from([b"", b"0", b"9", b"-", b"e9", b"[", b"{", b'"', b",", b"\xff"])
        content[place : place + draw(st.integers(0, 2))] = draw(some | st.binary(max_size=3))
    if draw(st.sampled_from([False] * 5 + [True])):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def check_loads_or_is_refused(file, content):
    """It is equal after a round trip, and a generation can go by it; or it is refused by name."""
    file.write_bytes(content)
    try:
        found = load_all(file)
    except InvalidSettingError:
        with pytest.raises(InvalidSettingError) as caught:
            Auto(file=file)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(str(file))
        return
    save_all(file, found)
    again = load_all(file)
    assert [each.to_dict() for each in again] == [each.to_dict() for each in found]
    for each in found:
        assert len(str(each.reached)) < 200
        each.setting.difference(again[0].setting)
        forecast = Forecast((0.0,) * len(each.entries), "sample", weights=each.weights)
        values = torch.ones(1, 1, 1, 1)
        for step, *full in each.weights:
            recorded = [Recorded(at, FeatureKey.of(values), values, values) for at in full]
            assert each.entries[step] != FULL
            assert forecast.output(step, recorded, values).isfinite().all()


FUZZ = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


@settings(**FUZZ, max_examples=300)
@given(content=mutated())
def test_any_file_loads_or_is_refused(tmp_path_factory, content):
    check_loads_or_is_refused(tmp_path_factory.getbasetemp() / "fuzzed.json", content)


@settings(**FUZZ, max_examples=150)
@given(content=st.binary(max_size=60) | ANYTHING.map(lambda data: json.dumps(data).encode()))
def test_any_bytes_are_refused(tmp_path_factory, content):
    check_loads_or_is_refused(tmp_path_factory.getbasetemp() / "fuzzed.json", content)


@pytest.mark.slow
@settings(**FUZZ, max_examples=20_000)
@given(content=mutated())
def test_any_of_many_files_loads_or_is_refused(tmp_path_factory, content):
    check_loads_or_is_refused(tmp_path_factory.getbasetemp() / "fuzzed.json", content)


@pytest.mark.slow
def test_a_file_cut_off_anywhere_or_with_any_byte_changed(file):
    for place in range(len(VALID)):
        check_loads_or_is_refused(file, VALID[:place])
        for byte in (0, 0x22, 0x2D, 0x39, 0x5B, 0x7D, 0xFF):
            check_loads_or_is_refused(file, VALID[:place] + bytes([byte]) + VALID[place + 1 :])


# --- what is there stays until there is something better ----------------------------------------


def test_a_full_disk_is_said_with_the_name_of_the_file(file, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file.write_bytes(VALID)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        Calibrated.from_dict({**SCHEDULE, "timesteps": [9.0, 8.0, 7.0, 6.0, 5.0]}).save(file)
    assert caught.value.errno == errno.ENOSPC
    assert str(file) in str(caught.value)
    assert file.read_bytes() == VALID
    assert list(file.parent.iterdir()) == [file]
