"""Chromium without a window, driven by Playwright."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE = 60.0


class Tab:
    """One page. `problems` has what its console showed and the exceptions that its scripts did not catch."""

    def __init__(self, page: Page):
        self._page = page
        self.problems: list[str] = []
        page.set_default_timeout(1000 * _PATIENCE)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))

    def open(self, url: str) -> None:
        self._page.goto(url)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self._page.evaluate(script)

    def until(self, script: str) -> Any:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + _PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.problems, self.run("document.body.innerText"))
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self._page.inner_text(selector)

    def type(self, text: str) -> None:
        self._page.keyboard.insert_text(text)

    def press(self, key: str) -> None:
        self._page.keyboard.press(key)

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the window's size and the system's colours."""
        self._page.set_viewport_size({"width": width, "height": height})
        self._page.emulate_media(color_scheme=scheme)


@contextmanager
def chromium() -> Iterator[Tab]:
    """The first tab of a browser with a fresh profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Tab(browser.new_page())
        browser.close()
