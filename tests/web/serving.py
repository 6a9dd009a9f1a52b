"""Serve the page in this process, and hear whether anything in it turns to another computer."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from panza.web.server import Listening, listen


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


@contextlib.contextmanager
def running(assistant: Any) -> Iterator[Listening]:
    """The page of `assistant` on a free port."""
    listening = listen(assistant, port=0)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    while not listening.server.started:
        assert thread.is_alive(), "the server ended before it began"
        time.sleep(0.01)
    try:
        yield listening
    finally:
        listening.server.should_exit = True
        thread.join(10)
