"""Mails from an mbox file: Takeout, Thunderbird, mutt, Apple Mail's export. Knows `From ` lines; knows no MIME."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from panza.mail.raw import MAX_MAIL, RawMail, head, printable, without_bom

LINE = 1 << 20  # bytes of one line read at a time, so that a file without line ends cannot fill the memory

# "From a@b Mon Jan 22 21:46:00 2001", a zone before or after the year, or an RFC 2822 date.
_FROM_LINE = re.compile(
    rb"From [^\r\n]*?"
    rb"(?:\d{1,2}[ \t]+)?[A-Z][a-z]{2}[ \t]+(?:\d{1,2}[ \t]+)?"
    rb"(?:\d{4}[ \t]+\d{1,2}:\d\d(?::\d\d)?|\d{1,2}:\d\d(?::\d\d)?(?:[ \t]+(?:[+-]\d{4}|[A-Z]{1,5}))*[ \t]+\d{4})"
    rb"(?:[ \t]+(?:[+-]\d{4}|\(?[A-Z]{1,5}\)?))*(?:[ \t]+remote from [^\r\n]*)?[ \t]*(?:\r?\n|$)"
)
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_EMPTY = (b"\n", b"\r\n")


def accepts(path: Path) -> bool:
    """Whether `path` is an mbox file: by its first line, or by its name if it is empty."""
    if not path.is_file():
        return False
    start = head(path)
    return start.startswith(b"From ") if start else path.suffix.lower() == ".mbox"


def size(path: Path) -> int:
    return path.stat().st_size


def read(path: Path) -> Iterator[RawMail]:
    """Each mail of the file at `path`, in order, at constant memory."""
    with path.open("rb") as stream:
        for offset, data in split(stream):
            yield RawMail(data, f"{printable(path)}@{offset}")


def split(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(byte offset of its `From ` line, the mail below that line) for each mail.

    A `From ` line counts at the start or after an empty line, and only if it ends in a date. One `>` is taken
    from `>From `, `>>From ` and so on. Text before the first `From ` line comes out as a mail of its own.
    """
    offset, begin, lines, kept = 0, 0, [], 0
    line_start, after_empty = True, True
    for line in iter(partial(stream.readline, LINE), b""):
        text = without_bom(line) if offset == 0 else line
        if after_empty and text.startswith(b"From ") and (_FROM_LINE.match(text) or offset == 0):
            yield from _mail(begin, lines)
            begin, lines, kept = offset, [], 0
        elif kept < MAX_MAIL:
            lines.append(text)
            kept += len(text)
        offset += len(line)
        after_empty = line_start and text in _EMPTY
        line_start = line.endswith(b"\n")
    yield from _mail(begin, lines)


def _mail(offset: int, lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
    if lines and lines[-1] in _EMPTY:  # the separator belongs to the mbox, not to the mail
        lines.pop()
    data = b"".join(lines)
    if data.strip():
        yield offset, _QUOTED_FROM.sub(rb"\1", data) if b">From " in data else data
