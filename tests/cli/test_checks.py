"""What the command line finds out before a picture is made, its help and its versions."""

from __future__ import annotations

from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import zoo
from builders.cases import CASES
from PIL import Image

import deepcache_patch
from deepcache_patch import Auto, DeepCacheHelper, InvalidSettingError
from deepcache_patch.cli.loading import use_scheduler
from deepcache_patch.cli.main import COMMANDS, main
from deepcache_patch.cli.mistakes import BadInputError
from deepcache_patch.cli.request import PipelineRequest, require_within_reach
from deepcache_patch.compare import run as comparison
from deepcache_patch.schedules.window import Window
from deepcache_patch.settings.by_name import PARAMETERS, branch_of, named_schedule

pytestmark = pytest.mark.usefixtures("phases", "kept_tables")


@cache
def pipeline() -> Any:
    return CASES["sd"].load()


@pytest.fixture(autouse=True)
def _nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was made")

    monkeypatch.setattr("deepcache_patch.cli.request.model_folder", lambda *_: None)
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pipeline())
    monkeypatch.setattr(comparison, "compare", refuse)
    monkeypatch.setattr(DeepCacheHelper, "calibrate", refuse)


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on stderr, without what it begins with."""
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err.rstrip().removeprefix(f"deepcache-patch {arguments[0]}: error: ")


@pytest.fixture
def prompts(tmp_path: Path) -> list[Any]:
    (tmp_path / "prompts.txt").write_text("a fox")
    return [
        "calibrate",
        "m",
        "--prompts",
        tmp_path / "prompts.txt",
        "--output",
        tmp_path / "s.json",
    ]


def test_more_full_steps_than_steps(prompts: list[Any], capsys: Any) -> None:
    # They were found out, or taken for all steps, after a whole generation.
    options = ["--full-steps", 9, "--steps", 8]
    message = "--full-steps 9 is more than the generation has: 8; give 8 or fewer, or more --steps"
    assert said(capsys, *prompts, *options) == message


@pytest.mark.parametrize("command", ["compare", "calibrate"])
@pytest.mark.parametrize("known", ["option", "folder"])
def test_more_full_steps_than_steps_are_refused_before_the_model_is_loaded(
    command: str,
    known: str,
    prompts: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    # torch was imported and the model loaded before, and nothing said what to give.
    def refuse(_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PipelineRequest, "load", refuse)
    index = tmp_path / "model_index.json"
    index.write_text('{"scheduler": ["diffusers", "DDIMScheduler"]}')
    monkeypatch.setattr("deepcache_patch.cli.request.model_folder", lambda *_: tmp_path)
    words = prompts if command == "calibrate" else ["compare", "m", "--prompt", "a fox"]
    scheduler = ["--scheduler", "ddim"] if known == "option" else []
    options = [*scheduler, "--full-steps", 30, "--steps", 25]
    message = "--full-steps 30 is more than --steps 25: give 25 or fewer, or more --steps"
    assert said(capsys, *words, *options) == message


def test_a_sampler_of_two_calls_a_step_may_have_more_full_steps_than_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    heun = CASES["sd"].load()
    use_scheduler(heun, "heun")
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: heun)

    def note(helper: DeepCacheHelper, **call: Any) -> None:
        plan = helper.plan(call["num_inference_steps"])
        raise InvalidSettingError(f"{len(plan.full_steps)} of {len(plan)}")

    monkeypatch.setattr(comparison, "compare", note)
    call = ["compare", "m", "--prompt", "a fox", "--output", tmp_path / "new"]
    full = [*call, "--full-steps", 30, "--steps", 25]
    assert said(capsys, *full, "--scheduler", "heun").endswith(": 30 of 49")
    assert said(capsys, *full).endswith(": 30 of 49")


@pytest.mark.parametrize("speedup", ["20", "8.01", None])
def test_a_speedup_that_no_schedule_has(
    speedup: str | None, prompts: list[Any], capsys: Any
) -> None:
    """One up to half beyond was found out after a whole generation."""
    share = DeepCacheHelper(pipeline()).branches[0].share
    assert share is not None
    most = 8 / (1 + 7 * share)
    speedup = speedup or f"{1.02 * most:.6g}"
    assert said(capsys, *prompts, "--speedup", speedup, "--steps", 8, "--branch", 0) == (
        f"--speedup {speedup} is out of reach: with 1 of 8 steps in full at branch 0, the U-Net's "
        f"work is 1/{most:.1f} of all; ask for less"
    )


def test_a_speedup_that_smaller_pictures_may_have_is_tried(
    prompts: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # The share of a branch is known for the U-Net's own size, and smaller ones have a smaller one.
    def note(*_: Any, **goals: Any) -> None:
        raise InvalidSettingError(f"speedup={goals['speedup']}")

    monkeypatch.setattr(DeepCacheHelper, "calibrate", note)
    size = ["--height", 8, "--width", 8]
    assert said(capsys, *prompts, "--speedup", 7.9, "--steps", 8, *size).endswith("speedup=7.9")
    assert "8.1 is out of reach" in said(capsys, *prompts, "--speedup", 8.1, "--steps", 8, *size)


@pytest.mark.parametrize("command", ["compare", "calibrate"])
def test_the_window_reaches_the_helper(
    command: str, prompts: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def note(*given: Any, **_: Any) -> None:
        helper = next(each for each in given if isinstance(each, DeepCacheHelper))
        raise InvalidSettingError(f"first={helper.first}, last={helper.last}")

    monkeypatch.setattr(comparison, "compare", note)
    monkeypatch.setattr(DeepCacheHelper, "calibrate", note)
    known = prompts if command == "calibrate" else ["compare", "m", "--prompt", "a fox"]
    goal = ["--full-steps", 20] if command == "calibrate" else []
    window = ["--first", "0.2", "--last", "3"]
    assert said(capsys, *known, *goal, *window).endswith("first=0.2, last=3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--full-steps 5 --interval 2", "give one of --interval and --full-steps, not both"),
        ("--full-steps 5 --speedup 2", "give one of --speedup and --full-steps, not both"),
        ("--full-steps 5 --schedule uniform", "--full-steps goes with --schedule default or auto"),
        (
            "--full-steps 21 --steps 20",
            "--full-steps 21 is more than the generation has: 20; "
            "give 20 or fewer, or more --steps",
        ),
        (
            "--full-steps 2 --first 2 --last 1",
            "--full-steps 2 is fewer than run in full in any case, by --first and --last: 3",
        ),
        (
            "--full-steps 1 --last 1",
            "--full-steps 1 is fewer than run in full in any case, by --first and --last: 2",
        ),
        (
            "--full-steps 4 --steps 8",
            "--full-steps 4 of 8 steps: with 8 or fewer all run in full; take more --steps, or "
            "--schedule uniform with --interval",
        ),
        (
            "--full-steps 2 --call timesteps=[900,500,100]",
            "--full-steps needs the number of steps, which is not known with --call timesteps: "
            "give --interval",
        ),
    ],
)
def test_full_steps_that_a_comparison_cannot_have(options: str, message: str, capsys: Any) -> None:
    assert said(capsys, "compare", "m", "--prompt", "a fox", *options.split()) == message


def test_what_a_calibration_cannot_have_goes_by_the_steps_that_run() -> None:
    # A fifth of 25 steps; it was taken of the 50 that are asked for.
    call = {"num_inference_steps": 50, "strength": 0.5, "image": Image.new("RGB", (8, 8))}
    reach = partial(require_within_reach, zoo.CASES["sd-img2img"].load(), call, branch=-1)
    window = Window(0.2, 0)
    reach(full_steps=5, speedup=None, window=window)
    with pytest.raises(BadInputError, match="in any case, by --first and --last: 5"):
        reach(full_steps=4, speedup=None, window=window)
    reach(full_steps=None, speedup=5, window=window)
    with pytest.raises(BadInputError, match="with 5 of 25 steps in full at branch -1"):
        reach(full_steps=None, speedup=5.1, window=window)


def test_full_steps_that_a_calibration_cannot_have(prompts: list[Any], capsys: Any) -> None:
    window = ["--full-steps", 2, "--first", 2, "--last", 1]
    assert said(capsys, *prompts, *window) == (
        "--full-steps 2 is fewer than run in full in any case, by --first and --last: 3"
    )


@pytest.mark.parametrize(
    "options",
    [
        "--full-steps 13 --steps 25",
        "--full-steps 13 --steps 25 --first 2 --last 0.1",
        "--full-steps 13 --steps 25 --first 10 --last 3",
    ],
)
def test_a_comparison_runs_as_many_full_steps_as_it_is_told(
    options: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def note(helper: DeepCacheHelper, **call: Any) -> None:
        plan = helper.plan(call["num_inference_steps"])
        raise InvalidSettingError(f"{len(plan.full_steps)} of {len(plan)}")

    monkeypatch.setattr(comparison, "compare", note)
    call = ["compare", "m", "--prompt", "a fox", *options.split()]
    assert said(capsys, *call).endswith(": 13 of 25")


@pytest.mark.parametrize("command", ["compare", "calibrate"])
def test_a_branch_that_there_is_not(command: str, prompts: list[Any], capsys: Any) -> None:
    known = prompts if command == "calibrate" else ["compare", "m", "--prompt", "a fox"]
    goal = ["--full-steps", 2] if command == "calibrate" else []
    assert said(capsys, *known, *goal, "--branch", 99) == (
        "branch 99 is out of range: this UNet2DConditionModel has 9 skip connections, so branches "
        "0 to 8; `deepcache-patch branches m` shows them"
    )


def test_steps_that_a_file_was_not_calibrated_for(tmp_path: Path, capsys: Any) -> None:
    pipe, auto, file = CASES["sd"].load(), Auto(), tmp_path / "schedule.json"
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["sd"].run(pipe, steps=10)
    auto.learned[0].save(file)
    call = ["compare", "m", "--prompt", "a fox", "--schedule", file]
    assert said(capsys, *call, "--steps", 9) == (
        f"--schedule {file} was calibrated for 10 steps, and here are 9: give as many, or "
        "calibrate anew"
    )


@pytest.mark.parametrize("command", ["compare", "sweep", "ui"])
def test_a_file_of_another_scheduler_names_the_option_that_cures_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # It was "scheduler is a …, not a …; calibrate it anew", and nothing said how to ask for it.
    monkeypatch.setattr("deepcache_patch.page.app.require_gradio", lambda: None)
    pipe, auto, file = CASES["sd"].load(), Auto(), tmp_path / "schedule.json"
    use_scheduler(pipe, "dpm-solver++-karras")
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["sd"].run(pipe, steps=10)
    auto.learned[0].save(file)
    prompt = [] if command == "ui" else ["--prompt", "a fox", "--output", tmp_path / "new"]
    call = [command, "m", "--schedule", file, *prompt]
    message = (
        f"--schedule {file} was calibrated with dpm-solver++-karras, and here is {{}}: give "
        "--scheduler dpm-solver++-karras, or calibrate anew"
    )
    for here in ("euler", "dpm-solver++"):
        other = CASES["sd"].load()
        use_scheduler(other, here)
        monkeypatch.setattr(PipelineRequest, "load", lambda _asked, other=other: other)
        assert said(capsys, *call) == message.format(here)


@cache
def _calibrated_with_karras_sigmas() -> Any:
    pipe, auto = CASES["sd"].load(), Auto()
    use_scheduler(pipe, "dpm-solver++-karras")
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["sd"].run(pipe, steps=10)
    return auto.learned[0]


@pytest.fixture
def karras_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of `calibrate`, 10 steps of DPM-Solver++ with Karras sigmas, and no model to load."""

    def refuse(_: Any) -> None:
        raise BadInputError("a model was loaded")

    monkeypatch.setattr("deepcache_patch.page.app.require_gradio", lambda: None)
    monkeypatch.setattr(PipelineRequest, "load", refuse)
    _calibrated_with_karras_sigmas().save(tmp_path / "karras.json")
    return tmp_path / "karras.json"


@pytest.mark.parametrize("command", ["compare", "sweep", "ui"])
@pytest.mark.parametrize("here", ["euler", "dpm-solver++-sde"])
def test_a_file_of_another_scheduler_is_refused_before_the_model_is_loaded(
    command: str, here: str, karras_file: Path, tmp_path: Path, capsys: Any
) -> None:
    # The file was read before, and that it did not fit was seen minutes later.
    prompt = [] if command == "ui" else ["--prompt", "a fox", "--output", tmp_path / "new"]
    call = [command, "m", "--schedule", karras_file, *prompt, "--scheduler"]
    assert said(capsys, *call, here) == (
        f"--schedule {karras_file} was calibrated with dpm-solver++-karras, and here is {here}: "
        "give --scheduler dpm-solver++-karras, or calibrate anew"
    )
    # Which the pipeline's own settings may make the right ones.
    for fitting in ("dpm-solver++-karras", "dpm-solver++", "DPMSolverMultistepScheduler"):
        assert said(capsys, *call, fitting) == "a model was loaded"


def test_a_file_of_other_steps_is_refused_before_the_model_is_loaded(
    karras_file: Path, tmp_path: Path, capsys: Any
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    call = ["compare", "m", "--prompt", "a", "--schedule", karras_file]
    assert said(capsys, *call, "--steps", 9) == (
        f"--schedule {karras_file} was calibrated for 10 steps, and here are 9: give as many, or "
        "calibrate anew"
    )
    for unknown in (
        ["--steps", 10],
        [],
        ["--steps", 20, "--image", tmp_path / "picture.png", "--strength", 0.5],
        ["--steps", 20, "--call", "denoising_end=0.5"],
    ):
        assert said(capsys, *call, *unknown) == "a model was loaded"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        # Which no option gives, and of which a step has two timesteps.
        ("MyScheduler", "a model was loaded"),
        ("HeunDiscreteScheduler", "was calibrated with heun, and here is euler"),
    ],
)
def test_of_other_schedulers_less_is_known_before_the_model_is_loaded(
    kind: str, reason: str, karras_file: Path, capsys: Any
) -> None:
    text = karras_file.read_text()
    karras_file.write_text(text.replace("DPMSolverMultistepScheduler", kind))
    call = ["compare", "m", "--prompt", "a", "--schedule", karras_file]
    assert said(capsys, *call, "--steps", 9) == "a model was loaded"
    assert reason in said(capsys, *call, "--scheduler", "euler")


def test_no_scheduler_is_named_that_keeps_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # "dpm-solver++" leaves Karras sigmas as they are: the same error came again.
    pipe, auto, file = CASES["sd"].load(), Auto(), tmp_path / "schedule.json"
    use_scheduler(pipe, "dpm-solver++")
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["sd"].run(pipe, steps=10)
    auto.learned[0].save(file)
    other = CASES["sd"].load()
    use_scheduler(other, "dpm-solver++-karras")
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: other)
    call = ["compare", "m", "--prompt", "a fox", "--schedule", file, "--steps", 10]
    assert said(capsys, *call) == (
        "this calibrated schedule does not fit: scheduler has use_karras_sigmas=True, not False; "
        "set the scheduler first: pipe.scheduler = DPMSolverMultistepScheduler.from_config("
        "schedule.setting.scheduler), where schedule is this one; or calibrate it anew, or give "
        "schedule='default'"
    )


def test_no_scheduler_is_named_where_the_unet_is_another(tmp_path: Path, capsys: Any) -> None:
    pipe, auto, file = CASES["ddpm"].load(), Auto(), tmp_path / "schedule.json"
    use_scheduler(pipe, "ddim")
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["ddpm"].run(pipe, steps=10)
    auto.learned[0].save(file)
    line = said(capsys, "compare", "m", "--prompt", "a", "--schedule", file, "--steps", 10)
    assert line == (
        "this calibrated schedule does not fit: unet is a UNet2DConditionModel, not a UNet2DModel; "
        "calibrate it anew, or give schedule='default'"
    )


def test_the_help_of_every_command_ends_with_an_example(capsys: Any) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        out = capsys.readouterr().out
        _, _, example = out.rpartition("\n  example")
        assert f":\n    deepcache-patch {command} " in example, out


def test_the_help_names_the_branch_that_each_schedule_has_by_itself(capsys: Any) -> None:
    """Regression: it said 0 of auto and adaptive, and of what calibrate makes."""
    own = {name: branch_of(named_schedule(name)) for name in PARAMETERS}
    assert {name for name in own if own[name] != -1} == {"uniform", "centred"}
    assert own["uniform"] == own["centred"] == 0
    for command in ("compare", "calibrate", "plan"):
        assert main([command, "--help"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "(default: -1; for uniform and centred 0)" in told


def test_the_examples_of_plan_run(capsys: Any) -> None:
    assert main(["plan", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("    deepcache-patch plan")]
    assert len(commands) == 5
    for command in commands:
        assert main(command) == 0
        lines = 2 if "--schedule" in command else 3  # by which levels it was planned
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_version_names_this_package_and_what_it_stands_on(capsys: Any) -> None:
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"deepcache-patch {deepcache_patch.__version__} (Python 3.")
    torch, diffusers = metadata.version("torch"), metadata.version("diffusers")
    assert out.endswith(f", torch {torch}, diffusers {diffusers})\n")


def test_a_hub_id_without_a_hub_is_one_short_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # diffusers says in half a page what it did not find in its cache, and not why it looked there.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = said(capsys, "branches", "nobody/nothing")
    assert line.startswith("nobody/nothing is no folder, and not on the hub: Cannot reach https://")
    assert line.endswith(". Without the hub, give the folder of a diffusers pipeline")
    assert len(line) < 300


def test_every_public_name_is_there_and_no_other() -> None:
    for name in deepcache_patch.__all__:
        assert getattr(deepcache_patch, name) is not None
        assert name in dir(deepcache_patch)
    with pytest.raises(AttributeError, match="'deepcache_patch' has no attribute 'DeepCashHelper'"):
        deepcache_patch.DeepCashHelper  # noqa: B018


def test_the_page_is_refused_a_place_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("deepcache_patch.page.app.require_gradio", lambda: None)
    for option in (["--port", "70000"], ["--host", "no.such.host.invalid"]):
        assert option[1] in said(capsys, "ui", "m", *option)
