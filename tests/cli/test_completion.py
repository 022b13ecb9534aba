"""What a shell completes: commands, options, names, files; by click's protocol, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepcache_patch.cli.main import COMMANDS, main
from deepcache_patch.cli.names import DTYPES, SCHEDULERS, SCHEDULES

PROTOCOL = """
import sys
from deepcache_patch.cli.main import main
status = main()
assert not {"torch", "diffusers", "numpy", "gradio"} & set(sys.modules)
sys.exit(status)
"""


def completed(line: str) -> list[str]:
    """What bash is told: a kind and a word in each line."""
    words = line.split(" ")
    asked = {
        "_DEEPCACHE_PATCH_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROTOCOL],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def plain(*names: str) -> list[str]:
    return [f"plain,{name}" for name in names]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", plain(*COMMANDS)),
        ("p", plain("plan")),
        ("--v", plain("--version")),
        (
            "compare --s",
            plain("--strength", "--steps", "--seed", "--speedup", "--schedule", "--scheduler"),
        ),
        ("calibrate m --pro", plain("--prompt", "--prompts")),
        ("calibrate --out", plain("--output")),
        ("compare ", ["dir,"]),
        ("compare --output ", ["dir,"]),
        ("calibrate --output s", ["file,s"]),
        ("compare --prompts ", ["file,"]),
        ("compare m --schedule ", ["file,", *plain(*SCHEDULES)]),
        ("ui m --schedule u", ["file,u", *plain("uniform")]),
        ("compare m --scheduler ", plain(*SCHEDULERS)),
        ("calibrate m --scheduler=euler", plain("euler", "euler-ancestral")),
        ("ui m --device c", plain("cpu", "cuda")),
        ("branches m --dtype ", plain(*DTYPES)),
        ("compare m --offload s", plain("sequential")),
        ("branches m --re", plain("--revision")),
        ("compare m --image p", ["file,p"]),
        ("ui m --lora s", ["file,s"]),
        ("compare m --replay r", plain("reuse")),
        ("completion ", plain("bash", "zsh", "fish")),
        ("no-such-command ", plain(*COMMANDS)),
    ],
)
def test_a_shell_is_offered_what_may_come_next(typed: str, offered: list[str]) -> None:
    assert completed(f"deepcache-patch {typed}") == offered


SYNTAX = {"bash": ("bash", "-n"), "zsh": ("zsh", "-n"), "fish": ("fish", "--no-execute")}


@pytest.mark.parametrize("shell", SYNTAX)
def test_the_script_is_one_of_that_shell(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_DEEPCACHE_PATCH_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "script").write_text(script)
    subprocess.run([*SYNTAX[shell], tmp_path / "script"], check=True)


def test_bash_completes_with_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    program = tmp_path / "deepcache-patch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deepcache_patch "$@"\n')
    program.chmod(0o755)
    asked = """
    source "$1"
    COMP_WORDS=(deepcache-patch compare --re) COMP_CWORD=2
    _deepcache_patch_completion "$2"
    echo "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", asked, "bash", tmp_path / "script", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("--replay --revision --repeats\n", "")


def test_the_help_says_where_the_script_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "--help"]) == 0
    out = capsys.readouterr().out
    for shell, file in {"bash": ">> ~/.bashrc", "zsh": ">> ~/.zshrc", "fish": "> ~/.con"}.items():
        assert f"deepcache-patch completion {shell} {file}" in out


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "deepcache-patch completion: error: Invalid value for 'SHELL': 'tcsh' is not one of "
        "'bash', 'zsh', 'fish' (see --help)\n"
    )


def test_a_missing_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    # click lists the choices line by line, and the ends of lines were told as signs.
    assert main(["completion"]) == 2
    assert capsys.readouterr().err == (
        "deepcache-patch completion: error: Missing argument 'SHELL'. Choose from: bash, zsh, fish "
        "(see --help)\n"
    )
