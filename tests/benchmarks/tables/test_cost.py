"""Tables of made-up reports."""

import json

import pytest

from benchmarks.tables import cost, markdown

MADE_BY = {
    "device": "A Chip",
    "command": "python -m benchmarks.cost.memory",
    "versions": {"torch": "2", "diffusers": "0.4"},
    "options": {"dtype": "float16", "threads": 2},
}
ROW = {
    "title": "SD 1.5",
    "batch": 2,
    "latents": [64, 64],
    "contestants": {
        "default": {"kept": 1 << 20, "peak": 2 << 20},
        "reuse": {"kept": 5 << 20, "peak": 10 << 20},
        "extrapolate": {"kept": 10 << 20, "peak": 15 << 20},
        "deepcache": {"kept": 110 << 20, "peak": 90 << 20},
    },
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    return tmp_path


def written(results, device, report):
    (results / device).mkdir()
    (results / device / "memory.json").write_text(json.dumps(report), encoding="utf-8")


def test_nothing_is_told_before_a_run(results):
    assert cost.memory() == cost.overhead() == "Not yet run."


def test_memory_says_the_part_that_is_kept(results):
    report = {**MADE_BY, "measured_on": "meta", "check": {"agree": True}, "rows": [ROW]}
    written(results, "a-chip", report)
    told = cost.memory()
    first = "| SD 1.5 | 2 | 64×64 | 1.0, +2.0 (1/110.0) | "
    assert f"{first}5.0, +10.0 (1/22.0) | 10.0, +15.0 (1/11.0) | 110.0, +90.0 |" in told
    assert "a small network that was run agrees to the byte" in told
    assert told.endswith(
        "A Chip, 2 threads of the CPU, torch 2, diffusers 0.4; `python -m benchmarks.cost.memory`"
    )


def test_each_device_has_its_table(results):
    failed = {**ROW, "contestants": {**ROW["contestants"], "deepcache": {"failed": "KeyError"}}}
    for device in ("one", "two"):
        report = {**MADE_BY, "device": device, "measured_on": "cuda", "rows": [failed]}
        written(results, device, report)
    told = cost.memory()
    row = "| SD 1.5 | 2 | 64×64 | 1.0, +2.0 | 5.0, +10.0 | 10.0, +15.0 | does not run |"
    assert told.count(row) == 2
    assert told.index("one, 2 threads") < told.index("two, 2 threads")


def test_a_device_that_has_nothing_to_say_is_left_out(results):
    for device in ("one", "two"):
        written(results, device, {**MADE_BY, "device": device, "measured_on": "cuda", "rows": []})
    told = markdown.by_device("memory", lambda report: report["device"].removeprefix("one"))
    assert told.startswith("two\n\ntwo, 2 threads")
