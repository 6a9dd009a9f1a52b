"""The page served for a test, and a browser that refuses every address but its own."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_assistant import ME, Writer

from panza.home import open_home
from panza.types import Address, Message
from panza.web.server import Listening, listen

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PAUSE = 0.03  # seconds a token: slow enough to look at a draft while it grows
ANNA = Address("Anna Lindqvist", "anna@northmill.example")
TOM = Address("Tom Okafor", "tom@okafor.example")
EVIL = '<img src=x onerror="window.pwned=1"> <script>window.pwned=2</script> ${window.pwned=3} {{value}} `'


def mails() -> list[Message]:
    """Received and sent mails; one of them is made to harm a page that shows it as HTML."""

    def mail(n: int, sender: Address, subject: str, body: str, thread: str = "", quoted: str = "") -> Message:
        date = 1_700_000_000 + 86_400 * n
        mine = sender == ME
        to = (ANNA,) if mine else (ME,)
        return Message(f"{n}@test", date, sender, to, (), subject, body, quoted, thread=thread or f"t{n}", mine=mine)

    return [
        mail(1, ME, "Review of the Harbor contract", "Tuesday at 10 for the review?", "t1"),
        mail(2, ANNA, "Re: Review of the Harbor contract", "Can we still do the review on Tuesday?", "t1"),
        mail(3, TOM, "Offsite: who drives?", "I need to know by tonight.", quoted="> nine of us"),
        mail(4, Address(EVIL, "evil@harm.example"), EVIL, EVIL, quoted=EVIL),
    ]  # fmt: skip


class Egress:
    """Hosts outside this computer that the process looked up or connected to. Python cannot take the hook off again."""

    def __init__(self):
        self.hosts: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        host = (
            args[0]
            if event == "socket.getaddrinfo"
            else args[1][0]
            if event == "socket.connect" and isinstance(args[1], tuple)
            else None
        )
        if host is not None and str(host) not in {"127.0.0.1", "localhost", "::1", "None", "0.0.0.0"}:
            self.hosts.append(str(host))


@pytest.fixture(scope="session")
def egress() -> Egress:
    return Egress()


@contextlib.contextmanager
def running(assistant: Any) -> Iterator[Listening]:
    """The page of `assistant` on a free port."""
    listening = listen(assistant, port=0)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    while not listening.server.started:
        time.sleep(0.01)
    try:
        yield listening
    finally:
        listening.server.should_exit = True
        thread.join(10)


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
