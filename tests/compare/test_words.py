"""What a comparison says in words: how far the speeds are to be trusted, which result is the worst,
how far pictures are apart, and all of it in one line.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from builders.outcomes import ABOUT, fewer, joined, outcome, sounds, videos

from deepcache_patch import FULL, Plan
from deepcache_patch.compare.measures import RULE, Measure
from deepcache_patch.measuring.generation import Timing


def timed(*pairs: tuple[float, float], **changes: Any) -> Any:
    """Plain and cached seconds of each repeat, of the loop and of the whole call."""
    plain, cached = zip(*pairs, strict=True)
    rows = [tuple(Timing(each, each, 6) for each in row) for row in (plain, cached)]
    return outcome(plain_times=rows[0], times=rows[1], **changes)


def test_one_run_has_no_range_but_a_word_of_caution() -> None:
    once = timed((4.0, 2.0))
    assert "range" not in once.table()
    note = "speeds from one run prove little: take repeats=5 (--repeats 5)"
    assert once.notes == (note,)
    assert once.table().splitlines()[-1] == note
    assert once.grid().height > timed((4.0, 2.0), (4.0, 2.0)).grid().height
    assert timed((4.0, 2.0), work=0.5).notes == (
        "speeds from one run prove little: go by work, or take repeats=5 (--repeats 5)",
    )


@pytest.mark.parametrize(
    ("seconds", "work", "notes"),
    [
        ([(4.0, 2.0), (4.0, 2.0)], 0.5, []),
        ([(4.0, 2.0), (8.0, 4.0)], 0.5, []),  # a machine that is slower for both
        ([(3.4, 2.0), (4.1, 2.0)], 0.5, []),  # by less than 20 % of their median
        ([(3.2, 2.0), (4.2, 2.0)], 0.5, ["by more than 20% of their median: helper 1.60–2.10×"]),
        ([(4.0, 2.0), (4.0, 2.0), (4.0, 2.0), (4.0, 2.0), (4.0, 9.0)], 0.5, []),  # outvoted
        ([(4.0, 2.0), (4.4, 2.0)], 0.5, ["helper 2.10× of at most 2.00×; timings vary: bel"]),
        ([(5.0, 2.0), (5.0, 2.0)], 0.5, ["2.50× of at most 2.00×; timings vary: believe the work"]),
        ([(5.0, 2.0), (5.0, 2.0)], None, []),
    ],
)
def test_times_that_cannot_be_trusted_are_told(
    seconds: list[tuple[float, float]], work: float | None, notes: list[str]
) -> None:
    made = timed(*seconds, work=work)
    assert len(made.notes) == len(notes)
    assert all(said in note for said, note in zip(notes, made.notes, strict=True))


def test_a_speed_above_what_the_work_allows_is_remarked_on_in_every_form() -> None:
    made = timed((4.0, 2.0), (4.4, 2.0), work=0.5)
    (note,) = made.notes
    assert note in made.table().splitlines()
    assert f'<p class="note caution">{note[0].upper()}{note[1:]}' in joined(made.to_html())
    assert made.to_dict()["figures"]["notes"] == [note]


def test_the_range_is_that_of_runs_that_followed_each_other() -> None:
    made = timed((4.0, 2.0), (6.0, 2.0), (9.0, 6.0))
    assert made.speedup == 2.0
    figures = made.to_dict()["figures"]
    assert figures["loop_speedup_each"] == figures["call_speedup_each"] == [2.0, 3.0, 1.5]
    assert "loop range                    1.50–3.00×" in made.table().splitlines()


def test_the_worst_is_named_by_its_number() -> None:
    assert Measure("PSNR", (33.0, 30.6, math.inf, 30.6), "dB", 2).worst_text() == "30.60 dB, #2"
    assert Measure("PSNR", (30.6,), "dB", 2).worst_text() == "30.60 dB"  # it has no number
    assert Measure("LPIPS", (0.1, 0.3, 0.2)).worst_text() == "0.3000, #2"  # a distance
    assert Measure("SSIM", (0.1, math.nan)).worst == 1
    figures = outcome(psnr=(30.0, 20.0)).to_dict()["figures"]
    assert figures["worst"] == 2
    assert outcome(psnr=(30.0, 20.0)).numbered == ["#1 seed 0", "#2 seed 1"]
    assert videos().numbered == ["seed 7"]


@pytest.mark.parametrize(
    ("steps", "full", "is_said"),
    [(8, 4, False), (9, 4, True), (15, 6, True), (16, 6, False), (12, 8, False)],
)
def test_a_plan_of_few_steps_says_that_the_pictures_move(
    steps: int, full: int, is_said: bool
) -> None:
    # `print(helper)` and the command `plan` said so, but not the pictures themselves.
    said = (
        "with 15 steps or fewer pictures move far from the plain ones: "
        "try the default with interval=1.5"
    )
    made = outcome(plans={"unet": Plan([FULL] * full + [-1] * (steps - full))})
    assert (said in made.notes) == is_said
    assert (said in made.to_dict()["figures"]["notes"]) == is_said
    assert (said in made.table().splitlines()) == is_said
    assert (
        f'<p class="note caution">{said[0].upper()}{said[1:]}' in joined(made.to_html())
    ) == is_said


def test_few_steps_are_not_remarked_on_where_nothing_moved_or_one_step_was_full() -> None:
    # It was said beside "no visible difference", and after "a smaller interval comes closer".
    said = (
        "with 15 steps or fewer pictures move far from the plain ones: "
        "try the default with interval=1.5"
    )
    plans = {"unet": Plan([FULL] * 4 + [-1] * 5)}
    assert said in outcome(plans=plans, psnr=(40.0, 39.9), ssim=(1.0, 1.0)).notes
    assert said not in outcome(plans=plans, psnr=(40.0, math.inf), ssim=(0.98, 1.0)).notes
    assert said not in sounds(plans=plans).notes
    assert said not in outcome(plans={"unet": Plan([FULL] + [-1] * 8)}).notes


def test_a_plan_with_one_full_step_is_remarked_on_and_no_error() -> None:
    note = "only the first step ran in full: helper; a smaller interval comes closer"
    for plan, said in {(FULL, 0, 0): True, (FULL, 0, FULL): False, (FULL,): False}.items():
        assert (note in outcome(plans={"unet": Plan(plan)}).notes) == said


@pytest.mark.parametrize(
    ("psnr", "ssim", "looks"),
    [
        ((math.inf, math.inf), (1.0, 1.0), "no visible difference"),
        ((40.0, 50.0), (0.98, 1.0), "no visible difference"),
        ((40.0, 39.9), (1.0, 1.0), "details move"),
        ((50.0, 50.0), (1.0, 0.97), "details move"),
        ((25.0, 50.0), (1.0, 0.90), "details move"),
        ((50.0, 24.9), (1.0, 1.0), "shapes differ"),
        ((50.0, 50.0), (0.89, 1.0), "shapes differ"),
        ((50.0, math.nan), (1.0, 1.0), "shapes differ"),
    ],
)
def test_the_worst_picture_decides_the_verdict_in_words(psnr: Any, ssim: Any, looks: str) -> None:
    made = outcome(psnr=psnr, ssim=ssim)
    assert (made.looks, made.to_dict()["figures"]["looks"]) == (looks, looks)
    assert f"helper: {looks} (worst PSNR " in made.table()


def test_a_single_result_is_not_called_the_worst() -> None:
    one = {"plain": outcome().plain[:1], "cached": outcome().cached[:1]}
    made = outcome(**one, psnr=(20.0,), ssim=(0.5,), about={**ABOUT, "seeds": [0]})
    assert made.said[0] == "helper: shapes differ (PSNR 20.00 dB; SSIM 0.5000)"


def test_the_rule_names_the_limits_and_whose_they_are() -> None:
    assert "at least 40 dB and SSIM 0.98" in RULE
    assert "less than 25 dB or SSIM 0.90" in RULE
    assert "this package’s own convention" in RULE


def test_there_is_no_verdict_on_sounds() -> None:
    assert sounds().looks is None
    assert "differ (worst" not in sounds().table()


def test_repr_is_one_line_with_the_figures_of_the_table() -> None:
    assert repr(outcome(fewer=fewer(), work=0.4)) == (
        "<Comparison of a/model: 6 steps, 2.00× (0.67–2.50×; by work at most 2.50×), "
        "PSNR 20.00 dB (worst 20.00 dB, #1); 3 steps: 18.00 dB>"
    )
    one = timed((4.0, 2.0), psnr=(20.0,), ssim=(0.5,), about={**ABOUT, "steps": None})
    assert repr(one) == "<Comparison of a/model: 2.00×, PSNR 20.00 dB>"
