"""Mails that lie one to a file: `.eml`, or any file that begins with mail headers. Knows no MIME."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from panza.mail.raw import MAX_MAIL, RawMail, head, printable, starts_like_mail, without_bom


def accepts(path: Path) -> bool:
    """Whether `path` is one mail: by its suffix, or by its first lines."""
    return path.is_file() and (path.suffix.lower() == ".eml" or starts_like_mail(head(path)))


def size(path: Path) -> int:
    return path.stat().st_size


def read(path: Path) -> Iterator[RawMail]:
    """The one mail of the file at `path`."""
    with path.open("rb") as file:
        yield RawMail(without_bom(file.read(MAX_MAIL)).lstrip(b"\r\n"), printable(path))
