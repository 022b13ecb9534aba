"""Every U-Net pipeline of diffusers does what the results file, from which docs are made, says."""

import json
import warnings

import diffusers
import pytest
from zoo import CASES

from benchmarks.coverage import compatibility

ROWS = json.loads(compatibility.RESULTS.read_text(encoding="utf-8"))["rows"]


def test_the_results_are_of_these_cases():
    assert list(ROWS) == list(CASES)
    assert {row["pipeline"] for row in ROWS.values()} == {
        case.pipeline.__name__ for case in CASES.values()
    }


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_silently_wrong_or_silently_slow(name):
    outcome = ROWS[name]["ours"]
    assert outcome["result"] in ("exact", "in full", "refused")
    assert outcome["wrong"] == []
    assert outcome["undone"]
    assert outcome["result"] == "exact" or outcome["why"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_does_what_its_row_says(name):
    if diffusers.__version__.split(".")[:2] != ["0", "42"]:
        pytest.skip("the results are of diffusers 0.42")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pipelines warn of themselves; what we say is in the row
        row = compatibility.row(name, ("ours",))
    expected = {key: value for key, value in ROWS[name].items() if key != "deepcache"}
    assert row == expected
