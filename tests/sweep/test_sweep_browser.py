"""The page of a sweep: what it does in a real browser."""

from __future__ import annotations

from itertools import combinations
from math import dist
from typing import Any

import pytest
from builders.browser import a_browser, a_show, find  # noqa: F401 (fixtures)
from builders.sweeps import made, row

MARKS = """
return [...document.querySelectorAll("a.point circle:not(.ring)")].map(circle => {
  const {x, y, width} = circle.getBoundingClientRect();
  return [x + width / 2, y + width / 2, parseFloat(getComputedStyle(circle).r)];
})
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_no_mark_hides_the_number_of_another(show: Any, width: int) -> None:
    # On a phone marks were as large as on a desk, and one that was moved aside hid its neighbour.
    settings = made().settings
    setting = settings[2].setting
    more = [row(speed, quality, setting) for speed, quality in ((2.5, 38), (2.2, 38), (2.2, 36))]
    browser = show(made(settings=(*settings, *more)), width=width)
    marks = browser.execute_script(MARKS)
    assert len(marks) == 8
    for (x, y, radius), (other_x, other_y, _) in combinations(marks, 2):
        assert dist((x, y), (other_x, other_y)) >= 2 * radius
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_folded_python_is_copied_by_its_button(show: Any) -> None:
    sweep = made()
    browser = show(sweep)
    browser.execute_script(
        "addEventListener('copy', () => { window.copied = getSelection().toString() })"
    )
    python = find(browser, "#setting-1 .python")
    assert not python.is_displayed()
    find(browser, "#setting-1 .copy").click()
    assert browser.execute_script("return window.copied") == sweep.python(sweep.settings[0])
    assert python.is_displayed()
