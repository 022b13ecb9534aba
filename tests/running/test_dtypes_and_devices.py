"""Dtypes, devices and layouts that change between generations, and timesteps that are cast."""

import pytest
import torch
from builders.marks import mostly_slow
from builders.models import MODELS, model_folder
from builders.savers import CASES, DEVICES, loaded, sliced, unsliced, without_hooks
from builders.unets import inputs2d_condition, unet2d_condition
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.running.locating.steps import StepTracker

pytestmark = pytest.mark.usefixtures("same_kernels")

CHANGES = {
    "bfloat16": [lambda pipe: pipe.to(torch.bfloat16)],
    "float16": [lambda pipe: pipe.to(torch.float16)],
    "float16-and-back": [lambda pipe: pipe.to(torch.float16), lambda pipe: pipe.to(torch.float32)],
    "cpu": [lambda pipe: pipe.to("cpu")],
    "channels-last": [lambda pipe: pipe.unet.to(memory_format=torch.channels_last)],
    "slicing-and-back": [lambda pipe: sliced(pipe, pipe.device), unsliced],
    "model-offload-and-back": [
        lambda pipe: pipe.enable_model_cpu_offload(device=DEVICES[-1]),
        without_hooks,
    ],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", mostly_slow(CHANGES, ["bfloat16", "model-offload-and-back"]))
def test_changes_between_generations_are_followed(change, device):
    case = CASES["sd-controlnet"]
    pipe = loaded(case.name, device)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    case.run(pipe)
    for count in range(1, len(CHANGES[change]) + 1):
        fresh = loaded(case.name, device)
        for step in CHANGES[change][:count]:
            step(fresh)
        plain = case.run(fresh)
        with DeepCacheHelper(fresh, schedule=Uniform()):
            expected = case.run(fresh)
        CHANGES[change][count - 1](pipe)
        assert torch.equal(case.run(pipe), expected)
        with helper.paused():
            assert torch.equal(case.run(pipe), plain)
    helper.disable()
    assert torch.equal(case.run(pipe), plain)
    assert helper.stats.shallow_calls == 3 * (1 + len(CHANGES[change]))


LOADED = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "device-map-balanced": {"device_map": "balanced"},
    "device-map": {"device_map": DEVICES[-1]},
}


@pytest.mark.parametrize("options", mostly_slow(LOADED.values(), 1), ids=LOADED)
def test_what_a_pipeline_was_loaded_with_makes_no_difference(options):
    case, folder = CASES["sd"], model_folder(MODELS["sd"])

    def load():
        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    fresh = load()
    plain = case.run(fresh)
    with DeepCacheHelper(fresh, schedule=Uniform()):
        expected = case.run(fresh)
    pipe = load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert all(torch.equal(case.run(pipe), expected) for _ in range(2))
    assert helper.stats.shallow_calls == 6
    assert torch.equal(case.run(pipe), plain)


PARTS = [("mid_block",), ("up_blocks",), ("down_blocks", "up_blocks")]


@pytest.mark.parametrize("parts", mostly_slow([pytest.param(parts) for parts in PARTS], 1))
def test_a_unet_whose_parts_are_on_a_disk_is_cut(parts, tmp_path):
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = case.run(pipe)
    plain = case.run(pipe)
    names = [name for name, _ in pipe.unet.named_children()]
    pipe.unet = UNet2DConditionModel.from_pretrained(
        model_folder(MODELS["sd"]),
        subfolder="unet",
        device_map={name: "disk" if name in parts else "cpu" for name in names},
        offload_folder=tmp_path,
    )
    assert {name.split(".")[0] for name, w in pipe.unet.named_parameters() if w.is_meta} == {*parts}
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        assert all(torch.equal(case.run(pipe), expected) for _ in range(2))
    assert helper.stats.shallow_calls == 6
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize(
    "dtype", mostly_slow([torch.float16, torch.bfloat16], [torch.bfloat16]), ids=str
)
@pytest.mark.parametrize(
    "name", mostly_slow(["hunyuandit", "stable-cascade-prior"], ["stable-cascade-prior"])
)
def test_a_pipeline_that_casts_its_timesteps_has_as_many_shallow_calls_as_in_float32(name, dtype):
    # 981 is 980 in bfloat16, which is no timestep of the scheduler's, but 241 is 241: each time
    # such a one followed a rounded one, a new generation began, with a full step.
    counts = []
    for each in (torch.float32, dtype):
        pipe = CASES[name].load()
        pipe.to(each)
        with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
            for _ in range(2):
                CASES[name].run(pipe, steps=10)
        stats = helper.stats
        counts.append((stats.generations, stats.full_calls, stats.shallow_calls))
    assert counts[1] == counts[0] == (2, 8, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_a_cast_timestep_is_located_in_the_schedulers_list(dtype, batch):
    timesteps, tracker = torch.arange(981, 0, -20), StepTracker()
    cast = [timestep.expand(batch).to(dtype, copy=True) for timestep in timesteps]
    positions = [tracker.locate(each.clone(), timesteps) for each in cast]
    assert [position.step for position in positions] == list(range(50))
    assert {(p.generation, p.order, p.num_steps) for p in positions} == {(0, 0, 50)}


def test_timesteps_that_are_the_same_once_cast_are_not_located():
    # 999 and 998 both are 1000 in bfloat16, 996 and 995 are 996: which step it is, nobody knows.
    timesteps, tracker = torch.arange(999, -1, -1), StepTracker()
    assert tracker.locate(torch.tensor(998.0).to(torch.bfloat16), timesteps) is None
    assert tracker.locate(torch.tensor(100.0).to(torch.bfloat16), timesteps).num_steps == 101


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_bare_unet_is_led_by_cast_timesteps(dtype):
    unet = unet2d_condition().to(dtype)
    inputs = {
        name: value.to(dtype) for name, value in inputs2d_condition().items() if name != "timestep"
    }
    with DeepCacheHelper(unet, schedule=Uniform()) as helper, torch.no_grad():
        for count in (1, 2):
            for timestep in torch.arange(981, 0, -109):
                unet(**inputs, timestep=timestep.to(dtype))
            assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3 * count, 6 * count)
            assert helper.stats.generations == count


def test_autocast_may_end_within_a_generation():
    # The line through a feature of bfloat16 and one of float32 was an error of torch's. After the
    # last full step under autocast nothing is left to go on from, as after a reset.
    pictures = []
    for resets in (False, True):
        unet, inputs = unet2d_condition(), inputs2d_condition()
        with DeepCacheHelper(unet, schedule=Uniform(2)) as helper, torch.no_grad():
            for step, timestep in enumerate(torch.arange(981, 0, -109)):
                if step == 4 and resets:
                    helper.reset()
                with torch.autocast("cpu", torch.bfloat16, enabled=step < 4):
                    output = unet(**(inputs | {"timestep": timestep})).sample
                inputs["sample"] = inputs["sample"] - 0.1 * output
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (5, 4)
        pictures.append(inputs["sample"])
    assert torch.equal(*pictures)
