"""One mail as it was found: its bytes and where they lay. Knows neither MIME nor words."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

MAX_MAIL = 32 << 20  # bytes kept of one mail; what lies beyond is attachments, and memory stays flat

_HEADER_LINE = re.compile(rb"(?:From [^\n]*\n)?(?:[!-9;-~]+[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*){2}", re.DOTALL)
_MAIL_HEADER = re.compile(rb"^(?:from|date|message-id|received|return-path|delivered-to)[ \t]*:", re.IGNORECASE | re.M)


@dataclass(frozen=True, slots=True)
class RawMail:
    """`label` is what its place says of it: "spam", "trash", "draft" or nothing."""

    data: bytes
    source: str  # "path", or "path@byte offset" inside a larger file
    label: str = ""
    error: str = ""  # why the bytes could not be read; `data` is then empty

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that change when the mail or its label does."""
        return hashlib.blake2b(self.data, digest_size=16, key=self.label.encode()).digest()


def printable(path: Path) -> str:
    """`path` as text that any file and database can hold, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def without_bom(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf")


def head(path: Path, size: int = 8192) -> bytes:
    """The first bytes of a file, without its byte order mark; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            return without_bom(file.read(size)).lstrip(b"\r\n")
    except OSError:
        return b""


def starts_like_mail(data: bytes) -> bool:
    """Whether `data` begins with two header lines or more, one of them a mail's."""
    block = data.lstrip(b"\r\n").replace(b"\r\n", b"\n").partition(b"\n\n")[0] + b"\n"
    return bool(_HEADER_LINE.match(block) and _MAIL_HEADER.search(block))
