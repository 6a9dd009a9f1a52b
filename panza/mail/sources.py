"""The table of mail sources, and the walk that finds them below a path. Knows file names; opens no mail."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from panza.mail import eml, maildir, mbox
from panza.mail.raw import RawMail, printable
from panza.types import UserError


class Source(Protocol):
    """What every module of the table offers."""

    def accepts(self, path: Path) -> bool:
        """Whether `path` holds mail of this kind."""

    def size(self, path: Path) -> int:
        """Bytes to read, for the progress."""

    def read(self, path: Path) -> Iterator[RawMail]:
        """Each mail of `path`, in an order that never changes."""


SOURCES: dict[str, Source] = {"Maildir": maildir, "mbox": mbox, "eml": eml}  # asked in this order

# Folders and files whose name says that nobody meant their mail to be read again. Only below a folder that the
# user gave, never the path itself.
_LABELS = {
    "spam": ("spam", "junk", "junk e-mail", "bulk mail", "pourriel", "correo no deseado", "posta indesiderata"),
    "trash": ("trash", "bin", "deleted messages", "papierkorb", "corbeille", "papelera", "cestino"),
    "draft": ("drafts", "templates", "unsent messages", "entwürfe", "brouillons", "borradores", "bozze"),
}
_LABEL_OF = {name: label for label, names in _LABELS.items() for name in names}


@dataclass(frozen=True)
class Found:
    """A mailbox below a path that the user gave."""

    source: Source
    path: Path
    label: str = ""

    @property
    def size(self) -> int:
        try:
            return self.source.size(self.path)
        except OSError:
            return 0

    def read(self) -> Iterator[RawMail]:
        """Its mails; one that says why, in place of the rest, if the file cannot be read."""
        try:
            for mail in self.source.read(self.path):
                yield replace(mail, label=self.label) if self.label else mail
        except OSError as error:
            yield RawMail(b"", printable(self.path), error=type(error).__name__)


def read(path: Path) -> Iterator[RawMail]:
    """Each mail of the mailbox at `path`, or of every mailbox below the folder `path`."""
    for found in find([path]):
        yield from found.read()


def find(paths: Sequence[Path]) -> list[Found]:
    """Every mailbox at or below `paths`, in the order of their names. UserError if one of `paths` holds none."""
    return [found for path in paths for found in _find_one(Path(path).expanduser())]


def _find_one(path: Path) -> list[Found]:
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist; give an mbox file, a Maildir, or a file or folder of .eml.")
    found = list(_walk(path.resolve(), ""))
    if not found:
        raise UserError(f"{printable(path)} holds no mail that can be read; known are {', '.join(SOURCES)}.")
    return found


def _walk(path: Path, label: str) -> Iterator[Found]:
    source = next((s for s in SOURCES.values() if s.accepts(path)), None)
    if source:
        yield Found(source, path, label)
    elif path.is_file() and not os.access(path, os.R_OK):
        yield Found(eml, path, label)  # the attempt to read it names the error
    if path.is_dir():
        for child in sorted(_children(path)):
            if not (source is maildir and child.name in ("cur", "new", "tmp")):
                yield from _walk(child, label or _LABEL_OF.get(_folder_name(child), ""))


def _children(path: Path) -> list[Path]:
    try:
        return [child for child in path.iterdir() if not (child.is_symlink() and child.is_dir())]
    except OSError:
        return []


def _folder_name(path: Path) -> str:
    """ "Trash" of "Trash.mbox", "Trash.sbd" and the Maildir folder ".Trash"."""
    return path.name.removeprefix(".").lower().removesuffix(".mbox").removesuffix(".sbd").removesuffix(".mbx")
