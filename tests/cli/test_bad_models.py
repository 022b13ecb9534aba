"""Model folders that are none, are damaged, or bring code along: one line, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.cases import CASES
from builders.versions_needed import needs
from diffusers import DiffusionPipeline

from deepcache_patch.cli import loading
from deepcache_patch.cli.main import main

pytestmark = pytest.mark.usefixtures("phases")


@pytest.fixture(autouse=True)
def _far_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    CASES["sd"].load().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def config(part: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (path,) = (folder / part).glob("*config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return write


def weights(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        path.write_bytes(edit(path.read_bytes()))

    return change


def removed(pattern: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return remove


def piped(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    os.mkfifo(folder / "model_index.json")


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no-json": (written("model_index.json", "{"), "cannot be loaded: "),
    "empty": (written("model_index.json", ""), "cannot be loaded: Expecting value"),
    "no-text": (written("model_index.json", b"\xff\xfe\x00"), "cannot be loaded: "),
    "nested": (written("model_index.json", "[" * 100_000), "maximum recursion depth"),
    "list": (written("model_index.json", "[]"), "names None, which is no pipeline"),
    "no-class": (written("model_index.json", "{}"), "names None, which is no pipeline"),
    "pipe": (piped, "has no model_index.json"),
    "unknown-class": (lambda f: index(f, _class_name="Nope"), "'Nope', which is no pipeline"),
    "module": (lambda f: index(f, _class_name="utils"), "'utils', which is no pipeline"),
    "model": (lambda f: index(f, _class_name="UNet2DModel"), "'UNet2DModel', which is no pipe"),
    "dunder": (lambda f: index(f, _class_name="__dict__"), "'__dict__', which is no pipeline"),
    "escape": (lambda f: index(f, _class_name="\x1b[2J\n"), r"'\x1b[2J\n', which is no pipe"),
    "number-for-a-part": (lambda f: index(f, unet=[1, 2]), "unet is [1, 2], not a library and"),
    "three-for-a-part": (lambda f: index(f, unet=["a"] * 3), "not a library and a class"),
    "unknown-part": (lambda f: index(f, unet=["diffusers", "Nope"]), "cannot be loaded: "),
    "function": (lambda f: index(f, unet=["diffusers", "logging"]), "cannot be loaded: "),
    "no-unet": (lambda f: index(f, unet=[None, None]), ""),
    "no-weights": (removed("unet/*.safetensors"), "cannot be loaded: "),
    "no-config": (removed("unet/config.json"), "cannot be loaded: "),
    "cut-off": (weights(lambda data: data[: len(data) // 2]), "cannot be loaded: "),
    "cut-off-early": (weights(lambda data: data[:5]), "cannot be loaded: "),
    "no-bytes": (weights(lambda data: b""), "cannot be loaded: "),
    "endless-header": (
        weights(lambda data: struct.pack("<Q", 2**60) + data[8:]),
        "cannot be loaded: ",
    ),
    "other-weights": (config("unet", block_out_channels=[64, 64]), "cannot be loaded: "),
    "words-in-a-config": (config("unet", layers_per_block="many"), "cannot be loaded: "),
    "words-in-a-scheduler": (config("scheduler", num_train_timesteps="many"), "cannot be loaded"),
}


def refusal(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["branches", str(folder)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("deepcache-patch branches: error: ")
    assert len(err) < 1100
    return err


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_one_line(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, reason = DAMAGED[name]
    damage(folder)
    assert reason in refusal(folder, capfd)


# --- code -----------------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path: Path) -> str:
    """Python that leaves a mark if it is run."""
    return f"open({str(tmp_path / 'was-run')!r}, 'w').close()\nclass Custom: pass\n"


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


def pipeline_of_its_own(folder: Path, code: str) -> None:
    (folder / "custom.py").write_text(code)
    index(folder, _class_name=["custom", "Custom"])


def pipeline_by_default(folder: Path, code: str) -> None:
    # diffusers looks for `{custom_pipeline}.py`, and that is None.
    (folder / "None.py").write_text(code)


def part_of_its_own(folder: Path, code: str) -> None:
    (folder / "unet" / "custom.py").write_text(code)
    index(folder, unet=["custom", "Custom"])


def part_named_like_a_library(folder: Path, code: str) -> None:
    (folder / "unet" / "diffusers.py").write_text(code)


def module_beside(folder: Path, code: str) -> None:
    # `python -m` looks for modules in the folder where it is called.
    (folder / "custom_module_beside.py").write_text(code)
    index(folder, unet=["custom_module_beside", "Custom"])


def pipeline_within(folder: Path, code: str) -> None:
    inner = folder / "unet"
    (inner / "model_index.json").write_text(json.dumps({"_class_name": ["custom", "Custom"]}))
    (inner / "custom.py").write_text(code)
    index(folder, unet=["diffusers", "DiffusionPipeline"])


def automatic_class(folder: Path, code: str) -> None:
    # transformers would ask on stdout whether to run it, and wait for an answer.
    (folder / "text_encoder" / "custom.py").write_text(code)
    config("text_encoder", auto_map={"AutoModel": "custom.Custom"}, model_type="mine")(folder)
    index(folder, text_encoder=["transformers", "AutoModel"])


def custom_class_of_a_model(folder: Path, code: str) -> None:
    (folder / "unet" / "custom.py").write_text(code)
    config("unet", auto_map={"AutoModel": "custom.Custom"})(folder)
    index(folder, unet=["diffusers", "AutoModel"])


def pickled_unet(folder: Path, code: str) -> None:
    removed("unet/*.safetensors")(folder)
    torch.save({"conv_in.weight": Bomb(code)}, folder / "unet" / "diffusion_pytorch_model.bin")


def pickled_unet_of_old(folder: Path, code: str) -> None:
    removed("unet/*.safetensors")(folder)
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    path.write_bytes(pickle.dumps(Bomb(code)))


def pickled_text_encoder(folder: Path, code: str) -> None:
    removed("text_encoder/*.safetensors")(folder)
    torch.save({"a": Bomb(code)}, folder / "text_encoder" / "pytorch_model.bin")


#: The last four are refused by diffusers, torch and transformers, the others before those ask.
CODE: list[tuple[Callable[[Path, str], None], str]] = [
    (pipeline_of_its_own, "names ['custom', 'Custom'], which is no pipeline of diffusers"),
    (pipeline_by_default, "it brings code along, None.py"),
    (part_of_its_own, "its unet is ['custom', 'Custom']: only classes of diffusers"),
    (part_named_like_a_library, "its unet brings code along, unet/diffusers.py"),
    (module_beside, "its unet is ['custom_module_beside', 'Custom']: only classes of diffusers"),
    (pipeline_within, "names ['custom', 'Custom'], which is no pipeline of diffusers"),
    (automatic_class, "its text_encoder is ['transformers', 'AutoModel']: only classes of"),
    (custom_class_of_a_model, "cannot be loaded: "),
    (pickled_unet, "cannot be loaded: "),
    (pickled_unet_of_old, "cannot be loaded: "),
    (pickled_text_encoder, "cannot be loaded: "),
]


@pytest.mark.parametrize(("plant", "reason"), CODE)
def test_code_that_a_folder_brings_is_never_run(
    plant: Callable[[Path, str], None],
    reason: str,
    folder: Path,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant(folder, code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as `python -m` has it there
    assert reason in refusal(folder, capfd)
    assert not (tmp_path / "was-run").exists()


def test_the_code_would_leave_a_mark(code: str, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(code)))
    assert (tmp_path / "was-run").exists()


@needs("torch", "2.6")
def test_pickled_weights_without_code_are_read(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    removed("unet/*.safetensors")(folder)
    state = CASES["sd"].load().unet.state_dict()
    torch.save(state, folder / "unet" / "diffusion_pytorch_model.bin")
    assert main(["branches", str(folder)]) == 0
    assert capfd.readouterr().err == ""


def test_a_torch_that_can_be_tricked_reads_no_pickles(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    removed("unet/*.safetensors")(folder)
    state = CASES["sd"].load().unet.state_dict()
    torch.save(state, folder / "unet" / "diffusion_pytorch_model.bin")
    monkeypatch.setattr("deepcache_patch.cli.loading.safely", lambda: {"use_safetensors": True})
    assert "safetensors" in refusal(folder, capfd)


def test_what_comes_from_the_hub_is_looked_at_as_well(
    folder: Path,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DiffusionPipeline, "download", lambda _id, **_: str(folder))
    cpu = torch.device("cpu")
    pipe = loading.load_pipeline("somebody/model", cpu, torch.float32)
    assert pipe.name_or_path == "somebody/model"
    part_named_like_a_library(folder, code)
    assert main(["branches", "somebody/model"]) == 2
    reason = "its unet brings code along, unet/diffusers.py"
    message = f"deepcache-patch branches: error: somebody/model cannot be loaded: {reason}\n"
    assert capfd.readouterr().err == message
    assert not (tmp_path / "was-run").exists()
