"""The scripts in `examples/` that need Ray, on a cluster of this machine with two CPUs.

Slow, and left out where there is no Ray: `make test-ray` has it.
"""

import asyncio
import io
import runpy
import socket
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import diffusers
import httpx2
import psutil
import pytest
import torch
from builders import hub
from builders.models import MODELS
from PIL import Image
from test_examples import SCRIPTS, opened, options_for_a_real_model

from deepcache_patch import Auto, DeepCacheHelper
from deepcache_patch.learning.calibrated_schedule import load_all

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray")
    pytest.importorskip("ray.serve")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what Ray itself does

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory):
    """Two CPUs, and a cache of the hub in which a tiny model has the name of a real one."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "STAND_INS", {MODEL: MODELS["sd"]})
        hub.fill(folder)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        # For the workers.
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HUB_CACHE", str(folder))
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(num_cpus=2, object_store_memory=100 * 2**20, **quiet)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def pipe():
    """The pipeline in this process, with one thread, as Ray's workers have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe = diffusers.DiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script as its user does, with the model that it names; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *options):
        real = options_for_a_real_model(name)
        assert real == ["--model", MODEL]
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS[name]), *real, *options])
        runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
        # Ray's own lines, of a worker that was killed, come coloured.
        return [line for line in capsys.readouterr().out.splitlines() if "\x1b" not in line]

    return run


def drawn(pipe, prompts, seeds, steps):
    """What the scripts' one call of a pipeline draws."""
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = {"num_inference_steps": steps, "guidance_scale": 4, "generator": generator}
    return [picture.tobytes() for picture in pipe(prompts, **call).images]


# --- many prompts ---------------------------------------------------------------------------------


PROMPTS = [f"{number} red circles" for number in range(7)]
STEPS = 24  # with 10 full ones: from fewer than 8 nothing is learned


def pictures(folder):
    return {path.name: opened(path).tobytes() for path in folder.glob("*.png")}


def by_one_process(pipe, learned):
    """The same files, in batches of two, by what was learned."""
    found = []
    with DeepCacheHelper(pipe, schedule=Auto(file=learned)) as helper:
        for first in range(0, len(PROMPTS), 2):
            numbers = range(len(PROMPTS))[first : first + 2]
            found += drawn(pipe, PROMPTS[first : first + 2], numbers, STEPS)
            assert helper.last_generations["unet"].calibration is None
    return {f"ray_batch-{number}.png": picture for number, picture in enumerate(found)}


def kill_a_worker(folder, killed):
    """Kills one that draws, as soon as there is a picture, as a machine does that goes down."""
    while not list(folder.glob("*.png")):
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(len(list(folder.glob("*.png"))))
                return


def test_ray_batch(run, pipe, tmp_path):
    folder, killed = tmp_path / "out", []
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    options = ["--prompts=prompts.txt", f"--steps={STEPS}", "--batch-size=2"]
    killer = threading.Thread(target=kill_a_worker, args=(folder, killed), daemon=True)
    killer.start()
    # Four batches by two workers, one of which is killed. Learning in full would be 24 calls.
    assert run("ray_batch", *options) == [
        f"learned: {STEPS} steps with DDIMScheduler",
        "7 pictures, 40 full and 56 shallow calls: out",
    ]
    killer.join(10)
    assert len(killed) == 1
    assert killed[0] < len(PROMPTS)
    assert len(load_all(folder / "learned.json")) == 1
    expected = by_one_process(pipe, folder / "learned.json")
    assert pictures(folder) == expected

    # Two of the last batch but one are lost with half of the first.
    for number in (0, 4, 5):
        (folder / f"ray_batch-{number}.png").unlink()
    untouched = [*folder.glob("*-[236].png"), folder / "learned.json"]
    kept = {path: path.stat().st_mtime_ns for path in untouched}
    assert len(kept) == 4
    assert run("ray_batch", *options) == [
        "learned: nothing new",
        "4 pictures, 20 full and 28 shallow calls: out",
    ]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert pictures(folder) == expected
    last = "0 pictures, 0 full and 0 shallow calls: out"
    assert run("ray_batch", *options) == [last]


# --- a server -------------------------------------------------------------------------------------


@pytest.fixture
def serve(monkeypatch, run):
    """Starts the server; its port is free again afterwards."""
    from ray import serve

    start = serve.run
    monkeypatch.setattr(serve, "run", lambda app, blocking: start(app))
    yield lambda port, *options: run("ray_serve", f"--port={port}", *options)
    serve.shutdown()


@pytest.fixture
def port():
    """One that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def order(fast=True, seed=0, steps=12):
    return {"prompt": f"{seed} red circles", "fast": fast, "seed": seed, "steps": steps}


def test_ray_serve(serve, port, pipe):
    assert serve(port, "--replicas=2")[-1] == f"POST http://127.0.0.1:{port}/generate"
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:

        def ask(wanted):
            answer = client.post("/generate", json=wanted)
            assert answer.headers["content-type"] == "image/png"
            with Image.open(io.BytesIO(answer.content)) as picture:
                return picture.tobytes(), int(answer.headers["x-shallow-calls"])

        # One after the other, so that each is drawn alone.
        (plain,) = drawn(pipe, ["0 red circles"], [0], 12)
        with DeepCacheHelper(pipe):
            (fast,) = drawn(pipe, ["0 red circles"], [0], 12)
        assert plain != fast
        assert ask(order(fast=False)) == (plain, 0)
        assert ask(order()) == (fast, 7)
        assert client.post("/generate", json={}).status_code == 422
        # Several at once, each as it wants to be served.
        wanted = [order(fast=number % 2 == 0) for number in range(6)]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, wanted)) == [(fast, 7), (plain, 0)] * 3


def test_requests_of_unlike_settings_are_not_drawn_together(monkeypatch, pipe):
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS["ray_serve"])])
    script = SimpleNamespace(**runpy.run_path(str(SCRIPTS["ray_serve"]), run_name="ray_serve"))
    # The class itself, without what answers to HTTP, and what it does with a batch.
    kind = script.Painter.func_or_class.__mro__[1]
    orders = [order(), order(fast=False), order(seed=1), order(steps=16)]
    batch = [script.Order(**each) for each in orders]
    answers = asyncio.run(kind.draw.__wrapped__(kind(MODEL), batch))
    headers = [(each["x-drawn-together"], each["x-shallow-calls"]) for _, each in answers]
    assert headers == [("2", "7"), ("1", "0"), ("2", "7"), ("1", "9")]
    with DeepCacheHelper(pipe):
        expected = drawn(pipe, ["0 red circles", "1 red circles"], [0, 1], 12)
        expected += drawn(pipe, ["0 red circles"], [0], 16)
    expected.insert(1, *drawn(pipe, ["0 red circles"], [0], 12))
    assert [opened(io.BytesIO(picture)).tobytes() for picture, _ in answers] == expected
