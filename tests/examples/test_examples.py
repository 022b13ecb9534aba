"""The scripts in `examples/`: each is run, says at its end what it did, and is shown to readers."""

import io
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import accelerate
import diffusers
import pytest
import torch
from builders import hub
from builders.cases import picture
from builders.k_diffusion_samplers import k_diffusion
from builders.marks import mostly_slow
from builders.models import MODELS
from fastapi.testclient import TestClient
from PIL import Image, ImageChops

from deepcache_patch import Stats

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
#: Those that are run in `test_ray.py`, with the model that they name.
WITH_RAY = [name for name in SCRIPTS if name.startswith("ray_")]
SHAPES = ROOT / "benchmarks" / "models" / "shapes"
PROMPT = "a small red circle above a large blue square"

#: Of twelve, 5 run in full by default, and 4 at interval 3.
STEPS = "--steps=12"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script as its user does, in another folder; returns the lines that it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS[name]), *options])
        runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def _finished():
    """Clears away what belongs to the process: compiled graphs, and accelerate's state."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    accelerate.PartialState._reset_state()


@pytest.fixture(scope="module")
def shapes():
    """The trained pipeline, without a helper."""
    return diffusers.DiffusionPipeline.from_pretrained(SHAPES, dtype=torch.float32)


def drawn(pipe, **call):
    """The picture of seed 0 that a pipeline makes as the scripts call it."""
    call = {"prompt": PROMPT, "num_inference_steps": 12, "guidance_scale": 4, **call}
    return pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]


def opened(file):
    """The picture in a file, which is closed again."""
    with Image.open(file) as picture:
        return picture.copy()


def halves(file):
    """The two pictures that stand side by side in a file."""
    whole = opened(file)
    side = whole.height
    assert whole.size == (2 * side, side)
    return whole.crop((0, 0, side, side)), whole.crop((side, 0, 2 * side, side))


def test_first_picture(run):
    last = run("first_picture", STEPS)[-1]
    assert last == "3 pictures, 4 full and 8 shallow calls: out/first_picture.png"
    assert opened("out/first_picture.png").size == (3 * 64, 64)


def test_sdxl_lora(run):
    last = run("sdxl_lora", STEPS)[-1]
    assert last == "2 pictures, 10 full and 14 shallow calls: out/sdxl_lora.png"
    with_lora, without = halves("out/sdxl_lora.png")
    assert ImageChops.difference(with_lora, without).getbbox()


def test_controlnet(run):
    lines = run("controlnet", STEPS)
    assert lines[-2:] == [
        "cut: unet, controlnet",
        "1 picture, 5 full and 7 shallow calls: out/controlnet.png",
    ]
    assert opened("out/controlnet.png").size == (64, 64)


def test_image_to_image(run):
    assert run("image_to_image", STEPS)[-3:] == [
        "strength 0.5: F·F·F·",
        "strength 0.8: F·F·F·F·F",
        "2 pictures, 8 full and 7 shallow calls: out/image_to_image.png",
    ]
    assert opened("out/image_to_image.png").size == (3 * 64, 64)


def test_video(run):
    # Of three full steps the output and its sample: 4 channels of 16×16 in float32 each, for four
    # frames and the two halves of guidance.
    mebibytes = 3 * 2 * 2 * 4 * 4 * 16 * 16 * 4 / 2**20
    assert run("video", STEPS, "--frames=4")[-2:] == [
        f"the cache held {mebibytes:.2f} MiB",
        "4 frames, 5 full and 7 shallow calls: out/video.gif",
    ]
    with Image.open("out/video.gif") as video:
        assert video.n_frames == 4


def test_own_loop(run):
    last = run("own_loop", STEPS)[-1]
    assert last == "4 pictures, 20 full and 28 shallow calls: out/own_loop.png"
    assert opened("out/own_loop.png").size == (4 * 32, 32)


def test_host(run):
    assert run("host", STEPS, "--check")[-2:] == [
        "the pictures are equal",
        "1 picture, 5 full and 7 shallow calls: out/host.png",
    ]
    assert opened("out/host.png").size == (32, 32)


def test_compvis_loop(run):
    assert run("compvis_loop", STEPS)[-1] == "2 pictures, 5 full and 7 shallow calls: out"
    assert opened("out/compvis_loop-1.png").size == (32, 32)


def test_k_diffusion_loop(run):
    k_diffusion()
    assert run("k_diffusion_loop", STEPS)[-2:] == [
        "FF·F··F··F··",
        "1 picture, 5 full and 7 shallow calls: out/k_diffusion_loop.png",
    ]
    assert opened("out/k_diffusion_loop.png").size == (64, 64)


# Traced for true, which takes long, in the slow one only.
@pytest.mark.usefixtures("_finished")
@pytest.mark.parametrize("stance", mostly_slow(["force_eager", "default"], 1))
def test_compile(stance, run):
    with torch.compiler.set_stance(stance):
        last = run("compile", STEPS, "--backend=eager")[-1]
    assert last == "2 pictures by eager, 10 full and 14 shallow calls: out/compile.png"
    first, second = halves("out/compile.png")
    assert ImageChops.difference(first, second).getbbox()


@pytest.mark.usefixtures("_finished")
def test_many_gpus(run, tmp_path):
    last = run("many_gpus", STEPS)[-1]
    assert last == "process 0 of 1: 4 pictures, 20 full and 28 shallow calls: out"
    assert len(list(tmp_path.glob("out/many_gpus-?.png"))) == 4


# As in test_processes.py: with `--cpu`, accelerate 1.15 starts one process without an MPI.
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]
ACCELERATE += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
ACCELERATE += ["--main_process_port=0"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
@pytest.mark.usefixtures("_finished")
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_many_gpus_in_two_processes_makes_the_pictures_of_one(launcher, run, tmp_path):
    run("many_gpus", STEPS, "--output=one")
    command = [sys.executable, "-m", *launcher, str(SCRIPTS["many_gpus"]), STEPS, "--output=two"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall("^process.*$", done.stdout, re.MULTILINE)) == [
        f"process {number} of 2: 2 pictures, 10 full and 14 shallow calls: two" for number in (0, 1)
    ]
    one, two = (
        {each.name: each.read_bytes() for each in Path(folder).iterdir()}
        for folder in ("one", "two")
    )
    assert len(one) == 4
    assert one == two


def test_migrate_from_deepcache(run):
    assert run("migrate_from_deepcache", STEPS, "--check")[-2:] == [
        "the pictures are equal",
        "2 pictures: out/migrate_from_deepcache.png",
    ]
    first, second = halves("out/migrate_from_deepcache.png")
    assert ImageChops.difference(first, second).getbbox()


def test_server(run, monkeypatch, shapes):
    served = []
    monkeypatch.setattr("uvicorn.run", lambda app, port: served.append((app, port)))
    assert run("server", "--port=8123")[-1] == "POST http://127.0.0.1:8123/generate"
    ((app, port),) = served
    assert port == 8123

    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:

        def ask(fast):
            order = {"prompt": PROMPT, "steps": 12} | ({} if fast is None else {"fast": fast})
            answer = client.post("/generate", json=order)
            assert answer.headers["content-type"] == "image/png"
            return opened(io.BytesIO(answer.content)).tobytes()

        plain = drawn(shapes).tobytes()
        assert ask(False) == plain
        counts = {field.name: 0 for field in fields(Stats)}
        assert client.get("/stats").json() == counts
        fast = ask(None)  # which is the default
        assert fast != plain
        counts = client.get("/stats").json()
        assert (counts["full_calls"], counts["shallow_calls"]) == (5, 7)
        # Several at once, each as it wants to be served.
        wanted = [True, False, True, False]
        pictures = list(pool.map(ask, wanted))
        assert pictures == [fast if each else plain for each in wanted]
        counts = client.get("/stats").json()
        assert (counts["full_calls"], counts["shallow_calls"]) == (15, 21)
        assert client.post("/generate", json={}).status_code == 422


def options_for_a_real_model(name):
    """The command-line options that the script's first lines say are to be given."""
    opening = SCRIPTS[name].read_text(encoding="utf-8").split('"""')[1]
    said = re.search(r"For a real (?:one|model): `(--[^`]+)`", opening)
    assert said, f"{name} does not say what to change"
    return said[1].split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the hub in which tiny models have the names of real ones."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        # There it is a whole pipeline.
        patch.setitem(hub.STAND_INS, "google/ddpm-cat-256", MODELS["ddpm"])
        hub.fill(folder)
    return folder


@pytest.mark.usefixtures("_finished")
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [name for name in SCRIPTS if name not in WITH_RAY],
        ["first_picture", "migrate_from_deepcache"],
    ),
)
def test_what_a_script_says_of_real_models_is_so(name, run, cache, monkeypatch, tmp_path):
    if name == "k_diffusion_loop":
        k_diffusion()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("uvicorn.run", lambda app, port: app)
    for file in ("sketch.png", "edges.png"):
        picture().save(tmp_path / file)
    steps = [] if name == "server" else [STEPS]
    with torch.compiler.set_stance("force_eager"):
        last = run(name, *options_for_a_real_model(name), *steps)[-1]
    # A server says where it listens, and DeepCache's helper counts no calls.
    assert "shallow calls" in last or name in ("server", "migrate_from_deepcache")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_run_and_shown(name):
    text = SCRIPTS[name].read_text(encoding="utf-8")
    # A fleet takes more than a script of a screen or two.
    assert 10 <= len(text.splitlines()) <= (120 if name in WITH_RAY else 60)
    file = "test_ray.py" if name in WITH_RAY else "test_examples.py"
    assert f"def test_{name}(" in Path(__file__).with_name(file).read_text(encoding="utf-8")
    assert "For a real " in text.split('"""')[1]
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert f"\n[`examples/{name}.py`](../examples/{name}.py)\n" in pages


def test_the_site_has_a_script_in_the_place_of_its_link():
    hook = runpy.run_path(str(ROOT / "docs" / "show_examples.py"))["on_page_markdown"]
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"\(\.\./examples/(\w+)\.py\)", text)
        on_the_site = hook(text)
        assert "../examples/" not in on_the_site
        for name in shown:
            code = SCRIPTS[name].read_text(encoding="utf-8")
            folded = f"<summary>examples/{name}.py</summary>\n\n```python\n{code}```\n"
            assert folded in on_the_site
