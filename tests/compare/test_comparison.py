"""Comparing without and with the helper: the figures by hand, the picture by its pixels, and what
reaches the pipeline.
"""

from __future__ import annotations

import builtins
import json
import math
from html import escape
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from builders.cases import CASES, picture
from builders.outcomes import ABOUT, flat, outcome
from PIL import Image

from deepcache_patch import DeepCacheHelper, Plan, Uniform
from deepcache_patch.compare.grid import GAP, MARGIN
from deepcache_patch.compare.run import compare
from deepcache_patch.measuring.generation import batched_call, labelled_progress
from deepcache_patch.measuring.loop_clock import LoopClock
from deepcache_patch.measuring.similarity import psnr, ssim

pytestmark = pytest.mark.usefixtures("kept_tables")

# --- figures ------------------------------------------------------------------------------------


def test_psnr_follows_from_the_mean_square_error() -> None:
    black = np.zeros((8, 8, 3), np.float32)
    # Every value differs by 0.1: the mean square is 0.01, so 10 log10(1 / 0.01) = 20 dB.
    assert psnr(black, black + np.float32(0.1)) == pytest.approx(20.0, abs=1e-5)


def test_identical_pictures_have_infinite_psnr_and_ssim_one() -> None:
    noise = np.random.default_rng(0).random((16, 16, 3), np.float32)
    assert psnr(noise, noise.copy()) == math.inf
    assert ssim(noise, noise.copy()) == pytest.approx(1.0)


def test_ssim_of_flat_pictures_is_the_luminance_term_alone() -> None:
    # Without variance: (2 * 0.5 * 0.6 + c) / (0.25 + 0.36 + c) with c = 0.01 squared.
    a, b = np.full((8, 8, 1), 0.5), np.full((8, 8, 1), 0.6)
    assert ssim(a, b) == pytest.approx((0.6 + 1e-4) / (0.61 + 1e-4))


@pytest.mark.parametrize("side", [3, 4, 6])
def test_ssim_takes_pictures_smaller_than_its_window(side: int) -> None:
    assert ssim(np.ones((side, 9, 3)), np.ones((side, 9, 3))) == pytest.approx(1.0)


def test_speedup_is_the_median_of_the_ratios_of_runs_that_followed_each_other() -> None:
    assert outcome().speedup == 2.0  # of 4 / 2, 6 / 9 and 5 / 2
    assert outcome().call_speedup == 1.25  # of 5 / 4, 9 / 9 and 6 / 3


def test_the_mean_psnr_leaves_identical_pictures_out_and_counts_them() -> None:
    assert outcome().measures[0].mean == 20.0
    assert outcome().identical == 1
    assert outcome(psnr=(math.inf, math.inf)).measures[0].mean == math.inf


def test_missing_scikit_image_is_told_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'deepcache-patch\[compare\]'"):
        compare(None)  # type: ignore[arg-type]


# --- table and JSON -----------------------------------------------------------------------------


def test_the_table_line_by_line() -> None:
    assert outcome().table().splitlines() == [
        "                     plain        helper",
        "denoising loop     5.000 s       2.000 s",
        "loop speedup                       2.00×",
        "loop range                    0.67–2.50×",
        "whole call         6.000 s       4.000 s",
        "call speedup                       1.25×",
        "call range                    1.00–2.00×",
        "full calls               6             2",
        "shallow calls            0             4",
        "PSNR                            20.00 dB",
        "worst PSNR                  20.00 dB, #1",
        "SSIM                              0.7500",
        "feature cache                   3.00 MiB",
        "",
        "helper: shapes differ (worst PSNR 20.00 dB, #1; SSIM 0.5000, #1)",
        "half of the speeds differ by more than 20% of their median: helper 0.67–2.50×; "
        "they are rough",
    ]


def test_the_table_says_identical_instead_of_infinity() -> None:
    table = outcome(psnr=(math.inf, math.inf)).table()
    assert "identical" in table
    assert "inf" not in table


def test_json_holds_settings_versions_and_figures() -> None:
    whole = json.loads(outcome(command="deepcache-patch compare a/model").to_json())
    assert set(whole) == {"command", "versions", "figures", *ABOUT}
    assert set(whole["versions"]) == {"python", "deepcache_patch", "torch", "diffusers"}
    assert {key: whole[key] for key in ABOUT} == ABOUT
    figures = whole["figures"]
    assert figures["loop_speedup"] == 2.0
    assert figures["call_speedup"] == 1.25
    assert figures["plain"]["loop_seconds_each"] == [4.0, 6.0, 5.0]
    assert figures["cached"]["loop_seconds"] == 2.0
    assert (figures["full_calls"], figures["shallow_calls"]) == (2, 4)
    assert figures["cache_nbytes"] == 3145728
    assert (figures["psnr"], figures["ssim"], figures["identical"]) == (20.0, 0.75, 1)


def test_json_has_null_for_what_is_not_finite() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = outcome(psnr=(math.inf, math.nan)).to_json()
    figures = json.loads(text, parse_constant=refuse)["figures"]
    assert figures["psnr_each"] == [None, None]
    assert figures["psnr"] is None


def test_arguments_that_json_has_no_word_for_are_text() -> None:
    call = {"sigmas": [1.0, math.inf], "components": {torch.float16: (1, None)}}
    about = {**outcome().about, "call": call}
    said = json.loads(outcome(about=about).to_json())["call"]
    assert said == {"sigmas": [1.0, "inf"], "components": {"torch.float16": [1, None]}}


def test_saving_leaves_nothing_else_behind(tmp_path: Any) -> None:
    outcome().save(tmp_path / "a.png")
    outcome(command="x").save(tmp_path / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == outcome().grid().size
    assert json.loads((tmp_path / "a.json").read_text())["command"] == "x"


def test_a_folder_that_is_not_there_is_made(tmp_path: Any) -> None:
    path = tmp_path / "a" / "b" / "figures.json"
    assert outcome().save(path) == path
    assert [each.name for each in path.parent.iterdir()] == ["figures.json"]


def test_a_failed_save_keeps_the_earlier_file(tmp_path: Any) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise TypeError

    path = tmp_path / "a.json"
    path.write_text("earlier")
    with pytest.raises(TypeError):
        outcome(full_calls=Unspeakable()).save(path)
    assert path.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_another_suffix_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.gif.*\.html, \.png or \.json"):
        outcome().save(tmp_path / "a.gif")


# --- the picture --------------------------------------------------------------------------------


def test_the_grid_has_three_rows_of_enlarged_pictures() -> None:
    pixels = np.asarray(outcome().grid())
    height, width, _ = pixels.shape
    cell = 3 * 64  # the smallest whole factor that reaches 160 pixels
    left, top = width - MARGIN - 2 * cell - GAP, height - MARGIN - 3 * cell - 2 * GAP
    # Differences are amplified 8 times, however small they are.
    rows = [[(102, 51, 0), (9, 9, 9)], [(100, 50, 0), (9, 9, 9)], [(16, 8, 0), (0, 0, 0)]]
    for row, colours in enumerate(rows):
        for column, colour in enumerate(colours):
            x, y = left + column * (cell + GAP), top + row * (cell + GAP)
            area = pixels[y : y + cell, x : x + cell]
            assert (area == colour).all(), (row, column)
            # White all round.
            assert (pixels[y : y + cell, x + cell : x + cell + GAP] == 255).all()
            assert (pixels[y + cell : y + cell + GAP, x : x + cell] == 255).all()
    assert (pixels[top : top + cell, left - 4 : left] == 255).all()


def test_large_pictures_keep_their_size() -> None:
    one = {"psnr": (20.0,), "ssim": (0.5,), "about": {**ABOUT, "seeds": [0]}}
    large = flat((1, 2, 3), side=600)
    grid = outcome(plain=(large,), cached=(large,), **one).grid()
    corner = (grid.width - MARGIN - 600, grid.height - MARGIN - 3 * 600 - 2 * GAP)
    assert (np.asarray(grid.crop((*corner, corner[0] + 600, corner[1] + 600))) == (1, 2, 3)).all()


def test_a_long_title_widens_the_picture() -> None:
    long = {**ABOUT, "model": "somebody/" + "a-very-long-name-" * 6}
    assert outcome(about=long).grid().width > outcome().grid().width


# --- what the pipeline is asked -----------------------------------------------------------------


DOT = Image.new("RGB", (1, 1))


class TextPipeline:
    """Knows every argument that matters; swallows others, as some pipelines do."""

    def __call__(
        self,
        prompt: Any,
        negative_prompt: Any = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        generator: Any = None,
        **kwargs: Any,
    ) -> None: ...


class ListPipeline:
    """Makes as many pictures as there are prompts, like the LDM one."""

    def __call__(self, prompt: Any, generator: Any = None) -> None: ...


class EditPipeline:
    """Makes one picture for each prompt and picture, like the latent upscaler."""

    def __call__(
        self, prompt: Any, image: Any, negative_prompt: Any = None, generator: Any = None
    ) -> None: ...


class PixelPipeline:
    """Draws what it likes."""

    def __call__(self, batch_size: int = 1, generator: Any = None) -> None: ...


class SinglePipeline:
    """Makes one picture from one picture."""

    def __call__(self, image: Any, generator: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("pipe", "call", "expected"),
    [
        (
            TextPipeline(),
            {"prompt": "a", "negative_prompt": "b"},
            {"prompt": "a", "negative_prompt": "b", "num_images_per_prompt": 4}
            | {"output_type": "np"},
        ),
        (
            TextPipeline(),
            {"prompt": ["a", "c"], "negative_prompt": "b"},
            {"prompt": ["a", "c"], "negative_prompt": ["b", "b"], "num_images_per_prompt": 2}
            | {"output_type": "np"},
        ),
        (ListPipeline(), {"prompt": "a"}, {"prompt": ["a", "a", "a", "a"]}),
        (ListPipeline(), {"prompt": ["a", "c"]}, {"prompt": ["a", "a", "c", "c"]}),
        (
            EditPipeline(),
            {"prompt": "a", "negative_prompt": "b", "image": DOT},
            {"prompt": ["a"] * 4, "negative_prompt": ["b"] * 4, "image": [DOT] * 4},
        ),
        (
            EditPipeline(),
            {"prompt": ["a", "c"], "negative_prompt": ["b", "d"], "image": [DOT, None]},
            {"prompt": ["a", "a", "c", "c"], "negative_prompt": ["b", "b", "d", "d"]}
            | {"image": [DOT, DOT, None, None]},
        ),
        (
            EditPipeline(),
            {"prompt": ["a", "b", "c", "d"], "negative_prompt": "e", "image": DOT},
            {"prompt": ["a", "b", "c", "d"], "negative_prompt": ["e"] * 4, "image": [DOT] * 4},
        ),
        (
            EditPipeline(),
            {"prompt": "a", "image": [DOT]},
            {"prompt": ["a"] * 4, "image": [DOT] * 4},
        ),
        (PixelPipeline(), {}, {"batch_size": 4}),
    ],
    ids=[
        *("text", "two-prompts", "list", "list-of-two"),
        *("edit", "edit-of-two", "edit-of-four", "edit-in-a-list", "unconditional"),
    ],
)
def test_all_pictures_are_one_batch(pipe: Any, call: Any, expected: Any) -> None:
    assert batched_call(pipe, call, 4) == expected


def test_latents_to_begin_with_are_repeated_for_each_prompt() -> None:
    latents = torch.arange(2.0).reshape(2, 1, 1, 1)
    made = batched_call(EditPipeline(), {"prompt": ["a", "c"], "image": latents}, 4)
    assert made["prompt"] == ["a", "a", "c", "c"]
    assert made["image"].flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("negative", ["c", ["c", "d"]], ids=["one", "listed"])
def test_the_latent_upscaler_makes_several_pictures_of_each(negative: Any) -> None:
    # Only its prompts were repeated: "`prompt` has batch size 4 and `image` has batch size 2".
    made = DeepCacheHelper(zoo.CASES["sd-latent-upscale"].load(), schedule=Uniform()).compare(
        seeds=range(4),
        fewer_steps=False,
        prompt=["a", "b"],
        negative_prompt=negative,
        image=[picture(), picture(seed=1)],
        num_inference_steps=2,
    )
    assert len(made.plain) == 4


@pytest.mark.parametrize(
    ("pipe", "call", "message"),
    [
        (PixelPipeline(), {"guidance_scale": 2.0}, "PixelPipeline does not take guidance_scale"),
        (TextPipeline(), {"prompt": "a", "kwargs": 1}, "does not take kwargs"),
        (TextPipeline(), {"promt": "a"}, r"does not take promt \(did you mean prompt\?\)"),
        (TextPipeline(), {"prompt": "a", "generator": 1}, "generator cannot be given here"),
        (TextPipeline(), {}, "TextPipeline needs prompt="),
        (SinglePipeline(), {"image": 1}, "one picture at a time: give one seed, not 4"),
    ],
)
def test_arguments_that_do_not_fit_are_named(pipe: Any, call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        batched_call(pipe, call, 4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"seeds": 3}, TypeError, "seeds must be a list of integers, not 3"),
        ({"seeds": ["a"]}, TypeError, "seeds must be a list of integers, not ['a']"),
        ({"seeds": []}, ValueError, "seeds is empty: give one seed for each picture"),
        ({"prompt": []}, ValueError, "prompt is empty: give a text, or a list of texts"),
        (
            {"seeds": [0], "prompt": []},
            ValueError,
            "prompt is empty: give a text, or a list of texts",
        ),
        (
            {"output_type": "pt"},
            TypeError,
            "output_type cannot be given here: it is set by what is compared",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        DeepCacheHelper(CASES["sd"].load(), schedule=Uniform()).compare(**{"prompt": "a", **given})
    assert str(caught.value) == message


def test_there_is_a_seed_for_each_prompt_unless_they_are_given() -> None:
    made = DeepCacheHelper(CASES["sd"].load(), schedule=Uniform()).compare(
        prompt=["a", "b"], num_inference_steps=2
    )
    assert made.about["seeds"] == [0, 1]
    assert made.headings == ["a", "b"]
    assert (str(made), made.title.rpartition(" · ")[2]) == (made.table(), "interval 3, branch 0")


def test_a_notebook_breaks_long_lines_and_keeps_columns() -> None:
    # One long note made the whole page as wide as that note.
    made = outcome(plans={"unet": Plan(["full", -1])})
    text, picture = made._repr_html_().split("</pre>")
    assert text == f'<pre style="white-space:pre-wrap">{escape(made.table())}'
    start = f'<img style="max-width:100%" alt="{made.title}" src="data:image/png;base64,'
    assert picture.startswith(start)


@pytest.mark.parametrize(
    ("prompt", "seeds", "headings"),
    [
        ("a", [3, 4], ["seed 3", "seed 4"]),
        (["a", "b"], [3, 4], ["a", "b"]),
        (["a", "b"], [3, 4, 5, 6], ["a, seed 3", "a, seed 4", "b, seed 5", "b, seed 6"]),
    ],
)
def test_a_heading_tells_which_result_it_is(prompt: Any, seeds: Any, headings: Any) -> None:
    about = {**outcome().about, "call": {"prompt": prompt}, "seeds": seeds}
    assert outcome(about=about).headings == headings


@pytest.mark.parametrize(
    ("schedule", "replay", "said"),
    [
        ("Uniform(interval=3, branch=0)", "Extrapolate(strength=1.0)", "interval 3, branch 0"),
        ("Uniform(interval=3, branch=0)", "Reuse()", "interval 3, branch 0, reuse"),
        ("Auto(interval=3, branch=0)", None, "Auto(interval=3, branch=0)"),
    ],
)
def test_the_title_tells_schedule_and_replay(schedule: str, replay: str, said: str) -> None:
    about = {**outcome().about, "schedule": schedule, "replay": replay}
    assert outcome(about=about).title.endswith(f" · {said}")


def test_prompts_that_do_not_share_the_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="4 pictures cannot be shared out evenly to 3 prompts"):
        batched_call(TextPipeline(), {"prompt": ["a", "b", "c"]}, 4)


def test_the_progress_label_comes_and_goes() -> None:
    pipe = CASES["ddpm"].load()
    pipe.set_progress_bar_config(disable=True)
    with labelled_progress(pipe, "plain"):
        assert pipe._progress_bar_config == {"disable": True, "desc": "plain"}
    assert pipe._progress_bar_config == {"disable": True}
    del pipe._progress_bar_config
    with labelled_progress(pipe, "plain"):
        pass
    assert "_progress_bar_config" not in vars(pipe)


# --- the clock ----------------------------------------------------------------------------------


def test_the_clock_runs_from_the_first_start_to_the_last_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One reading when the first call starts, and one at the end of each.
    ticks = iter([10.0, 11.0, 13.0, 17.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    layer = torch.nn.Identity()
    with LoopClock(layer) as clock:
        for _ in range(3):
            layer(torch.zeros(1))
    assert (clock.seconds, clock.calls) == (7.0, 3)
    layer(torch.zeros(1))
    assert clock.calls == 3


def test_an_accelerator_is_timed_by_two_events_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.records = 0

        def record(self, stream: str) -> None:
            assert stream == "stream of meta"
            self.records += 1

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * self.records + end.records

    runtime = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "meta", runtime, raising=False)
    layer = torch.nn.Identity()
    with LoopClock(layer) as clock:
        for _ in range(3):
            layer(torch.zeros(1, device="meta"))
    assert log == []
    # The first event was recorded once and the second three times: 1003 "milliseconds".
    assert clock.seconds == 1.003
    assert log == ["synchronize"]


def test_the_clock_leaves_no_hook_behind() -> None:
    layer = torch.nn.Identity()
    before = {name: repr(value) for name, value in vars(layer).items()}
    with pytest.raises(ZeroDivisionError), LoopClock(layer):
        raise ZeroDivisionError
    assert {name: repr(value) for name, value in vars(layer).items()} == before


def test_a_loop_that_did_not_run_has_no_time() -> None:
    with LoopClock(torch.nn.Identity()) as clock:
        pass
    with pytest.raises(RuntimeError, match="could not be timed"):
        _ = clock.seconds


# --- on real pipelines --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "ldm-text2img", "ddpm"])
def test_both_runs_start_from_the_same_seeds(name: str) -> None:
    pipe = CASES[name].load()
    call = {"prompt": "a small red circle"} if name != "ddpm" else {}
    result = compare(
        DeepCacheHelper(pipe, schedule=Uniform(1)),
        seeds=(5, 7),
        num_inference_steps=3,
        **call,
    )
    # At interval 1 every step is full, and full steps are exact.
    assert result.psnr == (math.inf, math.inf)
    assert (result.full_calls, result.shallow_calls) == (3, 0)
    assert [np.asarray(a).tobytes() for a in result.plain] == [
        np.asarray(b).tobytes() for b in result.cached
    ]
    # Each seed draws what it draws alone.
    images = pipe(
        **call, num_inference_steps=3, output_type="np", generator=[torch.manual_seed(7)]
    ).images
    expected = (images[0].clip(0, 1) * 255).round().astype(np.int16)
    actual = np.asarray(result.plain[1].convert("RGB"), np.int16)
    # Another batch size may sum in another order, which can tip the rounding to 8 bits.
    assert np.abs(expected - actual).max() <= 1


def test_counts_and_settings_of_a_cached_generation() -> None:
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, schedule=Uniform(3))
    result = compare(helper, seeds=[3], prompt="a fox", num_inference_steps=7, repeats=2)
    assert (result.full_calls, result.shallow_calls) == (3, 4)
    assert [time.calls for time in result.plain_times + result.times] == [7] * 4
    assert result.cache_nbytes > 0
    assert (result.about["steps"], result.about["guidance_scale"]) == (7, 7.5)
    assert (result.about["interval"], result.about["branch"]) == (3, 0)
    assert (result.about["first"], result.about["last"]) == (0, 0)
    assert result.about["replay"] == "Extrapolate(strength=1.0)"
    assert result.about["seeds"] == [3]
    assert not helper.enabled
    for time in result.plain_times:
        assert 0 < time.loop_seconds < time.call_seconds


@pytest.mark.parametrize("enabled", [False, True])
def test_the_helper_is_left_as_it_was_found_even_after_a_failure(enabled: bool) -> None:
    pipe = CASES["sd"].load()
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    if enabled:
        helper.enable()
    with pytest.raises(ValueError, match="divisible by 8"):
        compare(helper, prompt="a fox", height=13, width=16)
    assert helper.enabled is enabled
    helper.disable()


def test_a_pipeline_that_makes_fewer_pictures_than_seeds_is_told() -> None:
    pipe = CASES["ldm-superresolution"].load()
    with pytest.raises(TypeError, match="made 1 pictures for 2 seeds"):
        compare(
            DeepCacheHelper(pipe, schedule=Uniform()),
            seeds=(0, 1),
            image=torch.zeros(1, 3, 8, 8),
            num_inference_steps=2,
        )


@pytest.mark.parametrize("bad", [{"seeds": []}, {"repeats": 0}])
def test_nothing_to_run_is_refused(bad: dict[str, Any]) -> None:
    pipe = CASES["ddpm"].load()
    with pytest.raises(ValueError, match=next(iter(bad))):
        compare(DeepCacheHelper(pipe, schedule=Uniform()), **bad)
