"""A calibration knows a few of the weights that it was learned with, and tells when others run."""

import copy
import gc
import json
import pickle
import warnings
from functools import partial

import pytest
import torch
from builders.adapters import lora
from builders.kinds_of_calls import messages
from builders.learning import LDM, SD, counted, loaded
from builders.savers import SAVERS
from builders.unets import seeded, unet2d_condition
from torch import nn

from deepcache_patch import Auto, Calibrated, DeepCacheHelper
from deepcache_patch.learning import fingerprint as fingerprints
from deepcache_patch.learning.calibrated_schedule import load_all
from deepcache_patch.learning.fingerprint import NUMBERS, SAMPLED_PARAMETERS, Fingerprint

# What peft says when an adapter is loaded again.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


def retrained(pipe):
    """The pipeline with other weights in a U-Net of the same config."""
    with seeded(99):
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config).eval()
    return pipe


@pytest.fixture(scope="module")
def calibrated():
    helper = DeepCacheHelper(loaded("ldm"))
    return helper.calibrate(partial(LDM.run, loaded("ldm"), steps=10), full_steps=4)


@pytest.fixture
def file(calibrated, tmp_path):
    calibrated.save(tmp_path / "schedule.json")
    return tmp_path / "schedule.json"


class Two(nn.Module):
    """A kernel whose numbers a reader can follow, a vector, and a layer that has nothing."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.arange(8.0 * 3 * 2).reshape(8, 3, 2))
        self.vector = nn.Parameter(torch.ones(3))
        self.layer = nn.Linear(2, 1, bias=False)
        nn.init.constant_(self.layer.weight, 0.123456789)


# --- what is looked at ----------------------------------------------------------------------------


def test_every_second_of_eight_rows_is_read_in_the_middle_of_the_other_axes():
    # Row r of the kernel begins with 6 r; [1, 1] of it is three further.
    assert Fingerprint.of(Two()).to_dict() == {
        "kernel": [3.0, 15.0, 27.0, 39.0],
        "layer.weight": [0.12346],
    }


def test_sixteen_parameters_of_many_are_looked_at():
    found = Fingerprint.of(loaded("sd").unet).numbers
    assert len(found) == SAMPLED_PARAMETERS
    assert {len(numbers) for numbers in found.values()} == {NUMBERS}
    assert next(iter(found)) == "conv_in.weight"


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("there", DTYPES, ids=str)
@pytest.mark.parametrize("here", DTYPES, ids=str)
def test_copies_of_another_type_are_the_same(there, here):
    unet = loaded("sd").unet
    first, second = (copy.deepcopy(unet).to(dtype) for dtype in (there, here))
    assert Fingerprint.of(first).difference(second) is None


def test_a_number_that_differs_by_more_than_rounding_is_told():
    known, unet = Fingerprint.of(Two()), Two()
    with torch.no_grad():
        unet.kernel[2] *= 1.007
    assert known.difference(unet) is None
    with torch.no_grad():
        unet.kernel[2] *= 1.007
    said = "1 of 2 parameters that were looked at differ, kernel had 15 and has 15.21"
    assert known.difference(unet) == said


def test_a_lora_beside_the_weights_is_no_part_of_them_and_a_fused_one_is():
    pipe = SD.load()
    known = Fingerprint.of(pipe.unet)
    pipe.load_lora_weights(lora(pipe.unet, seed=1), adapter_name="style")
    assert known.difference(pipe.unet) is None
    assert Fingerprint.of(pipe.unet) == known
    pipe.fuse_lora()
    assert "parameters that were looked at differ, conv_in.weight had" in known.difference(
        pipe.unet
    )
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert known.difference(pipe.unet) is None


def test_compiled_layers_keep_their_names():
    unet = unet2d_condition()
    known = Fingerprint.of(unet)
    unet.mid_block = torch.compile(unet.mid_block, backend="eager")
    unet.conv_in = torch.compile(unet.conv_in, backend="eager")
    assert Fingerprint.of(unet) == known


@pytest.mark.parametrize("saver", ["model-offload", "channels-last", "float16-storage"])
def test_savers_that_keep_the_weights_in_memory_change_nothing(saver):
    pipe = SD.load()
    known = Fingerprint.of(pipe.unet)
    SAVERS[saver].apply(pipe, "cpu")
    assert known.difference(pipe.unet) is None
    assert Fingerprint.of(pipe.unet).numbers.keys() == known.numbers.keys()


class Packed(nn.Parameter):
    """What quantisation puts in a weight's place: numbers of its own, of a class of its own."""


def packed(unet):
    for name, parameter in list(unet.named_parameters()):
        owner = unet.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], Packed(parameter.detach() * 7))


def renamed(unet):
    """As a file of schedules could not have it."""
    for name in list(unet._modules):
        unet._modules[name * 200] = unet._modules.pop(name)


UNREADABLE = {
    "long-names": renamed,
    "meta": lambda unet: unet.to("meta"),
    "float8": lambda unet: unet.to(torch.float8_e4m3fn),
    "packed": packed,
    "not-finite": lambda unet: [nn.init.constant_(p, torch.nan) for p in unet.parameters()],
    "sequential-offload": lambda unet: SAVERS["sequential-offload"].apply(Alone(unet), "cpu"),
}


class Alone:
    """A pipeline of a U-Net, for `savers`."""

    def __init__(self, unet):
        self.components = {"unet": unet}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_weights_that_cannot_be_read_are_left_out(kind):
    known, unet = Fingerprint.of(unet2d_condition()), unet2d_condition()
    UNREADABLE[kind](unet)
    assert Fingerprint.of(unet) is None
    assert known.difference(unet) is None


def test_weights_in_a_file_of_group_offloading_are_left_out(tmp_path):
    class Group:
        offload_to_disk_path = str(tmp_path)

    class Hook:
        group = Group()

    class Registry:
        def get_hook(self, name):
            return Hook() if name == "group_offloading" else None

    unet = Two()
    unet.layer._diffusers_hook = Registry()
    assert Fingerprint.of(unet) is None


# --- in a file, and said --------------------------------------------------------------------------


def test_a_calibration_and_its_file_have_that_of_the_unet(calibrated, file):
    found = Fingerprint.of(loaded("ldm").unet)
    assert calibrated.fingerprint == found
    assert Calibrated.load(file).fingerprint == found
    assert json.loads(file.read_text())["schedules"][0]["fingerprint"] == found.to_dict()


def test_what_auto_learns_has_it_too(tmp_path):
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule=Auto(file=tmp_path / "learned.json")):
        LDM.run(pipe, steps=10)
    (learned,) = load_all(tmp_path / "learned.json")
    assert learned.fingerprint == Fingerprint.of(pipe.unet)


def test_other_weights_are_told_once_and_the_schedule_is_used(file):
    pipe, schedule = retrained(LDM.load()), Calibrated.load(file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with DeepCacheHelper(pipe, schedule=schedule) as helper:
                assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)
                assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)
    difference = schedule.fingerprint.difference(pipe.unet)
    assert difference.startswith("16 of 16 parameters that were looked at differ, ")
    assert messages(caught) == [
        f"this calibrated schedule was learned with other weights of UNet2DModel: {difference}; it "
        "is used all the same, and may lose more than one of these weights: calibrate it anew"
    ]


def test_the_same_weights_are_compared_once_without_a_word(file, monkeypatch):
    read = []
    numbers = fingerprints._numbers
    monkeypatch.setattr(
        fingerprints, "_numbers", lambda parameter: read.append(1) or numbers(parameter)
    )
    pipe, schedule = LDM.load(), Calibrated.load(file)
    for _ in range(2):
        with DeepCacheHelper(pipe, schedule=schedule) as helper:
            LDM.run(pipe, steps=10)
            LDM.run(pipe, steps=10)
            assert (helper.stats.full_calls, helper.stats.shallow_calls) == (8, 12)
    assert len(read) == SAMPLED_PARAMETERS


def test_each_unet_is_compared(file):
    schedule = Calibrated.load(file)
    for make in (LDM.load, lambda: retrained(LDM.load()), lambda: retrained(LDM.load())):
        pipe = make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with DeepCacheHelper(pipe, schedule=schedule):
                LDM.run(pipe, steps=10)
        assert len(messages(caught)) == (make is not LDM.load)


def test_no_unet_is_kept_by_what_was_compared_with_it(file):
    schedule = Calibrated.load(file)
    pipe = LDM.load()
    with DeepCacheHelper(pipe, schedule=schedule):
        LDM.run(pipe, steps=10)
    assert len(schedule._compared) == 1
    assert len(pickle.dumps(schedule)) < 20_000
    for duplicate in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert duplicate.to_dict() == schedule.to_dict()
        assert len(duplicate._compared) == 0
    del pipe
    gc.collect()
    assert len(schedule._compared) == 0


def test_a_file_of_auto_that_is_of_other_weights_is_told_once_by_name(tmp_path):
    file = tmp_path / "learned.json"
    pipe = loaded("ldm")
    with DeepCacheHelper(pipe, schedule=Auto(file=file)):
        LDM.run(pipe, steps=10)
    written = file.read_bytes()
    with DeepCacheHelper(pipe, schedule=Auto(file=file)) as helper:
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)
    other = retrained(LDM.load())
    with (
        warnings.catch_warnings(record=True) as caught,
        DeepCacheHelper(other, schedule=Auto(file=file)) as helper,
    ):
        warnings.simplefilter("always")
        assert counted(helper, partial(LDM.run, other, steps=10)) == (4, 6)
        assert counted(helper, partial(LDM.run, other, steps=10)) == (4, 6)
    (said,) = messages(caught)
    assert said.startswith(f"what schedule='auto' goes by, in {file}, was learned with other wei")
    assert said.endswith("give each model a file of its own, or remove this one to learn anew")
    assert file.read_bytes() == written


def test_a_file_without_a_fingerprint_is_read_as_before(file):
    data = json.loads(file.read_text())
    del data["schedules"][0]["fingerprint"]
    file.write_text(json.dumps(data))
    schedule = Calibrated.load(file)
    assert schedule.fingerprint is None
    assert schedule.to_dict() == data["schedules"][0]
    pipe = retrained(LDM.load())
    with DeepCacheHelper(pipe, schedule=schedule) as helper:  # a warning would be an error
        assert counted(helper, partial(LDM.run, pipe, steps=10)) == (4, 6)
