"""Mails from a Maildir: the files of `cur` and `new`, and the flags in their names. Knows no MIME; writes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from panza.mail import eml
from panza.mail.raw import RawMail, printable

_FLAGS = re.compile(r"[:;!]2,([A-Za-z]*)$")  # ":2,FS"; ";" and "!" on file systems that forbid the colon
_LABELS = {"T": "trash", "D": "draft"}


def accepts(path: Path) -> bool:
    return (path / "cur").is_dir() and (path / "new").is_dir()


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def read(path: Path) -> Iterator[RawMail]:
    """Each mail of the Maildir at `path`, without its subfolders. A file that cannot be read comes with its error.

    `source` leaves out `cur`, `new` and the flags, which change when the user reads or moves on.
    """
    for file in _files(path):
        source = printable(path / _FLAGS.sub("", file.name))
        try:
            yield from (replace(mail, source=source, label=_label(file.name)) for mail in eml.read(file))
        except OSError as error:
            yield RawMail(b"", source, error=type(error).__name__)


def _files(path: Path) -> list[Path]:
    return sorted(f for folder in ("cur", "new") for f in (path / folder).iterdir() if f.name[0] != "." and f.is_file())


def _label(name: str) -> str:
    flags = _FLAGS.search(name)
    return next((_LABELS[f] for f in flags[1] if f in _LABELS), "") if flags else ""
