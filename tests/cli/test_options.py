"""One spelling for an option in all commands, and no abbreviations; how a name that there is not is
answered; and what is imported for that.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import click
import pytest

from deepcache_patch.cli.main import COMMANDS, commands, main

pytestmark = pytest.mark.usefixtures("phases")


def options_of(name: str) -> dict[str, click.Option]:
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    return {option.opts[0]: option for option in command.params if isinstance(option, click.Option)}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.endswith(" (see --help)\n")
    return err.removesuffix(" (see --help)\n")


# --- the same in all commands ---------------------------------------------------------------------

#: What `compare` and `calibrate` both take.
SHARED = {
    *("--prompt", "--prompts", "--negative-prompt", "--guidance-scale", "--height", "--width"),
    *("--steps", "--seed", "--images", "--branch", "--scheduler", "--device", "--dtype"),
    *("--speedup", "--full-steps", "--first", "--last", "--output", "--json", "-h"),
    *("--variant", "--revision", "--lora", "--offload", "--image", "--strength", "--call"),
}


def test_commands_that_generate_take_the_same_options() -> None:
    assert options_of("compare").keys() & options_of("calibrate").keys() == SHARED


@pytest.mark.parametrize("command", ["compare", "sweep", "calibrate"])
def test_the_number_of_images_is_told_to_be_a_total(command: str) -> None:
    own = "8, or more of several prompts" if command == "calibrate" else "4, or one for each"
    assert options_of(command)["--images"].help == (
        f"how many in total, shared out evenly to the prompts (default: {own})"
    )


def test_the_default_of_the_repeats_is_told() -> None:
    for command in ("compare", "sweep"):
        option = options_of(command)["--repeats"]
        assert str(option.help).endswith(f"(default: {option.default})")


def test_an_option_is_of_one_spelling_and_one_type_wherever_it_is_taken() -> None:
    found: dict[str, set[Any]] = {}
    for command in COMMANDS:
        for name, option in options_of(command).items():
            # A type that is made of a function is another object each time, of the same name.
            kind = getattr(option.type, "name", None)
            found.setdefault(name, set()).add((*option.opts, option.name, kind, option.multiple))
    assert {name for name, kinds in found.items() if len(kinds) > 1} == set()
    assert found.keys() > SHARED


def test_every_option_has_a_long_name_and_no_alias_is_shown_but_that_of_diffusers() -> None:
    spellings = {
        tuple(option.opts) for command in COMMANDS for option in options_of(command).values()
    }
    assert {each for each in spellings if len(each) > 1 or each[0][:2] != "--"} == {
        ("--steps", "--num-inference-steps"),
        ("-h", "--help"),
    }


# --- names that there are not ---------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_can_be_abbreviated(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = {name for option in options_of(command).values() for name in option.opts}
    for name in names - {"-h"}:
        if (short := name[:-1]) not in names:
            line = refused(capsys, command, f"{short}=1")
            assert line.startswith(f"deepcache-patch {command}: error: No such option")
            assert short in line


def test_a_command_cannot_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "comp") == (
        "deepcache-patch: error: there is no command 'comp': did you mean 'compare'? There are "
        f"{', '.join(COMMANDS)}"
    )


def test_a_mistyped_option_is_answered_by_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, meant = refused(capsys, "compare", "m", "--intervall", "3").split("--intervall")
    assert "--interval" in meant


@pytest.mark.parametrize("name", ["--speedup", "--full-steps"])
def test_where_there_is_no_speedup_the_interval_is_named(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # "Did you mean one of: '--schedule', '--seed', '--steps'?"
    assert refused(capsys, "sweep", "m", name, "2") == (
        f"deepcache-patch sweep: error: sweep has no {name}: give --interval 2,3,5"
    )


def test_a_speedup_says_whether_it_is_of_work_or_of_time() -> None:
    for command in ("compare", "plan"):
        assert str(options_of(command)["--speedup"].help) == (
            "instead of --interval: how many times less work the U-Net does; calibrate means time"
        )
    assert str(options_of("calibrate")["--speedup"].help) == (
        "goal: how many times as fast the denoising loop is; compare and plan mean work"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "deepcache-patch: error: Missing command"),
        ("compare", "deepcache-patch compare: error: Missing argument 'MODEL'"),
        ("compare m --seed", "deepcache-patch compare: error: Option '--seed' requires an arg"),
        ("compare m --json=1", "deepcache-patch compare: error: Option '--json' does not take a v"),
        ("compare m --replay x", "'--replay': 'x' is not one of 'extrapolate', 'reuse'"),
        ("calibrate m --speedup 2", "deepcache-patch calibrate: error: Give --output FILE"),
    ],
)
def test_what_is_lacking_or_too_much_is_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments.split())


def test_a_calibration_says_at_once_all_that_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    # It said that --output is missing, and in the second try that a goal is.
    assert refused(capsys, "calibrate", "m") == (
        "deepcache-patch calibrate: error: Give one of --speedup, --full-steps and --psnr, and "
        "only one; and --output FILE"
    )


@pytest.mark.parametrize("goals", ["", "--speedup 2 --psnr 30", "--full-steps 3 --speedup 2"])
def test_a_calibration_has_one_goal(goals: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "calibrate", "m", "--output", "s.json", *goals.split()) == (
        "deepcache-patch calibrate: error: Give one of --speedup, --full-steps and --psnr, and "
        "only one"
    )


# --- what is imported -----------------------------------------------------------------------------

IMPORTED = """
import sys
from deepcache_patch.cli.main import COMMANDS, main
assert main(sys.argv[1:]) in (0, 2)
assert not {"torch", "diffusers", "numpy", "gradio"} & set(sys.modules)
print(*(name for name in COMMANDS if f"deepcache_patch.cli.{name}" in sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [
        *((f"{command} --help", command) for command in COMMANDS),
        *((f"{command} --no-such-option", command) for command in COMMANDS),
        ("-h", ""),
        ("--help", ""),
        ("--version", ""),
        ("--no-such-option", ""),
        ("no-such-command", ""),
    ],
)
def test_a_command_is_imported_when_it_is_called_and_torch_is_not(
    arguments: str, imported: str
) -> None:
    command = [sys.executable, "-c", IMPORTED, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == imported


UNEXPECTED = """
import sys
from deepcache_patch.cli import branches, main
branches.branches.callback = lambda **_: 1 / 0
sys.exit(main.main(["branches", "m"]))
"""


def test_dev_mode_shows_where_the_unexpected_happened() -> None:
    options = ["-X", "dev", "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, *options, "-c", UNEXPECTED], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
