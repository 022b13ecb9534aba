"""Several processes: their pictures are those of one, whoever launched them, killed or not."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from accelerate import PartialState
from builders.cases import CASES

from benchmarks.fidelity import evaluation_set

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 40
#: With fewer full steps auto has nothing to learn from.
OPTIONS = ["--batch", "2", "--steps", "16", "--interval", "2", "--cpu"]

#: With `--cpu` of its own, accelerate 1.15 starts one process however many are asked for, unless it
#: finds an MPI. What its name calls several GPUs starts any number; the script picks the device.
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]
ACCELERATE += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
ACCELERATE += ["--main_process_port=0", "--module"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    CASES["sd"].load().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("".join(f"{number} red circles\n" for number in range(PICTURES)))
    return file


@pytest.fixture
def one_process(model, prompts, tmp_path):
    """Gives the files that one process makes, by name."""

    def make(*options):
        folder = tmp_path / "one-process"
        try:
            status = evaluation_set.main([*map(str, (model, prompts, folder)), *OPTIONS, *options])
        finally:
            PartialState._reset_state()
        assert status == 0
        return files(folder)

    return make


@pytest.fixture
def launch(model, prompts, tmp_path):
    """Starts two processes that make the same pictures in `folder`; ends what is left of them."""
    started = []

    def start(launcher, folder, *options):
        arguments = [*map(str, (model, prompts, folder)), *OPTIONS, *options]
        command = [sys.executable, "-m", *launcher, evaluation_set.__name__, *arguments]
        with (tmp_path / "said.txt").open("a") as said:
            process = psutil.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_running():
            kill(process)


def kill(launcher):
    """Kill the processes and what launched them, as a machine does that goes down."""
    for process in (*launcher.children(recursive=True), launcher):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    launcher.wait()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pictures(folder):
    return sorted(folder.glob("*.png"))


def other_of_batch(path):
    return path.with_name(f"{int(path.stem) ^ 1:06d}.png")


@pytest.mark.slow
def test_two_processes_that_are_killed_and_launched_again_make_the_pictures_of_one(
    one_process, launch, tmp_path
):
    folder = tmp_path / "two-processes"
    first = launch(TORCHRUN, folder, "--auto")
    while len(pictures(folder)) < 8:
        assert first.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.01)
    kill(first)
    made = pictures(folder)
    assert len(made) < PICTURES
    made[0].unlink()
    made[-1].unlink()
    whole = [path for path in pictures(folder) if other_of_batch(path).exists()]
    kept = {path: path.stat().st_mtime_ns for path in whole}
    assert kept
    second = launch(ACCELERATE, folder, "--auto")
    assert second.wait(120) == 0, (tmp_path / "said.txt").read_text()
    for path in folder.glob("*.partial"):  # of the moment when they were killed
        path.unlink()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files(folder) == one_process("--auto")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_two_processes_make_the_pictures_of_one(launcher, one_process, launch, tmp_path):
    folder = tmp_path / "two-processes"
    process = launch(launcher, folder)
    workers = []
    while len(pictures(folder)) < 2:
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        workers = process.children()
        time.sleep(0.01)
    assert len(workers) == 2
    assert process.wait(120) == 0, (tmp_path / "said.txt").read_text()
    assert files(folder) == one_process()
    assert launch(launcher, folder, "--seed=1").wait(120) == 1
    assert "seed was 0, is 1" in (tmp_path / "said.txt").read_text()


@pytest.mark.slow
def test_what_is_said_of_wrappers_holds_in_two_processes():
    command = [sys.executable, "-m", *TORCHRUN, "pytest", "-q", "-p", "no:cacheprovider"]
    command.append("tests/patching/test_wrappers.py")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
