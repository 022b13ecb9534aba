"""A real browser that selenium drives, how it shows a comparison, and what tests do with a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module", name="browser")
def a_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
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


@pytest.fixture(name="show")
def a_show(browser: Any, tmp_path: Path) -> Iterator[Any]:
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


def sides(browser: Any) -> tuple[Any, Any]:
    """The colours left and right of the divider."""
    with Image.open(BytesIO(find(browser, ".stage").screenshot_as_png)) as seen:
        picture = seen.convert("RGB")
        return picture.getpixel((30, 30)), picture.getpixel((picture.width - 30, 30))
