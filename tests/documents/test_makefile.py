"""`make help` names every target, each in one line; and what `make demo` shows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deepcache_patch.cli.compare import compare
from deepcache_patch.settings.changed import SettingsGiven

ROOT = Path(__file__).resolve().parents[2]


def targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)[1].split()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_help_has_a_line_for_each_target():
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (said.returncode, said.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in said.stdout.splitlines()]
    assert sorted(name for name, _ in lines) == sorted(targets())
    assert all(text.endswith(".") for _, text in lines)


def test_targets_that_are_no_files_are_phony():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^([a-z-]+):", text, re.MULTILINE)) == set(targets())


def test_the_demo_shows_the_default():
    # It showed the DeepCache of the paper, at interval 3 and branch 0.
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", text, re.MULTILINE)[1]
    settings = {f"--{name}" for name in SettingsGiven.__annotations__}
    known = {name for option in compare.params for name in option.opts}
    assert settings < known
    assert "deepcache_patch compare" in recipe
    given = set(re.findall(r"--[a-z-]+", recipe))
    assert given < known
    assert given.isdisjoint(settings)
