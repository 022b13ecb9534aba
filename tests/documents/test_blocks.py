"""Every Python block of README and docs is run, as it stands; every command in them exists.

A page's blocks run one after the other in one namespace, in which `pipe` is a Stable Diffusion
pipeline. What they load from the hub is tiny (`hub`), and "cuda" is the CPU.
"""

import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from accelerate import PartialState
from builders import hub
from builders.cases import CASES, picture
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from deepcache_patch.cli.main import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
PAGES = sorted(PAGES)


def examples(page):
    return list(Document.parse(str(ROOT / page), PythonCodeBlockParser()))


WITH_PYTHON = [page for page in PAGES if examples(page)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    hub.fill(folder)
    return folder


@pytest.fixture
def _reader(cache, tmp_path, monkeypatch):
    """Whoever follows a page: with these models, a GPU, and pictures in the folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for kind in (diffusers.DiffusionPipeline, diffusers.ModelMixin):
        monkeypatch.setattr(kind, "to", _on_the_cpu(kind.to))
    monkeypatch.chdir(tmp_path)
    for name in ("sketch.png", "edges.png"):
        picture().save(name)
    # Compiled for true in test_compile.py; here only the calls count.
    with torch.compiler.set_stance("force_eager"):
        yield
    PartialState._reset_state()
    # A page shows how to turn the log on: left on, pytest would keep every line of later tests.
    logging.getLogger("deepcache_patch").setLevel(logging.NOTSET)


def _on_the_cpu(to):
    def moved(self, *args, **kwargs):
        return to(self, *("cpu" if each == "cuda" else each for each in args), **kwargs)

    return moved


@pytest.mark.usefixtures("_reader")
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, subtests):
    found = examples(page)
    found[0].namespace["pipe"] = CASES["sd"].load()
    for example in found:
        with subtests.test(f"{page}:{example.line}"):
            example.evaluate()


@pytest.mark.parametrize("page", PAGES)
def test_no_python_block_is_left_out(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = Document.parse(str(ROOT / page), CodeBlockParser("python", lambda _: None))
    # However it is indented, fenced or named. Examples with `>>>` stand in such blocks, too.
    assert len(re.findall(r"^.*(?:```|~~~) *\W*py", text, re.MULTILINE)) == len(list(found))
    outside = "".join(re.split(r"(?s)^```python$.*?^```$", text, flags=re.MULTILINE))
    assert ">>> " not in outside


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    for block in Document.parse(str(ROOT / page), CodeBlockParser("bash", lambda _: None)):
        for line in str(block.parsed).replace("\\\n", " ").splitlines():
            check(shlex.split(line, comments=True))


def check(words):
    match words:
        case ["deepcache-patch", *rest] | ["python", "-m", "deepcache_patch", *rest]:
            if not {"--help", "--version"} & set(rest):
                parse(rest)
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):
            assert importlib.util.find_spec(module) is not None, module
        case ["make", *targets]:
            made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(made)


def parse(words):
    """Reads a command as it would be called, and calls nothing."""
    with commands.make_context("deepcache-patch", [*words]) as whole:
        name, command, rest = commands.resolve_command(whole, words)
        command.make_context(name, rest, parent=whole).close()


@pytest.mark.slow
def test_a_layout_is_added_as_contributing_says(tmp_path):
    model, anatomy, _tried, tests = (str(each.parsed) for each in examples("CONTRIBUTING.md"))
    shutil.copytree(ROOT / "src", tmp_path / "src")
    layouts = tmp_path / "src" / "deepcache_patch" / "cutting" / "anatomy"
    relative = anatomy.replace("deepcache_patch.cutting.anatomy.", ".").replace(
        "deepcache_patch.", "..."
    )
    (layouts / "ladder.py").write_text(relative)
    known = (layouts / "__init__.py").read_text()
    known = known.replace("from .levels", "from .ladder import LadderAnatomy\nfrom .levels")
    known = known.replace("    OriginalAnatomy,\n", "    OriginalAnatomy,\n    LadderAnatomy,\n")
    (layouts / "__init__.py").write_text(known)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copytree(ROOT / "tests" / "builders", tmp_path / "builders")
    (tmp_path / "test_anatomy_ladder.py").write_text(f"{model}\n{tests}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "5 passed" in run.stdout, run.stdout + run.stderr
