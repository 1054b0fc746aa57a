"""Chromium without a window, for the tests and the screenshots of a run's page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}
"""Programs, with the packages of Debian that contain them."""
PATIENCE = 20
"""Seconds to wait for an element."""


class MissingBrowser(Exception):
    """Chromium or its driver is not installed."""


def program(name: str) -> str:
    """Return the path of Chromium or of its driver."""
    path = shutil.which(name)
    if path is None:
        raise MissingBrowser(f"{name} is missing: install {' and '.join(PROGRAMS.values())}")
    return path


class Browser:
    """A browser with one page of a run; ``driver`` is Selenium's."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, page: Path, address: str = "#/") -> None:
        """Load a page anew at an address and wait until its view is shown."""
        self.driver.get("about:blank")
        self.driver.get((page / "index.html").absolute().as_uri() + address)
        self.shown()

    def go(self, address: str) -> None:
        """Open an address of the page that is loaded."""
        self.run("location.hash = arguments[0]", address)
        self.until(lambda: self.address == address)
        self.shown()

    @property
    def address(self) -> str:
        """Address after the page's file."""
        return self.run("return location.hash")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript and return its value."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Return the first true value of a condition; fail after some seconds."""
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def shown(self) -> None:
        """Wait until the view is shown, its parts are filled and its charts are drawn."""
        self.until(lambda: self.run(
            "return document.readyState === 'complete'"
            " && document.querySelector('main h1, main .bad')"
            " && !document.querySelector('main[aria-busy]') && !/Loading/.test(main.innerText)"
            " && [...document.querySelectorAll('.chart')].every("
            "(chart) => !chart.checkVisibility() || chart.querySelector('canvas'))"
        ))  # fmt: skip

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector, when it is there."""
        return self.until(lambda: self.all(selector))[0]

    def button(self, text: str) -> WebElement:
        """Return the visible button whose label begins with a text."""
        return self.until(lambda: [
            b for b in self.all("button") if b.is_displayed() and b.text.startswith(text)
        ])[0]  # fmt: skip

    @property
    def heading(self) -> str:
        """Title of the view."""
        return self.one("h1").text

    @property
    def text(self) -> str:
        """Visible text of the view."""
        return self.one("main").text

    def download(self, start: Callable[[], None]) -> Path:
        """Return the file that a click downloads."""
        before = set(self.downloads.iterdir())
        start()

        def finished() -> Path | None:
            new = set(self.downloads.iterdir()) - before
            return next((p for p in new if p.suffix not in (".crdownload", ".tmp")), None)

        return self.until(finished)

    def messages(self) -> list[str]:
        """Return the messages in the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that the browser asked for since the last call."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def media(self, *, width: int | None = None, height: int = 844, dark: bool = False) -> None:
        """Emulate a screen of a width in pixels, or the browser's own, and a colour scheme."""
        if width is None:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        else:
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """Start Chromium and end it after the block; raises ``MissingBrowser``."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=1300,900", "--hide-scrollbars", "--disable-background-networking",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    try:
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        yield Browser(driver, downloads)
    finally:
        driver.quit()
