"""Bad input on the command line, prompts, places, options: always one line on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from builders.cases import CASES
from builders.outcomes import outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcache_patch import DeepCacheHelper
from deepcache_patch.cli import terminal
from deepcache_patch.cli.main import main
from deepcache_patch.cli.request import PipelineRequest
from deepcache_patch.compare import run as comparison
from deepcache_patch.compare.outcome import FILES

pytestmark = pytest.mark.usefixtures("phases")

PLAN = ("--full-steps", "2", "--steps", "4", "--device", "cpu")


@cache
def pipeline() -> Any:
    return CASES["sd"].load()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pipeline would be called with: no command goes further than that."""
    asked: dict[str, Any] = {}

    def stop(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise RuntimeError("as far as this")

    monkeypatch.setattr("deepcache_patch.cli.request.model_folder", lambda *_: None)
    monkeypatch.setattr(PipelineRequest, "load", lambda _asked: pipeline())
    monkeypatch.setattr(comparison, "compare", stop)
    monkeypatch.setattr(
        "deepcache_patch.measuring.generation.seeded_call", lambda _p, call, _s: stop(**call)
    )
    monkeypatch.setattr(DeepCacheHelper, "calibrate", lambda _self, run, **_: run())
    return asked


@pytest.fixture
def calibrated(seen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calibrates with a file of prompts: returns the prompts, or the line on stderr."""

    def calibrate(content: bytes | Path) -> list[str] | str:
        file = content if isinstance(content, Path) else tmp_path / "prompts.txt"
        if isinstance(content, bytes):
            file.write_bytes(content)
        seen.clear()
        out = tmp_path / "out.json"
        status = main(["calibrate", "m", "--prompts", str(file), *PLAN, "--output", str(out)])
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        assert not out.exists()
        if status == 2:
            assert seen == {}
            return err
        assert status == 1
        assert err.endswith("failed: as far as this\n")
        return [seen["prompt"]] if isinstance(seen["prompt"], str) else seen["prompt"]

    return calibrate


# --- prompts --------------------------------------------------------------------------------------

READ = {
    "line-ends": (b"a\r\nb\rc\nd", ["a", "b", "c", "d"]),
    # The mark of Windows' editors was a part of the first prompt.
    "byte-order-mark": ("\ufeffa fox".encode(), ["a fox"]),
    # A prompt that was pasted with one of these became two.
    "pasted": ("a\u2028fox\na\u0085cat\x0bx\x1cy".encode(), ["a\u2028fox", "a\u0085cat\x0bx\x1cy"]),
    "blank-lines": ("\n  \n\u3000\n a \n".encode(), ["a"]),
    "long-line": (b"fox " * 50_000, [("fox " * 50_000).strip()]),
}
REFUSED = {
    "utf-16": ("a fox\n".encode("utf-16"), "can't decode byte 0xff"),
    # It is UTF-8, too: one prompt of letters with NULs between.
    "utf-16-unmarked": ("a fox\n".encode("utf-16-le"), "holds NUL characters"),
    "latin-1": ("ein Fuchs für Jürgen".encode("latin-1"), "can't decode byte 0xfc"),
    "nul": (b"a\0b", "holds NUL characters"),
    "surrogate": (b"\xed\xa0\x80", "can't decode byte 0xed"),
    "empty": (b"", "holds no prompt: write one in each line"),
    "only-blank-lines": ("\n\r\n \t\n\u2028\n\ufeff"[:-1].encode(), "holds no prompt"),
    "only-a-mark": ("\ufeff".encode(), "holds no prompt"),
    "large": (b"a fox\n" * 200_000, "has more than 1048576 bytes"),
    "endless": (Path("/dev/zero"), "has more than 1048576 bytes"),
    "folder": (Path("/"), "Is a directory"),
    "missing": (Path("/missing"), "No such file or directory"),
    "no-path": (Path("a\0b"), "embedded null byte"),
    "line-break": (Path("/a\nb"), "cannot read --prompts /a\\nb: No such file or directory"),
}


@pytest.mark.parametrize("name", READ)
def test_prompts_are_lines_of_text(name: str, calibrated: Any) -> None:
    content, prompts = READ[name]
    assert calibrated(content) == prompts


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_prompts_is_refused(name: str, calibrated: Any) -> None:
    content, reason = REFUSED[name]
    line = calibrated(content)
    assert line.startswith("deepcache-patch calibrate: error: ")
    assert reason in line


@pytest.mark.parametrize("command", ["compare", "calibrate"])
def test_prompts_of_the_command_line_come_before_those_of_the_file(
    command: str, seen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    file, output = str(tmp_path / "prompts.txt"), str(tmp_path / "output")
    prompts = ["--prompt", "a fox", "--prompts", file, "--prompt", "a hen"]
    goal = ["--full-steps", "2"] if command == "calibrate" else []
    assert main([command, "m", *prompts, *goal, "--device", "cpu", "--output", output]) == 1
    assert seen["prompt"] == ["a fox", "a hen", "a dog", "a cat"]
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- places to write to ---------------------------------------------------------------------------


@pytest.fixture
def model(seen: dict[str, Any]) -> str:
    return "m"


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


# Each was found out after all pictures were made; the device was replaced by a file.
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "below-a-file", "proc", "null"])
def test_a_place_for_a_calibration_is_looked_at_first(
    kind: str, model: str, seen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/full")
    place = tmp_path / kind
    place = {
        "below-a-file": tmp_path / "file" / "a.json",
        "proc": Path("/proc/a.json"),
        "null": tmp_path / "a\0b",
    }.get(kind, place)
    before = sorted(tmp_path.iterdir())
    err = refused(["calibrate", model, "--prompts", __file__, *PLAN, "--output", place], capsys)
    assert "cannot write into --output " in err
    assert seen == {}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_result_is_found_first(
    name: str, model: str, seen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    err = refused(["compare", model, "--prompt", "a", "--output", tmp_path], capsys)
    message = f"cannot write into --output {tmp_path / name}: Is a directory\n"
    assert err == f"deepcache-patch compare: error: {message}"
    assert seen == {}


@pytest.fixture
def finished(seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is done; only its result has to be written."""
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: outcome())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(28, "No space"), 1), (KeyboardInterrupt, 130)]
)
def test_a_result_that_cannot_be_written_leaves_all_old_ones(
    error: Any,
    status: int,
    finished: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The picture was new, and the figures were those of an earlier run.
    arguments = ["compare", "m", "--prompt", "a", "--output", str(tmp_path)]
    for name in FILES:
        (tmp_path / name).write_text("old")
    count = []

    def fail(_descriptor: int) -> None:
        count.append(1)
        if len(count) == 2:
            raise error

    monkeypatch.setattr(os, "fsync", fail)
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert names(tmp_path) == sorted(FILES)
    assert [(tmp_path / name).read_text() for name in FILES] == ["old"] * 3


def test_bytes_that_are_no_text_do_not_cost_the_result(
    finished: None, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    # The name of a folder in Latin-1 was an UnicodeEncodeError after all pictures were made.
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    assert main(["compare", "m", "--prompt", "a", "--output", str(folder)]) == 0
    assert names(folder) == sorted(FILES)
    command = json.loads((folder / "comparison.json").read_text())["command"]
    assert command.endswith("/f\udcfcr'")
    assert capsysbinary.readouterr().out.endswith(rb"/f\udcfcr/comparison.png" + b"\n")


FINISHED = """
import sys
from deepcache_patch.cli import branches, main, terminal
branches.branches.callback = lambda **_: terminal.say("·" * 100_000)
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["branches", "m"], "deepcache-patch branches"),
        (["plan", "--help"], "deepcache-patch plan"),
        (["--version"], "deepcache-patch"),
    ],
    ids=" ".join,
)
def test_a_full_disk_for_stdout_is_one_line(arguments: list[str], where: str) -> None:
    # Python found out at its exit, with a traceback and the exit code 120.
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-c", FINISHED, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.stderr == f"{where}: error: [Errno 28] No space left on device\n"
    assert process.returncode == 1


def test_a_terminal_that_does_not_know_a_sign_gets_an_escape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    terminal.say("F··")
    assert written.getvalue() == b"F\\xb7\\xb7\n"


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        # Each was an OverflowError, and a traceback, or went on until memory ran out.
        (["--images", str(10**30)], f"{10**30} is too large: 100000 is the most"),
        (["--steps", str(10**30)], f"{10**30} is too large: 4000 is the most"),
        (["--steps", "4001"], "4001 is too large: 4000 is the most"),
        (["--seed", str(2**64)], f"{2**64} is too large: {2**63 - 1} is the most"),
        (["--seed", "0x1"], "'0x1' is no whole number"),
        # Pictures of nothing but NaN.
        (["--guidance-scale", "nan"], "'nan' is no finite number"),
        (["--guidance-scale", "1e999"], "'1e999' is no finite number"),
        # Two lines, and the terminal was told to clear itself.
        (["--steps", "1\n\x1b[2J"], r"'1\n\x1b[2J' is no whole number"),
        (["a\nb\u2028c\x1b[2J"], r"unexpected extra argument (a\nb\u2028c\x1b[2J)"),
        (["--images", "9" * 9999], "99…"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    options: list[str], reason: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(["compare", model, "--prompt", "a", *options], capsys)
    assert reason in err
    assert len(err) < 1100


@pytest.mark.parametrize(
    "model", ["~nobody-of-this-name/m", "a\0b", "a\0b/c", "\ud800", "./\ud800"]
)
def test_a_model_that_cannot_be_a_path(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    # The first was a RuntimeError: there is no home.
    err = refused(["branches", model], capsys)
    assert "there is no folder" in err or "is no folder, and not on the hub" in err


def test_a_schedule_that_is_none_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nested.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    for place, reason in {
        tmp_path / "nested.json": "is no file of calibrated schedules",
        tmp_path / "pipe": "it is a pipe or a device",
        tmp_path: "Is a directory",
        tmp_path / "missing": "No such file or directory",
    }.items():
        assert reason in refused(["compare", model, "--prompt", "a", "--schedule", place], capsys)


def test_what_nobody_thought_of_is_one_line_too(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_asked: Any) -> None:
        raise RecursionError("maximum\nrecursion")

    monkeypatch.setattr(PipelineRequest, "load", fail)
    assert main(["compare", model, "--prompt", "a"]) == 1
    message = "unexpected RecursionError: maximum (python -X dev shows where)\n"
    assert capsys.readouterr().err == f"deepcache-patch compare: error: {message}"


# --- fuzzing --------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.integers(-2, 12).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            *("", "nan", "-inf", "1e400", "9" * 5000, "a", "auto", "uniform", "reuse", "ddim"),
            *("UNet2DModel", "float32", "float8", "/dev/null", "/dev/zero", "/proc/x", "~nobody/x"),
            *(
                "\n",
                "\x1b[2J",
                "\u2028",
                "\0",
                "\udcff",
                "\ud800",
                "٣",
                "1_0",
                " 3 ",
                "-",
                "--",
                "%s",
            ),
        ]
    ),
    st.text(max_size=8),
)
OPTIONS = {
    "compare": "interval speedup full-steps schedule replay repeats",
    "calibrate": "speedup full-steps psnr",
}
SHARED = (
    "prompt prompts negative-prompt guidance-scale height width steps seed images branch scheduler "
    "device dtype output"
)


@st.composite
def command_lines(draw: Any) -> list[str]:
    command = draw(st.sampled_from(sorted(OPTIONS)))
    options = OPTIONS[command].split() + SHARED.split()
    arguments = ["--prompt", "a"] if command == "compare" else ["--full-steps", "2"]
    for name in draw(st.lists(st.sampled_from(options), max_size=4)):
        arguments.append(f"--{name}={draw(VALUES)}")
        if draw(st.integers(0, 9)) == 0:
            arguments.append(draw(VALUES))
    return [command, "m", *arguments]


FUZZ: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


def check_one_line(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    if arguments[0] == "calibrate":
        arguments = [*arguments, "--output=out.json"]
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status in (1, 2), (arguments, status)
    assert out == ""
    assert len(err.splitlines()) == 1, (arguments, err)
    assert "error: unexpected" not in err, (arguments, err)
    assert list(folder.iterdir()) == []


@settings(**FUZZ, max_examples=150)
@given(arguments=command_lines())
def test_any_command_line_is_answered_by_one_line(
    tmp_path: Path, seen: Any, monkeypatch: Any, capsys: Any, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_line(arguments, tmp_path / "work", capsys)


@pytest.mark.slow
@settings(**FUZZ, max_examples=5_000)
@given(arguments=command_lines())
def test_any_of_many_command_lines_is_answered_by_one_line(
    tmp_path: Path, seen: Any, monkeypatch: Any, capsys: Any, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_line(arguments, tmp_path / "work", capsys)


FILES_OF_PROMPTS = st.binary(max_size=40) | st.builds(
    str.encode,
    st.text(max_size=40),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"]),
    st.just("replace"),
)


def check_prompts(content: bytes, calibrated: Any) -> None:
    prompts = calibrated(content)
    if isinstance(prompts, str):
        return
    for prompt in prompts:
        assert prompt == prompt.strip()
        assert prompt
        assert not set(prompt) & set("\n\r\0")
        assert prompt.encode() in content


@settings(**FUZZ, max_examples=100)
@given(content=FILES_OF_PROMPTS)
def test_any_prompts_are_read_or_refused(calibrated: Any, content: bytes) -> None:
    check_prompts(content, calibrated)


@pytest.mark.slow
@settings(**FUZZ, max_examples=5_000)
@given(content=FILES_OF_PROMPTS)
def test_any_of_many_prompts_are_read_or_refused(calibrated: Any, content: bytes) -> None:
    check_prompts(content, calibrated)
