"""The command `plan`: its exact output, and what it says of settings that do not go together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from builders.plan_files import VALID

from deepcache_patch.cli.main import main


def run(*arguments: str) -> int:
    return main(["plan", *arguments])


@pytest.mark.parametrize(
    ("arguments", "strip", "counted"),
    [
        ("", "F··" * 16 + "F·", "17 of 50 steps in full, the others at branch 0"),
        (
            "--steps 7 --interval 3 --branch 4",
            "F··F··F",
            "3 of 7 steps in full, the others at branch 4",
        ),
        ("--num-inference-steps 3 --interval 1", "FFF", "3 of 3 steps in full"),
        (
            "--steps 20 --interval 3 --first 0.2 --last 2",
            "FFFF··F··F··F··F··FF",
            "10 of 20 steps in full, the others at branch 0",
        ),
        (
            "--schedule centred --interval 5 --center 15 --power 1.4",
            "F····F···F···F···F···F····F····F·····F·····F······",
            "10 of 50 steps in full, the others at branch 0",
        ),
        (
            "--steps 20 --schedule growing --full-steps 5 --power 2",
            "FF·F···F····F·······",
            "5 of 20 steps in full, the others at branch 0",
        ),
    ],
)
def test_a_plan_is_a_strip_and_a_count(
    arguments: str, strip: str, counted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments.split()) == 0
    assert capsys.readouterr() == (f"{strip}\n{counted}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--center 3", "center is a setting of centred, not of uniform"),
        ("--power 2", "power is a setting of centred and growing, not of uniform"),
        (
            "--schedule growing --full-steps 3 --interval 2",
            "interval is a setting of uniform and centred and auto, not of growing",
        ),
        ("--schedule growing", "growing needs full_steps: how many steps run in full"),
        (
            "--schedule centred --power 0.5",
            "power must be a number from 1 to 10, not 0.5",
        ),
        (
            "--schedule auto",
            "auto has no plan before a generation runs: `compare` shows what it does",
        ),
        (
            "--schedule nothing-of-this-name",
            "--schedule is uniform, centred, growing or a file; "
            "cannot read nothing-of-this-name: No such file or directory",
        ),
        (
            "--steps 0",
            "Invalid value for '--steps' / '--num-inference-steps': 0 is too small: 1 is the least",
        ),
        ("--branch -1", "Invalid value for '--branch': -1 is too small: 0 is the least"),
        *(
            (
                f"--{name} {value}",
                f"Invalid value for '--{name}': {value} is neither a whole number of steps nor a "
                "share of them, 0.0 to below 1",
            )
            for name in ("first", "last")
            for value in ("1.5", "-1", "nan", "some")
        ),
    ],
)
def test_what_is_no_plan_is_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.removesuffix("\n").removesuffix(" (see --help)") == (
        f"deepcache-patch plan: error: {message}"
    )


def test_the_plan_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schedule.json"
    file.write_bytes(VALID)
    for more in ([], ["--steps", "5"]):
        assert run("--schedule", str(file), *more) == 0
        shown = "F·F·F\n3 of 5 steps in full, the others at branch 0\n"
        assert capsys.readouterr() == (shown, "")
    assert run("--schedule", str(file), "--first", "2") == 0
    assert capsys.readouterr().out.startswith("FFF·F\n4 of 5 steps in full")
    for more, message in {
        ("--steps", "9"): f"{file} was calibrated for 5 steps, not 9: leave --steps out",
        ("--interval", "3"): "--interval does not go with the file of --schedule, which has its "
        "plan",
    }.items():
        assert run("--schedule", str(file), *more) == 2
        assert capsys.readouterr().err == f"deepcache-patch plan: error: {message}\n"


def test_a_plan_needs_no_torch() -> None:
    # Importing torch and diffusers takes seconds, and so did `--help` and every mistyped option.
    code = """
import sys
from deepcache_patch.cli.main import main
for arguments in (["plan", "--steps", "3"], ["compare", "--help"], ["--version"], ["--wrong"]):
    main(arguments)
print({"torch", "diffusers", "gradio"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")
