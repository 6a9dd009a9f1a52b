"""Refuse the network to a process, and write down who tried: a thread may swallow the error. Knows nothing of Panza.

Python's audit events come before each call, however the caller got hold of the function, and in every thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

EVENTS = {
    f"socket.{name}"
    for name in ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo")
}
# What a sitecustomize.py holds to seal a process from its first line on; $SEALED_LOG names the log.
SITECUSTOMIZE = "import os, tests.sealed\ntests.sealed.seal(os.environ['SEALED_LOG'])\n"

_log: list[str] = []  # the path of the log while sealed; audit hooks stay for ever, so this one can be put to sleep


def _refuse(event: str, args: tuple) -> None:
    if event in EVENTS and _log:
        tried = f"{event} {args[1:] if event == 'socket.connect' else args}"
        file = os.open(_log[-1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{tried}\n".encode())
        os.close(file)
        raise AssertionError(f"a socket was opened: {tried}")


@cache
def _hook() -> None:
    sys.addaudithook(_refuse)


def seal(log: str | Path) -> None:
    """From now on every connect, datagram and look-up of a name fails, and is a line in `log`."""
    _hook()
    _log.append(str(log))


@contextmanager
def sealed(log: Path) -> Iterator[None]:
    """The same for the length of a block."""
    seal(log)
    try:
        yield
    finally:
        _log.pop()
