"""The page of a comparison: what is in it as text, and what it does in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import wave
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.outcomes import ABOUT, flat, outcome
from PIL import Image

from deepcache_patch import Plan
from deepcache_patch.measuring.media import Sound

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"&amp;' {{ 7 * 7 }}"
PLAN = Plan(["full", 0, 0, "full", 0, 0])


def pictures(**changes: Any) -> Any:
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    changed = noise.copy()
    changed[:, 20:40] //= 2
    plain, cached = ([Image.fromarray(each) for each in row] for row in (noise, changed))
    return outcome(
        **{"plain": tuple(plain), "cached": tuple(cached), "plans": {"unet": PLAN}} | changes
    )


def videos() -> Any:
    plain, cached = ([flat((number, base, 0)) for number in range(5)] for base in (9, 99))
    about = {**ABOUT, "seeds": [7]}
    return outcome(
        plain=(tuple(plain),), cached=(tuple(cached),), psnr=(20.0,), ssim=(0.5,), about=about
    )


def sounds() -> Any:
    tone = np.sin(np.arange(1600, dtype=np.float32) / 20)[None]
    return outcome(
        plain=(Sound(tone, 16000), Sound(tone, 16000)),
        cached=(Sound(0.5 * tone, 16000), Sound(tone, 16000)),
        psnr=None,
        ssim=None,
        snr=(6.0, float("inf")),
    )


class Page(HTMLParser):
    """What stands in a page, by a parser that is not the browser's."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
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


# --- what is in it ------------------------------------------------------------------------------


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
    page = Page(comparison.to_html(command="deepcache-patch compare a/model"))
    assert "F··F··" in page.texts
    assert [bar["class"] for bar in page.all("span", "full") + page.all("span", "shallow")] == [
        *["full"] * 2,
        *["shallow"] * 4,
    ]
    said = [text.strip() for text in page.texts if text.strip()]
    expected = "6 steps: 2 in full, 4 shallow at branch 0"
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


def test_shallow_steps_at_several_branches_have_their_digits() -> None:
    page = pictures(plans={"unet": Plan(["full", 0, 12, 0])}).to_html()
    assert '<span class="full"></span><span class="shallow">0</span>' in page
    assert '<span class="shallow">12</span>' in page
    assert "4 steps: 1 in full, 2 shallow at branch 0, 1 shallow at branch 12" in page


def test_u_nets_are_named_where_there_are_several() -> None:
    page = Page(pictures(plans={"prior": PLAN, "decoder": PLAN}).to_html())
    assert {"prior", "decoder"} <= set(page.texts)
    assert len(page.all("div", "plan")) == 2


def test_no_text_becomes_markup() -> None:
    about = {key: HOSTILE if isinstance(value, str) else value for key, value in ABOUT.items()}
    about |= {"call": {"prompt": [HOSTILE, HOSTILE], HOSTILE: HOSTILE}}
    text = pictures(about=about, plans={HOSTILE: PLAN, "unet": PLAN}).to_html(command=HOSTILE)
    page, plain = Page(text), Page(pictures(plans={"a": PLAN, "b": PLAN}).to_html())
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == len(plain.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.texts.count(HOSTILE) >= 5
    assert all(f"{HOSTILE}, plain" == img["alt"] for img in page.all("img", "plain"))


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
        assert all(value is not None and value.startswith("data:") for value in links)
        assert re.findall(r"url\(|@import|https?:|//[a-z]", re.sub('base64,[^"]*', "", text)) == []
        policy = page.all("meta")[1]["content"]
        assert policy is not None
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy


def test_frames_of_videos_and_their_numbers() -> None:
    page = Page(videos().to_html())
    assert [img["alt"] for img in page.all("img", "cached")] == [
        f"seed 7, DeepCache, frame {number}" for number in range(1, 6)
    ]
    assert ["hidden" in img for img in page.all("img", "plain")] == [False, True, True, True, True]
    with Image.open(BytesIO(content(page.all("img", "plain")[3]["src"]))) as frame:
        colour = np.asarray(frame.convert("RGB"))[30, 30].astype(int)
        assert np.abs(colour - (3, 9, 0)).max() <= 4  # not lossless


def test_both_files_of_each_sound_and_what_they_differ_by() -> None:
    comparison = sounds()
    page = Page(comparison.to_html())
    both = [content(audio["src"]) for audio in page.all("audio")]
    rows = (comparison.plain, comparison.cached)
    assert both == [row[number].wav() for number in (0, 1) for row in rows]
    with wave.open(BytesIO(both[0])) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 1600)
    # Half of the loudest is 1/2: twice that still fits.
    assert page.texts.count("Difference, ×2") == 2
    assert len(page.all("img", "residue")) == 2
    assert page.all("input", "slider")[0]["min"] == "0"
    assert not [box for box in page.all("input") if box["type"] == "checkbox"]
    assert "SNR 6.00 dB" in page.texts
    assert "SNR identical" in page.texts


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


# --- what it does in a browser ------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
CLIPS = """
return ["plain", "cached"].map(
    kind => getComputedStyle(document.querySelector("img." + kind)).clipPath
)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a comparison at a width; afterwards nothing was complained of, and nothing fetched."""

    def open_page(comparison: Any, width: int = 1280) -> Any:
        page = comparison.save(tmp_path / "page.html")
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 500})
        browser.get(page.as_uri())
        return browser

    browser.get("about:blank")  # Chromium's own first page asks for much
    browser.get_log("performance")
    yield open_page
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert (tmp_path / "page.html").as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", tmp_path.as_uri()))] == []
    assert browser.execute_script("return window.hit") is None


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def mouse(browser: Any) -> Any:
    from selenium.webdriver import ActionChains

    return ActionChains(browser, duration=20)


def test_the_divider_follows_the_mouse(show: Any) -> None:
    browser = show(pictures())
    assert at(browser) == (50, 50)
    stage = find(browser, ".stage")
    quarter = stage.size["width"] / 4
    mouse(browser).click_and_hold(stage).move_by_offset(quarter, 0).release().perform()
    assert at(browser) == (75, 75)
    there_and_back = mouse(browser).click_and_hold(stage).move_by_offset(quarter, 0)
    there_and_back.move_by_offset(-2 * quarter, 9).release().perform()
    assert at(browser) == (25, 25)
    # Released: it stays.
    mouse(browser).move_by_offset(quarter, 0).perform()
    assert at(browser) == (25, 25)
    # A drag beyond the picture ends at its side.
    mouse(browser).click_and_hold(stage).move_by_offset(-2 * quarter - 20, 0).release().perform()
    assert at(browser) == (0, 0)
    # The other picture has a divider of its own.
    assert browser.execute_script(
        "return [...document.querySelectorAll('.slider')].map(slider => slider.value)"
    ) == ["0", "50"]


def at(browser: Any) -> tuple[float, int]:
    """Where the first divider stands, by what is seen and by the value of the input."""
    plain, cached = browser.execute_script(CLIPS)
    seen = float(re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", cached)[1])
    rest = float(re.search(r"([\d.]+)%", plain)[1])
    assert seen + rest == 100
    return seen, int(find(browser, ".slider").get_property("value"))


def test_the_divider_follows_the_keys(show: Any) -> None:
    from selenium.webdriver import Keys

    browser = show(pictures())
    # By the tabulator alone: first the box for the difference, then the first divider.
    mouse(browser).send_keys(Keys.TAB, Keys.TAB).perform()
    focused = browser.switch_to.active_element
    assert focused.get_attribute("class") == "slider"
    assert focused.accessible_name == "Divider, seed 0: share of the plain result in percent"
    assert focused.aria_role == "slider"
    outline = "return getComputedStyle(document.querySelector('.stage')).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    for keys, value in (
        ([Keys.ARROW_RIGHT] * 3, 53),
        ([Keys.ARROW_LEFT] * 5, 48),
        ([Keys.HOME], 0),
        ([Keys.END], 100),
        ([Keys.PAGE_DOWN], 90),
    ):
        mouse(browser).send_keys(*keys).perform()
        assert at(browser) == (value, value)


def test_the_divider_follows_a_finger(show: Any) -> None:
    browser = show(pictures(), width=360)
    box = browser.execute_script(
        "const stage = document.querySelector('.stage'); stage.scrollIntoView();"
        "return stage.getBoundingClientRect().toJSON()"
    )
    for kind, share in (("Start", 0.5), ("Move", 0.6), ("Move", 0.8)):
        point = {"x": box["x"] + share * box["width"], "y": box["y"] + 30}
        event = {"type": f"touch{kind}", "touchPoints": [point]}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
    event = {"type": "touchEnd", "touchPoints": []}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
    assert at(browser) == (80, 80)


def test_the_difference_is_shown_on_request(show: Any) -> None:
    plain, cached = flat((40, 80, 9)), flat((30, 80, 10))
    browser = show(pictures(plain=(plain, plain), cached=(cached, cached)))
    box = find(browser, "#difference")
    assert box.accessible_name == "Show the difference, ×16"
    box.click()
    with Image.open(BytesIO(find(browser, ".stage").screenshot_as_png)) as seen:
        assert seen.convert("RGB").getpixel((30, 30)) == (160, 0, 16)
    box.click()
    with Image.open(BytesIO(find(browser, ".stage").screenshot_as_png)) as seen:
        assert seen.convert("RGB").getpixel((30, 30)) == (40, 80, 9)
        assert seen.convert("RGB").getpixel((seen.width - 30, 30)) == (30, 80, 10)


def test_frames_play_pause_and_stand_side_by_side(show: Any) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser = show(videos())
    visible = (
        "return [...document.querySelectorAll('.stage img')].filter(img => !img.hidden)"
        ".map(img => img.alt)"
    )
    button, place = find(browser, ".player button"), find(browser, ".frame")
    assert button.text == "Pause"  # it plays
    number = place.get_property("value")
    WebDriverWait(browser, 5, 0.05).until(lambda _: place.get_property("value") != number)
    button.click()
    assert button.text == "Play"
    place.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert browser.execute_script(visible) == [
        "seed 7, plain, frame 2",
        "seed 7, DeepCache, frame 2",
    ]
    assert find(browser, "output").text == "2 / 5"
    find(browser, "summary").click()
    strip = "return [...document.querySelectorAll('.strip div')].map(line => line.children.length)"
    WebDriverWait(browser, 5, 0.05).until(lambda _: browser.execute_script(strip) == [5, 5])
    assert len(browser.execute_script(visible)) == 2


def test_videos_stand_still_for_who_asked_for_less_motion(show: Any, browser: Any) -> None:
    media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        show(videos())
        assert find(browser, ".player button").text == "Play"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_sounds_can_be_played(show: Any) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    browser = show(sounds())
    durations = "return [...document.querySelectorAll('audio')].map(audio => audio.duration)"
    WebDriverWait(browser, 5, 0.05).until(lambda _: browser.execute_script(durations) == [0.1] * 4)


@pytest.mark.parametrize("kind", [pictures, videos, sounds])
def test_a_phone_needs_no_scrolling_sideways(show: Any, kind: Any) -> None:
    comparison = kind()
    word = "pneumono" * 30
    about = {**comparison.about, "model": f"{word}/{word}", "schedule": f"Uniform({word})"}
    about |= {"interval": None, "call": {"prompt": f"{HOSTILE} {word}"}}
    long = type(comparison)(
        **{**vars(comparison), "about": about, "plans": {"unet": Plan(["full"] * 99)}}
    )
    browser = show(long, width=360)
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.execute_script(widths) == [360, 360]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_colours_follow_the_system(show: Any, browser: Any, scheme: str, dark: bool) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        show(pictures())
        colours = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        paper, ink = (
            sum(map(int, re.findall(r"\d+", colour))) for colour in browser.execute_script(colours)
        )
        assert (paper < ink) is dark
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_hostile_prompt_is_inert(show: Any) -> None:
    about = {**ABOUT, "model": HOSTILE, "call": {"prompt": HOSTILE}}
    browser = show(pictures(about=about))
    assert HOSTILE in find(browser, ".prompt").text
