"""The page of a comparison in a real browser: 1:1, blinking, sorting, copying, a video's file."""

from __future__ import annotations

from typing import Any

import pytest
from builders.browser import a_browser, a_show, find, mouse  # noqa: F401 (fixtures)
from builders.outcomes import ABOUT, fewer, flat, outcome, pictures, videos

from deepcache_patch.compare.script import python_of

#: What of the dialog is seen, and how wide it is.
SHOWN = """
return [...document.querySelectorAll(".actual img")].map(each => [each.alt, each.offsetWidth,
    getComputedStyle(each).visibility]).filter(each => each[2] === "visible")"""


def pressed(browser: Any) -> list[str]:
    buttons = browser.find_elements("css selector", "dialog [aria-pressed=true]")
    return [button.text for button in buttons]


@pytest.mark.parametrize(("width", "times"), [(1280, 8), (390, 4)])
def test_a_click_shows_each_contestant_as_large_as_fits(show: Any, width: int, times: int) -> None:
    from selenium.webdriver import Keys

    browser = show(outcome(fewer=fewer()), width=width)
    opener = find(browser, "#picture-2 .open")
    assert opener.accessible_name == "#2 seed 1, 1:1"
    opener.click()
    assert find(browser, "dialog").accessible_name == "#2 seed 1"
    assert (browser.execute_script(SHOWN), pressed(browser)) == (
        [["#2 seed 1, plain", 64 * times, "visible"]],
        ["plain"],
    )
    mouse(browser).send_keys("3").perform()
    assert browser.execute_script(SHOWN) == [["#2 seed 1, 3 steps", 64 * times, "visible"]]
    browser.find_elements("css selector", ".choice")[1].click()
    for _ in range([8, 4].index(times) + 1):  # from 8:1 it goes on at 1:1
        find(browser, ".zoom").click()
    mouse(browser).send_keys("z").perform()
    assert browser.execute_script(SHOWN) == [["#2 seed 1, helper", 128, "visible"]]
    assert find(browser, ".zoom").text == "2:1"
    assert width > 500 or not find(browser, ".keys").is_displayed()  # a phone has no keys
    assert find(browser, "dialog").rect["width"] <= width
    mouse(browser).send_keys(Keys.ESCAPE).perform()
    assert not find(browser, "dialog").is_displayed()
    assert browser.switch_to.active_element == opener


@pytest.mark.parametrize("by", ["key", "button"])
def test_the_chosen_two_blink_until_they_are_told_to_stop(show: Any, by: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    def toggle() -> None:
        mouse(browser).send_keys("b").perform() if by == "key" else find(browser, ".blink").click()

    browser = show(outcome(fewer=fewer()))
    find(browser, ".over [value=both]").click()
    mouse(browser).double_click(find(browser, ".stage")).perform()
    toggle()
    assert "Blink" in pressed(browser)
    for name in ("3 steps", "helper", "3 steps"):
        WebDriverWait(browser, 5, 0.02).until(lambda _, name=name: name in pressed(browser))
    toggle()
    (stopped,) = pressed(browser)
    assert stopped != "plain"
    browser.execute_async_script("setTimeout(arguments[0], 700)")
    assert pressed(browser) == [stopped]


def test_a_heading_sorts_the_table_of_all_results(show: Any) -> None:
    psnr, ssim = (30.0, float("inf"), 9.5, 20.0), (0.5, 1.0, 0.25, 0.75)
    four = {"plain": (flat((9, 9, 9)),) * 4, "cached": (flat((8, 9, 9)),) * 4}
    about = {**ABOUT, "seeds": [0, 1, 2, 3]}
    browser = show(outcome(**four, psnr=psnr, ssim=ssim, about=about))
    numbers = "return [...document.querySelectorAll('.sortable tbody a')].map(each => each.text)"
    assert browser.execute_script(numbers) == ["#1", "#2", "#3", "#4"]
    head = browser.find_elements("css selector", ".sortable thead th")[1]
    for order, expected in (
        ("ascending", ["#3", "#4", "#1", "#2"]),
        ("descending", ["#2", "#1", "#4", "#3"]),
    ):
        head.find_element("css selector", "button").click()
        assert browser.execute_script(numbers) == expected
        assert head.get_attribute("aria-sort") == order
    assert len(browser.find_elements("css selector", "[aria-sort]")) == 1


def test_python_is_copied_by_a_button(show: Any) -> None:
    browser = show(pictures())
    browser.execute_script(
        "addEventListener('copy', () => { window.copied = getSelection().toString() })"
    )
    find(browser, ".copy").click()
    assert browser.execute_script("return window.copied") == python_of(ABOUT)
    assert find(browser, ".code output").text == "Copied"


def test_the_file_of_all_side_by_side_plays(show: Any) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    browser = show(videos())
    find(browser, ".film summary").click()
    width = "return document.querySelector('.film img').naturalWidth"
    WebDriverWait(browser, 5, 0.05).until(lambda _: browser.execute_script(width) == 128)
    assert find(browser, ".film a").text == "Save it (animated WebP)"
