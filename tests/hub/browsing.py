"""A real browser: Debian's chromium, driven by Playwright, with nothing of its own to say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
Scheme = Literal["light", "dark"]


@dataclass
class Seen:
    """A page as it came out, and what happened meanwhile."""

    page: Any
    context: Any
    said: list[str] = field(default_factory=list)
    """Messages of the console, errors and dialogs."""
    asked: list[str] = field(default_factory=list)
    """Addresses that were requested."""
    status: int = 0

    def visit(self, url: str) -> None:
        """Open `url` and wait for all that it loads: without scripts nothing comes later."""
        self.said.clear()
        self.asked.clear()
        self.status = self.page.goto(url, wait_until="load").status

    def close(self) -> None:
        self.context.close()


@dataclass
class Browsing:
    browser: Any

    @classmethod
    @contextmanager
    def begin(cls, profile: Path) -> Iterator[Browsing]:
        """One browser, with a new and empty profile under `profile`."""
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=CHROMIUM, args=FLAGS, timeout=120_000,
                env={"HOME": str(profile), "PATH": "/usr/bin:/bin"},
            )  # fmt: skip
            try:
                yield cls(browser)
            finally:
                browser.close()

    def see(
        self, url: str, scheme: str = "light", width: int = 1100, height: int = 900, **more: Any
    ) -> Seen:
        """Open `url` in a window of its own."""
        context = self.browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}, **more
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        seen = Seen(page, context)
        page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.said.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: seen.asked.append(request.url))
        seen.visit(url)
        return seen
