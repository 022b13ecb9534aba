"""The page of a comparison: what it does in a real browser."""

from __future__ import annotations

import re
from typing import Any

import pytest
from builders.browser import a_browser, a_show, find, mouse, sides  # noqa: F401 (fixtures)
from builders.outcomes import ABOUT, HOSTILE, fewer, flat, outcome, pictures, sounds, videos

from deepcache_patch import Plan

CLIPS = """
return ["plain", "cached"].map(
    kind => getComputedStyle(document.querySelector("img." + kind)).clipPath
)"""


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
    # By the tabulator alone: a link, the box for the difference, its factor, the first divider.
    mouse(browser).send_keys(Keys.TAB * 4).perform()
    focused = browser.switch_to.active_element
    assert focused.get_attribute("class") == "slider"
    assert focused.accessible_name == "Divider, #1 seed 0: share of the plain result in percent"
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
    assert box.accessible_name == "Show the difference"
    box.click()
    assert sides(browser) == ((80, 0, 8), (80, 0, 8))
    box.click()
    assert sides(browser) == ((40, 80, 9), (30, 80, 10))


def test_a_slider_says_how_many_times_the_difference_is_amplified(show: Any) -> None:
    from selenium.webdriver import Keys

    plain, cached = flat((40, 80, 9)), flat((30, 80, 10))
    browser = show(pictures(plain=(plain, plain), cached=(cached, cached)))
    factor = find(browser, "#factor")
    assert factor.accessible_name == "How many times the difference is amplified"
    for key, times, colour in (
        (Keys.ARROW_RIGHT, "×16", (160, 0, 16)),  # which shows the difference, too
        (Keys.END, "×64", (255, 0, 64)),
        (Keys.HOME, "×1", (10, 0, 1)),
    ):
        factor.send_keys(key)
        assert find(browser, ".amplified output").text == times
        assert factor.get_attribute("aria-valuetext") == times
        assert sides(browser) == (colour, colour)


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
        "seed 7, helper, frame 2",
    ]
    assert find(browser, ".player output").text == "2 / 5"
    find(browser, ".strip summary").click()
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


# --- with fewer steps ---------------------------------------------------------------------------

#: Which pictures and names of the first result are seen.
SEEN = """
const seen = (each) => getComputedStyle(each).visibility === "visible";
return [...document.querySelector(".stage").querySelectorAll("img, .tag")].filter(seen)
    .map(each => each.alt || each.textContent)"""


def choose(browser: Any, value: str) -> None:
    find(browser, f".over [value={value}]").click()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_switch_puts_two_of_three_pictures_under_the_divider(show: Any, width: int) -> None:
    browser = show(outcome(fewer=fewer()), width=width)
    plain, cached, third = (102, 51, 0), (100, 50, 0), (98, 49, 0)
    assert sides(browser) == (plain, cached)
    names = ["#1 seed 0, plain", "#1 seed 0, helper", "plain", "helper"]
    assert browser.execute_script(SEEN) == names
    choose(browser, "fewer")
    assert sides(browser) == (plain, third)
    names = ["#1 seed 0, plain", "#1 seed 0, 3 steps", "plain", "3 steps"]
    assert browser.execute_script(SEEN) == names
    choose(browser, "both")
    assert sides(browser) == (third, cached)
    names = ["#1 seed 0, helper", "#1 seed 0, 3 steps", "helper", "3 steps"]
    assert browser.execute_script(SEEN) == names
    left, right = (
        browser.execute_script(
            f"return document.querySelector('.of-{kind}').getBoundingClientRect().x"
        )
        for kind in ("fewer", "cached")
    )
    assert left < right
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_button_stands_beside_a_heading_of_two_lines(show: Any) -> None:
    # It stood on a line of its own between the heading and the figures.
    prompt = "a large green triangle left of a small yellow circle"
    about = {**ABOUT, "call": {"prompt": [prompt, prompt]}}
    browser = show(outcome(fewer=fewer(), about=about), width=390)
    heading, button = find(browser, ".pair .heading"), find(browser, ".pair .open")
    assert heading.size["height"] > 1.5 * 0.875 * 16 * 1.4
    assert button.location["y"] == heading.location["y"]
    assert button.location["x"] >= heading.location["x"] + heading.size["width"]


def test_the_difference_is_that_of_the_two_that_are_chosen(show: Any) -> None:
    browser = show(outcome(fewer=fewer()))
    find(browser, "#difference").click()
    for value, colour in (("cached", (16, 8, 0)), ("fewer", (32, 16, 0)), ("both", (16, 8, 0))):
        choose(browser, value)
        assert sides(browser) == (colour, colour)


def test_frames_of_three_contestants_stand_side_by_side(show: Any) -> None:
    frames = tuple(flat((number, 50, 0)) for number in range(5))
    browser = show(videos(fewer=fewer(results=(frames,), psnr=(17.0,), ssim=(0.5,))))
    from selenium.webdriver.support.wait import WebDriverWait

    find(browser, ".strip summary").click()
    strip = "return [...document.querySelectorAll('.strip div')].map(line => line.children.length)"
    WebDriverWait(browser, 5, 0.05).until(lambda _: browser.execute_script(strip) == [5, 5, 5])
    unseen = "return [...document.querySelectorAll('.strip img')]"
    unseen += ".filter(img => getComputedStyle(img).visibility !== 'visible').length"
    assert browser.execute_script(unseen) == 0
