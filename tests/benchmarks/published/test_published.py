"""`python -m benchmarks.published`: what it makes, what it leaves, and what it refuses."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders.cases import CASES
from builders.marks import mostly_slow
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from benchmarks.published import contestants, run
from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.measuring.generation import Timing

PROMPTS = [f"{number} red circles" for number in range(3)]
FIELD = [
    "--fewer-steps=3",
    "--deepcache=3",
    "--ours=schedule=uniform,interval=3",
    "--ours=schedule=auto,interval=2",
]
SMALL = FIELD[:3]
NAMES = [
    "plain",
    "3 steps",
    "DeepCache 0.1.1, interval=3",
    "ours, schedule=uniform,interval=3",
    "ours, schedule=auto,interval=2",
]
FOLDERS = [
    "plain",
    "3-steps",
    "deepcache-0-1-1-interval-3",
    "ours-schedule-uniform-interval-3",
    "ours-schedule-auto-interval-2",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    CASES["sd"].load().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS) + "\n")
    return file


@pytest.fixture
def generations(monkeypatch):
    """Steps and seeds of each; a full call is said to take a second, and a shallow one a tenth."""
    pytest.importorskip("DeepCache")
    made, generate = [], run.generate

    def counted(pipe, unet, call, seeds, *, label):
        full = []
        handle = unet.mid_block.resnets[0].register_forward_hook(lambda *_: full.append(1))
        generation = generate(pipe, unet, call, seeds, label=label)
        handle.remove()
        calls = generation.timing.calls
        made.append((call["num_inference_steps"], list(seeds)))
        seconds = len(full) + (calls - len(full)) / 10
        return replace(generation, timing=Timing(seconds, seconds, calls))

    monkeypatch.setattr(run, "generate", counted)
    return made


@pytest.fixture
def published(model, prompts, tmp_path, generations):
    def published(*options, of=None, field=FIELD):
        chosen = [f"--model={of or model}", f"--prompts={prompts}", f"--output={tmp_path / 'out'}"]
        fixed = ["--sampler=ddim", "--steps=9", "--batch-size=2", "--seed=5", "--device=cpu"]
        return run.main([*chosen, *fixed, *field, *options])

    return published


def report(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_everyone_draws_every_batch_and_each_is_begun_by_another(published, generations, tmp_path):
    assert published() == 0
    warm_up, learning = (2, [5, 6]), (9, [8, 9])  # seeds 5 to 7 are those of the set
    first, second = [5, 6], [7]
    assert generations == [
        warm_up,
        learning,
        *[(9, first), (3, first), (9, first), (9, first), (9, first)],
        *[(3, second), (9, second), (9, second), (9, second), (9, second)],
    ]
    out = tmp_path / "out"
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    pictures = [f"pictures/{folder}/00000{n}.png" for folder in FOLDERS for n in range(3)]
    learned = "learned-schedule-auto-interval-2.json"
    results = ["results.json", "settings.json", "table.md"]
    batches = ["batches/000000.json", "batches/000002.json"]
    assert files == sorted([*batches, learned, *pictures, *results])


def test_speed_is_the_median_over_the_batches_and_work_is_counted(published, tmp_path):
    published()
    found = report(tmp_path)
    assert [row["name"] for row in found["rows"]] == NAMES
    plain, fewer, theirs, ours, auto = found["rows"]
    assert (plain["speed"], plain["speed_by_work"], "psnr" in plain) == (1, 1, False)
    assert (fewer["speed"], fewer["speed_by_work"], fewer["full_calls"]) == (3, 3, 3)
    for row in (theirs, ours):  # steps 0, 3 and 6 run in full
        assert (row["full_calls"], row["shallow_calls"]) == (3, 6)
        assert row["speeds"] == [9 / 3.6, 9 / 3.6]
        assert (row["speed"], row["speed_quartiles"]) == (2.5, [2.5, 2.5])
        share = (9 / row["speed_by_work"] - 3) / 6
        assert 0 < share < 0.5
    assert theirs["speed_by_work"] == pytest.approx(ours["speed_by_work"])
    assert (auto["full_calls"], auto["shallow_calls"]) == (4, 5)
    assert found["failed"] == []
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| ours, schedule=uniform,interval=3 | 2.50× (2.50 to 2.50) |" in table


def test_a_complete_run_is_measured_anew_and_draws_nothing(published, generations, tmp_path):
    published(field=SMALL)
    before = report(tmp_path)
    generations.clear()
    assert published(f"--model={tmp_path / 'nowhere'}", field=SMALL) == 2
    assert published(field=SMALL) == 0
    assert generations == []
    assert report(tmp_path) == before


def test_a_batch_that_was_broken_off_is_drawn_again_and_the_others_are_kept(
    published, generations, tmp_path, monkeypatch
):
    draw = run._draw

    def broken_off(who, make, gallery, batch):
        if (who.name, batch.start) == (NAMES[3], 2):
            raise KeyboardInterrupt
        return draw(who, make, gallery, batch)

    with monkeypatch.context() as context:
        context.setattr(run, "_draw", broken_off)
        with pytest.raises(KeyboardInterrupt):
            published()
    pictures = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    assert len(pictures) == 5 * 2 + 2
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in pictures}
    generations.clear()
    assert published() == 0
    # The plan is in its file: nothing is learned again.
    second = [7]
    assert generations == [(2, second), (3, second), *[(9, second)] * 4]
    for path, (content, time) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == time) == (path.stem != "000002")


def test_a_contestant_that_fails_is_named_and_left_out(
    published, generations, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("it cannot\nfor several reasons")

    monkeypatch.setattr(contestants, "deepcache", fail)
    assert published(field=SMALL) == 0
    found = report(tmp_path)
    assert found["failed"] == [{"name": "DeepCache 0.1.1, interval=3", "error": "it cannot"}]
    assert [row["name"] for row in found["rows"]] == [
        "plain",
        "3 steps",
        "ours, schedule=uniform,interval=3",
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "\nDeepCache 0.1.1, interval=3 failed: it cannot\n" in table


def test_pictures_that_are_the_same_have_no_decibels(published, tmp_path):
    published(field=["--fewer-steps=9", "--deepcache=1", "--ours=interval=1"])
    for row in report(tmp_path)["rows"][1:]:
        assert (row["psnr"], row["psnr_worst_tenth"], row["identical"]) == (None, None, 3)
        assert row["speed"] == row["speed_by_work"] == 1
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 9 steps | 1.00× (1.00 to 1.00) | 1.00× | ∞ | ∞ |" in table


@pytest.mark.parametrize(
    ("change", "said"),
    mostly_slow(
        [
            (["--steps=7"], "--steps was 9, is 7"),
            (
                ["--karras", "--sampler=euler"],
                "--sampler was 'ddim', is 'euler'; --karras was False",
            ),
            (
                ["--ours=interval=5"],
                "--ours was ['schedule=uniform,interval=3'], "
                "is ['schedule=uniform,interval=3', 'interval=5']",
            ),
            (["--count=2"], "--count was 3, is 2"),
            (["--guidance-scale=3"], "--guidance-scale was None, is 3.0"),
            ([], "--prompts was "),
        ],
        1,
    ),
    ids=["steps", "several", "ours", "count", "guidance", "prompts"],
)
def test_another_command_for_the_same_folder_is_refused_by_the_option(
    change, said, published, prompts, generations, capsys
):
    published(field=SMALL)
    generations.clear()
    if not change:
        prompts.write_text("\n".join(["a blue square", *PROMPTS[1:]]))
    assert published(*change, field=SMALL) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("published: error: ")
    assert said in told
    assert generations == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--sampler=nice"], "there is no scheduler 'nice'"),
        (["--karras"], "--karras: DDIMScheduler does not go by Karras' noise levels"),
        (["--prompts=nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["--count=4"], "prompts.txt has 3 prompts, not 4"),
        (
            ["--ours=intervall=3"],
            "'intervall' is none of interval, branch, speedup, schedule, first, last, replay",
        ),
        (["--ours=interval"], "write NAME=VALUE"),
        (["--ours=schedule=nice"], "there is no schedule 'nice'"),
        (["--device=abacus"], "device 'abacus' cannot be used here"),
        (["--model=nowhere"], "there is no folder nowhere"),
    ],
    ids=lambda each: each[0].lstrip("-") if isinstance(each, list) else "",
)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    change, said, published, tmp_path, monkeypatch, capsys
):
    def loaded(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", loaded)
    assert published(*change) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("published: error: ")
    assert said in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--ours=branch=20"], "so branches 0 to 8"),
        (["--ours=schedule=auto,replay=reuse"], "brings its own replay"),
    ],
    ids=["branch", "replay"],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(
    change, said, published, generations, tmp_path, capsys
):
    assert published(*change) == 2
    assert said in capsys.readouterr().err
    assert generations == []
    assert not (tmp_path / "out").exists()


def test_a_picture_is_what_the_pipeline_makes_of_its_line_and_its_seed(published, model, tmp_path):
    published(field=SMALL)
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for folder, interval in (("plain", None), ("ours-schedule-uniform-interval-3", 3)):
        helper = DeepCacheHelper(pipe, schedule=Uniform(interval or 1))
        with helper if interval else nullcontext():
            seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
            expected = pipe(PROMPTS[:2], num_inference_steps=9, generator=seeds).images
        for index, picture in enumerate(expected):
            made = Image.open(tmp_path / "out" / "pictures" / folder / f"00000{index}.png")
            assert np.array_equal(np.asarray(made), np.asarray(picture))


def test_branches_that_differ_in_sign_have_folders_of_their_own(published, tmp_path):
    """Regression: both drew into ours-interval-3-branch-1, and had the later one's figures."""
    field = ["--fewer-steps=3", "--deepcache=3", "--ours=interval=3,branch=-1"]
    assert published("--ours=interval=3,branch=1", field=field) == 0
    forecast, cut = report(tmp_path)["rows"][-2:]
    assert forecast["psnr"] != cut["psnr"]
    folders = {each.name for each in (tmp_path / "out" / "pictures").iterdir()}
    assert folders >= {"ours-interval-3-branch-1", "ours-interval-3-branch-minus-1"}


def test_a_line_of_prompts_is_one_prompt_whatever_stands_round_it(published, prompts, tmp_path):
    """Regression: a mark of the encoding went into the first prompt, and U+2028 began another."""
    published(field=SMALL)
    before = Image.open(tmp_path / "out" / "pictures" / "plain" / "000000.png")
    text = "\r\n".join([PROMPTS[0], "two\u2028lines", PROMPTS[2]])
    prompts.write_text(f"\ufeff{text}", encoding="utf-8", newline="")
    assert published(f"--output={tmp_path / 'other'}", field=SMALL) == 0
    made = tmp_path / "other" / "pictures" / "plain"
    assert np.array_equal(np.asarray(Image.open(made / "000000.png")), np.asarray(before))
    assert sorted(each.name for each in made.iterdir()) == [f"00000{n}.png" for n in range(3)]
