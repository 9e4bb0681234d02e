"""What tests of the page share: a page that is open on a mock, and what went wrong in it."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from .page_mock import Mock, picture

if TYPE_CHECKING:
    from playwright.sync_api import Page


def until(tab: Page, true: str, seconds: float = 40.0) -> None:
    """Wait until an expression holds. Playwright's own way of waiting needs `eval` in the page, which its policy forbids."""
    end = time.monotonic() + seconds
    while not tab.evaluate(true):
        assert time.monotonic() < end, f"it never holds: {true}"
        tab.wait_for_timeout(20)


@dataclass
class Watch:
    """What a page did that it should not: errors on the console, scripts that failed, requests to elsewhere.

    refused: whether the server refuses something in this test, which the browser notes on its console.
    """

    origin: str
    refused: bool = False
    wrong: list[str] = field(default_factory=list)

    def follow(self, tab: Page) -> None:
        tab.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        tab.on("console", lambda told: self._console(told.type, told.text))
        tab.on("request", lambda request: self._request(request.url))
        tab.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.refused and text.startswith("Failed to load resource")):
            self.wrong.append(f"console: {text}")

    def _request(self, url: str) -> None:
        if not url.startswith((self.origin + "/", "data:", "blob:" + self.origin)):
            self.wrong.append(f"request: {url}")


@dataclass
class Visit:
    """A page that is open on a mock."""

    tab: Page
    mock: Mock
    watch: Watch

    def generate(self, prompt: str = "a hill at dawn") -> None:
        self.tab.fill("#f-prompt", prompt)
        self.tab.click("#generate")

    def done(self, pictures: int = 1) -> None:
        """Wait until so many pictures are in the gallery, and nothing is in the queue."""
        until(self.tab, f"document.querySelectorAll('#gallery-grid img').length === {pictures}")
        self.tab.wait_for_selector("#queue", state="hidden")

    def focused(self) -> str:
        return str(self.tab.evaluate("document.activeElement.id || document.activeElement.className"))


def mask_of(page: Visit) -> Image.Image:
    """The mask that was sent last."""
    data = page.mock.sent[-1]["request"]["mask"]["base64"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("L")


def choose(page: Visit, width: int = 320, height: int = 240) -> None:
    """A picture to begin from."""
    page.tab.set_input_files(
        "#choose", {"name": "hill.png", "mimeType": "image/png", "buffer": picture(5, width, height)}
    )
    until(page.tab, "!document.getElementById('source').hidden")


def tab_to(page: Visit, id: str, key: str = "Tab") -> None:
    """Press Tab until something has the focus."""
    for _ in range(60):
        if page.focused() == id:
            return
        page.tab.keyboard.press(key)
    raise AssertionError(f"{id} is not reached by {key}")
