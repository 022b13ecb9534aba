"""The command `plan`: its exact output, and what it says of settings that do not go together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
from builders.cases import CASES
from builders.plan_files import SCHEDULE, VALID, WHOLE

from deepcache_patch import FULL, DeepCacheHelper, NoiseAware
from deepcache_patch.cli.kinds import scheduler_name
from deepcache_patch.cli.main import main
from deepcache_patch.cli.names import SCHEDULERS
from deepcache_patch.settings.preview import plan_by

pytestmark = pytest.mark.usefixtures("phases", "kept_tables")


def run(*arguments: str) -> int:
    return main(["plan", *arguments])


@pytest.mark.parametrize(
    ("arguments", "strip", "counted"),
    [
        ("--schedule uniform", "F··" * 16 + "F·", "17 of 50 steps in full, the others at branch 0"),
        (
            "--schedule uniform --steps 7 --interval 3 --branch 4",
            "F··F··F",
            "3 of 7 steps in full, the others at branch 4\n"
            "no model tells here whether there is a branch 4: "
            "`deepcache-patch branches MODEL` does",
        ),
        (
            "--schedule uniform --steps 7 --branch -1",
            "F··F··F",
            "3 of 7 steps in full, the others forecast",
        ),
        (
            "--schedule uniform --num-inference-steps 3 --interval 1",
            "FFF",
            "3 of 3 steps in full",
        ),
        (
            "--schedule uniform --steps 9 --interval 3 --scheduler heun",
            "F··F··F··F··F··F·",
            "6 of 17 steps in full, the others at branch 0",
        ),
        (
            "--schedule uniform --steps 10 --interval 3 --scheduler ddim --strength 0.75",
            "F··F··F",
            "3 of 7 steps in full, the others at branch 0",
        ),
        (
            "--schedule uniform --steps 20 --interval 3 --first 0.2 --last 2",
            "FFFF··F··F··F··F··FF",
            "10 of 20 steps in full, the others at branch 0",
        ),
        (
            "--schedule centred --interval 5 --center 15 --power 1.4",
            "F····F···F···F···F···F····F····F·····F·····F······",
            "10 of 50 steps in full, the others at branch 0",
        ),
    ],
)
def test_a_plan_is_a_strip_and_a_count(
    arguments: str, strip: str, counted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments.split()) == 0
    assert capsys.readouterr() == (f"{strip}\n{counted}\n", "")


@pytest.mark.parametrize(
    ("arguments", "full", "steps"),
    [
        ("--steps 25 --full-steps 13", 13, 25),
        ("--steps 25 --full-steps 25", 25, 25),
        ("--steps 25 --full-steps 1", 1, 25),
        ("--steps 25 --full-steps 9 --schedule auto --branch 0", 9, 25),
        ("--steps 25 --full-steps 7 --first 2 --last 0.1", 7, 25),
        ("--steps 25 --full-steps 3 --last 2", 3, 25),
        ("--steps 20 --full-steps 13 --scheduler heun", 13, 39),
        ("--steps 40 --full-steps 13 --scheduler ddim --strength 0.75", 13, 30),
        ("--steps 1000 --full-steps 333", 333, 1000),
    ],
)
def test_so_many_steps_as_are_asked_for_run_in_full(
    arguments: str, full: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments.split(), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (len(shown["full_steps"]), shown["steps"]) == (full, steps)


@pytest.mark.parametrize(
    ("spelt", "known"),
    [
        *((name, "dpm-solver++") for name in ("dpmpp", "dpmpp-2m", "dpm++", "dpm++2m", "DPM++ 2M")),
        *((name, "dpm-solver++-karras") for name in ("dpmpp_2m_karras", "DPM++ 2M Karras")),
        ("dpmpp_2m_sde", "dpm-solver++-sde"),
        ("DPMSolverMultistep", "DPMSolverMultistepScheduler"),  # as reports name it
        ("DPM++ 2M SDE Karras", "dpm-solver++-sde-karras"),
        ("euler_ancestral", "euler-ancestral"),
        ("DPMSolver++", "dpm-solver++"),
        *((name, name) for name in (*SCHEDULERS, "EulerDiscreteScheduler")),
    ],
)
def test_a_scheduler_is_known_as_other_programs_write_it(spelt: str, known: str) -> None:
    assert scheduler_name(spelt) == known


def unchecked(others: str) -> str:
    """What is said of a branch that no model was asked for."""
    branch = others.removeprefix("at branch ")
    if branch == others:
        return ""
    return (
        f"no model tells here whether there is a branch {branch}: "
        "`deepcache-patch branches MODEL` does\n"
    )


def usual(name: str, **options: Any) -> Any:
    """A scheduler as Stable Diffusion has it."""
    kind = getattr(diffusers, name)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return kind(**betas, **{"steps_offset": 1, "timestep_spacing": "leading"} | options)


@pytest.mark.parametrize(
    ("arguments", "scheduler", "steps", "others"),
    [
        ("--scheduler ddim", usual("DDIMScheduler"), 50, "forecast"),
        (
            "--steps 25 --scheduler dpm-solver++",
            usual("DPMSolverMultistepScheduler"),
            25,
            "forecast",
        ),
        (
            "--steps 25 --scheduler DPMSolverMultistepScheduler --spacing trailing --branch 2",
            usual("DPMSolverMultistepScheduler", timestep_spacing="trailing"),
            25,
            "at branch 2",
        ),
        (
            "--steps 25 --scheduler dpm-solver++-karras --spacing linspace",
            usual(
                "DPMSolverMultistepScheduler", timestep_spacing="linspace", use_karras_sigmas=True
            ),
            25,
            "forecast",
        ),
    ],
)
def test_a_plan_by_a_schedulers_noise_levels(
    arguments: str,
    scheduler: Any,
    steps: int,
    others: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*arguments.split()) == 0
    expected = plan_by(scheduler, NoiseAware(branch=0), steps)
    name = arguments.split("--scheduler ")[1].split()[0]
    full = int(steps / 2.2)
    assert capsys.readouterr() == (
        f"{expected}\n{full} of {steps} steps in full, the others {others}\n"
        f"by the noise levels of {name}\n{unchecked(others)}",
        "",
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--steps 20", "the first generation in each setting runs in full, to learn"),
        ("--steps 16", "7 full steps, too few to learn from: as the default"),
        ("--steps 20 --speedup 4", "5 full steps, too few to learn from: as the default"),
        ("--steps 20 --branch 0", "nothing is learned at branch 0: as the default"),
    ],
)
def test_the_plan_of_auto_is_the_defaults_and_says_whether_it_learns(
    more: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcache_patch.learning.auto.FEW_FULL_STEPS", 8)
    for scheduler in ([], ["--scheduler", "euler"]):
        shown = []
        for name in ("default", "noise-aware", "auto"):
            assert run("--schedule", name, *more.split(), *scheduler) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]
        assert shown[2] == f"{shown[0]}{said}\n"


def test_a_generation_from_a_picture_is_planned_from_where_it_begins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*["--steps", "40", "--scheduler", "euler", "--strength", "0.5"]) == 0
    expected = plan_by(usual("EulerDiscreteScheduler"), NoiseAware(branch=0), 40, strength=0.5)
    strip, counted, _ = capsys.readouterr().out.splitlines()
    assert (strip, counted) == (str(expected), "9 of 20 steps in full, the others forecast")


def test_without_a_scheduler_a_plan_goes_by_usual_levels_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = "by the noise levels of most schedulers; for those of yours give --scheduler NAME\n"
    for more, schedule in {
        (): NoiseAware(),
        ("--interval", "2.5"): NoiseAware(2.5),
        ("--interval", "3", "--branch", "1"): NoiseAware(3, 1),
    }.items():
        assert run("--steps", "25", *more) == 0
        plan = schedule.plan(25)
        assert capsys.readouterr() == (
            f"{plan}\n{len(plan.full_steps)} of 25 steps in full, the others "
            f"{'at branch 1' if schedule.branch == 1 else 'forecast'}\n{said}"
            f"{unchecked('at branch 1') if schedule.branch == 1 else ''}",
            "",
        )


def test_a_speedup_is_the_interval_that_a_helper_takes_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for speedup in ("1", "2", "3.3"):
        assert run("--steps", "30", "--scheduler", "ddim", "--speedup", speedup) == 0
        pipe = CASES["sd"].load()
        pipe.scheduler = usual("DDIMScheduler")
        plan = DeepCacheHelper(pipe, speedup=float(speedup)).plan(30)
        assert capsys.readouterr().out.splitlines()[0] == str(plan)
        assert len(plan.full_steps) == int(30 / float(speedup))


@pytest.mark.parametrize("steps", [9, 15])
def test_with_few_steps_the_plan_says_what_to_expect(
    steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "with 15 steps or fewer pictures move far from the plain ones: "
        "try the default with interval=1.5"
    )
    assert run("--steps", str(steps)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert run("--steps", str(steps), "--interval", "1.5") == 0
    assert said not in capsys.readouterr().out
    assert run("--steps", "16") == 0
    assert said not in capsys.readouterr().out
    assert run("--steps", str(steps), "--schedule", "uniform") == 0
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_protected_steps_come_on_top_of_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*["--steps", "30", "--interval", "3", "--first", "4", "--last", "2"]) == 0
    strip, counted, _ = capsys.readouterr().out.splitlines()
    assert (strip[:4], strip[-2:], strip.count("F")) == ("FFFF", "FF", 14)
    assert counted == "14 of 30 steps in full, the others forecast"


def test_few_steps_run_in_full_and_the_plan_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "FFFFFFFF\n8 of 8 steps in full\ngenerations of 8 steps or fewer run in full\n"
    for more in ([], ["--scheduler", "euler"]):
        assert run("--steps", "8", *more) == 0
        assert capsys.readouterr() == (shown, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--center 3", "center is a setting of centred, not of default"),
        (
            "--schedule uniform --power 2",
            "power is a setting of centred, not of uniform",
        ),
        (
            "--schedule uniform --interval 2.5",
            "interval must be an integer of at least 1, not 2.5",
        ),
        *(
            (
                f"--interval {fraction}",
                f"Invalid value for '--interval': '{fraction}' is no finite number: write a "
                "decimal, 1.92, or --full-steps 13 for 13 of 25 steps",
            )
            for fraction in ("25/13", "13/25")
        ),
        (
            "--speedup 25/13",
            "Invalid value for '--speedup': '25/13' is no finite number: write a decimal, 1.92",
        ),
        ("--interval 25/0", "Invalid value for '--interval': '25/0' is no finite number"),
        ("--full-steps 9 --interval 2", "give one of --interval and --full-steps, not both"),
        ("--full-steps 9 --speedup 2", "give one of --speedup and --full-steps, not both"),
        (
            "--schedule uniform --full-steps 9",
            "--full-steps goes with --schedule default or auto",
        ),
        (
            "--steps 9 --full-steps 10",
            "--full-steps 10 is more than the generation has: 9; give 9 or fewer, or more --steps",
        ),
        (
            "--steps 20 --full-steps 4 --first 3 --last 0.1",
            "--full-steps 4 is fewer than run in full in any case, by --first and --last: 5",
        ),
        ("--interval 0.5", "Invalid value for '--interval': 0.5 is too small: 1 is the least"),
        ("--strength 0.5", "--strength goes with --scheduler"),
        ("--schedule uniform --spacing leading", "--spacing goes with --scheduler"),
        (
            "--scheduler ddim --strength 2",
            "Invalid value for '--strength': 2 is too large: 1 is the most",
        ),
        (
            "--scheduler of-this-name",
            "Invalid value for '--scheduler': there is no scheduler 'of-this-name'; there are "
            f"{', '.join(SCHEDULERS)}, and the classes of diffusers",
        ),
        (  # "euler" is as near by letters
            "--scheduler euler-a",
            "Invalid value for '--scheduler': there is no scheduler 'euler-a': did you mean "
            "'euler-ancestral'? There are "
            f"{', '.join(SCHEDULERS)}, and the classes of diffusers",
        ),
        (  # "ddpm" is nearest by letters
            "--scheduler dpmpp_sde",
            "Invalid value for '--scheduler': there is no scheduler 'dpmpp_sde': did you mean one "
            "of dpm-solver++, dpm-solver++-karras, dpm-solver++-sde, dpm-solver++-sde-karras, "
            f"dpm-solver++-single? There are {', '.join(SCHEDULERS)}, and the classes of diffusers",
        ),
        (
            "--scheduler EulerDiscretScheduler",
            "there is no scheduler 'EulerDiscretScheduler': did you mean 'EulerDiscreteScheduler'? "
            f"There are {', '.join(SCHEDULERS)}, and the classes of diffusers",
        ),
        (
            "--schedule centred --power 0.5",
            "power must be a number from 1 to 10, not 0.5",
        ),
        *(
            (
                f"--schedule adaptive --interval 2 {more}",
                f"Adaptive decides while a generation runs, at most {most} steps in full: there is "
                "no plan before it; `compare` and `last_generations` tell what ran",
            )
            for more, most in {"": "25 of 50", "--steps 20 --first 4": "12 of 20"}.items()
        ),
        *(
            (
                f"--schedule {name}",
                f"Invalid value for '--schedule': there is no schedule '{name}'{meant} "
                "are default, noise-aware, uniform, centred, auto, adaptive, or a file that "
                "`calibrate` wrote",
            )
            for name, meant in {
                "nothing-of-this-name": "; there",
                "unifrom": ": did you mean 'uniform'? There",
                "dfault": ": did you mean 'default'? There",
            }.items()
        ),
        *(
            (f"--schedule {name}", f"cannot read --schedule {name}: No such file or directory")
            for name in ("unifrom.json", "./unifrom")
        ),
        (
            "--speedup 2 --interval 2",
            "give one of --interval and --speedup, not both",
        ),
        ("--schedule uniform --speedup 2", "--speedup goes with --schedule default or auto"),
        (
            "--speedup 2 --branch 0",
            "--speedup needs to know what a call at branch 0 costs, which depends on the model: "
            "`deepcache-patch branches MODEL` tells; give --interval here, or --branch -1, where "
            "it costs nothing",
        ),
        ("--speedup 0.5", "speedup must be a number from 1 to 1000, not 0.5"),
        (
            "--steps 0",
            "Invalid value for '--steps' / '--num-inference-steps': 0 is too small: 1 is the least",
        ),
        ("--branch -2", "Invalid value for '--branch': -2 is too small: -1 is the least"),
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
        shown = (
            "FF·F·\n3 of 5 steps in full, the others forecast\n"
            "calibrated for 5 steps with DPMSolverMultistepScheduler\n"
        )
        assert capsys.readouterr() == (shown, "")
    shorter = SCHEDULE | {"timesteps": [801.0, 1.0], "plan": [FULL, -1], "weights": []}
    file.write_text(json.dumps(WHOLE | {"schedules": [SCHEDULE, shorter]}), encoding="utf-8")
    assert run("--schedule", str(file)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "FF·F·",
        "3 of 5 steps in full, the others forecast",
        "calibrated for 5 steps with DPMSolverMultistepScheduler",
        "F·",
        "1 of 2 steps in full, the others forecast",
        "calibrated for 2 steps with DPMSolverMultistepScheduler",
    ]
    file.write_bytes(VALID)
    assert run("--schedule", str(file), "--last", "1") == 0
    assert capsys.readouterr().out.startswith("FF·FF\n4 of 5 steps in full")
    for more, message in {
        ("--steps", "9"): f"{file} was calibrated for 5 steps, not 9: leave --steps out",
        ("--interval", "3"): "--interval does not go with the file of --schedule, which has its "
        "plan",
        ("--scheduler", "ddim"): "--scheduler does not go with the file of --schedule, which has "
        "its plan",
    }.items():
        assert run("--schedule", str(file), *more) == 2
        assert capsys.readouterr().err == f"deepcache-patch plan: error: {message}\n"


def test_a_plan_by_step_numbers_needs_no_torch() -> None:
    # Importing torch and diffusers takes seconds, and so did `--help` and every mistyped option.
    code = """
import sys
from deepcache_patch.cli.main import main
uniform = ["plan", "--schedule", "uniform", "--steps", "3"]
for arguments in (uniform, ["compare", "--help"], ["--version"], ["--wrong"]):
    main(arguments)
print({"torch", "diffusers", "gradio"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")
