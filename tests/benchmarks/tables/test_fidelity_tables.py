"""Tables of made-up rows: equal work is read off, and rows of old files are left out."""

import pytest

from benchmarks.tables import fidelity


def row(family, psnr, work, *, name=None, **settings):
    return {
        "name": name or family,
        "family": family,
        "settings": settings,
        "psnr": psnr,
        "psnr_worst_tenth": None if psnr is None else psnr - 10,
        "read_back": 0.5,
        "frechet": 1.25,
        "work_sd15": work,
    }


NEW = [
    row("plain", None, 1.0),
    row("fewer steps", 40.0, 0.5),
    row("fewer steps", 30.0, 0.375),
    row("deepcache 0.1.1", 35.0, 0.5, interval=2),
    row("default", 44.0, 0.45, speed=2.2),
    row("spectrum", 46.0, 0.44, speed=2.2),
    row("zeus", 41.0, 0.44, name="ZEUS, 11 full steps", speed=2.2),
    row("sada", 43.0, 0.44, name="SADA, up to 11 full steps", speed=2.2),
    row("auto", 47.0, None),
]
OLD = [{"family": "auto", "psnr": 50.0, "settings": {"interval": 3}, "speedup": 2.2}]


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    new = {"title": "A", "sampler": "dpm-20", "rows": NEW}
    both = {"a": new, "b": {"title": "B", "sampler": "ddim-50", "rows": OLD}}
    monkeypatch.setattr(fidelity, "results", lambda folder=None: both)


def test_fewer_steps_are_read_off_at_equal_work():
    # 0.45, the default's, is 2/5 of the way from 1/2 to 3/8.
    assert fidelity.samplers().splitlines()[2] == (
        "| A | 2.22× | 36.0 | 35.0 (2.00×) | 44.0 | – | – | 46.0 | 43.0 (SADA) |"
    )


def test_who_did_not_keep_the_budget_is_shown_with_its_speed(monkeypatch):
    rows = [
        row("default", 44.0, 1 / 2.2, speed=2.2),
        row("default", 48.0, 0.5, speed=1.8),
        row("zeus", 41.0, 0.62, name="ZEUS, 11 full steps", speed=1.8),
        row("sada", 43.0, 0.5, name="SADA, up to 9 full steps", speed=2.2),
    ]
    report = {"title": "A", "sampler": "dpm-25", "rows": rows}
    monkeypatch.setattr(fidelity, "results", lambda folder=None: {"a": report})
    only = "| A | 2.20× | – | – | 44.0 | – | – | – | 43.0 (SADA, 2.00×) |"
    assert fidelity.samplers().splitlines()[2:] == [only]
    assert fidelity.curves().splitlines()[2].endswith("| 41.0 (ZEUS, 1.61×) |")


def test_the_readme_has_the_usual_samplers_only_on_each_model(monkeypatch):
    def results(folder=fidelity.RESULTS):
        model, images = ("emoji", 4) if "emoji" in folder.parts else ("shapes", 8)
        guidance = 7.5 if folder.name == "strong-guidance" else 4.0
        about = {"title": "A", "model": model, "images": images, "guidance_scale": guidance}
        psnr = (44.0 if model == "shapes" else 41.0) - guidance
        rows = [row("default", psnr, 1 / 2.2, speed=2.2)]
        return {name: {**about, "sampler": name, "rows": rows} for name in ("dpm-20", "dpm-25")}

    monkeypatch.setattr(fidelity, "results", results)
    header, _, *rows = fidelity.usual_samplers().splitlines()
    assert header.startswith("| PSNR in dB, shapes/emoji | speed | fewer steps |")
    assert rows == [
        "| A | 2.20× | –/– | –/– | 40.0/37.0 | –/– | –/– |",
        "| A, guidance 7.5 | 2.20× | –/– | –/– | 36.5/33.5 | –/– | –/– |",
    ]
    assert fidelity.pictures_of_both() == (
        "Means over 8 pictures of shapes and 4 pictures of emoji, 64×64 pixels, guidance 4 unless "
        "named."
    )


def test_strong_guidance_has_a_table_of_its_own(monkeypatch):
    def results(folder):
        about = {"title": "A", "model": folder.parent.name, "guidance_scale": 7.5}
        rows = [
            row("default", 33.0, 1 / 1.8, speed=1.8),
            row("default", 30.0, 1 / 2.2, speed=2.2),
            row("auto", 31.0, 1 / 2.2, speed=2.2),
        ]
        return {"dpm-25": {**about, "sampler": "dpm-25", "rows": rows}}

    monkeypatch.setattr(fidelity, "results", results)
    assert fidelity.strong_guidance().splitlines() == [
        "With guidance 7.5:",
        "",
        "| PSNR in dB, fidelity/emoji | speed | fewer steps | DeepCache 0.1.1 | default "
        "| calibrated | Spectrum |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| A | 1.80× | –/– | –/– | 33.0/33.0 | –/– | –/– |",
        "| A | 2.20× | –/– | –/– | 30.0/30.0 | –/– | –/– |",
    ]


def test_who_comes_nearer_than_the_default_is_named_wherever_prompts_were_drawn(monkeypatch):
    def report(guidance, *rows):
        about = {"title": "A", "model": "m", "sampler": "dpm-25", "guidance_scale": guidance}
        return {**about, "rows": [row("default", 40.0, 0.5, speed=2.2), *rows]}

    others = [
        row("zeus", 40.25, 0.5, name="ZEUS, 10 full steps", speed=2.2),
        row("sada", 41.0, 0.6, name="SADA, up to 10 full steps", speed=2.2),
        row("spectrum", 40.04, 0.5, name="Spectrum, 10 full steps", speed=2.2),
        row("deepcache 0.1.1", 42.0, 0.5, interval=2),
        row("calibrated", 50.0, 0.5, speed=2.2),
    ]
    folders = {
        fidelity.RESULTS: {"a": report(4.0, *others), "b": report(None, *others)},
        fidelity.RESULTS / "strong-guidance": {},
        fidelity.RESULTS / "emoji": {"a": report(4.0)},
        fidelity.RESULTS / "emoji" / "strong-guidance": {
            "a": report(7.5, row("fewer steps", 43.0, 0.5))
        },
    }
    monkeypatch.setattr(fidelity, "results", folders.__getitem__)
    assert fidelity.nearer().splitlines()[2:] == [
        "| 4 | m | A | 2.00× | DeepCache 0.1.1 | +2.0 | – |",
        "| 4 | m | A | 2.00× | ZEUS | +0.2 | – |",
        "| 4 | m | A | 2.00× | SADA (1.67×) | +1.0 | – |",
        "| 7.5 | m | A | 2.00× | fewer steps | +3.0 | – |",
        "",
        "Compared were 6 places.",
    ]


def test_how_sure_it_is_that_one_comes_nearer_is_told_by_the_pictures(monkeypatch):
    # Gains of 1, 2 and 6 dB, and one without: same as the plain picture by the one or the other.
    default = row("default", 40.0, 0.5, speed=2.2) | {"psnr_each": [30.0, 40.0, 50.0, None]}
    zeus = row("zeus", 43.0, 0.5, speed=2.2) | {"psnr_each": [31.0, 42.0, 56.0, 60.0]}
    sada = row("sada", 41.0, 0.5, speed=2.2) | {"psnr_each": [29.0, 45.0, 49.0, 60.0]}
    about = {"title": "A", "model": "m", "sampler": "dpm-25", "guidance_scale": 4.0}
    one = {"a": {**about, "rows": [default, zeus, sada]}}
    monkeypatch.setattr(fidelity, "results", lambda folder: one if folder.name == "emoji" else {})
    assert fidelity.nearer().splitlines()[2:4] == [
        "| 4 | m | A | 2.00× | ZEUS | +3.0 ± 1.5 | 3 of 3 |",
        "| 4 | m | A | 2.00× | SADA | +1.0 ± 2.0 | 1 of 3 |",
    ]


def test_gains_are_over_all_rows_of_both_models(monkeypatch):
    def of(default, **others):
        pairs = zip((1.8, 2.2), default, strict=True)
        rows = [row("default", psnr, 1 / speed, speed=speed) for speed, psnr in pairs]
        for family, values in others.items():
            for speed, psnr in zip((1.8, 2.2), values, strict=True):
                rows.append(row(family, psnr, 1 / speed, speed=speed))
        return {"a": {"title": "A", "sampler": "dpm-25", "rows": rows}}

    shapes = of([50.0, 45.0], calibrated=[52.0, 44.0], auto=[50.5, 45.0])
    emoji = of([40.0, 35.0], calibrated=[45.0, 37.0])
    strong = of([40.0, 35.0], calibrated=[39.0, 34.0], auto=[40.0, 34.0])
    strong["a"]["guidance_scale"] = 7.5
    folders = {
        fidelity.RESULTS: shapes,
        fidelity.RESULTS / "emoji": emoji,
        fidelity.RESULTS / "strong-guidance": strong,
        fidelity.RESULTS / "emoji" / "strong-guidance": {},
    }
    monkeypatch.setattr(fidelity, "results", lambda folder=fidelity.RESULTS: folders[folder])
    assert fidelity.gains() == (
        "Compared with the default, over all rows that were measured: `calibrate` is +2.0 dB on "
        "average (−1.0 to +5.0), worse in 1 of 4; `auto` is +0.2 dB on average (+0.0 to +0.5), "
        "worse in 0 of 2; `calibrate` with guidance 7.5 is −1.0 dB on average (−1.0 to −1.0), "
        "worse in 2 of 2; `auto` with guidance 7.5 is −0.5 dB on average (−1.0 to +0.0), worse in "
        "1 of 2."
    )


def test_who_was_measured_later_is_told_apart(monkeypatch):
    about = {"images": 8, "model": "shapes", "guidance_scale": 4.0, "threads": 1}
    first = {"device": "A GPU", "versions": {"torch": "2.11", "diffusers": "0.42.1"}}
    later = {"families": ["auto", "default"], "device": "A Chip", "versions": {"torch": "2.13"}}
    report = {**about, **first, "command": "python -m x --output y", "updates": [later]}
    monkeypatch.setattr(fidelity, "results", lambda: {"dpm-25": report})
    assert fidelity.measured_on() == (
        "8 pictures of 64×64 pixels from the model in `benchmarks/models/shapes`, guidance 4, "
        "A GPU, 1 thread of the CPU, torch 2.11, diffusers 0.42.1; `python -m x`; auto and default "
        "were measured later, against plain pictures of their own, on A Chip with torch 2.13. The "
        "DDPM model: 32×32 pixels from `shapes-ddpm`, without guidance."
    )


def test_curves_have_both_speeds_and_say_where_nothing_was_measured():
    header, _, *rows = fidelity.curves().splitlines()
    assert header == (
        "| PSNR in dB | speed | fewer steps | DeepCache 0.1.1 | default | auto | calibrated "
        "| Spectrum | best of the other rivals |"
    )
    assert rows == [
        "| A | 1.80× | 40.0 (2.00×) | 35.0 (2.00×) | 44.0 (2.22×) | – | – | 46.0 (2.27×) | – |",
        "| A | 2.22× | 36.0 | 35.0 (2.00×) | 44.0 | – | – | 46.0 | 43.0 (SADA) |",
    ]


def test_quality_says_what_a_mean_hides():
    assert fidelity.quality().splitlines()[2] == (
        "| A | 50% · 1.2 · 30.0 | 50% · 1.2 · 25.0 | 50% · 1.2 · 34.0 | – | – "
        "| 50% · 1.2 · 36.0 | 50% · 1.2 · 33.0 (SADA) |"
    )


def test_nothing_is_told_of_emoji_before_it_was_measured(monkeypatch):
    monkeypatch.setattr(fidelity, "results", lambda folder: {})
    assert fidelity.curves_on_emoji() == ""


def test_emoji_have_the_same_table_and_results_of_their_own(monkeypatch):
    expected = fidelity.curves()
    told = {"images": 96, "guidance_scale": 4.0, "device": "A Chip"}
    reports = {"dpm-20": {"title": "A", "sampler": "dpm-20", "rows": NEW, **told}}
    folders = {fidelity.RESULTS / "emoji": reports}
    monkeypatch.setattr(fidelity, "results", folders.__getitem__)
    said, table = fidelity.curves_on_emoji().split("\n\n")
    assert said == (
        "The same on another model, `emoji`. Most constants were chosen on both, with other "
        "prompts and seeds (96 pictures, guidance 4, A Chip):"
    )
    assert table == expected
