"""The command line: what it writes, its exit codes, and one line for each kind of bad input."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from builders.cases import CASES
from PIL import Image

from deepcache_patch import Auto, Centred, DeepCacheHelper, NoiseAware, Uniform
from deepcache_patch.cli import loading
from deepcache_patch.cli.main import main
from deepcache_patch.cli.names import SCHEDULER_OPTIONS
from deepcache_patch.compare import run as comparison
from deepcache_patch.compare.outcome import FILES

pytestmark = pytest.mark.usefixtures("phases", "kept_tables")


@pytest.fixture(autouse=True)
def _far_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    CASES["sd"].load().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    CASES["ddpm"].load().save_pretrained(folder)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `compare` was called with; it then stops."""
    seen: dict[str, Any] = {}

    def spy(helper: Any, **options: Any) -> None:
        seen.update(options, pipe=helper.pipe, helper=helper)
        raise ValueError("seen")

    monkeypatch.setattr(comparison, "compare", spy)
    return seen


def run(*arguments: Any) -> int:
    return main(["compare", *map(str, arguments)])


def test_a_text_pipeline_end_to_end(
    sd: Path, tmp_path: Path, phases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "folder"
    options = ["--steps", 12, "--images", 2, "--device", "cpu", "--output", output]
    assert run(sd, "--prompt", "a fox", *options) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["plain", "helper", "5", "steps"]
    assert "fewer steps at equal work (5 of 12): " in out
    assert out.splitlines()[-1] == f"picture: {output / 'comparison.png'}"
    assert err == ""  # no bars where nobody sees them move
    assert phases == [
        *(f"loading {sd}", "warm-up", "plain", "helper", "fewer steps", "writing the report")
    ]
    assert {path.name for path in output.iterdir()} == set(FILES)
    assert out.splitlines()[-2] == f"report: {output / 'comparison.html'}"
    assert (output / "comparison.html").read_text().startswith("<!doctype html>")
    with Image.open(output / "comparison.png") as picture:
        picture.verify()

    whole = json.loads((output / "comparison.json").read_text())
    assert whole["command"].startswith(f"deepcache-patch compare {sd} --prompt 'a fox' --steps 12")
    assert (whole["model"], whole["pipeline"]) == (str(sd), "StableDiffusionPipeline")
    assert (whole["seeds"], whole["steps"]) == ([0, 1], 12)
    assert (whole["interval"], whole["branch"]) == (2.2, -1)
    assert whole["dtype"] == "float32"
    assert whole["call"] == {"prompt": "a fox", "num_inference_steps": 12}
    assert (whole["figures"]["full_calls"], whole["figures"]["shallow_calls"]) == (5, 7)


def test_branches_prints_the_table_and_generates_nothing(
    sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["branches", str(sd), "--dtype", "float16"]) == 0
    out, err = capsys.readouterr()
    expected = DeepCacheHelper(CASES["sd"].load().to(torch.float16)).branches
    assert out == f"{expected}\n"
    assert out.splitlines()[0].endswith("9 branches; a call with 1×4×8×8 in float16")
    assert err == ""


def test_branches_of_a_model_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["branches", "./missing"]) == 2
    message = "deepcache-patch branches: error: there is no folder ./missing\n"
    assert capsys.readouterr().err == message


def test_json_on_stdout_is_the_json_in_the_file(
    ddpm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", 3, "--images", 2, "--device", "cpu", "--output", tmp_path]
    assert run(ddpm, "--json", "--interval", 1, "--seed", 4, *options) == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "comparison.json").read_text()
    whole = json.loads(out)
    assert whole["seeds"] == [4, 5]
    assert (whole["figures"]["psnr"], whole["figures"]["identical"]) == (None, 2)


def test_options_reach_the_comparison(sd: Path, asked: dict[str, Any]) -> None:
    run(
        *(sd, "--prompt", "a fox", "--negative-prompt", "rain", "--guidance-scale", 3.5),
        *("--height", 32, "--width", 16, "--steps", 9, "--interval", 4, "--branch", 1),
        *("--seed", 10, "--images", 3, "--repeats", 5, "--scheduler", "euler-ancestral"),
        *("--device", "cpu", "--dtype", "bfloat16"),
    )
    pipe, helper = asked.pop("pipe"), asked.pop("helper")
    assert asked == {
        "seeds": range(10, 13),
        "repeats": 5,
        "fewer_steps": True,
        "prompt": "a fox",
        "negative_prompt": "rain",
        "guidance_scale": 3.5,
        "height": 32,
        "width": 16,
        "num_inference_steps": 9,
    }
    assert isinstance(pipe.scheduler, diffusers.EulerAncestralDiscreteScheduler)
    assert pipe.scheduler.config.beta_start == CASES["sd"].load().scheduler.config.beta_start
    assert pipe.unet.dtype == torch.bfloat16
    assert helper.schedule == NoiseAware(interval=4, branch=1)


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ("--interval 2.5", NoiseAware(2.5)),
        ("--interval 3 --branch -1", NoiseAware(3)),
        ("--speedup 2", NoiseAware(2)),
        ("--schedule noise-aware --branch 8", NoiseAware(branch=8)),
        ("--schedule default --interval 3", NoiseAware(3)),
        ("--schedule uniform", Uniform(3, 0)),
        ("--schedule uniform --interval 2 --branch 1", Uniform(2, 1)),
        ("--schedule centred --interval 5", Centred(5)),
    ],
)
def test_the_options_of_a_schedule_reach_the_helper(
    options: str, schedule: Any, sd: Path, asked: dict[str, Any]
) -> None:
    run(sd, "--prompt", "a fox", "--device", "cpu", *options.split())
    assert asked["helper"].schedule == schedule


def test_a_speedup_goes_with_auto(sd: Path, asked: dict[str, Any]) -> None:
    run(sd, "--prompt", "a fox", "--device", "cpu", "--schedule", "auto", "--speedup", 3)
    assert repr(asked["helper"].schedule) == repr(Auto(3.0))


def test_a_speedup_at_a_branch_goes_by_its_share(sd: Path, asked: dict[str, Any]) -> None:
    run(sd, "--prompt", "a fox", "--device", "cpu", "--speedup", 1.5, "--branch", 0)
    expected = DeepCacheHelper(asked["pipe"], speedup=1.5, branch=0).schedule
    assert asked["helper"].schedule == expected != NoiseAware(1.5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--interval 2 --speedup 2", "give one of --interval and --speedup, not both"),
        ("--schedule uniform --speedup 2", "--speedup goes with --schedule default or auto"),
        (
            "--schedule f.json --branch 0",
            "--interval and --branch stand in the file of --schedule already",
        ),
        (
            "--schedule ./missing",
            "cannot read --schedule ./missing: No such file or directory",
        ),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    options: str, message: str, ddpm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ddpm, *options.split()) == 2
    assert capsys.readouterr().err == f"deepcache-patch compare: error: {message}\n"


def test_fewer_steps_can_be_left_out(sd: Path, asked: dict[str, Any]) -> None:
    run(sd, "--prompt", "a fox", "--device", "cpu", "--no-fewer-steps")
    assert asked["fewer_steps"] is False


def test_defaults(sd: Path, asked: dict[str, Any]) -> None:
    run(sd, "--prompt", "a fox", "--device", "cpu")
    assert (asked["seeds"], asked["repeats"], asked["num_inference_steps"]) == (range(4), 1, 50)
    assert asked["helper"].schedule == NoiseAware(interval=2.2, branch=-1)
    assert asked["pipe"].unet.dtype == torch.float32


def test_several_prompts_make_one_picture_each(sd: Path, asked: dict[str, Any]) -> None:
    run(sd, "--prompt", "a fox", "--prompt", "a hen", "--prompt", "a dog", "--device", "cpu")
    assert asked["prompt"] == ["a fox", "a hen", "a dog"]
    assert asked["seeds"] == range(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--interval", "0"], "'--interval': 0 is too small"),
        (["--interval", "many"], "'--interval': 'many' is no finite number"),
        (["--schedule", "uniform", "--interval", "2.5"], "must be an integer of at least 1"),
        (["--speedup", "0.5"], "speedup must be a number from 1 to 1000, not 0.5"),
        (["--speedup", "30", "--branch", "1"], "speedup=30 is out of reach: a shallow call at "),
        (["--steps", "0"], "'--steps' / '--num-inference-steps': 0 is too small"),
        (["--images", "-1"], "'--images': -1 is too small"),
        (["--branch", "99"], "99"),
        (["--branch", "-2"], "'--branch': -2 is too small: -1 is the least"),
        (
            ["--scheduler", "dimm"],
            "there is no scheduler 'dimm': did you mean 'ddim'? There are ddim, ",
        ),
        (["--scheduler", "UNet2DModel"], "there is no scheduler 'UNet2DModel'; there are ddim, "),
        (["--device", "abacus"], "device 'abacus' cannot be used here; this machine has "),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--dtype", "float8"], "unknown dtype 'float8'; the known ones are float32, "),
        (["--output", "/dev/null/here"], "cannot write into --output /dev/null/here"),
        (["--height", "13", "--width", "16"], "divisible by 8"),
        (["--height", "16"], "give --height and --width together"),
        (
            ["--prompt", "b", "--prompt", "c", "--prompt", "d", "--images", "4"],
            "4 pictures cannot be shared out",
        ),
        (["--no-such-option"], "--no-such-option"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_bad_options_get_one_line_and_exit_code_2(
    sd: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    output = tmp_path / "output"
    common = {"--prompt": "a", "--device": "cpu", "--output": output}
    given = [
        word for name, value in common.items() if name not in options for word in (name, value)
    ]
    assert run(sd, *given, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("deepcache-patch compare: error: ") or "--no-such-option" in options
    assert message in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./missing", "there is no folder ./missing"),
        ("missing/but/deeper", "there is no folder missing/but/deeper"),
        ("empty", "empty is not a diffusers pipeline: it has no model_index.json"),
        ("damaged", "damaged cannot be loaded: "),
        ("file", "file is a file; give the folder"),
        ("nobody/nothing", "nobody/nothing is no folder, and not on the hub: "),
    ],
)
def test_a_model_that_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/model_index.json").write_text("{ not json")
    Path("file").touch()
    assert run(model, "--prompt", "a", "--device", "cpu") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    assert message in err


def test_a_text_pipeline_needs_a_prompt(sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(sd, "--device", "cpu") == 2
    assert capsys.readouterr().err == (
        "deepcache-patch compare: error: StableDiffusionPipeline draws what a text says: "
        "give it with --prompt\n"
    )


@pytest.mark.parametrize(
    "option", [["--prompt", "a"], ["--guidance-scale", "2"], ["--height", "32"]]
)
def test_an_option_that_the_pipeline_does_not_know_is_refused_by_name(
    ddpm: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert run(ddpm, "--device", "cpu", *option) == 2
    assert capsys.readouterr().err == (
        f"deepcache-patch compare: error: DDPMPipeline does not know {option[0]}: leave it out\n"
    )


def test_a_pipeline_that_fails_midway_is_exit_code_1(
    ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("\nout of memory\nand nine more lines")

    monkeypatch.setattr(comparison, "compare", fail)
    assert run(ddpm, "--device", "cpu", "--output", tmp_path) == 1
    assert capsys.readouterr().err == (
        "deepcache-patch compare: error: DDPMPipeline on cpu in float32 failed: out of memory\n"
    )


def test_a_dtype_that_the_device_cannot_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise NotImplementedError('"slow_conv2d" not implemented for Half')

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    with pytest.raises(ValueError, match="cpu cannot compute in float16; try --dtype float32"):
        loading.choose_dtype("float16", torch.device("cpu"))


def test_defaults_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for runtime in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(runtime, "is_available", lambda: False)
    assert loading.choose_device() == torch.device("cpu")
    # `torch.mps.is_available` does not exist before torch 2.5: every command failed there.
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loading.choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.choose_device() == torch.device("cuda")
    expected = {"cuda": torch.float16, "mps": torch.float16, "cpu": torch.float32}
    for kind, dtype in expected.items():
        assert loading.choose_dtype(None, torch.device(kind)) == dtype


@pytest.mark.parametrize("name", [*loading.SCHEDULERS, "DDIMScheduler", "DPM-Solver++"])
def test_every_friendly_name_is_a_scheduler(name: str) -> None:
    pipe = CASES["sd"].load()
    before = pipe.scheduler.config
    loading.use_scheduler(pipe, name)
    expected = loading.SCHEDULERS.get(name.lower(), name)
    assert type(pipe.scheduler).__name__ == expected
    assert pipe.scheduler.config.beta_end == before.beta_end


@pytest.mark.parametrize(
    ("name", "karras", "algorithm"),
    [
        ("dpm-solver++", False, "dpmsolver++"),
        ("dpm-solver++-karras", True, "dpmsolver++"),
        ("dpm-solver++-sde", False, "sde-dpmsolver++"),
        ("DPM-Solver++-SDE-Karras", True, "sde-dpmsolver++"),
    ],
)
def test_a_friendly_name_brings_its_settings(name: str, karras: bool, algorithm: str) -> None:
    pipe = CASES["sd"].load()
    loading.use_scheduler(pipe, name)
    assert pipe.scheduler.config.use_karras_sigmas is karras
    assert pipe.scheduler.config.algorithm_type == algorithm


def test_the_settings_are_of_names_that_there_are() -> None:
    assert set(SCHEDULER_OPTIONS) <= set(loading.SCHEDULERS)


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "examples:\n    deepcache-patch compare" in out
    assert "--interval X" in out


def test_no_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_python_dash_m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["deepcache_patch", "compare", "./missing"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("deepcache_patch", run_name="__main__")
    assert stop.value.code == 2
    assert "there is no folder ./missing" in capsys.readouterr().err


def test_a_warning_of_this_package_is_a_line_without_code() -> None:
    script = "import warnings; from deepcache_patch.cli.terminal import warnings_in_a_line as w\n"
    script += "from deepcache_patch.errors import warn\n"
    script += "with w(): warn('a\\nb'); warnings.warn('theirs')\nwarnings.warn('later')"
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stderr.splitlines() == [
        "warning: a\\nb",
        "<string>:3: UserWarning: theirs",
        "<string>:4: UserWarning: later",
    ]


def test_stderr_of_the_real_process_is_its_phases_and_one_line(sd: Path) -> None:
    # In a process of its own, diffusers and transformers have their say, too: of optional packages
    # that are missing, and in bars while they load.
    command = [sys.executable, "-m", "deepcache_patch", "compare", sd, "--prompt", "a"]
    result = subprocess.run(
        [*command, "--branch", "99", "--device", "cpu"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    *said, error = result.stderr.splitlines()
    assert [line.split(" ", 1)[1] for line in said] == [
        "importing torch and diffusers",
        f"loading {sd}",
    ]
    assert error.startswith("deepcache-patch compare: error: branch 99 is out of range")
