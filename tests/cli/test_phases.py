"""What is said on the way: a word before torch is imported, a line for each phase in a log, and
nothing at all where nobody reads.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from builders.marks import mostly_slow
from builders.models import MODELS, model_folder

from deepcache_patch.cli import terminal
from deepcache_patch.cli.main import main

PROGRAM = [sys.executable, "-m", "deepcache_patch"]


def test_a_log_has_a_line_for_each_phase_with_its_time_of_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(MODELS["ddpm"])
    words = ["--steps", "10", "--images", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert main(["compare", str(folder), *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"[0-2]\d:[0-5]\d:[0-6]\d ", line) for line in lines)
    assert [line[9:] for line in lines] == [
        *(f"loading {folder}", "warm-up", "plain", "helper", "fewer steps", "writing the report")
    ]


def test_a_terminal_has_bars_and_no_line_for_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("terminal", "request", "loading"):
        monkeypatch.setattr(f"deepcache_patch.cli.{module}.shows_bars", lambda: True)
    words = ["--steps", "9", "--images", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert main(["compare", str(model_folder(MODELS["ddpm"])), *words]) == 0
    err = capsys.readouterr().err
    for label in ("warm-up", "plain", "helper", "fewer steps"):
        assert f"{label}: 100%" in err
        assert not re.search(rf"^\d\d:\d\d:\d\d {label}$", err, re.MULTILINE)


def test_the_lines_end_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    logger = terminal.logging.getLogger("deepcache_patch.measuring.generation")
    before = (logger.level, list(logger.handlers))
    with terminal.phases_as_lines():
        logger.info("within")
    logger.info("after")
    assert (logger.level, list(logger.handlers)) == before
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == ["within"]


@pytest.mark.parametrize("command", mostly_slow(["plan", "branches"], quick=1))
def test_a_word_is_said_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    """Whatever the machine: the word comes first, and then everything that takes long."""
    place = [str(model_folder(MODELS["ddpm"]))] if command == "branches" else []
    seen = [sys.executable, "-X", "importtime", "-m", "deepcache_patch", command, *place]
    found = []
    with subprocess.Popen(
        seen, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as done:
        for line in done.stderr:
            found += re.findall(r"importing torch and diffusers$|\| +(?:torch|diffusers)$", line)
            if len(found) == 2:
                done.kill()  # what comes after is another test's
    word, imported, *_ = found
    assert word == "importing torch and diffusers"
    assert imported.endswith(("torch", "diffusers"))


def test_nothing_is_imported_for_a_plan_by_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [*PROGRAM, "plan", "--schedule", "uniform", "--steps", "6"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (
        "F··F··\n2 of 6 steps in full, the others at branch 0\n",
        "",
    )


# --- nobody reads ---------------------------------------------------------------------------------

LONG = """
import sys
from deepcache_patch.cli import main, terminal
from deepcache_patch.cli import branches
branches.branches.callback = lambda **_: [terminal.say("·" * 100_000) for _ in range(100)]
sys.exit(main.main(["branches", "m"]))
"""


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == terminal.EXIT_NO_READER == 128 + 13
    process.stderr.close()


def test_nobody_reads_what_is_said_on_stderr() -> None:
    process = subprocess.Popen(
        [*PROGRAM, "plan", "--schedule", "uniform", "--interval", "0"], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == 2


def test_what_is_said_to_nobody_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[object] = []

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(terminal, "_let_go", let_go.append)
    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(click.exceptions.Exit) as stop:
        terminal.say("F··")
    assert stop.value.exit_code == 141
    terminal.complain("this is not heard")
    assert let_go == [sys.stdout, sys.stderr]
