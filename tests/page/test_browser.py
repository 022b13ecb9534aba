"""The page in a real browser, on the trained pipeline: settings by the keyboard, both pictures
under the slider, Stop in the midst of a run, tries that are brought back, and no request that
leaves this machine.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REASON = "make test-ui, with chromium and chromedriver"
pytest.importorskip("gradio", reason=f"gradio is not installed: {REASON}")
pytest.importorskip("selenium", reason=f"selenium is not installed: {REASON}")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip(f"there is no Chromium here: {REASON}", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from deepcache_patch import DeepCacheHelper  # noqa: E402
from deepcache_patch.cli.loading import choose_device, choose_dtype, load_pipeline  # noqa: E402
from deepcache_patch.page import serving  # noqa: E402
from deepcache_patch.page.app import Page  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # Of gradio: sockets that it leaves open, and what it asks of pandas.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MODEL = Path(__file__).parents[2] / "benchmarks" / "models" / "shapes"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def _gradio_leaves_sockets_and_loops_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def pipe() -> Any:
    device = choose_device("cpu")
    return load_pipeline(str(MODEL), device, choose_dtype("float32", device))


@pytest.fixture
def server(_gradio_leaves_sockets_and_loops_open: None, pipe: Any) -> Iterator[serving.Server]:
    """One for each test: a page remembers what was tried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving.Server(Page(pipe), "127.0.0.1", port) as served:
        yield served


class Browser:
    """A page, looked at."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address
        driver.get(address)
        self.wait(lambda: self.strip())

    def wait(self, condition: Callable[[], Any]) -> Any:
        # What is looked at may be drawn anew meanwhile.
        waiting = WebDriverWait(self.driver, 60, 0.1, [StaleElementReferenceException])
        return waiting.until(lambda _driver: condition())

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def one(self, selector: str) -> Any:
        (found,) = self.all(selector)
        return found

    def strip(self) -> str | None:
        found = self.all("#strip .strip")
        return found[0].get_attribute("aria-label") if found else None

    def type_into(self, label: str, text: str) -> None:
        self.one(f"input[aria-label^={json.dumps(label)}]").send_keys(
            Keys.CONTROL, "a", Keys.NULL, text, Keys.TAB
        )

    def button(self, text: str) -> Any:
        def named() -> list[Any]:
            return [each for each in self.all("button") if each.text.strip() == text]

        (found,) = self.wait(named)  # gradio may put others in their places meanwhile
        return found

    def generate(self) -> None:
        self.button("Generate both pictures").send_keys(Keys.ENTER)

    def shows_try(self, number: int) -> bool:
        """Whether the figures are those of the try, and another one can be made."""
        caption = "".join(each.text for each in self.all("#figures caption"))
        ready = self.button("Generate both pictures").is_enabled()
        return ready and caption.startswith(f"Try {number},")

    def told(self, text: str) -> bool:
        """Whether a message on the page says that."""
        return any(text in each.text for each in self.all("[data-testid=toast-body]"))

    def progress(self) -> str:
        return " ".join(each.text for each in self.all(".progress-level, .progress-text"))

    def rows(self) -> list[list[str]]:
        """The cells of the table of tries."""
        cells = [
            [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "[role=gridcell]")]
            for row in self.all("#tries [role=row]")
        ]
        return [row for row in cells if row]

    def hidden(self) -> float:
        """How much of the second picture is hidden, from the left, in percent."""
        path = self.all("#pictures img")[1].value_of_css_property("clip-path")
        return float(path.removeprefix("inset(0px 0px 0px ").removesuffix("%)"))

    def complaints(self) -> list[str]:
        """What stands in the browser's console."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def foreign_requests(self) -> list[str]:
        """To anywhere but the page's own server."""
        events = [json.loads(each["message"]) for each in self.driver.get_log("performance")]
        sent = [
            each["message"]["params"]["request"]["url"]
            for each in events
            if each["message"]["method"] == "Network.requestWillBeSent"
        ]
        assert sum(each.startswith(self.address) for each in sent) > 10
        inside = (self.address, "data:", "blob:", "chrome:", "chrome-untrusted:")
        return [each for each in sent if not each.startswith(inside)]


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request: Any, server: serving.Server, tmp_path: Path) -> Iterator[Browser]:
    width, height = request.param
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if width < 500:
        metrics = {"width": width, "height": height, "pixelRatio": 2}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Browser(driver, server.address)
    finally:
        driver.quit()


PROMPTS = ("a small red circle above a large blue square", "a large red star")

PIXELS = """
return [...document.querySelectorAll("#pictures img")].map(image => {
  const canvas = Object.assign(document.createElement("canvas"),
    {width: image.naturalWidth, height: image.naturalHeight});
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [image.naturalWidth, image.naturalHeight, canvas.toDataURL()];
})
"""


def test_settings_by_the_keyboard_then_both_pictures_under_the_slider(
    browser: Browser, pipe: Any
) -> None:
    def strip(steps: int, interval: float) -> str:
        return f"plan: {DeepCacheHelper(pipe, interval=interval).plan(steps)}"

    assert browser.strip() == strip(50, 2.2)
    browser.type_into("number input for Steps", "16")
    browser.wait(lambda: browser.strip() == strip(16, 2.2))
    browser.one('input[aria-label^="range slider for Interval"]').send_keys(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.strip() == strip(16, 2.3))
    assert browser.all("#pictures img") == []

    assert browser.all("#tries") == browser.all("#plot") == []

    # Guidance and prompts are those of the model's card.
    scale = 'input[aria-label="number input for Guidance scale"]'
    assert browser.one(scale).get_attribute("value") == "4"
    browser.button(PROMPTS[0]).click()
    prompt = browser.one("#prompt textarea")
    browser.wait(lambda: prompt.get_attribute("value") == PROMPTS[0])
    prompt.send_keys(Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    assert browser.strip() == strip(16, 2.3).replace("plan", "what ran")
    browser.wait(lambda: all(each[0] for each in browser.driver.execute_script(PIXELS)))
    plain, cached = browser.driver.execute_script(PIXELS)
    assert plain[:2] == cached[:2] == [64, 64]
    assert plain[2] != cached[2]
    sharp = [e.value_of_css_property("image-rendering") for e in browser.all("#pictures img")]
    assert sharp == ["pixelated"] * 2
    browser.wait(lambda: browser.rows())
    font = browser.all("#tries [role=gridcell] span")[0].value_of_css_property("font-family")
    assert font.startswith("system-ui")
    names = [each.get_attribute("alt") for each in browser.all("#pictures img")]
    assert names == ["plain picture", "picture with the helper"]
    rows = [row.text.split() for row in browser.all("#figures tr")]
    assert rows[0] == ["plain", "helper"]
    assert ["full", "calls", "16", "6"] in rows
    assert ["shallow", "calls", "0", "10"] in rows

    assert browser.hidden() == 50
    handle = browser.one("#pictures [data-testid=slider]")
    handle.send_keys(Keys.ARROW_LEFT)
    browser.wait(lambda: 44 < browser.hidden() < 46)  # a twentieth, in whole pixels
    middle = handle.find_element(By.CSS_SELECTOR, ".inner")
    ActionChains(browser.driver).drag_and_drop_by_offset(middle, 60, 0).perform()
    browser.wait(lambda: browser.hidden() > 50)

    width = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.driver.execute_script(width) <= 0
    assert browser.driver.execute_script("return window.innerWidth") in (1280, 390)
    assert browser.complaints() == []
    assert browser.foreign_requests() == []


def test_what_is_wrong_is_a_message_on_the_page(browser: Browser) -> None:
    browser.one("#prompt textarea").send_keys(PROMPTS[1])
    browser.type_into("Width", "13")
    browser.generate()
    browser.wait(lambda: browser.told("have to be divisible by 8 but are 64 and 13"))
    assert "Traceback" not in browser.driver.page_source
    assert browser.all("#pictures img") == []
    # Generate stayed grey and Stop red until the page was loaded anew.
    browser.wait(lambda: browser.button("Generate both pictures").is_enabled())
    assert not browser.button("Stop").is_enabled()


def test_stop_in_the_midst_of_a_run_then_another_run(browser: Browser, pipe: Any) -> None:
    browser.one("#prompt textarea").send_keys(PROMPTS[1])
    browser.type_into("number input for Steps", "150")
    browser.wait(lambda: "Planned: " in browser.one("#strip").text)
    assert not browser.button("Stop").is_enabled()
    browser.generate()
    said = r"[\d.]+/150 steps \| [\d.]+s plain - [\d.]+%"  # one share, and where it stands
    browser.wait(lambda: re.fullmatch(said, " ".join(browser.progress().split())))
    browser.wait(lambda: not browser.button("Generate both pictures").is_enabled())
    browser.button("Stop").click()
    browser.wait(lambda: browser.button("Generate both pictures").is_enabled())
    assert not browser.button("Stop").is_enabled()
    # It spoke of pictures of before, where there were none.
    browser.wait(lambda: browser.told("Stopped. No new pictures were made."))
    assert browser.all("#pictures img") == browser.all("#figures table") == []
    assert "_compiled_call_impl" not in vars(pipe.unet)

    browser.type_into("number input for Steps", "16")
    browser.generate()
    browser.wait(lambda: browser.shows_try(1))
    assert "Ran: 7 of 16 steps in full" in browser.one("#strip").text
    assert browser.complaints() == []


WAITS = "Another tab's pictures are made first."


def test_each_tab_has_a_stop_of_its_own_and_waits_for_its_turn(browser: Browser) -> None:
    # Stop was one flag: that of a tab that waited ended what another one made.
    driver = browser.driver

    def generate(steps: str) -> str:
        browser.one("#prompt textarea").send_keys(PROMPTS[1])
        browser.type_into("number input for Steps", steps)
        browser.wait(lambda: "Planned: " in browser.one("#strip").text)
        browser.generate()
        browser.wait(lambda: browser.button("Stop").is_enabled())
        return driver.current_window_handle

    first = generate("40")
    browser.wait(lambda: "plain" in browser.progress())
    assert not browser.told(WAITS)
    driver.switch_to.new_window("tab")
    driver.get(browser.address)
    browser.wait(lambda: browser.strip())
    second = generate("10")
    browser.wait(lambda: browser.told(WAITS))
    assert browser.progress().startswith("queue: 1/1 ")
    browser.button("Stop").click()
    driver.switch_to.window(first)
    browser.wait(lambda: browser.shows_try(1))
    driver.switch_to.window(second)
    browser.wait(lambda: browser.told("Stopped."))
    assert browser.all("#figures table") == []
    browser.generate()
    browser.wait(lambda: browser.shows_try(2))
    assert browser.complaints() == []


CURRENT = "#plot [aria-current=true]"
IN_VIEW = """
const {top, bottom} = document.querySelector("#strip").getBoundingClientRect();
return top > -1 && bottom < innerHeight + 1;
"""


def test_a_row_or_a_point_brings_its_try_back(browser: Browser, pipe: Any) -> None:
    interval = "number input for Interval"
    browser.type_into("number input for Steps", "10")
    browser.one("#prompt textarea").send_keys(PROMPTS[1], Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    first = browser.strip()
    browser.type_into(interval, "3")
    browser.wait(lambda: "Planned" in browser.one("#strip").text)
    browser.generate()
    browser.wait(lambda: browser.shows_try(2))
    browser.wait(lambda: len(browser.rows()) == 2)
    assert [row[0] for row in browser.rows()] == ["2", "1"]
    assert ["× (at most " in row[2] for row in browser.rows()] == [True, True]
    browser.wait(lambda: len(browser.all("#plot circle")) == 2)
    second = browser.strip()
    assert second != first

    def marked() -> list[str]:
        return [each.get_attribute("data-try") for each in browser.all(CURRENT)]

    def is_in_view() -> bool:
        return bool(browser.driver.execute_script(IN_VIEW))

    browser.wait(lambda: marked() == ["2"])
    browser.driver.execute_script("scrollTo(0, document.body.scrollHeight)")
    assert not is_in_view()

    browser.all("#tries [role=gridcell]")[6].click()
    browser.wait(lambda: browser.shows_try(1))
    field = browser.one(f"input[aria-label^={json.dumps(interval)}]")
    browser.wait(lambda: field.get_attribute("value") == "2.2")
    browser.wait(lambda: browser.strip() == first)
    assert "Ran" in browser.one("#strip").text
    browser.wait(is_in_view)
    assert marked() == ["1"]

    browser.one("#plot [data-try='2'] circle").click()
    browser.wait(lambda: browser.shows_try(2))
    browser.wait(is_in_view)
    assert marked() == ["2"]
    browser.wait(lambda: browser.strip() == second)
    point = browser.one("#plot [data-try='1']")
    assert point.get_attribute("aria-label").startswith("try 1: ")
    point.send_keys(Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    browser.wait(lambda: field.get_attribute("value") == "2.2")
    assert "#" not in browser.driver.current_url

    browser.driver.refresh()  # the page remembers; the browser need not
    browser.wait(lambda: len(browser.rows()) == 2)
    assert browser.complaints() == []


def test_the_other_tab_shows_progress_and_a_large_difference(browser: Browser) -> None:
    # Progress stood on the first tab alone, and the difference of small pictures was small.
    browser.one("#prompt textarea").send_keys(PROMPTS[1])
    browser.type_into("number input for Steps", "40")
    browser.wait(lambda: "Planned: " in browser.one("#strip").text)
    browser.button("Difference").click()
    browser.generate()
    browser.wait(lambda: "plain" in browser.progress())
    browser.wait(lambda: browser.shows_try(1))
    browser.wait(lambda: browser.one("#difference img").size["width"] > 300)
    assert browser.complaints() == []


LEFT_EMPTY = """
const {width} = document.querySelector(".gradio-container").getBoundingClientRect();
return document.documentElement.clientWidth - width;
"""


def test_the_page_is_as_wide_as_the_window_whatever_it_shows(browser: Browser) -> None:
    # It was as wide as its content: 1028 pixels, then 1214, and 820 with Python.
    assert browser.driver.execute_script(LEFT_EMPTY) == 0
    browser.type_into("number input for Steps", "10")
    browser.one("#prompt textarea").send_keys(PROMPTS[1], Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    assert browser.driver.execute_script(LEFT_EMPTY) == 0


def test_python_scrolls_and_the_page_does_not(browser: Browser) -> None:
    # A narrow page grew as wide as the longest line.
    browser.type_into("number input for Steps", "10")
    browser.one("#prompt textarea").send_keys(PROMPTS[1], Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    width = browser.driver.execute_script("return window.innerWidth")
    (opener,) = [each for each in browser.all("button") if "as Python" in each.text]
    opener.click()
    hidden = "const lines = document.querySelector('#python .cm-scroller');"
    hidden += "return lines && lines.scrollWidth > lines.clientWidth"
    browser.wait(lambda: browser.driver.execute_script(hidden))
    sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
    scrolled, now = browser.driver.execute_script(sizes)
    assert scrolled <= now == width


def test_results_stand_before_settings_where_the_page_is_narrow(browser: Browser) -> None:
    places = [browser.one(each).location["y"] for each in ("#prompt", "#pictures", "#die")]
    assert places[0] < min(places[1:])
    if browser.driver.execute_script("return window.innerWidth") < 500:
        assert places == sorted(places)


#: The contrast of a text with the white or black behind it, as WCAG 2 has it.
CONTRAST = """
const style = getComputedStyle(document.querySelector(arguments[0]));
const [r, g, b] = style[arguments[1]].match(/[\\d.]+/g).slice(0, 3).map(value => value / 255)
  .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
return 1.05 / (0.05 + 0.2126 * r + 0.7152 * g + 0.0722 * b);
"""


def test_what_is_wrong_is_red_and_small_texts_can_be_read(browser: Browser) -> None:
    # Gradio's colour of all prose won; the ticks of the plot had a contrast of 1.91.
    colour = "return getComputedStyle(document.querySelector(arguments[0])).color"
    faint = browser.driver.execute_script(colour, "#strip .faint")
    assert browser.driver.execute_script(CONTRAST, "#strip .faint", "color") >= 4.5
    browser.type_into("number input for Steps", "10")
    browser.one("#prompt textarea").send_keys(PROMPTS[1], Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    browser.wait(lambda: browser.all("#plot text"))
    for selector, kind in (("#plot text", "fill"), (".figures caption", "color")):
        assert browser.driver.execute_script(CONTRAST, selector, kind) >= 4.5
    assert browser.driver.execute_script(colour, ".figures caption") == faint
    assert browser.driver.execute_script(colour, "#figures strong") != faint
    browser.type_into("Width", Keys.DELETE)
    browser.wait(lambda: browser.all("#strip .wrong"))
    red = browser.driver.execute_script(colour, "#strip .wrong")
    assert red == "rgb(185, 28, 28)"  # of gradio's theme
    assert browser.driver.execute_script(CONTRAST, "#strip .wrong", "color") >= 4.5


NAMELESS = """
const kinds = "button, input:not([type=file]), textarea, [role=slider]";
return [...document.querySelectorAll(kinds)].filter(each => each.checkVisibility() && ![
  each.ariaLabel, each.textContent.trim(), each.title, each.ariaLabelledByElements?.length,
  ...[...(each.labels ?? [])].map(label => label.textContent.trim()),
].some(Boolean)).map(each => each.outerHTML);
"""


def test_every_control_has_a_name_for_screen_readers(browser: Browser) -> None:
    browser.type_into("number input for Steps", "10")
    browser.one("#prompt textarea").send_keys(PROMPTS[1], Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    assert browser.driver.execute_script(NAMELESS) == []
    pictures = browser.all("#pictures img, #tries img")
    assert all(each.get_attribute("alt") for each in pictures)


def test_an_empty_prompt_is_asked_about(browser: Browser) -> None:
    browser.generate()
    browser.wait(lambda: browser.told("What is the picture to show?"))
    browser.wait(lambda: browser.button("Generate both pictures").is_enabled())
    assert browser.all("#figures table") == []


def test_enter_pressed_again_while_pictures_are_made_makes_no_others(browser: Browser) -> None:
    browser.type_into("number input for Steps", "40")
    prompt = browser.one("#prompt textarea")
    prompt.send_keys(PROMPTS[1], Keys.ENTER)
    browser.wait(lambda: "plain" in browser.progress())
    prompt.send_keys(Keys.ENTER)
    browser.wait(lambda: browser.shows_try(1))
    browser.type_into("number input for Steps", "10")
    browser.generate()
    browser.wait(lambda: browser.shows_try(2))
    assert "10 steps" in browser.one("#tries").text
    assert browser.complaints() == []
