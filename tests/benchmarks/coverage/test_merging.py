"""A run of some modules leaves what is known of the others as it is."""

from benchmarks.coverage.merging import merged

BEFORE = {
    "modules": {
        "cut": {"mutants": 3, "killed": 1, "survived": 1, "timeout": 1, "killed_share": 0.6667},
        "gone": {"mutants": 9, "killed": 9, "killed_share": 1.0},
        "slots": {"mutants": 2, "survived": 2, "killed_share": 0.0},
    },
    "survivors": [
        {"module": "cut", "name": "cut.x_1", "reason": "Equivalent."},
        {"module": "gone", "name": "gone.x_1"},
        {"module": "slots", "name": "slots.x_1"},
    ],
}
SURVIVOR = {"module": "slots", "name": "slots.x_2"}


def test_a_module_that_did_not_run_keeps_what_was_said_of_it():
    ran = {"slots": {"killed": 3, "survived": 1}, "cut": {"not checked": 4}}
    found = merged(ran, [SURVIVOR], BEFORE)
    assert found["modules"] == {
        "cut": BEFORE["modules"]["cut"],
        "slots": {"mutants": 4, "killed": 3, "survived": 1, "killed_share": 0.75},
    }
    assert list(found["modules"]) == ["cut", "slots"]
    assert found["survivors"] == [BEFORE["survivors"][0], SURVIVOR]
    assert found["total"] == {
        "mutants": 7, "killed": 4, "survived": 2, "timeout": 1, "killed_share": 0.7143,
    }  # fmt: skip


def test_a_module_that_ran_in_part_says_so():
    found = merged({"slots": {"killed": 3, "not checked": 1}}, [], BEFORE)
    assert found["modules"] == {
        "slots": {"mutants": 4, "killed": 3, "not checked": 1, "killed_share": 1.0}
    }
    assert found["survivors"] == []


def test_a_module_that_is_new_and_did_not_run_is_not_checked():
    found = merged({"new": {"not checked": 2}, "none": {}}, [], {})
    assert found["modules"] == {"new": {"mutants": 2, "not checked": 2, "killed_share": None}}
    assert found["total"] == found["modules"]["new"]
