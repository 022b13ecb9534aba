"""What a sweep has found, as a table, JSON, a picture, a page, and lines to paste."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from builders.outcomes import HOSTILE, joined
from builders.sweeps import ABOUT, made, row
from PIL import Image

from deepcache_patch import Plan, Uniform
from deepcache_patch.compare.script import python_of
from deepcache_patch.measuring.generation import Timing
from deepcache_patch.sweep.figures import cautions_of, knee_text, rows_of
from deepcache_patch.sweep.outcome import FILES, Sweep
from deepcache_patch.sweep.settings import SweepSetting


def test_the_table_names_settings_speeds_likeness_and_the_knee() -> None:
    lines = made().table().splitlines()
    apart, same = "0.6250 shapes differ", "24 1.91× (1.82–2.00×) 2.00× 30.00 dB 29.00 dB, #2"
    assert [" ".join(line.split()) for line in lines[:7]] == [
        "setting steps measured speed speed by work PSNR mean PSNR worst SSIM verdict fewer steps "
        "at equal work",
        "plain 24 1.00× 1.00× reference",
        f"1 interval 1.5 24 1.43× (1.36–1.50×) 1.50× 40.00 dB 39.00 dB, #2 {apart} "
        "16 steps: 25.00 dB",
        f"2 uniform, interval 2, branch 0 {same} {apart} left out: it has no steps",
        f"3 auto, interval 2.2 24 2.39× (2.27–2.50×) 2.50× 38.00 dB 37.00 dB, #2 {apart}",
        f"4 auto, interval 3 24 3.34× (3.18–3.50×) 3.50× 20.00 dB 19.00 dB, #2 {apart}",
        f"plain 16 1.43× (1.36–1.50×) 1.50× 25.00 dB 24.00 dB, #2 {apart}",
    ]
    assert lines[2][lines[0].index("setting") :].startswith("interval 1.5")  # columns stand in line
    assert len({line.index("× (") for line in lines[2:7]}) == 1
    text = made().table()
    assert "against the plain pipeline with 24 steps" in text
    knee = "The knee is auto, interval 2.2 with 24 steps: 2.50× by work, PSNR 38.00 dB, shapes diff"
    rule = "Of the settings that no other one beats in both speed by work and quality, the knee is"
    assert f"{knee}er (3 in the figure). {rule}" in text
    assert "lies highest above the straight line" in text
    assert not cautions_of(made())
    assert repr(made().fewer[0]) == "Row(plain, 16 steps: 1.43× (1.36–1.50×), PSNR 25.00 dB)"
    assert repr(made()) == "Sweep(a/model · DDIM: 4 settings, knee at auto, interval 2.2)"


@pytest.mark.parametrize("known", [True, False])
def test_it_is_said_by_which_speed_the_knee_was_found(known: bool) -> None:
    # The sentence said "speed", and a row beneath had a higher one: the measured.
    rows = made().settings
    noisy = replace(rows[1], times=(Timing(4.0, 13.0, 24), Timing(4.0, 13.0, 24)))
    rows = (rows[0], noisy, *rows[2:])
    sweep = made(settings=rows if known else tuple(replace(each, worth=None) for each in rows))
    name, other, why = {
        True: ("speed by work", "by work", "The measured speed does not count here, because it"),
        False: ("measured speed", "measured", "The speed by work is not known here."),
    }[known]
    rule = json.loads(sweep.to_json())["knee_rule"]
    assert f"beats in both {name} and quality, the knee is" in rule
    assert f" {why}" in rule
    assert rule in sweep.table()
    assert f'<p class="hint">{rule}</p>' in sweep.to_html()
    knee = sweep.settings[2]
    assert sweep.knee is knee
    assert f"{sweep.speed_of(knee):.2f}× {other}, PSNR" in knee_text(sweep)
    assert f'<p class="axis right">{name}</p>' in sweep.to_html()
    assert noisy.speedup > knee.speedup


def test_the_verdict_of_each_row_is_that_of_a_comparison() -> None:
    alike = row(2, 50, SweepSetting(interval=2, steps=24), ssim=(0.99, 0.99))
    moved = row(2.2, 30, SweepSetting(interval=3, steps=24), ssim=(0.95, 0.95))
    sweep = made(settings=(alike, moved))
    assert [each[-2] for each in rows_of(sweep)[1:3]] == ["no visible difference", "details move"]
    assert [each["looks"] for each in sweep.to_dict()["settings"]] == [alike.looks, moved.looks]
    assert "PSNR 50.00 dB · no visible difference</p>" in joined(sweep.to_html())


def test_what_speaks_against_speeds_is_said_as_in_a_comparison() -> None:
    good, *others = made().settings
    fast = row(3, 30, SweepSetting(interval=2, steps=24), worth=12)
    slower = replace(fast, setting=SweepSetting(interval=1.9, steps=24))
    beyond = (
        "Measured faster than the saved work allows: interval 2, 24 steps 2.86× of at most 2.00×"
    )
    for several, more in (((fast,), ""), ((fast, slower), "; and 1 more")):
        lines = made(settings=(good, *several, *others)).table().splitlines()
        assert f"{beyond}{more}; timings vary: believe the work." in lines
    once = {"times": (Timing(6.0, 13.0, 24),), "plain_times": (Timing(12.0, 26.0, 24),)}
    sweep = made(settings=tuple(replace(each, **once) for each in made().settings))
    said = "peeds from one run prove little: go by work, or take repeats=5 (--repeats 5)."
    assert f"\nS{said}" in sweep.table()
    assert f'<p class="note caution">S{said}</p>' in joined(sweep.to_html())
    assert sweep.picture().height > made().picture().height


@pytest.mark.parametrize(("quality", "better"), [(41, True), (39, True), (38.9, False)])
def test_a_setting_that_fewer_steps_beat_is_marked_everywhere(quality: float, better: bool) -> None:
    settings = list(made().settings)
    settings[2] = replace(settings[2], fewer=10)
    fewer = (*made().fewer, row(2.4, quality, steps=10, plan=Plan()))
    sweep = made(settings=tuple(settings), fewer=fewer)
    said = (
        "fewer steps at equal work are better, by 1 dB or more, than: auto, interval 2.2, 24 steps"
    )
    assert (said in cautions_of(sweep)) == better
    assert rows_of(sweep)[3][-1] == f"10 steps: {quality:.2f} dB{', better' if better else ''}"
    assert (" But 10 plain steps are better." in sweep.table()) == better
    assert sweep.to_html().count('<tr class="knee beaten">') == better
    assert [each["fewer_steps_are_better"] for each in sweep.to_dict()["settings"]] == [
        *(False, False, better, False),
    ]


def without_knee(*qualities: float, ssim: tuple[float, float] = (0.95, 0.95)) -> Sweep:
    """Two settings, 1.5 and 2 times as fast, beside fewer steps of 30 dB.

    The worse of the two pictures of a setting is 1 dB beneath its quality.
    """
    speeds = {16: 1.5, 12: 2.0}
    settings = [
        row(
            speed, quality, SweepSetting(interval=speed, steps=24), fewer=steps, ssim=(alike, alike)
        )
        for (steps, speed), quality, alike in zip(speeds.items(), qualities, ssim, strict=True)
    ]
    fewer = [row(speed, 30, steps=steps, plan=Plan()) for steps, speed in speeds.items()]
    return made(settings=tuple(settings), fewer=tuple(fewer), about={**ABOUT, "settings": 2})


NO_KNEE = "There is no knee: it takes three settings, and here are two settings."
SLOWER, FASTER = (
    "Take interval 1.5 with 24 steps: 1.50× by",
    "Take interval 2 with 24 steps: 2.00× by",
)


@pytest.mark.parametrize(
    ("qualities", "ssim", "place", "said"),
    [
        ((40, 29), (0.95, 0.95), 0, f"{SLOWER} work, PSNR 40.00 dB, details move (1 in"),
        ((40, 31), (0.95, 0.95), 1, f"{FASTER} work, PSNR 31.00 dB, details move (2 in"),
        ((29, 30), (0.95, 0.95), 1, f"{FASTER} work, PSNR 30.00 dB, details move (2 in"),
        # It named the faster one, of whose pictures one had lost a square.
        ((42, 31), (0.99, 0.99), 0, f"{SLOWER} work, PSNR 42.00 dB, no visible difference (1 in"),
        ((42, 41), (0.99, 0.99), 1, f"{FASTER} work, PSNR 41.00 dB, no visible difference (2 in"),
        ((32, 31), (0.95, 0.85), 0, f"{SLOWER} work, PSNR 32.00 dB, details move (1 in"),
    ],
)
def test_without_a_knee_the_fastest_setting_with_the_best_verdict_is_named(
    qualities: tuple[float, float], ssim: tuple[float, float], place: int, said: str
) -> None:
    sweep = without_knee(*qualities, ssim=ssim)
    found = sweep.settings[place]
    assert sweep.knee is None
    assert sweep.fastest_unbeaten is found
    rule = "the fastest setting with this verdict that fewer steps at equal work do not beat."
    said = f"{said} the figure), {rule} {NO_KNEE}"
    assert said in sweep.table().splitlines()
    assert f'<p class="knee-text">{said}</p>' in joined(sweep.to_html())
    assert f'data-first="setting-{1 + place}"' in sweep.to_html()
    named = json.loads(sweep.to_json())["fastest_unbeaten"]
    assert named == {"name": found.name, "steps": 24}


@pytest.mark.parametrize(("quality", "place"), [(34.73, 1), (34.6, 2)])
def test_what_is_learned_gives_way_to_what_is_as_good_without(quality: float, place: int) -> None:
    # "Take auto, interval 2", for 0.03 dB.
    names = ("uniform", "noise-aware", "auto")
    uniform, default, auto = (SweepSetting(name, 2, steps=24) for name in names)
    alike: dict[str, Any] = {"fewer": 12, "ssim": (0.95, 0.95)}
    settings = (
        row(2, quality - 0.05, uniform, **alike),
        row(2, quality, default, **alike),
        row(2, 34.76, auto, **alike),
    )
    fewer = (row(2, 30, steps=12, plan=Plan()),)
    assert made(settings=settings, fewer=fewer).fastest_unbeaten is settings[place]


SHAPES_DIFFER = (
    "shapes differ, or fewer steps at equal work are better. A smaller interval comes closer."
)


@pytest.mark.parametrize(
    ("qualities", "ssim", "said"),
    [
        ((29, 29), (0.95, 0.95), "fewer steps at equal work are better than every setting."),
        ((40, 31), (0.85, 0.85), SHAPES_DIFFER),
        ((40, 29), (0.85, 0.95), SHAPES_DIFFER),
    ],
)
def test_without_a_knee_a_setting_that_is_beaten_or_moves_shapes_is_not_named(
    qualities: tuple[float, float], ssim: tuple[float, float], said: str
) -> None:
    sweep = without_knee(*qualities, ssim=ssim)
    assert sweep.fastest_unbeaten is None
    said = f"Take none of them: {said} {NO_KNEE}"
    assert said in sweep.table().splitlines()
    assert f'<p class="knee-text">{said}</p>' in joined(sweep.to_html())
    assert 'data-first="setting-1"' in sweep.to_html()
    assert json.loads(sweep.to_json())["fastest_unbeaten"] is None


def test_of_sounds_which_have_no_verdict_the_fastest_above_fewer_steps_is_named() -> None:
    sweep = without_knee(40, 31)
    sounds = {"psnr": None, "ssim": None}
    sweep = replace(
        sweep,
        settings=tuple(replace(each, snr=each.psnr, **sounds) for each in sweep.settings),
        fewer=tuple(replace(each, snr=each.psnr, **sounds) for each in sweep.fewer),
    )
    assert sweep.fastest_unbeaten is sweep.settings[1]
    assert knee_text(sweep) == (
        f"{FASTER} work, SNR 31.00 dB (2 in the figure), the fastest setting that fewer "
        f"steps at equal work do not beat. {NO_KNEE}"
    )


def test_where_fewer_steps_were_not_made_nothing_is_said_of_them() -> None:
    sweep = replace(without_knee(40, 29), fewer=())
    assert sweep.fastest_unbeaten is None
    assert NO_KNEE in sweep.table().splitlines()


def test_nothing_to_take_is_said_where_some_are_beaten_and_of_others_it_is_not_known() -> None:
    beaten, other = without_knee(29, 29).settings
    unknown = replace(other, fewer=None, fewer_left_out="it has no steps")
    sweep = replace(without_knee(29, 29), settings=(beaten, unknown))
    assert sweep.fastest_unbeaten is None
    assert knee_text(sweep) == NO_KNEE


def test_nothing_to_take_is_said_of_no_setting() -> None:
    # It said "Take none of them".
    assert knee_text(replace(without_knee(29, 29), settings=())) == (
        "There is no knee: it takes three settings, and here is no setting."
    )


def test_few_steps_are_remarked_on_once_where_pictures_moved() -> None:
    said = (
        "with 15 steps or fewer pictures move far from the plain ones: "
        "try the default with interval=1.5"
    )
    moved = row(2, 30, SweepSetting(interval=2, steps=12), steps=12, plan=Plan(["full", -1] * 6))
    alike = replace(moved, psnr=(50.0, 50.0), ssim=(1.0, 1.0))
    more = replace(moved, steps=16, plan=Plan(["full", -1] * 8))
    assert said not in cautions_of(made(settings=(alike, more)))
    sweep = made(settings=(moved, alike, moved))
    assert cautions_of(sweep).count(said) == 1
    assert f"{said[0].upper()}{said[1:]}." in sweep.table().splitlines()


@pytest.mark.parametrize(
    ("setting", "full", "said"),
    [
        (SweepSetting("auto"), 7, "7 full steps, too few to learn from: as the default"),
        (SweepSetting("auto"), 8, None),
        (SweepSetting("auto", branch=0), 12, "nothing is learned at branch 0: as the default"),
        (SweepSetting(), 7, None),
    ],
)
def test_auto_that_had_nothing_to_learn_from_is_called_the_default(
    setting: SweepSetting, full: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcache_patch.learning.auto.FEW_FULL_STEPS", 8)
    branch = -1 if setting.branch is None else setting.branch
    one = row(2, 50, setting, steps=24, plan=Plan(["full"] * full + [branch] * (24 - full)))
    cautions = [each for each in cautions_of(made(settings=(one,))) if "learn" in each]
    assert cautions == ([] if said is None else [f"{one.title}: {said}"])


def test_a_setting_of_which_one_step_alone_ran_in_full_is_remarked_on() -> None:
    settings = (replace(made().settings[0], plan=Plan(["full"] + [-1] * 23)), *made().settings[1:])
    said = "Only the first step ran in full: interval 1.5, 24 steps; a smaller interval comes clos"
    assert said in made(settings=settings).table()


def test_what_was_broken_off_says_so() -> None:
    sweep = made(settings=made().settings[:1])
    assert sweep.missing == 3
    assert sweep.table().endswith("\nBroken off: 3 of 4 are not there yet.")
    assert "There is no knee: it takes three settings, and here is one setting." in sweep.to_html()


def test_json_holds_all_figures() -> None:
    found = json.loads(made().to_json())
    assert found["knee"] == {"name": "auto, interval 2.2", "steps": 24}
    assert found["figure_by"] == "work"
    first = found["settings"][0]
    assert (first["work"], first["work_speedup"], first["fewer_steps"]) == (1 / 1.5, 1.5, 16)
    assert first["loop_speedup_each"] == pytest.approx([1.5, 1.5 / 1.1])
    assert first["call_speedup"] == 2.0
    assert (first["psnr"], first["psnr_each"]) == (40.0, [41.0, 39.0])
    assert found["plain"]["psnr"] is None  # identical: JSON has no infinity
    assert [each["steps"] for each in found["fewer_steps"]] == [16]


def test_each_row_is_written_to_be_pasted() -> None:
    sweep = made(about={**ABOUT, "first": 2, "replay": "Reuse()"})
    script = sweep.python(sweep.settings[1])
    assert script == python_of(
        {
            **sweep.about,
            "schedule": "Uniform(interval=2, branch=0)",
            "call": {**ABOUT["call"], "num_inference_steps": 24},
        }
    )
    assert replace(sweep, compared_by="deepcache-patch compare m").command(sweep.settings[1]) == (
        "deepcache-patch compare m --interval 2 --branch 0 --schedule uniform --steps 24"
    )
    plain = sweep.python(sweep.fewer[0])
    assert "        num_inference_steps=16,\n" in plain
    assert "DeepCache" not in plain
    assert sweep.command(sweep.fewer[0]) is None
    given = row(2, 30, SweepSetting(str(Uniform(3)), steps=24, given=Uniform(3)))
    helper = "DeepCacheHelper(pipe, schedule=Uniform(interval=3, branch=0), first=2"
    assert helper in sweep.python(given)
    assert sweep.command(given) is None
    # Where a list says which steps there are, their number is not given.
    listed = made(about={**ABOUT, "call": {"timesteps": [9, 3]}})
    assert "num_inference_steps" not in listed.python(row(2, 30, SweepSetting("auto", 2), steps=2))


class Page(HTMLParser):
    """What stands in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_has_a_point_and_a_card_for_each_row_and_fetches_nothing() -> None:
    text = made(compared_by="deepcache-patch compare a/model").to_html()
    page = Page(text)
    cards = [each["id"] for each in page.named("article")]
    assert cards == ["setting-1", "setting-2", "setting-3", "setting-4", "plain-16"]
    points = [each for each in page.named("a") if "point" in (each.get("class") or "")]
    assert [each["href"] for each in points] == [f"#{card}" for card in [*cards[4:], *cards[:4]]]
    assert [each["class"] for each in points].count("point knee") == 1
    assert all((each["src"] or "").startswith("data:image/webp;") for each in page.named("img"))
    assert len(page.named("img")) == 6 + 2 + 5 * 2  # thumbnails, plain, cards
    assert not page.named("link")[1:]
    assert not re.findall(r"<[^>]+ style=", text)  # which the policy would refuse
    # A line ended within the two hyphens of an option.
    options = [f'<span class="whole">{each}</span>' for each in ("--interval", "--steps")]
    assert "deepcache-patch compare a/model {} 1.5 {} 24</code>".format(*options) in text


def test_the_page_escapes_whatever_it_is_given() -> None:
    about = {**ABOUT, "model": HOSTILE, "call": {"prompt": HOSTILE}}
    page = Page(made(about=about, compared_by=HOSTILE).to_html())
    assert len(page.named("script")) == 1
    assert all("onerror" not in each for each in page.named("img"))


def test_files_are_written_by_their_suffix(tmp_path: Path) -> None:
    sweep = made()
    folder = tmp_path / "new" / "folder"
    assert sweep.save_all(folder) == tuple(folder / name for name in FILES)
    with Image.open(folder / "sweep.png") as picture:
        assert picture.size == sweep.picture().size
    assert json.loads((folder / "sweep.json").read_text()) == json.loads(sweep.to_json())
    with pytest.raises(ValueError, match=r"cannot save a sweep as 'a.txt'; end in .html, .png"):
        sweep.save(tmp_path / "a.txt")
    assert "data:image/png;base64," in sweep._repr_html_()
