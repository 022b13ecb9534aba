"""Every module that is mutated has judges, and each judge is a test that mutmut runs."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.coverage.judges import JUDGES, judged
from benchmarks.provenance import RESULTS

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "src" / "deepcache_patch"


@pytest.fixture(scope="module")
def settings():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]


def test_who_is_mutated_has_judges(settings):
    paths = {path for pattern in settings["only_mutate"] for path in ROOT.glob(pattern)}
    parts = [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]
    modules = {".".join(each).removesuffix(".__init__") for each in parts}
    assert modules <= JUDGES.keys()


def test_each_judge_is_among_the_tests_that_are_run(settings):
    chosen = [ROOT / path for path in settings["pytest_add_cli_args_test_selection"]]
    files = {file for path in chosen for file in (path.rglob("*.py") if path.is_dir() else [path])}
    tests = [str(file.relative_to(ROOT)) for file in files if file.is_file()]
    judges = {f"tests/{name}" for names in JUDGES.values() for name in names}
    assert {each for each in judges if not any(test.startswith(each) for test in tests)} == set()


def test_a_function_is_judged_by_the_tests_of_its_module():
    tests = ["tests/cutting/test_cut.py::test_a", "tests/cutting/test_anatomy.py::test_b"]
    assert judged("deepcache_patch.cutting.cut.x_swap", tests) == {tests[0]}
    assert judged("deepcache_patch.cutting.anatomy.xǁAǁcut", tests) == {tests[1]}


def test_the_results_speak_of_modules_that_there_are():
    report = json.loads((RESULTS / "mutation.json").read_text(encoding="utf-8"))
    named = {*report["modules"], *(each["module"] for each in report["survivors"])}
    assert {name for name in named if not (PACKAGE / f"{name}.py").is_file()} == set()
    for each in report["survivors"]:
        module = each["module"].removesuffix("/__init__").replace("/", ".")
        assert each["name"].startswith(f"deepcache_patch.{module}.x")


def test_nothing_is_imported_before_mutmut_has_mutated_it():
    # `mutation` once took its paths from `provenance`, which imports the package: the tests of a
    # mutant then ran the package as it is, and mutmut found none that reaches what it changed.
    text = "".join(
        (ROOT / "benchmarks" / "coverage" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("__init__", "mutation", "judges", "merging")
    )
    ours = r"^(?:from|import) ((?:benchmarks|deepcache_patch)\S*)"
    imports = re.findall(ours, text, re.MULTILINE)
    assert imports == ["benchmarks.coverage.judges", "benchmarks.coverage.merging"]
