"""Undo hard wraps: one line per paragraph. Knows the shape of lines; knows no words but those that close a letter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from panza.mail.signature import is_sign_off

NARROWEST = 50  # columns; a mail whose lines all are shorter was not wrapped by a program
WIDEST = 100  # a longer line was not wrapped either

_ITEM = re.compile(r"\s*(?:[-*•·o–—+]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)]|[ivx]{1,4}[.)])\s+\S")
_NUMBER = re.compile(r"\s*\d")
_TABLE = re.compile(r"\S(?:\t| {4,})\S.*\S(?:\t| {4,})\S|\t\S+\t| \| .* \| ")
_RULE = re.compile(r"\s*[-_=*~#]{4,}")
_INDENT = re.compile(r"\s*")


def unwrap(lines: Sequence[str], author: str = "") -> str:
    """`lines` as text in which a line ends where the author ended it.

    A line was wrapped if the next line's first word would not have fitted behind it, or if a sentence runs on. A last
    line that is a name, or initials or a short form of `author`, stays a line.
    """
    width = _width(lines)
    final = max((i for i, line in enumerate(lines) if line.strip()), default=0)
    out: list[str] = []
    last = ""  # the original line that `out[-1]` ends in
    for i, line in enumerate(lines):
        name = i == final and _is_name(line.strip(), author)
        if last and line.strip() and not name and _goes_on(last.rstrip(), line, out[-1], width):
            out[-1] = f"{out[-1].rstrip()} {line.strip()}"
        else:
            out.append(line.rstrip())
        last = line if line.strip() else ""
    return "\n".join(out)


_NAME = re.compile(r"[A-Z]\w*\.?(?: [A-Z]\w*)?")  # the last line of a letter


def _is_name(line: str, author: str) -> bool:
    names = author.lower().split()
    initials = "".join(name[0] for name in names)
    word = line.lower().strip(" .-")
    short = len(word) > 1 and (word == initials or any(name.startswith(word) for name in names))
    return short or bool(_NAME.fullmatch(line))


def _width(lines: Sequence[str]) -> int:
    """The column at which the mail was wrapped; 0 if it was not."""
    lengths = [len(line.rstrip()) for line in lines if " " in line.strip()]
    wrapped = [n for n in lengths if NARROWEST <= n <= WIDEST]
    long = sum(n > WIDEST for n in lengths)
    return max(wrapped, default=0) if len(wrapped) > long else 0


def _goes_on(last: str, line: str, paragraph: str, width: int) -> bool:
    if len(last) > WIDEST or not (_is_full(last, line, width) or _runs_on(last, line, width)):
        return False
    indent = len(_INDENT.match(line)[0])
    hanging = bool(_ITEM.match(paragraph)) and indent > len(_INDENT.match(paragraph)[0])
    return (
        (hanging or indent == 0 or abs(indent - len(_INDENT.match(last)[0])) <= 1)
        and not (_ITEM.match(line) and not (_NUMBER.match(line) and last[-1].isalpha()))
        and not (_TABLE.search(last) or _TABLE.search(line) or _RULE.match(line))
        and not is_sign_off(line)
    )


def _is_full(last: str, line: str, width: int) -> bool:
    """Whether the first word of `line` would not have fitted behind `last`."""
    return len(last) >= 0.6 * width > 0 and len(last) + 1 + len(line.split(None, 1)[0]) > width


def _runs_on(last: str, line: str, width: int) -> bool:
    """Whether `last` breaks off in mid-sentence and `line` goes on in small letters, in a mail of short lines."""
    return (
        len(last) >= max(45, 0.6 * width)
        and last[-1] in ",-" + last[-1] * last[-1].isalpha()
        and line.lstrip()[0].islower()
    )
