"""A real browser for tests: Debian's Chromium, installed if it is not there, and axe-core."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from filelock import FileLock
from installed import debian
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 300_000  # a page that never shows fails; one on a busy machine only takes its time


def find_chromium() -> str:
    """Where Chromium is; installed by Debian's package manager, or else by Playwright."""
    with FileLock(Path(tempfile.gettempdir()) / f"stagetree-chromium-{os.getuid()}.lock"):
        for name in NAMES:
            if found := shutil.which(name):
                return found
        if os.getuid() == 0 and shutil.which("apt-get"):
            debian("chromium")
            return shutil.which("chromium")
        subprocess.run(["playwright", "install", "chromium"], check=True)
        with sync_playwright() as playwright:
            return playwright.chromium.executable_path


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Headless, with WebGL in software."""
    with sync_playwright() as playwright:
        arguments = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments, timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched(browser: Browser, *, passes: str = "nothing", **options) -> Iterator[Page]:
    """A page that must report no error and ask nothing of another machine.

    Args:
        browser: that opens it.
        passes: an error with these words is somebody else's and known.
        options: of the browser's context.
    """
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if _is_here(request.url) else troubles.append(f"asked for {request.url}"))
    try:
        yield page
        assert [trouble for trouble in troubles if passes not in trouble] == []
    finally:
        context.close()


def _is_here(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


def violations(page: Page) -> list[str]:
    """What axe-core finds fault with."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]} {node.get('failureSummary', '')}" for one in found for node in one["nodes"]
    ]
