"""The tables in README and docs are what the results files and the tests say, to the letter."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

import deepcache_patch
from benchmarks.tables import documents as tables

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/reference*.md"))


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_tables_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables.rewritten(text) == text, "run `make tables`"


def test_every_table_stands_in_a_document():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in tables.DOCUMENTS)
    assert [name for name in tables.TABLES if f"<!-- {name} -->" not in text] == []


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name
)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pyproject.toml"],
    ids=lambda p: p.name,
)
def test_files_that_are_named_are_there(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:src|tests|benchmarks|examples|docs)/[\w/.-]*\w", text)
    # The guide to a new layout names the two files that its reader makes.
    made = {"ladder.py", "test_anatomy_ladder.py"}
    assert [
        name for name in named if Path(name).name not in made and not (ROOT / name).exists()
    ] == []


def test_every_public_name_stands_in_the_reference():
    names = set(deepcache_patch.__all__) - {"__version__"}
    found = re.findall(r"^::: deepcache_patch\.(\w+)$", REFERENCE, re.MULTILINE)
    assert sorted(found) == sorted(names)


def test_every_public_name_of_the_helper_stands_in_the_reference_once():
    """Its page has some of them in a list, other pages have one each."""
    listed = re.findall(r"members: \[(.*)\]", REFERENCE)
    single = re.findall(r"^::: deepcache_patch\.DeepCacheHelper\.(\w+)$", REFERENCE, re.MULTILINE)
    names = [name for name in dir(deepcache_patch.DeepCacheHelper) if not name.startswith("_")]
    assert sorted([*single, *", ".join(listed).split(", ")]) == sorted(names)


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {deepcache_patch.__version__}\n" in citation


@pytest.mark.parametrize("name", ["cut.svg", "steps.svg"])
def test_figures_are_what_the_script_draws(name, tmp_path):
    figures = ROOT / "docs" / "figures"
    shutil.copy(figures / "draw.py", tmp_path)
    runpy.run_path(str(tmp_path / "draw.py"), run_name="__main__")
    assert (tmp_path / name).read_text() == (figures / name).read_text(), "run docs/figures/draw.py"
