"""The playground's page in a browser, as a person uses it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

LIMIT = 60.0  # seconds; a guard against a hang
EDITOR, INFILL, DRAFT = "#completion-text", "#infilling-text", "#chat-draft"


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A headless browser with a profile of its own, which calls nobody by itself."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (
            "--headless=new",
            "--no-sandbox",  # root, as in containers, has no other way
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--window-size=1280,860",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, fresh: bool = True) -> None:
        """Show the page at `url`; `fresh` forgets what an earlier visit left."""
        # A page that is left stores what it has; here is another one of the same origin, which stores nothing.
        self.driver.get(f"{url}/playground/config")
        if fresh:
            self.js("localStorage.clear(); sessionStorage.clear()")
        self.driver.get(url)
        self.wait(lambda: self.find("#model").get_attribute("data-state") != "wait")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], object]) -> None:
        """Until it is true; an element that was replaced meanwhile counts as not yet."""
        wait = WebDriverWait(self.driver, LIMIT, 0.02, [StaleElementReferenceException])
        wait.until(lambda _: condition())

    # A person's acts

    def tab(self, name: str) -> None:
        self.find(f"#tab-{name}").click()

    def type(self, selector: str, text: str) -> None:
        """Put a text in place of what is there."""
        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus; the last one with all others held."""
        chain = ActionChains(self.driver)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()

    def hover(self, element: WebElement) -> None:
        ActionChains(self.driver).move_to_element(element).perform()

    def run(self) -> None:
        """Run to the end."""
        self.find("#run").click()
        self.finished()

    def finished(self) -> None:
        self.wait(lambda: self.find("#run-label").text != "Stop")

    def select(self, selector: str, start: int, end: int | None = None) -> None:
        """Put a text area's cursor, as a click would."""
        self.js(
            "arguments[0].focus(); arguments[0].setSelectionRange(arguments[1], arguments[2]);"
            "arguments[0].dispatchEvent(new Event('keyup'))",
            *(self.find(selector), start, start if end is None else end),
        )

    # What is seen

    def text(self, selector: str) -> str:
        """The text of a text area, or of an element as it is in the document."""
        element = self.find(selector)
        return str(element.get_property("value" if element.tag_name == "textarea" else "textContent"))

    def drawn(self, panel: str) -> str:
        """What the overlay of an editor shows."""
        return "\n".join(str(row.get_property("textContent")) for row in self.all(f"#panel-{panel} .row"))

    def problem(self) -> str:
        """Wait for the line that says what went wrong -> its sentence."""
        self.wait(lambda: self.find("#problem").is_displayed())
        return self.find("#problem p").text

    def hosts(self) -> set[str]:
        """Host and port of everything that the browser asked for since the last call."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked = urlsplit(message["params"]["request"]["url"])
                if asked.scheme in ("http", "https", "ws", "wss"):
                    found.add(asked.netloc)
        return found

    def complaints(self) -> list[str]:
        """What the browser logged since the last call, but for answers with a status of 400 and more."""
        told = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "DEBUG"]
        return [each for each in told if "Failed to load resource" not in each]


def bubbles(page: Page) -> list[str]:
    """The messages of the chat."""
    return [str(each.get_property("textContent")) for each in page.all("#panel-chat .message .body")]


def say(page: Page, text: str) -> None:
    """Send a message, and wait for the end."""
    page.type(DRAFT, text)
    page.find(DRAFT).send_keys(Keys.ENTER)
    page.wait(lambda: text in bubbles(page) or page.find("#problem").is_displayed())
    page.finished()
