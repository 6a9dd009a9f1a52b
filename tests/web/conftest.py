"""The page served for a test, and a browser that refuses every address but its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_assistant import Held, Writer, mails
from person import settle
from serving import Egress, running

from panza.home import open_home
from panza.web.server import Listening

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
READY = """document.querySelector("#side[role=region]") &&
    [...document.styleSheets].some((sheet) => sheet.href?.endsWith("panza.css"))"""  # both files have come
PATIENCE = 180_000  # milliseconds before a test gives up on what it waits for: many times what a busy machine needs


@pytest.fixture(scope="session")
def egress() -> Egress:
    return Egress()


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """The fake assistant with a small mailbox."""
    return Writer(open_home(tmp_path / "home"), mails())


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """The same, but its looks at mail wait at gates."""
    return Held(open_home(tmp_path / "home"), mails())


@pytest.fixture
def serve(egress: Egress) -> Iterator[Callable[[Any], Listening]]:
    """serve(assistant): its page, which ends with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda assistant: stack.enter_context(running(assistant))
    assert egress.hosts == [], "the server left this computer"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests")
    if not Path(CHROMIUM).exists():
        reason = "chromium is not installed (Debian: apt-get install chromium): no browser tests"
        print(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
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
        context.add_init_script(path=Path(__file__).with_name("unanswered.js"))
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(listening.link)
        page.locator("#status dl").wait_for()
        page.wait_for_function(READY)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == [], "the page asked another host"
    assert errors == [], "a script on the page failed"


@pytest.fixture
def page(serve: Callable, visit: Callable, writer: Writer) -> Any:
    """The page of `writer`, loaded."""
    page = visit(serve(writer))
    settle(page)
    return page
