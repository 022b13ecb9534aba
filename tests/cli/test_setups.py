"""Set-ups as people have them, from the shell: LoRAs, variants, revisions, offloading, pictures to
begin with, any argument of the call. Through the real loading code, on tiny saved pipelines.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from builders.adapters import lora
from builders.marks import mostly_slow
from builders.models import MODELS, model_folder
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import save_file

from deepcache_patch.cli import loading
from deepcache_patch.cli.arguments import argument
from deepcache_patch.cli.loras import lora as typed_lora
from deepcache_patch.cli.main import main
from deepcache_patch.cli.request import PipelineRequest
from deepcache_patch.compare import run as comparison
from deepcache_patch.compare.about import LORA_FILES, MODEL_FILES

pytestmark = pytest.mark.usefixtures("phases", "kept_tables")

SD, SDXL = "sd", "sdxl"


@pytest.fixture(autouse=True)
def _far_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `compare` was called with; it then stops."""
    seen: dict[str, Any] = {}

    def spy(helper: Any, **options: Any) -> None:
        seen.update(options, pipe=helper.pipe)
        raise ValueError("seen")

    monkeypatch.setattr(comparison, "compare", spy)
    return seen


def compare(model: Any, *options: Any) -> int:
    place = model_folder(MODELS[model]) if model in (SD, SDXL, "ddpm") else model
    prompt = [] if model == "ddpm" else ["--prompt", "a fox"]
    return main(["compare", str(place), *prompt, "--device", "cpu", *map(str, options)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on stderr, without what it begins with."""
    assert compare(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    return err.removeprefix("deepcache-patch compare: error: ").removesuffix("\n")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((16, 16)).save(path)
    return path


# --- LoRAs ----------------------------------------------------------------------------------------


@pytest.fixture
def loras(tmp_path: Path) -> list[Path]:
    unet = MODELS[SDXL]().unet
    paths = [tmp_path / f"{name}.safetensors" for name in ("ink", "oil")]
    for seed, path in enumerate(paths):
        save_file(lora(unet, seed=seed), path)
    return paths


def test_loras_are_loaded_each_with_its_scale(loras: list[Path], asked: dict[str, Any]) -> None:
    compare(SDXL, "--lora", loras[0], "--lora", f"{loras[1]}:0.25")
    here = asked["pipe"].unet
    expected = DiffusionPipeline.from_pretrained(model_folder(MODELS[SDXL]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft asks whether several are meant
        for name, path in zip("ab", loras, strict=True):
            expected.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    expected.set_adapters(["a", "b"], [1.0, 0.25])
    scales = [
        {
            name: module.scaling
            for name, module in unet.named_modules()
            if hasattr(module, "scaling")
        }
        for unet in (here, expected.unet)
    ]
    assert next(iter(scales[0].values())) == {"lora_0": 1.0, "lora_1": 0.25}
    files = {f"lora_{number}": str(path) for number, path in enumerate(loras)}
    assert getattr(asked["pipe"], LORA_FILES) == files  # which is what is to be pasted
    for mine, theirs in zip(here.parameters(), expected.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert [[*each.values()] for each in scales[0].values()] == [
        [*each.values()] for each in scales[1].values()
    ]


def test_a_colon_that_no_number_follows_is_a_part_of_the_name(
    tmp_path: Path, loras: list[Path], asked: dict[str, Any]
) -> None:
    path = loras[0].rename(tmp_path / "a:b.safetensors")
    compare(SDXL, "--lora", path)
    assert asked["pipe"].get_active_adapters() == ["lora_0"]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("./missing.safetensors", "there is no file or folder --lora ./missing.safetensors"),
        ("missing.safetensors:0.5", "there is no file or folder --lora missing.safetensors"),
        (":0.5", "Invalid value for '--lora': ':0.5' is no PATH[:SCALE], such as style.safetensor"),
        ("a:nan", "Invalid value for '--lora': 'a:nan' is no PATH[:SCALE]"),
    ],
)
def test_a_lora_that_is_none_is_refused_before_a_model_is_loaded(
    option: str, reason: str, phases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, SDXL, "--lora", option).startswith(reason)
    assert phases == []


def test_a_lora_of_another_model_and_a_damaged_one_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 2)}, file)
    line = refused(capsys, SDXL, "--lora", file)
    assert line.startswith(f"--lora {file} ")
    file.write_bytes(b"nothing")
    assert refused(capsys, SDXL, "--lora", file).startswith(f"--lora {file} cannot be loaded: ")


def test_a_pipeline_that_takes_no_lora_says_so(
    loras: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "ddpm", "--lora", loras[0])
    assert line == "DDPMPipeline takes no LoRA: leave --lora out"


# --- packages that lack ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "options", "what"),
    [
        ("peft", ["--lora", __file__], "--lora"),
        ("accelerate", ["--offload", "model"], "--offload"),
    ],
)
def test_what_an_option_needs_is_named_before_a_model_is_loaded(
    package: str,
    options: list[str],
    what: str,
    phases: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model_folder(MODELS[SDXL])
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(capsys, SDXL, *options) == (
        f"{what} needs {package}, which is not installed: pip install {package}"
    )
    assert phases == []


def test_a_missing_transformers_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # diffusers has something without a `from_pretrained` in the place of the pipeline's class then.
    model_folder(MODELS[SD])
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused(capsys, SD).endswith(
        "cannot be loaded: it needs transformers, which is not installed: pip install transformers"
    )


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_package_that_an_import_lacks_is_named(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # diffusers cannot be imported with peft and without transformers, and names its own modules.
    def fail(_asked: Any) -> None:
        try:
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers.models")
        except ModuleNotFoundError as error:
            if not wrapped:
                raise
            raise RuntimeError("Failed to import diffusers.pipelines\nand so on") from error

    monkeypatch.setattr(PipelineRequest, "load", fail)
    assert compare(SD) == 1
    message = "transformers is needed and not installed: pip install transformers"
    assert capsys.readouterr() == ("", f"deepcache-patch compare: error: {message}\n")


def test_pixel_pipelines_need_no_transformers(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    model_folder(MODELS["ddpm"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    compare("ddpm")
    assert type(asked["pipe"]).__name__ == "DDPMPipeline"


# --- files of weights -----------------------------------------------------------------------------


def test_a_variant_is_loaded(tmp_path: Path, asked: dict[str, Any]) -> None:
    pipe = DiffusionPipeline.from_pretrained(model_folder(MODELS[SD])).to(torch.float16)
    pipe.unet.conv_in.bias.data.fill_(3)
    pipe.save_pretrained(tmp_path / "sd", variant="fp16")
    compare(tmp_path / "sd", "--variant", "fp16", "--dtype", "float16")
    assert torch.equal(asked["pipe"].unet.conv_in.bias, pipe.unet.conv_in.bias)
    assert getattr(asked["pipe"], MODEL_FILES) == {"variant": "fp16"}


def test_a_variant_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, SD, "--variant", "fp16")
    assert line.endswith(
        " cannot be loaded: it has no weights of --variant fp16: leave the option out"
    )


def test_a_revision_is_asked_of_the_hub_and_refused_for_a_folder(
    phases: list[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted: list[Any] = []

    def download(name: str, **options: Any) -> Path:
        wanted.append((name, options.get("revision"), options.get("variant")))
        return model_folder(MODELS[SD])

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    compare("somebody/model", "--revision", "v1.1")
    assert wanted == [("somebody/model", "v1.1", None)]
    assert asked["pipe"].name_or_path == "somebody/model"
    assert getattr(asked["pipe"], MODEL_FILES) == {"revision": "v1.1"}

    phases.clear()
    capsys.readouterr()
    folder = model_folder(MODELS[SD])
    assert refused(capsys, SD, "--revision", "v1.1") == (
        f"--revision v1.1 is for the hub, {folder} is here: leave it out"
    )
    assert phases == []


# --- offloading -----------------------------------------------------------------------------------


def test_there_is_nothing_to_offload_to_on_the_cpu(
    phases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, SD, "--offload", "model") == (
        "--offload keeps models on the CPU until they run on another device, and this is the CPU: "
        "leave it out"
    )
    assert phases == []


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_offloading_is_that_of_diffusers(
    kind: str, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """The device has nothing behind it; that whole pictures come is tested in `running`."""
    moved: list[Any] = []
    monkeypatch.setattr(loading, "choose_device", lambda _name: torch.device("meta"))
    monkeypatch.setattr(loading, "choose_dtype", lambda *_: torch.float32)

    def enable(pipe: Any, *, device: torch.device) -> None:
        moved.append((pipe.unet.device.type, device.type))

    monkeypatch.setattr(DiffusionPipeline, f"enable_{kind}_cpu_offload", enable)
    compare(SD, "--offload", kind)
    assert moved == [("cpu", "meta")]


def test_a_pipeline_that_cannot_be_offloaded_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "choose_device", lambda _name: torch.device("meta"))
    monkeypatch.setattr(loading, "choose_dtype", lambda *_: torch.float32)
    monkeypatch.setattr(StableDiffusionImg2ImgPipeline, "model_cpu_offload_seq", None)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.model_cpu_offload_seq", None)
    line = refused(capsys, SD, "--offload", "model")
    assert line.startswith("StableDiffusionPipeline cannot be offloaded by --offload model: Model")


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow([SD, SDXL], 1))
def test_image_to_image_end_to_end(
    name: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--image", picture, "--strength", 0.75, "--steps", 16, "--images", 2]
    assert compare(name, *options, "--output", tmp_path / "out", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["pipeline"].endswith("Img2ImgPipeline")
    assert whole["model"] == str(model_folder(MODELS[name]))
    assert whole["figures"]["full_calls"] + whole["figures"]["shallow_calls"] == 12
    assert whole["call"]["image"] == str(picture)
    assert whole["call"]["strength"] == 0.75
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert f"image=load_image(&#39;{picture}&#39;),\n" in page


def test_each_prompt_has_the_picture_and_its_size_may_be_another(
    picture: Path, asked: dict[str, Any]
) -> None:
    compare(SD, "--prompt", "a hen", "--image", picture, "--height", 32, "--width", 24)
    assert asked["prompt"] == ["a fox", "a hen"]
    assert [(each.mode, each.size) for each in asked["image"]] == [("RGB", (24, 32))] * 2
    assert not {"height", "width", "strength"} & asked.keys()


def test_a_pipeline_of_pictures_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = DiffusionPipeline.from_pretrained(model_folder(MODELS[SD]))
    StableDiffusionImg2ImgPipeline(**pipe.components).save_pretrained(tmp_path / "m")
    assert refused(capsys, tmp_path / "m") == (
        "StableDiffusionImg2ImgPipeline begins with a picture: give it with --image"
    )


def test_videos_of_a_picture_are_made_one_by_one(
    picture: Path, tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # It was refused: "makes one picture at a time", which is so of a calibration alone.
    folder = tmp_path / "svd"
    zoo.CASES["stable-video-diffusion"].load().save_pretrained(folder)
    options = ["--image", str(picture), "--device", "cpu", "--call", "num_frames=2"]
    assert main(["compare", str(folder), *options]) == 2
    assert list(asked["seeds"]) == [0, 1, 2, 3]
    assert isinstance(asked["image"], Image.Image)
    capsys.readouterr()
    goal = ["--full-steps", "2", "--output", str(tmp_path / "s.json")]
    assert main(["calibrate", str(folder), *options, *goal]) == 2
    assert capsys.readouterr().err == (
        "deepcache-patch calibrate: error: StableVideoDiffusionPipeline makes one picture at a "
        "time: give --images 1, not 8\n"
    )


def test_strength_without_a_picture_and_a_picture_where_none_is_taken(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, SD, "--strength", 0.5) == (
        "StableDiffusionPipeline does not know --strength: it is for --image"
    )
    assert refused(capsys, "ddpm", "--image", picture) == (
        "DDPMPipeline takes no picture, and diffusers has no pipeline with the same parts that "
        "does: leave --image out"
    )
    line = refused(capsys, SD, "--image", picture, "--height", 32)
    assert line == "give --height and --width together: diffusers ignores one alone"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"no picture", "it is no picture that Pillow knows"),
        (b"\x89PNG\r\n\x1a\n", "it is no picture that Pillow knows"),
    ],
)
def test_a_picture_that_is_none_is_refused_before_a_model_is_loaded(
    content: bytes | None,
    reason: str,
    tmp_path: Path,
    phases: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.png"
    if content is not None:
        file.write_bytes(content)
    assert refused(capsys, SD, "--image", file) == f"cannot read --image {file}: {reason}"
    assert phases == []


# --- any argument of the call ---------------------------------------------------------------------


def test_values_are_json_or_text(asked: dict[str, Any]) -> None:
    given = {
        "prompt_2": "oil on canvas",
        "guidance_rescale": "0.5",
        "clip_skip": "1",
        "original_size": "[64, 32]",
        "cross_attention_kwargs": '{"scale": 0.5}',
        "denoising_end": "NaN",
        "negative_prompt_2": "[",
        "timesteps": "[3, 2]",
    }
    compare(SDXL, *(word for pair in given.items() for word in ("--call", "=".join(pair))))
    assert {name: asked[name] for name in given} == {
        "prompt_2": "oil on canvas",
        "guidance_rescale": 0.5,
        "clip_skip": 1,
        "original_size": (64, 32),  # SDXL adds it to other tuples
        "cross_attention_kwargs": {"scale": 0.5},
        "denoising_end": "NaN",
        "negative_prompt_2": "[",
        "timesteps": [3, 2],
    }


@pytest.mark.parametrize(
    ("typed", "value", "written"),
    [
        ("1", 1, "1"),
        ('"1"', "1", '"1"'),
        ("one", "one", "one"),
        ('"one"', "one", "one"),
        ('"\\"1\\""', '"1"', '"\\"1\\""'),
        ("null", None, "null"),
        ('"null"', "null", '"null"'),
        ("true", True, "true"),
        ("[1,2.0]", [1, 2.0], "[1, 2.0]"),
        ("NaN", "NaN", "NaN"),
        ("1e999", "1e999", "1e999"),
        ('"é"', "é", "é"),
        ("", "", ""),
    ],
)
def test_a_value_is_json_or_else_a_text_and_is_written_as_it_is_read(
    typed: str, value: Any, written: str
) -> None:
    given = argument(f"v={typed}")
    assert (given.name, repr(given.value)) == ("v", repr(value))
    assert str(given) == f"v={written}"
    assert repr(argument(str(given))) == repr(given)


def test_sdxl_runs_with_sizes_of_its_own(tmp_path: Path) -> None:
    sizes = ["--call", "original_size=[64,64]", "--call", "target_size=[32,32]"]
    assert compare(SDXL, "--steps", 9, "--images", 1, *sizes, "--output", tmp_path) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("prompt=a", "Invalid value for '--call': prompt has an option of its own: give --prompt"),
        ("image=a", "Invalid value for '--call': image has an option of its own: give --image"),
        (
            "generator=1",
            "Invalid value for '--call': generator has an option of its own: give --se",
        ),
        ("clip_skip", "Invalid value for '--call': 'clip_skip' is no KEY=VALUE, such as "),
        ("=2", "Invalid value for '--call': '=2' is no KEY=VALUE, such as "),
        (
            "clip_skp=2",
            "StableDiffusionPipeline does not know --call clip_skp: did you mean 'clip_",
        ),
        ("promt=2", "StableDiffusionPipeline does not know --call promt: did you mean --prompt?"),
        ("zzzz=2", "StableDiffusionPipeline does not know --call zzzz: it knows prompt, height, "),
        ("output_type=pil", "output_type cannot be given here: it is set by what is compared"),
        ("clip_skip=1 clip_skip=2", "--call clip_skip is given twice: give it once"),
    ],
)
def test_an_argument_that_cannot_be_is_one_line(
    options: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for each in options.split() for word in ("--call", each)]
    assert refused(capsys, SD, *words).startswith(reason)


# --- what other commands take ---------------------------------------------------------------------


def test_branches_of_a_variant_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = DiffusionPipeline.from_pretrained(model_folder(MODELS[SD]))
    pipe.save_pretrained(tmp_path / "sd", variant="fp16")
    shutil.rmtree(tmp_path / "sd" / "text_encoder")
    shutil.copytree(model_folder(MODELS[SD]) / "text_encoder", tmp_path / "sd" / "text_encoder")
    words = ["branches", str(tmp_path / "sd"), "--variant", "fp16", "--json", "--device", "cpu"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["number"] for each in found["branches"]] == list(range(-1, 9))
    assert found["branches"][0] == {
        "number": -1,
        "place": "leaves out everything",
        "share": 0.0,
        "shape": [1, 4, 8, 8],
        "nbytes": 1024,
    }


def test_a_calibration_of_pictures_from_a_picture(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "a fox", "--device", "cpu", "--image", picture, "--strength", 0.5]
    words += ["--steps", 20, "--images", 1]
    model, file = model_folder(MODELS[SD]), tmp_path / "s.json"
    goal = ["--full-steps", 4, "--output", file, "--json"]
    assert main(["calibrate", *map(str, [model, *words, *goal])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 10
    assert len(found["full_steps"]) == 4
    assert found["plan"].count("full") == 4
    assert found["output"] == str(file)
    assert set(found["reached"]) >= {"work", "speed", "psnr"}
    options = ["--schedule", file, "--output", tmp_path / "out"]
    assert main(["compare", *map(str, [model, *words, *options])]) == 0


@pytest.mark.parametrize("text", ["a=1", "a=b c", "a=[1, null]", 'a={"b": 0.5}', "a=NaN"])
def test_an_argument_is_told_as_it_may_be_typed_again(text: str) -> None:
    assert str(argument(text)) == text


def test_a_lora_is_told_as_it_may_be_typed_again() -> None:
    for text in ("a:0.5", "a", "a:b", "a:b:2"):
        assert typed_lora(str(typed_lora(text))) == typed_lora(text)


# --- what the model's card says -----------------------------------------------------------------


@pytest.fixture
def with_card(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model_folder(MODELS[SD]), folder)
    card = "---\ninference:\n  parameters:\n    guidance_scale: 4.0\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def test_the_guidance_scale_of_the_card_is_taken_and_said(
    with_card: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(with_card) == 2
    assert asked["guidance_scale"] == 4.0
    said = "guidance scale 4, as the model's card says (--guidance-scale)"
    assert capsys.readouterr().err.splitlines()[0] == said


def test_a_guidance_scale_that_is_given_is_not_that_of_the_card(
    with_card: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(with_card, "--guidance-scale", 2) == 2
    assert asked["guidance_scale"] == 2.0
    assert "card" not in capsys.readouterr().err
