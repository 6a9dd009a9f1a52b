"""The page served for a test, and a browser that refuses every address but its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_assistant import Writer
from serving import Egress, running

from panza.home import open_home
from panza.types import Message
from panza.web.server import Listening

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PAUSE = 0.03  # seconds a token: slow enough to look at a draft while it grows


@pytest.fixture(scope="session")
def egress() -> Egress:
    return Egress()


@pytest.fixture
def serve(tmp_path: Path, egress: Egress) -> Iterator[Callable[..., Listening]]:
    """serve(mails, pause=…) or serve(assistant=…): a page that ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(messages: list[Message] = (), pause: float = PAUSE, assistant: Any = None) -> Listening:
            return stack.enter_context(running(assistant or Writer(open_home(tmp_path / "home"), messages, pause)))

        yield start
    assert egress.hosts == [], "the server left this computer"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests")
    if not Path(CHROMIUM).exists():
        reason = "chromium is not installed (Debian: apt-get install chromium): no browser tests"
        print(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """visit(listening): its page in a new browser. Requests to elsewhere and script errors fail the test."""
    contexts, foreign, errors = [], [], []

    def open_page(listening: Listening, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1440, "height": 900}, **options)
        contexts.append(context)
        own = f"http://127.0.0.1:{listening.port}/"

        def gate(route: Any) -> None:
            if route.request.url.startswith((own, "data:", "blob:")):
                return route.continue_()
            foreign.append(route.request.url)
            route.abort()

        context.route("**/*", gate)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(listening.link)
        page.locator("#status dl").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == [], "the page asked another host"
    assert errors == [], "a script on the page failed"
