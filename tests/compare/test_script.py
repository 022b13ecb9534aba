"""What is to be pasted makes the same results again, whoever shows it."""

from __future__ import annotations

import ast
import enum
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from builders.adapters import lora
from builders.cases import CASES
from builders.outcomes import ABOUT, flat
from builders.schedulers import with_scheduler
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.utils import load_image
from PIL import Image

from deepcache_patch import (
    Adaptive,
    Auto,
    Calibrated,
    Centred,
    DeepCacheHelper,
    Explicit,
    NoiseAware,
    Plan,
    Uniform,
)
from deepcache_patch.compare.about import (
    LORA_FILES,
    MODEL_FILES,
    PICTURE_FILE,
    PictureFile,
    about,
)
from deepcache_patch.compare.script import python_of
from deepcache_patch.page.runner import Runner

CALL = {"prompt": 'a "fox"', "num_inference_steps": 12, "height": 16, "width": 16}


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with_scheduler(CASES["sd"].load(), "ddim").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return DiffusionPipeline.from_pretrained(str(tmp_path / "model"))


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is for the diffusers that is installed: here as for a new one."""
    monkeypatch.setattr(diffusers, "__version__", "0.42.1")


def about_of(pipe: Any, call: dict[str, Any] = CALL) -> dict[str, Any]:
    asked: Any = {"call": call, "seeds": [0], "repeats": 1}
    return about(SimpleNamespace(pipe=pipe, helper=DeepCacheHelper(pipe), **asked), pipe.device)


def offload_of(pipe: Any) -> Any:
    return about_of(pipe)["offload"]


def set_up(pipe: Any) -> list[str]:
    """The lines by which the pipeline is made, but for the first."""
    lines = python_of(about_of(pipe)).splitlines()
    return [line for line in lines if line.startswith("pipe")][1:]


def test_the_files_of_the_model_that_were_asked_for_are_asked_for_again(pipe: Any) -> None:
    setattr(pipe, MODEL_FILES, {"variant": "fp16", "revision": "v1.1"})
    (line,) = (each for each in python_of(about_of(pipe)).splitlines() if "from_pre" in each)
    assert line.endswith(", variant='fp16', revision='v1.1', dtype=torch.float32).to('cpu')")


# --- it makes the same --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "replay"),
    [
        (NoiseAware(2.5), "extrapolate"),
        pytest.param(Uniform(3), "reuse", marks=pytest.mark.slow),
        pytest.param(Centred(3, center=4), None, marks=pytest.mark.slow),
        (Adaptive(0.5, (1,)), None),
        (Auto(3.0), None),
    ],
    ids=lambda each: type(each).__name__ if each is not None else "",
)
def test_the_script_makes_the_picture_of_the_page(pipe: Any, schedule: Any, replay: Any) -> None:
    found, _ = Runner(pipe).run(CALL, seed=5, schedule=schedule, replay=replay)
    exec(compile(python_of(found.about, plan=found.plan), "script", "exec"), {})
    assert np.array_equal(Image.open("5.png"), found.cached[0])


def test_the_script_makes_each_picture_of_a_comparison_with_its_prompt(pipe: Any) -> None:
    call = {**CALL, "prompt": ["a fox", "a hen"], "negative_prompt": ["ink", "oil"]}
    found = DeepCacheHelper(pipe, interval=3).compare(seeds=[3, 4], fewer_steps=False, **call)
    exec(compile(python_of(found.about), "script", "exec"), {})
    for seed, picture in zip((3, 4), found.cached, strict=True):
        # One by one they are summed in another order, which can tip the rounding to 8 bits.
        apart = np.asarray(Image.open(f"{seed}.png"), int) - np.asarray(picture, int)
        assert np.abs(apart).max() <= 1


def test_noise_that_no_generator_gives_is_that_of_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The LDM pipelines hand the scheduler no generator, so the script made other pictures.
    monkeypatch.chdir(tmp_path)
    with_scheduler(CASES["ldm"].load(), "euler-ancestral").save_pretrained("model")
    pipe = DiffusionPipeline.from_pretrained("model")
    found = DeepCacheHelper(pipe, interval=3).compare(
        seeds=[3], num_inference_steps=12, fewer_steps=False
    )
    exec(compile(python_of(found.about), "script", "exec"), {})
    assert np.array_equal(Image.open("3.png"), found.cached[0])


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseAware(2.5),
        Uniform(4, 1),
        Centred(3),
        Adaptive(0.1, (0, 1)),
        Auto(),
        Explicit(Plan([0])),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_schedule_is_as_it_was(schedule: Any) -> None:
    text = python_of({**ABOUT, "schedule": repr(schedule)})
    line = next(line for line in text.splitlines() if line.startswith("helper"))
    names = {type(schedule).__name__: type(schedule), "pipe": CASES["ddpm"].load()}
    names["DeepCacheHelper"] = DeepCacheHelper
    made = eval(line.removeprefix("helper = ").removesuffix(".enable()"), names)
    assert repr(made.schedule) == repr(schedule)


# --- line by line -------------------------------------------------------------------------------


def test_the_script_line_by_line() -> None:
    text = python_of({**ABOUT, "replay": "Reuse()", "first": 1, "last": 0})
    assert text.splitlines() == [
        "import torch",
        "from diffusers import StableDiffusionPipeline",
        "",
        "from deepcache_patch import DeepCacheHelper, Uniform",
        "",
        "pipe = StableDiffusionPipeline.from_pretrained('a/model', dtype=torch.float32).to('cpu')",
        "helper = DeepCacheHelper(pipe, schedule=Uniform(interval=3, branch=0), first=1, "
        'replay="reuse").enable()',
        "",
        "for seed in [0, 1]:",
        "    torch.manual_seed(seed)",
        "    output = pipe(",
        "        prompt='a fox',",
        '        generator=torch.Generator("cpu").manual_seed(seed),',
        "    )",
        '    output.images[0].save(f"{seed}.png")',
    ]


@pytest.mark.parametrize(
    ("about", "line"),
    [
        ({"schedule": "NoiseAware(interval=2.2, branch=-1)"}, "(pipe, interval=2.2).enable()"),
        ({"schedule": "NoiseAware(interval=3, branch=1)"}, "(pipe, interval=3, branch=1).enable()"),
        ({"schedule": "Calibrated(5:\n2.1×)"}, "# schedule: Calibrated(5: 2.1×)\n"),
        ({"schedule": "Calibrated(5)"}, "(pipe, schedule=Calibrated.load('schedule.json')).enable"),
        ({"schedule": "Calibrated(5)", "schedule_file": "a.json"}, "Calibrated.load('a.json')"),
        (
            {"schedule": "Mine(3)"},
            "# schedule: Mine(3)\nhelper = DeepCacheHelper(pipe, schedule=..",
        ),
        ({"replay": "Extrapolate(strength=0.5)"}, ", replay=Extrapolate(strength=0.5)).enable()"),
        ({"replay": "Mine()"}, ", replay=...).enable()"),
        ({"schedule": "Auto(interval=3, branch=-1)"}, "for seed in [1000000, 0, 1]:  # the sch"),
        ({"call": {"prompt": ["a", "it's"]}}, "seed, prompt in zip([0, 1], ['a', \"it's\"]):\n"),
        ({"call": {"sigmas": (math.inf, 1.0)}}, "\n        sigmas=(float('inf'), 1.0),\n"),
        (
            {"call": {"size": (8,), "more": {"scale": 0.5}}},
            "size=(8,),\n        more={'scale': 0.5},",
        ),
        ({"call": {"image": flat((1, 2, 3))}}, "# Fill in what is left out: ...\nimport torch\n"),
        ({"call": {"a b": 1}}, "\n        **{'a b': 1},\n"),
        (
            {"model": "StableDiffusionPipeline"},
            "StableDiffusionPipeline.from_pretrained(..., dtype",
        ),
        ({"pipeline": "Mine", "model": "a\nb"}, "\n# pipe: the Mine of a b, sampled by DDIM\n"),
        ({"pipeline": "Mine", "scheduler": ""}, "\n# pipe: the Mine of a/model\n"),
    ],
)
def test_what_is_said_of(about: Any, line: str) -> None:
    text = python_of({**ABOUT, **about})
    assert line in text
    ast.parse(text)


class Mode(enum.IntEnum):
    FAST = 1


class Ink(str, enum.Enum):
    BLUE = "blue"


class Text(str):
    """Printed as one that it is not."""

    def __repr__(self) -> str:
        return "Text("


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float64(7.5), "7.5"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "True"),
        (np.str_("a"), "'a'"),
        (np.float64("nan"), "float('nan')"),
        (np.longdouble(1), "..."),
        (Mode.FAST, "1"),
        (Ink.BLUE, "'blue'"),
        (Text("a"), "..."),
        (1j, "..."),
        (np.zeros(2), "..."),
        ((), "()"),
        ([np.float64(0.5), (Mode.FAST,)], "[0.5, (1,)]"),
        ({"scale": np.float64(0.5)}, "{'scale': 0.5}"),
    ],
    ids=repr,
)
def test_what_is_like_a_number_or_a_text_is_written_as_one(value: Any, written: str) -> None:
    text = python_of({**ABOUT, "call": {"given": value}, "seeds": [np.int64(4)], "first": Mode(1)})
    ast.parse(text)
    assert f"\n        given={written},\n" in text
    assert "first=1)" in text
    assert "\nfor seed in [4]:\n" in text


def test_each_prompt_goes_with_what_was_given_for_it() -> None:
    call = {
        "ip_adapter_image": [1, 2],  # one for each adapter
        "negative_prompt": ["c", "d"],
        "prompt": ["a", "b"],
        "prompt_2": ("e", "f"),
        "mask_image": [flat((1, 2, 3))] * 2,
        "negative_prompt_2": "g",
        "control_guidance_start": [0.0, 0.1],
        "image": [flat((1, 2, 3))] * 3,
    }
    lines = python_of({**ABOUT, "call": call, "seeds": [0, 1, 2, 3]}).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("for"))
    assert lines[head : head + 11] == [
        "for seed, negative_prompt, prompt, prompt_2, mask_image in zip([0, 1, 2, 3], "
        "['c', 'c', 'd', 'd'], ['a', 'a', 'b', 'b'], ['e', 'e', 'f', 'f'], [..., ..., ..., ...]):",
        "    torch.manual_seed(seed)",
        "    output = pipe(",
        "        negative_prompt=negative_prompt,",
        "        prompt=prompt,",
        "        prompt_2=prompt_2,",
        "        mask_image=mask_image,",
        "        ip_adapter_image=[1, 2],",
        "        negative_prompt_2='g',",
        "        control_guidance_start=[0.0, 0.1],",
        "        image=[..., ..., ...],",
    ]
    learned = python_of({**ABOUT, "call": {**call, "mask_image": None}, "schedule": "Auto(2)"})
    assert "zip([1000000, 0, 1], ['c', 'c', 'd'], ['a', 'a', 'b'], ['e', 'e', 'f']):" in learned


def test_without_a_prompt_each_image_has_its_seeds() -> None:
    call = {"image": [flat((1, 2, 3))] * 2, "num_frames": 2}
    text = python_of({**ABOUT, "call": call, "seeds": [0, 1, 2, 3]})
    assert "\nfor seed, image in zip([0, 1, 2, 3], [..., ..., ..., ...]):\n" in text
    assert "\n        image=image,\n        num_frames=2,\n" in text


@pytest.mark.parametrize(("branch", "seeds"), [(-1, "[1000000, 0, 1]"), (0, "[0, 1]")])
def test_no_picture_is_made_to_learn_where_the_plan_leaves_nothing(branch: int, seeds: str) -> None:
    about = {**ABOUT, "schedule": f"Auto(interval=3, branch={branch})"}
    text = python_of(about, plan=Plan(["full", branch, branch] * 8))
    assert f"for seed in {seeds}:" in text


def test_nothing_is_said_to_be_left_out_where_nothing_is() -> None:
    text = python_of({**ABOUT, "call": {"prompt": "a fox ... in the snow"}})
    assert "Fill in" not in text
    assert "DeepCache" not in python_of({**ABOUT, "schedule": None})
    assert ".save(" not in python_of(ABOUT, saves=False)


# --- how the pipeline was set up ------------------------------------------------------------------


def test_a_pipeline_that_is_as_in_its_folder_has_one_line(pipe: Any) -> None:
    assert set_up(pipe) == []


def test_another_scheduler_and_settings_of_it_are_said(pipe: Any) -> None:
    config = pipe.scheduler.config
    made = "pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config"
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    assert set_up(pipe) == [f"{made})"]
    karras = {"use_karras_sigmas": True, "solver_order": 3}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, **karras)
    assert set_up(pipe) == [f"{made}, solver_order=3, use_karras_sigmas=True)"]
    pipe.register_to_config(_name_or_path="out/of/reach")  # then only what people set most
    assert set_up(pipe) == [f"{made}, use_karras_sigmas=True)"]


def test_loras_are_said_with_their_scales_and_their_files_if_these_are_known(pipe: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft asks whether several are meant
        weights = lora(pipe.unet, seed=0)
        for name in ("ink", "oil"):
            pipe.load_lora_weights(weights, adapter_name=name)
    pipe.set_adapters(["oil", "ink"], [1.0, 0.25])
    setattr(pipe, LORA_FILES, {"ink": "ink.safetensors"})
    found = set_up(pipe)
    assert sorted(found[:2]) == [
        "pipe.load_lora_weights('ink.safetensors', adapter_name='ink')",
        "pipe.load_lora_weights(..., adapter_name='oil')",
    ]
    names, scales = ast.literal_eval(found[2].removeprefix("pipe.set_adapters"))
    assert dict(zip(names, scales, strict=True)) == {"ink": 0.25, "oil": 1.0}
    pipe.set_adapters("ink", 0.5)
    assert set_up(pipe)[-1] == "pipe.set_adapters(['ink'], [0.5])"
    pipe.disable_lora()
    assert set_up(pipe) == []


@pytest.mark.parametrize(
    ("version", "name"),
    [("0.35.0", "torch_dtype"), ("0.39.1", "torch_dtype"), ("0.40.0.dev0", "dtype")],
)
def test_the_dtype_has_the_name_that_this_diffusers_knows(
    monkeypatch: pytest.MonkeyPatch, version: str, name: str
) -> None:
    # Before 0.40 `dtype` was ignored, and the pipeline loaded in float32.
    monkeypatch.setattr(diffusers, "__version__", version)
    assert f".from_pretrained('a/model', {name}=torch.float32).to('cpu')\n" in python_of(ABOUT)


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_offloading_is_said_in_the_place_of_the_device(pipe: Any, kind: str) -> None:
    getattr(pipe, f"enable_{kind}_cpu_offload")(device="cpu")
    assert set_up(pipe) == [f"pipe.enable_{kind}_cpu_offload()"]
    text = python_of({**ABOUT, "offload": kind})
    assert "from_pretrained('a/model', dtype=torch.float32)\n" in text


def test_a_device_map_is_no_offloading(pipe: Any) -> None:
    hook = AlignDevicesHook(execution_device="cpu", io_same_device=True)
    add_hook_to_module(pipe.unet, hook)  # as of a device map that has all of it in one place
    assert offload_of(pipe) is None
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert offload_of(pipe) == "sequential"
    pipe.hf_device_map = {"unet": "cpu"}
    assert offload_of(pipe) is None


def test_a_network_with_a_device_map_of_its_own_is_not_offloaded(pipe: Any) -> None:
    cpu_offload(pipe.unet, "cpu")
    assert offload_of(pipe) == "sequential"
    pipe.unet.hf_device_map = {"": "cpu"}
    assert offload_of(pipe) is None


def test_a_picture_of_which_the_file_is_known_is_read_from_it(tmp_path: Path) -> None:
    file = tmp_path / "it's a sketch.png"
    Image.linear_gradient("L").save(file)
    for size, end in ((None, ""), ((24, 32), ".resize((24, 32))")):
        call = {"image": PictureFile(str(file), size)}
        lines = python_of({**ABOUT, "call": call}).splitlines()
        assert lines[1:3] == [
            "from diffusers import StableDiffusionPipeline",
            "from diffusers.utils import load_image",
        ]
        (line,) = (line for line in lines if "image=" in line)
        assert line == f"        image=load_image({str(file)!r}){end},"
        written = line.strip().removeprefix("image=").removesuffix(",")
        read = eval(written, {"load_image": load_image})
        assert (read.mode, read.size) == ("RGB", size or (256, 256))
    assert "load_image" not in python_of(ABOUT)


def test_a_picture_is_said_by_its_file_where_all_are_that_one(pipe: Any) -> None:
    known, unknown = flat((1, 2, 3)), flat((1, 2, 3))
    setattr(known, PICTURE_FILE, PictureFile("a.png", (8, 8)))
    pictures = {"a": known, "b": [known, known], "c": [known, unknown], "d": unknown, "e": []}
    call = about_of(pipe, pictures)["call"]
    assert call == {**pictures, "a": "a.png", "b": "a.png"}
    assert call["a"].size == call["b"].size == (8, 8)


def test_a_schedule_that_was_learned_is_read_from_a_file(pipe: Any) -> None:
    auto = Auto(3.0)
    Runner(pipe).run(CALL, seed=0, schedule=auto)
    (learned,) = auto.learned
    assert isinstance(learned, Calibrated)
    found, _ = Runner(pipe).run(CALL, seed=5, schedule=learned)
    learned.save("schedule.json")
    exec(compile(python_of(found.about, plan=found.plan), "script", "exec"), {})
    assert np.array_equal(Image.open("5.png"), found.cached[0])
