"""The page of a comparison: what is in it as text."""

from __future__ import annotations

import base64
import math
import re
import wave
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from builders.outcomes import (
    ABOUT,
    HOSTILE,
    PLAN,
    fewer,
    flat,
    joined,
    outcome,
    pictures,
    sounds,
    videos,
)
from PIL import Image

from deepcache_patch import Plan
from deepcache_patch.compare.measures import RULE
from deepcache_patch.compare.script import python_of
from deepcache_patch.measuring.media import Sound


class Page(HTMLParser):
    """What stands in a page, by a parser that is not the browser's."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(joined(text))
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and (kind is None or kind in (attrs.get("class") or "").split())
        ]


def content(uri: str | None) -> bytes:
    assert uri is not None
    return base64.b64decode(uri.partition(";base64,")[2])


def test_the_pictures_are_in_the_page_pixel_by_pixel() -> None:
    comparison = pictures()
    page = Page(comparison.to_html())
    for kind in ("plain", "cached"):
        shown = page.all("img", kind)
        assert len(shown) == 2
        for attributes, picture in zip(shown, getattr(comparison, kind), strict=True):
            assert (attributes["width"], attributes["height"]) == ("96", "64")
            with Image.open(BytesIO(content(attributes["src"]))) as read:
                assert np.array_equal(np.asarray(read.convert("RGB")), np.asarray(picture))


def test_plan_figures_settings_and_versions_are_in_the_page() -> None:
    comparison = pictures(about={**ABOUT, "call": {"prompt": "a fox", "guidance_scale": 4.5}})
    page = Page(replace(comparison, command="deepcache-patch compare a/model").to_html())
    assert "F··F··" in page.texts
    assert [bar["class"] for bar in page.all("span", "full") + page.all("span", "shallow")] == [
        *["full"] * 2,
        *["shallow"] * 4,
    ]
    said = [text.strip() for text in page.texts if text.strip()]
    expected = "6 steps: 2 in full, 4 at branch 0"
    assert said.count(expected) == 1
    assert [div["aria-label"] for div in page.all("div", "plan")] == [expected]
    for row in comparison.rows():
        start = next(i for i, text in enumerate(said) if text == row[0] and said[i + 1] in row)
        cells = [cell for cell in row if cell]
        assert said[start : start + len(cells)] == cells
    for name, value in {
        "pipeline": "StableDiffusionPipeline",
        "schedule": "Uniform(interval=3, branch=0)",
        "device": "cpu (x86_64), float32",
        "replay": "Extrapolate(strength=1.0)",
        "seeds": "0, 1",
        "prompt": "a fox",
        "guidance_scale": "4.5",
    }.items():
        assert value == said[said.index(name) + 1]
    assert "deepcache-patch compare a/model" in said
    assert any(f"torch {torch.__version__}" in text for text in said)


def test_a_guidance_that_nobody_gave_is_in_the_page_too() -> None:
    page = Page(pictures(about={**ABOUT, "guidance_scale": 7.5}).to_html())
    said = [text.strip() for text in page.texts if text.strip()]
    assert said[said.index("guidance_scale") + 1] == "7.5, as the pipeline has it"


def test_shallow_steps_at_several_branches_have_their_digits() -> None:
    page = pictures(plans={"unet": Plan(["full", 0, 12, 0])}).to_html()
    assert '<span class="full"></span><span class="shallow">0</span>' in page
    assert '<span class="shallow">12</span>' in page
    assert "4 steps: 1 in full, 2 at branch 0, 1 at branch 12" in page


def test_u_nets_are_named_where_there_are_several() -> None:
    page = Page(pictures(plans={"prior": PLAN, "decoder": PLAN}).to_html())
    assert {"prior", "decoder"} <= set(page.texts)
    assert len(page.all("div", "plan")) == 2


def test_no_text_becomes_markup() -> None:
    about = {key: HOSTILE if isinstance(value, str) else value for key, value in ABOUT.items()}
    about |= {"call": {"prompt": [HOSTILE, HOSTILE], HOSTILE: HOSTILE}}
    text = pictures(about=about, plans={HOSTILE: PLAN, "unet": PLAN}, command=HOSTILE).to_html()
    page, plain = Page(text), Page(pictures(plans={"a": PLAN, "b": PLAN}).to_html())
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == len(plain.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.texts.count(HOSTILE) >= 5
    assert [img["alt"] for img in page.all("img", "plain")] == [
        f"#{number} {HOSTILE}, plain" for number in (1, 2)
    ]


def test_the_page_refers_to_nothing_outside() -> None:
    for comparison in (pictures(), videos(), sounds()):
        text = comparison.to_html()
        page = Page(text)
        links = [
            value
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "action", "data", "poster")
        ]
        assert links
        assert all(value is not None and value.startswith(("data:", "#")) for value in links)
        assert re.findall(r"url\(|@import|https?:|//[a-z]", re.sub('base64,[^"]*', "", text)) == []
        policy = page.all("meta")[1]["content"]
        assert policy is not None
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy


def test_frames_of_videos_and_their_numbers() -> None:
    page = Page(videos().to_html())
    assert [img["alt"] for img in page.all("img", "cached")] == [
        f"seed 7, helper, frame {number}" for number in range(1, 6)
    ]
    assert ["hidden" in img for img in page.all("img", "plain")] == [False, True, True, True, True]
    with Image.open(BytesIO(content(page.all("img", "plain")[3]["src"]))) as frame:
        colour = np.asarray(frame.convert("RGB"))[30, 30].astype(int)
        assert np.abs(colour - (3, 9, 0)).max() <= 4  # not lossless


def test_both_files_of_each_sound() -> None:
    comparison = sounds()
    page = Page(comparison.to_html())
    both = [content(audio["src"]) for audio in page.all("audio")]
    rows = (comparison.plain, comparison.cached)
    assert both == [row[number].wav() for number in (0, 1) for row in rows]
    with wave.open(BytesIO(both[0])) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 1600)
    assert len(page.all("img", "plain")) == len(page.all("img", "cached")) == 2  # waveforms
    assert page.all("input", "slider")[0]["min"] == "0"
    assert not [box for box in page.all("input") if box["type"] == "checkbox"]
    assert "SNR 6.00 dB" in page.texts
    assert "SNR identical" in page.texts


# --- to be copied -------------------------------------------------------------------------------


def test_python_and_the_command_can_be_copied() -> None:
    page = Page(pictures(command="deepcache-patch compare m").to_html())
    assert {python_of(ABOUT), "deepcache-patch compare m"} <= set(page.texts)
    copies = [button["aria-label"] for button in page.all("button", "copy")]
    assert copies == ["Copy: Python", "Copy: Command"]
    assert [each["aria-label"] for each in Page(pictures().to_html()).all("button", "copy")] == [
        "Copy: Python"
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Image.new("RGB", (7, 5)), "picture of 7×5"),
        (torch.zeros(2, 3), "Tensor of 2×3"),
        (np.zeros(4), "ndarray of 4"),
        ([Image.new("RGB", (7, 5))] * 2, "picture of 7×5, picture of 7×5"),
        (["a", "b"], "a; b"),
        (list(range(40)), f"{', '.join(map(str, range(32)))}, …"),
        ({0: "a", "b": torch.zeros(2)}, "0: a, b: Tensor of 2"),
        (None, "None"),
        (object(), "object"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_are_said_in_a_few_words(value: Any, said: str) -> None:
    page = Page(pictures(about={**ABOUT, "call": {"argument": value}}).to_html())
    texts = [text.strip() for text in page.texts if text.strip()]
    assert texts[texts.index("argument") + 1] == said


def test_verdict_rule_worst_and_notes_are_in_the_page() -> None:
    comparison = outcome(work=0.8, psnr=(math.inf, 30.6))
    page = Page(comparison.to_html())
    said = [text.strip() for text in page.texts if text.strip()]
    assert "helper: shapes differ (worst PSNR 30.60 dB, #2; SSIM 0.5000, #1)" in said
    assert RULE in said
    assert "To the worst of the helper, #2" in said
    assert "#picture-2" in [link["href"] for link in page.all("a")]
    assert [figure["id"] for figure in page.all("figure")] == ["picture-1", "picture-2"]
    assert "mean of 2; worst 30.60 dB, #2; 1 of 2 identical" in said
    notes = [f"{note[0].upper()}{note[1:]}." for note in comparison.notes]
    assert len(notes) == 2
    assert [text for text in said if text in notes] == notes


def test_all_results_stand_in_a_table_that_can_be_sorted() -> None:
    page = outcome(psnr=(math.nan, math.inf), fewer=fewer()).to_html()
    table = re.search('class="sortable">(.*?)</table>', page, re.DOTALL)[1]
    assert re.findall('<button type="button">(.*?)</button>', table) == [
        *(
            "#",
            "helper PSNR",
            "helper SSIM",
            "helper verdict",
            "3 steps PSNR",
            "3 steps SSIM",
            "3 steps verdict",
        ),
    ]
    cells = [re.findall('data-value="(.*?)">(.*?)</t[dh]>', row) for row in table.split("<tr>")[2:]]
    assert cells[0][1:] == [
        *(("-1000000000.0", "nan dB"), ("0.5", "0.5000"), ("0", "shapes differ")),
        *(("17.0", "17.00 dB"), ("0.25", "0.2500"), ("0", "shapes differ")),
    ]
    assert cells[1] == [
        ("2", '<a href="#picture-2">#2</a> seed 1'),
        *(("100000000.0", "identical"), ("1.0", "1.0000"), ("2", "no visible difference")),
        *(("19.0", "19.00 dB"), ("0.75", "0.7500"), ("0", "shapes differ")),
    ]
    assert '<table class="sortable">' not in videos().to_html()


def test_each_video_has_one_file_with_all_contestants_side_by_side() -> None:
    plain, cached, third = (
        tuple(flat((50 * number, base, 0)) for number in range(5)) for base in (9, 99, 199)
    )
    slower = fewer(results=(third,), psnr=(17.0,), ssim=(0.5,))
    page = Page(videos(plain=(plain,), cached=(cached,), fewer=slower).to_html())
    (link,) = [link for link in page.all("a") if "download" in link]
    assert link["download"] == "comparison-1.webp"
    assert link["href"] in [img["src"] for img in page.all("img")]
    with Image.open(BytesIO(content(link["href"]))) as film:
        assert (film.size, film.n_frames, film.info["loop"]) == ((3 * 64, 64), 5, 0)
        film.seek(3)
        seen = np.asarray(film.convert("RGB")).astype(int)
        assert film.info["duration"] == 125
    for place, base in enumerate([9, 99, 199]):
        assert np.abs(seen[32, 64 * place + 32] - (150, base, 0)).max() <= 8


# --- with fewer steps ---------------------------------------------------------------------------


def test_a_third_picture_lies_there_and_a_switch_chooses_two_of_three() -> None:
    comparison = outcome(fewer=fewer(), work=0.4)
    page = Page(comparison.to_html())
    shown = page.all("img", "fewer")
    assert [img["alt"] for img in shown] == ["#1 seed 0, 3 steps", "#2 seed 1, 3 steps"]
    for attributes, picture in zip(shown, comparison.fewer.results, strict=True):
        with Image.open(BytesIO(content(attributes["src"]))) as read:
            assert np.array_equal(np.asarray(read.convert("RGB")), np.asarray(picture))
    radios = [box for box in page.all("input") if box["type"] == "radio"]
    assert [(box["name"], box["value"], "checked" in box) for box in radios] == [
        ("over", "cached", True),
        ("over", "fewer", False),
        ("over", "both", False),
    ]
    said = [text.strip() for text in page.texts if text.strip()]
    start = said.index("Left and right of the divider")
    assert said[start + 1 : start + 4] == [
        "plain and helper",
        "plain and 3 steps",
        "3 steps and helper",
    ]
    assert comparison.verdict in said
    assert "helper: PSNR 20.00 dB · SSIM 0.5000" in said
    assert "3 steps: PSNR 17.00 dB · SSIM 0.2500" in said
    assert "0.67–2.50×; by work at most 2.50×; 5.000 s → 2.000 s" in said
    assert "1.00–2.00×; by work at most 2.50×; 6.000 s → 4.000 s" in said
    factor = next(box for box in page.all("input") if box.get("id") == "factor")
    assert (factor["value"], factor["aria-valuetext"]) == ("3", "×8")


def test_every_figure_of_the_third_contestant_is_in_the_table_of_the_page() -> None:
    comparison = outcome(fewer=fewer(), work=0.4)
    text = re.search('aria-labelledby="figures">.*?</table>', comparison.to_html(), re.DOTALL)[0]
    heads = re.findall(r'<th scope="col">(.*?)</th>', text)
    rows = [
        tuple(re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row))
        for row in re.findall(r"<tr>(<th scope=.row.>.*?)</tr>", text)
    ]
    assert tuple(heads) == comparison.columns == ("plain", "helper", "3 steps")
    assert rows == comparison.rows()


def test_without_fewer_steps_there_is_no_switch() -> None:
    page = Page(pictures().to_html())
    assert not [box for box in page.all("input") if box["type"] == "radio"]
    assert page.all("img", "fewer") == page.all("p", "verdict") == []


def test_frames_and_sounds_of_the_third_contestant() -> None:
    frames = tuple(flat((number, 50, 0)) for number in range(5))
    third = fewer(results=(frames,), psnr=(17.0,), ssim=(0.5,))
    page = Page(videos(fewer=third).to_html())
    assert [img["alt"] for img in page.all("img", "fewer")] == [
        f"seed 7, 3 steps, frame {number}" for number in range(1, 6)
    ]
    comparison = sounds()
    results = tuple(Sound(0.25 * each.samples, each.rate) for each in comparison.plain)
    third = fewer(results=results, psnr=None, ssim=None, snr=(2.5, 2.5))
    page = Page(sounds(fewer=third).to_html())
    heard = [content(audio["src"]) for audio in page.all("audio")]
    rows = (comparison.plain, comparison.cached, results)
    assert heard == [row[number].wav() for number in (0, 1) for row in rows]
    assert "3 steps: SNR 2.50 dB" in page.texts


def test_options_ranges_and_values_are_not_broken() -> None:
    whole = outcome()
    once = outcome(plain_times=whole.plain_times[:1], times=whole.times[:1])
    page = whole.to_html() + once.to_html()
    for text in ("--repeats 5", "0.67–2.50×", "PSNR 20.00 dB", "SSIM 0.5000"):
        assert f'<span class="whole">{text}</span>' in page
