"""The tables in README and docs are what the results files and the tests say, to the letter."""

import doctest
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_tables_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables.rewritten(text) == text, "run `make tables`"


def test_every_table_stands_in_a_document():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in tables.DOCUMENTS)
    assert [name for name in tables.TABLES if f"<!-- {name} -->" not in text] == []


@pytest.mark.parametrize("name", ["docs/schedules.md"])
def test_examples_are_true(name):
    outcome = doctest.testfile(str(ROOT / name), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 0
    assert outcome.failed == 0
