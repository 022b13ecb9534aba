"""Each script is one command, and every command that is written down anywhere is one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.provenance import RESULTS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)
DOCUMENTS = [
    ROOT / "Makefile",
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("benchmarks/**/*.md"),
    *ROOT.glob("benchmarks/**/*.py"),
]
#: Those that need what only some environments have.
NEEDS = {"coverage/mutation.py": "mutmut", "fidelity/plot.py": "matplotlib"}


def module_of(script):
    return ".".join(script.with_suffix("").parts).removesuffix(".__main__")


def commands(text):
    """The modules of the benchmarks that are named after `-m`."""
    return set(re.findall(r"-m\s+(benchmarks(?:\.\w+)+)", text))


def is_a_command(module):
    path = Path(*module.split("."))
    return path.with_suffix(".py") in SCRIPTS or path / "__main__.py" in SCRIPTS


def test_the_folder_of_tests_does_not_stand_for_the_benchmarks():
    assert list(benchmarks.__path__) == [str(ROOT / "benchmarks")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_document_exist(path):
    named = commands(path.read_text(encoding="utf-8"))
    assert {module for module in named if not is_a_command(module)} == set()


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_the_command_of_a_results_file_exists(path):
    report = json.loads(path.read_text(encoding="utf-8"))
    if report["command"] != "make mutation":
        assert {is_a_command(module) for module in commands(report["command"])} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_tells_how_it_is_used(script):
    inside = str(script.relative_to("benchmarks"))
    if inside in NEEDS:
        pytest.importorskip(NEEDS[inside])
    command = [sys.executable, "-m", module_of(script), "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("usage: ")
