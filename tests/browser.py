"""Chromium for tests of the page: one process, and pages that tell what went wrong in them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server",
)  # fmt: skip
REFUSED = "Failed to load resource: the server responded with a status of 4"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright; skips where there is none."""
    library = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page at a URL, in a browser context of its own. wrong: errors of its console, and what it asked elsewhere."""

    browser: Any
    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wrong: list[str] = []
        defaults = {"locale": "en-US", "viewport": {"width": 1100, "height": 760}, "accept_downloads": True}
        self.context = self.browser.new_context(**{**defaults, **self.options})
        self.context.on("request", self._asked)
        self.context.on("console", self._said)
        self.context.on("weberror", lambda error: self.wrong.append(str(error.error)))
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)

    def open(self, panel: str = "") -> Any:
        """The page, at one of its panels, when it has found out what is served."""
        self.page.goto(f"{self.url}/#{panel}" if panel else self.url)
        self.page.locator("[role=tab]:visible, #gate:visible").first.wait_for()
        return self.page

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url + "/", "blob:" + self.url + "/", "data:")):
            self.wrong.append(f"asked {request.url}")

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            self.wrong.append(message.text)

    def close(self) -> None:
        """Leave, and see that nothing was wrong."""
        self.context.close()
        assert not self.wrong, self.wrong
