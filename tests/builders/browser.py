"""What tests do with a page in a browser that selenium drives."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image


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
