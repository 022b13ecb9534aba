"""The pictures of an evaluation set: what each is, which are made again, and what is refused."""

import json

import numpy as np
import pytest
import torch
from accelerate import PartialState
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.schedulers import sd_scheduler
from diffusers import DiffusionPipeline
from PIL import Image

from benchmarks.fidelity import evaluation_set
from benchmarks.fidelity.evaluation_set import PictureSet
from deepcache_patch import DeepCacheHelper, Uniform

PROMPTS = [f"{number} red circles" for number in range(5)]
OPTIONS = ["--batch", "2", "--steps", "9"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    CASES["sd"].load().save_pretrained(folder / "sd")
    ldm = CASES["ldm"].load()
    ldm.scheduler = sd_scheduler()
    ldm.save_pretrained(folder / "ldm")
    return folder


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n")
    return file


@pytest.fixture(autouse=True)
def _state_is_put_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    yield
    PartialState._reset_state()


@pytest.fixture
def make(models, prompts, tmp_path):
    def make(*options, model="sd", of=prompts, folder=tmp_path / "set"):
        arguments = [str(each) for each in (models / model, of, folder)]
        status = evaluation_set.main([*arguments, *OPTIONS, "--cpu", *options])
        return status, {path.name: path for path in folder.glob("*.png")}

    return make


def read(pictures):
    return {name: path.read_bytes() for name, path in pictures.items()}


@pytest.mark.parametrize("interval", mostly_slow([None, 3], [3]), ids=["plain", "interval-3"])
def test_a_picture_is_what_the_pipeline_makes_of_its_line_and_its_seed(interval, models, make):
    options = ["--plain"] if interval is None else [f"--interval={interval}"]
    _, pictures = make(*options, "--seed=7", "--guidance-scale=4")
    pipe = DiffusionPipeline.from_pretrained(models / "sd")
    pipe.set_progress_bar_config(disable=True)
    if interval is not None:
        DeepCacheHelper(pipe, schedule=Uniform(interval)).enable()
    seeds = [torch.Generator().manual_seed(7 + index) for index in (2, 3)]
    expected = pipe(PROMPTS[2:4], num_inference_steps=9, guidance_scale=4.0, generator=seeds).images
    assert len(pictures) == 5
    for index, picture in zip((2, 3), expected, strict=True):
        made = Image.open(pictures[f"00000{index}.png"])
        assert np.array_equal(np.asarray(made), np.asarray(picture))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_batch_is_that_of_one_process(count, tmp_path):
    pictures = PictureSet(None, 11, 2, 0, tmp_path)
    batches = [range(0, 2), range(2, 4), range(4, 6), range(6, 8), range(8, 10), range(10, 11)]
    assert pictures.batches() == batches
    shares = [pictures.missing(process, count) for process in range(count)]
    assert sorted((each for share in shares for each in share), key=batches.index) == batches
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("model", "options"),
    mostly_slow(
        [("sd", []), ("sd", ["--auto"]), ("ldm", ["--scheduler=euler"])],
        [("sd", ["--auto"]), ("ldm", ["--scheduler=euler"])],
    ),
    # With Euler, `LDMPipeline` starts from what the last generation left in the scheduler: without
    # a fresh one for each batch, the first of a process would be another than the same batch later.
    ids=["uniform", "auto", "scheduler-with-a-memory"],
)
def test_what_is_missing_is_made_as_it_was_and_the_rest_is_left(model, options, make, prompts):
    of = prompts if model == "sd" else 5
    _, pictures = make(*options, model=model, of=of)
    before = read(pictures)
    assert len(set(before.values())) == 5
    pictures["000003.png"].unlink()
    others = [path for name, path in pictures.items() if name not in ("000002.png", "000003.png")]
    times = [path.stat().st_mtime_ns for path in others]
    status, pictures = make(*options, model=model, of=of)
    assert status == 0
    assert read(pictures) == before
    assert [path.stat().st_mtime_ns for path in others] == times


@pytest.mark.slow
def test_the_schedules_make_different_pictures(make, tmp_path):
    kinds = (["--plain"], [], ["--auto"], ["--branch=2"])
    sets = [make(*kind, folder=tmp_path / str(kind))[1] for kind in kinds]
    assert len({pictures["000000.png"].read_bytes() for pictures in sets}) == len(kinds)


def test_learning_has_prompts_of_the_set_but_none_of_its_seeds(make, monkeypatch):
    seeds = []
    called = evaluation_set.seeded_call
    monkeypatch.setattr(
        evaluation_set,
        "seeded_call",
        lambda pipe, call, given: seeds.append(given) or called(pipe, call, given),
    )
    make("--auto", "--seed=3")
    assert seeds == [range(8, 10), range(3, 5), range(5, 7), range(7, 8)]


def test_a_plan_that_was_learned_elsewhere_is_followed(make, tmp_path):
    make("--auto", "--seed=50", folder=tmp_path / "other")
    learned = (tmp_path / "other" / "learned.json").read_bytes()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "learned.json").write_bytes(learned)
    _, borrowed = make("--auto")
    assert (tmp_path / "set" / "learned.json").read_bytes() == learned
    _, own = make("--auto", folder=tmp_path / "own")
    assert (tmp_path / "own" / "learned.json").read_bytes() != learned
    assert read(borrowed) != read(own)


@pytest.mark.parametrize(
    ("change", "said"),
    mostly_slow(
        [
            (["--batch=3"], "batch was 2, is 3"),
            (["--seed=1", "--interval=5"], "seed was 0, is 1; interval was 3, is 5"),
            (["--plain"], "schedule was 'uniform', is 'plain'; interval was 3, is None"),
            (["--scheduler=pndm"], "scheduler was None, is 'pndm'"),
            (["--dtype=bfloat16"], "dtype was 'float32', is 'bfloat16'"),
        ]
    ),
    ids=["batch", "two", "plain", "scheduler", "dtype"],
)
def test_other_settings_are_refused_by_name(change, said, make, capsys):
    _, pictures = make()
    before = read(pictures)
    status, pictures = make(*change)
    assert status == 2
    assert said in capsys.readouterr().err
    assert read(pictures) == before


def test_other_prompts_and_other_weights_are_refused(make, prompts, models, capsys, tmp_path):
    make()
    prompts.write_text("\n".join([*PROMPTS[:-1], "a blue square"]) + "\n")
    assert make()[0] == 2
    assert "(prompts was " in capsys.readouterr().err
    prompts.write_text("\n".join(PROMPTS) + "\n")
    assert make()[0] == 0
    pipe = DiffusionPipeline.from_pretrained(models / "sd")
    with torch.no_grad():
        pipe.unet.conv_out.bias += 1
    pipe.unet.save_pretrained(tmp_path / "changed")
    settings = json.loads((tmp_path / "set" / "settings.json").read_text())
    assert evaluation_set._fingerprint(pipe) != settings["weights"]


@pytest.mark.parametrize(
    ("options", "of", "said"),
    [
        ([], 5, "StableDiffusionPipeline draws what a text says: give a file of prompts"),
        ([], 0, "0 pictures in batches of 2: nothing to make"),
        ([], "no-such-file.txt", "No such file or directory: 'no-such-file.txt'"),
        (["--branch=20"], None, "so branches 0 to 8"),
        (["--interval=0", "--auto"], None, "interval must be a number from 1 to 1000, not 0"),
        (["--scheduler=nice"], None, "there is no scheduler 'nice'"),
    ],
    ids=["no-prompts", "nothing", "no-file", "branch", "interval", "scheduler"],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    options, of, said, make, prompts, capsys, tmp_path
):
    assert make(*options, of=prompts if of is None else of) == (2, {})
    assert said in capsys.readouterr().err
    assert list(tmp_path.glob("set/*")) == []


def test_a_picture_that_was_broken_off_is_none(make, monkeypatch, tmp_path):
    def half(image, path, **options):
        path.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Image.Image, "save", half)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert [path.name for path in tmp_path.glob("set/*")] == ["settings.json"]
    assert len(make()[1]) == 5
