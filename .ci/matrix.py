"""Runs the core tests under several sets of versions, and ends with a table of what came out.

    python .ci/matrix.py                 # every set, under each Python of it that is at hand
    python .ci/matrix.py oldest --once   # one set, under the first of its Pythons at hand

The core tests are those of the package: not those of `benchmarks`, and of what a single diffusers
has. Each run has a virtual environment of its own in `.venv`. Needs no more than Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]

PYTHONS = ("3.10", "3.11", "3.12", "3.13")

#: Set -> its constraints file, and the Pythons that it is run under.
SETS = {
    "oldest": ("constraints-oldest.txt", ("3.10", "3.11")),
    # diffusers 0.42 and transformers 5.23 have no build for Python 3.10.
    "newest": ("constraints.txt", ("3.11", "3.12", "3.13")),
}

#: What the table tells of each run.
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "wrapt", "numpy")

COUNTS = ("passed", "skipped", "failed")


#: What is no core test: of benchmarks, documents and examples, or of one diffusers alone. Folders
#: and files in `tests`.
NOT_CORE = ("benchmarks", "documents", "examples", "running/test_processes.py", "test_zoo.py")


def chosen(names: list[str], *, once: bool = False) -> list[tuple[str, str]]:
    """The runs that are meant, each a set and a Python; all sets if none is named.

    Args:
        names: Of sets.
        once: For each set only one Python: that which runs this if it is of the set, or else the
            first at hand.
    """
    this = "{}.{}".format(*sys.version_info)
    runs = []
    for name in names or SETS:
        pythons = SETS[name][1]
        if once:
            there = [python for python in pythons if interpreter(python)]
            pythons = (this,) if this in pythons else (there or pythons)[:1]
        runs += [(name, python) for python in pythons]
    return runs


def interpreter(python: str) -> str | None:
    """The interpreter of a version like "3.11": this one, on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [sys.executable, shutil.which(f"python{python}")]
    candidates += sorted(map(str, pyenv.glob(f"versions/{python}.*/bin/python")))
    # pyenv also puts a program of this name on the path that only says it is not active.
    what = "import ensurepip, sys; print('{}.{}'.format(*sys.version_info))"
    for candidate in filter(None, candidates):
        answer = subprocess.run([candidate, "-c", what], capture_output=True, text=True)
        if answer.stdout.strip() == python:
            return candidate
    return None


def core_tests() -> list[str]:
    """The files of the core tests."""
    tests = ROOT / "tests"
    left_out = {tests / name for name in NOT_CORE}
    files = sorted(tests.rglob("test_*.py"))
    return [str(file) for file in files if left_out.isdisjoint((file, *file.parents))]


def run(name: str, python: str, base: str, workers: str) -> dict[str, str]:
    """Installs a set of versions, runs the core tests, and returns a row of the table."""
    folder = ROOT / ".venv" / f"matrix-{name}-{python}"
    program, report = str(folder / "bin" / "python"), folder / "report.xml"
    subprocess.run([base, "-m", "venv", folder], check=True)
    install = ["install", "--quiet", "--constraint", SETS[name][0], "--editable", ".[test]"]
    subprocess.run([program, "-m", "pip", *install], check=True, cwd=ROOT)
    report.unlink(missing_ok=True)
    options = ["-q", "-rs", "-n", workers, "--dist", "worksteal", f"--junitxml={report}"]
    command = [program, "-m", "pytest", "-p", "no:cacheprovider", *options, *core_tests()]
    result = subprocess.run(command, cwd=ROOT).returncode
    what = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    asked = [program, "-c", what, *PACKAGES]
    versions = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    return {
        "set": name,
        "Python": python,
        **dict(zip(PACKAGES, (version.partition("+")[0] for version in versions), strict=True)),
        **counts(report, result),
    }


def counts(report: Path, result: int) -> dict[str, str]:
    """How many tests passed, were skipped and failed.

    Args:
        report: In JUnit's XML.
        result: What pytest returned. One failed at least if that is not 0, or if nothing passed.
    """
    if not report.is_file():
        return dict(zip(COUNTS, "001", strict=True))
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total = dict.fromkeys(("tests", "skipped", "failures", "errors"), 0)
    for suite in suites:
        total = {key: number + int(suite.get(key, 0)) for key, number in total.items()}
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - total["skipped"] - failed
    if result or not passed:
        failed = max(failed, 1)
    return {"passed": str(passed), "skipped": str(total["skipped"]), "failed": str(failed)}


def table(rows: list[dict[str, str]]) -> str:
    """The rows in Markdown."""
    header = ["set", "Python", *PACKAGES, *COUNTS]
    lines = [header, ["---"] * len(header), *([row[key] for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Runs what the command line says; returns 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all")
    parser.add_argument("--once", action="store_true", help="each set under one Python only")
    parser.add_argument("--workers", default="auto", help="how many processes test at once")
    parser.add_argument("--remove", action="store_true", help="delete each environment after it")
    options = parser.parse_args()
    if unknown := set(options.sets) - set(SETS):
        parser.error(f"unknown set {unknown.pop()!r}; the known ones are {', '.join(SETS)}")

    rows, notes, failed = [], [], False
    for name, python in chosen(options.sets, once=options.once):
        base = interpreter(python)
        if base is None:
            notes.append(f"{name}: skipped, because there is no Python {python} here")
            continue
        try:
            rows.append(run(name, python, base, options.workers))
        except subprocess.CalledProcessError as error:
            notes.append(f"{name} under Python {python} cannot be installed: {error}")
            failed = True
        if options.remove:
            shutil.rmtree(ROOT / ".venv" / f"matrix-{name}-{python}", ignore_errors=True)
    print(table(rows), *notes, sep="\n")
    if not rows and options.once:
        return int(failed)  # there is no Python for it: said above
    return int(failed or not rows or any(row["failed"] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
