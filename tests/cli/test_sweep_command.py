"""The command `sweep`, and what other commands say of a list or of an option that is repeated."""

from __future__ import annotations

import html
import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from builders.cases import CASES
from builders.sweeps import made
from PIL import Image

from deepcache_patch import DeepCacheHelper
from deepcache_patch.cli.loading import image_to_image
from deepcache_patch.cli.main import COMMANDS, commands, main
from deepcache_patch.cli.request import PipelineRequest
from deepcache_patch.sweep import run
from deepcache_patch.sweep.outcome import FILES

pytestmark = pytest.mark.usefixtures("kept_tables")


@cache
def pipeline() -> Any:
    return CASES["sd"].load()


@pytest.fixture(autouse=True)
def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets any word be a model's name; it is loaded by a stand-in."""
    monkeypatch.setattr("deepcache_patch.cli.request.model_folder", lambda *_: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a sweep was asked for; it finds what stands in `sweeps`."""
    seen: dict[str, Any] = {}

    def spy(helper: Any, **options: Any) -> Any:
        seen.update(options, helper=helper)
        return made()

    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pipeline())
    monkeypatch.setattr(run, "sweep", spy)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err.rstrip()


def test_lists_reach_the_sweep_and_the_table_is_printed(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        *("sweep", "m", "--prompt", "a fox", "--prompt", "a hen", "--seed", "7", "--first", "2"),
        *("--interval", "2,2.5", "--schedule", "default, auto", "--branch", "-1,3"),
        *("--steps", "20,25", "--guidance-scale", "4", "--repeats", "2", "--no-fewer-steps"),
        *("--call", 'clip_skip="1"', "--call", "eta=0.5", "--output", str(tmp_path)),
    ]
    assert main(line) == 0
    assert asked.pop("helper").first == 2
    assert asked == {
        "interval": [2, 2.5],
        "schedule": ["default", "auto"],
        "branch": [-1, 3],
        "num_inference_steps": [20, 25],
        "seeds": range(7, 9),
        "prompt": ["a fox", "a hen"],
        "guidance_scale": 4.0,
        "clip_skip": "1",  # a text, and is to be one when it is read again
        "eta": 0.5,
        "repeats": 2,
        "fewer_steps": False,
        "folder": tmp_path,
        # What was typed, but for what a comparison is told of one setting.
        "compared_by": "deepcache-patch compare m --prompt 'a fox' --prompt 'a hen' "
        "--guidance-scale 4.0 --seed 7 --call 'clip_skip=\"1\"' --call eta=0.5 --first 2",
    }
    end = f"\n\nreport: {tmp_path / 'sweep.html'}\npicture: {tmp_path / 'sweep.png'}\n"
    assert capsys.readouterr().out == made().table() + end


def test_what_is_not_given_is_what_python_takes(asked: dict[str, Any], tmp_path: Path) -> None:
    assert main(["sweep", "m", "--prompt", "a", "--output", str(tmp_path)]) == 0
    assert (asked["schedule"], asked["branch"]) == (["default"], None)
    in_python = inspect.signature(DeepCacheHelper.sweep).parameters["interval"].default
    assert asked["interval"] == in_python == run.INTERVALS
    assert (asked["num_inference_steps"], asked["repeats"], asked["fewer_steps"]) == (50, 3, True)


def test_figures_are_printed_as_json(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "m", "--prompt", "a", "--json", "--output", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(made().to_json())


@pytest.mark.parametrize("stops", [False, True])
def test_a_sweep_is_run_and_its_report_is_there_after_ctrl_c_too(
    stops: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pipeline())
    learn = run.Contest.learn

    def stop(self: Any, *arguments: Any) -> None:
        if stops and arguments[-1].startswith("calibration"):
            raise KeyboardInterrupt
        learn(self, *arguments)

    monkeypatch.setattr(run.Contest, "learn", stop)
    line = ["sweep", "m", "--prompt", "a fox", "--images", "1", "--steps", "10", "--repeats", "1"]
    asked = ["--interval", "2", "--schedule", "default,auto", "--output", str(tmp_path)]
    assert main([*line, *asked]) == (130 if stops else 0)
    out, err = capsys.readouterr()
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "rows"}
    found = json.loads((tmp_path / "sweep.json").read_text())
    # The beginning of each setting's command stood there, as if it had made the sweep.
    assert "command" not in found
    names = [each["name"] for each in found["settings"]]
    assert names == (["interval 2"] if stops else ["interval 2", "auto, interval 2"])
    said = "deepcache-patch compare m --prompt 'a fox' --images 1 --interval 2 --steps 10"
    text = html.unescape(re.sub("<[^>]*>", "", (tmp_path / "sweep.html").read_text()))
    assert said in text
    if stops:
        assert out.endswith(
            f"Broken off: 1 of 2 are not there yet.\n\nreport so far: {tmp_path / 'sweep.html'}\n"
        )
        assert err.splitlines()[-2:] == [
            "deepcache-patch sweep: the same command goes on with what is missing",
            "deepcache-patch sweep: error: interrupted",
        ]
    else:
        assert "report: " in out
        assert "nothing was run" not in err
        assert main([*line, *asked]) == 0
        again = capsys.readouterr()
        assert again.out == out
        assert again.err.endswith(f"all of it is in {tmp_path} already: nothing was run\n")


def test_a_picture_is_told_by_its_file_and_another_one_in_it_is_another_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: image_to_image(pipeline()))
    file, output = tmp_path / "sketch.png", tmp_path / "out"
    Image.linear_gradient("L").save(file)
    line = ["sweep", "m", "--prompt", "a", "--image", str(file), "--strength", "0.5", "--json"]
    line += ["--images", "1", "--steps", "20", "--repeats", "1", "--no-fewer-steps"]
    line += ["--interval", "2", "--output", str(output), "--height", "16", "--width", "24"]
    assert main(line) == 0
    found = json.loads((output / "sweep.json").read_text())
    assert found["call"]["image"] == str(file)
    (setting,) = found["settings"]
    assert f"        image=load_image('{file}').resize((24, 16)),\n" in setting["python"]
    capsys.readouterr()
    line[line.index("24")] = "16"
    assert f"{output} holds a sweep that differs in image: " in refused(capsys, *line)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--interval", "2,0"], "Invalid value for '--interval': 0 is too small: 1 is the least"),
        (["--interval", "2,,3"], "Invalid value for '--interval': '' is no finite number"),
        (  # there is no --full-steps here
            ["--interval", "2,25/13"],
            "Invalid value for '--interval': '25/13' is no finite number: write a decimal, 1.92 "
            "(see --help)",
        ),
        (["--steps", "20,x"], "'x' is no whole number"),
        (["--branch", "-2"], "-2 is too small: -1 is the least"),
        (["--schedule", "default,autp"], "there is no schedule 'autp': did you mean 'auto'?"),
        (["--schedule", "uniform", "--interval", "2.5"], "interval must be an integer of at least"),
        (["--schedule", "a/missing.json"], "cannot read --schedule a/missing.json: No such file"),
        (["--output", __file__], "cannot write into --output "),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pytest.fail("it was loaded"))
    assert said in refused(capsys, "sweep", "m", "--prompt", "a", *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "StableDiffusionPipeline draws what a text says: give it with --prompt"),
        (["--prompt", "a", "--branch", "0,99"], "branch 99 is out of range"),
        (["--prompt", "a", "--steps", "8"], "would run all of 8 steps in full, and be no faster"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_is_made(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pipeline())
    assert said in refused(capsys, "sweep", "m", *options, "--output", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("listed", ["timesteps=[900, 500, 100]", "sigmas=[9.0, 3.0, 1.0]"])
def test_a_list_in_the_call_says_which_steps_there_are(
    listed: str, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The usual 50 steps were set beside it, and both together are refused.
    line = ["sweep", "m", "--prompt", "a", "--call", listed, "--output", str(tmp_path)]
    assert main(line) == 0
    assert "num_inference_steps" not in asked
    assert asked[listed.partition("=")[0]] == json.loads(listed.partition("=")[2])


@pytest.mark.parametrize("command", ["compare", "sweep"])
@pytest.mark.parametrize("name", ["a.html", "b/c.PNG", "d.json"])
def test_the_name_of_a_file_is_none_of_the_folder_of_a_report(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, command, "m", "--prompt", "a", "--output", name)
    path = Path(name)
    assert f"{name} is taken for a folder, which gets a page" in line
    assert f"give a name without {path.suffix}, such as {path.with_suffix('')}" in line


# --- in every command -----------------------------------------------------------------------------

#: Every option that is given once: the command, its name, and whether a sweep takes a list of it.
ONCE = [
    (name, option.opts[0], option.name in ("interval", "branch", "steps", "schedule"))
    for name in COMMANDS
    for option in commands.get_command(click.Context(commands), name).params  # type: ignore[union-attr]
    if isinstance(option, click.Option) and not (option.multiple or option.is_flag)
]


@pytest.mark.parametrize(("command", "option", "is_list"), ONCE)
def test_an_option_that_would_be_dropped_is_refused(
    command: str, option: str, is_list: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = ", or a list with commas to `deepcache-patch sweep`" if is_list else ""
    line = refused(capsys, command, option, "2", f"{option}=3")
    message = f"{option} is given 2 times: give it once{hint} (see --help)"
    assert line == f"deepcache-patch {command}: error: {message}"


def test_by_another_name_it_is_the_same_option(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "calibrate", "m", "--steps", "2", "--num-inference-steps", "3")
    assert "--steps is given 2 times" in line


def test_help_is_shown_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--interval", "2", "--interval", "3", "--help"]) == 0
    assert "--interval X" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"),
    [("--interval", "2,3"), ("--branch", "0,1"), ("--steps", "20,25"), ("--schedule", "auto,a")],
)
def test_a_list_is_answered_by_the_command_that_takes_it(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "compare", "m", "--prompt", "a", option, value)
    assert line == (
        f"deepcache-patch compare: error: {option} {value} is a list: give one value, or a list "
        "with commas to `deepcache-patch sweep` (see --help)"
    )
