"""Group mails into threads. Knows headers; knows no text, no model, no database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WINDOW = 30 * 24 * 3600  # seconds that may lie between two mails joined by their subject alone

_PREFIX = re.compile(
    r"\s*(?:re|aw|antw|antwort|sv|vs|fwd?|wg|tr|rv|rif|r|i|enc|res|réf|ref|odp|pd|vb|doorst|betr)\s*"
    r"(?:\[\d+\]|\(\d+\)|\^\d+)?\s*[:：]",
    re.IGNORECASE,
)
_TAG = re.compile(r"\s*\[[^\]]{1,40}\]\s*")  # "[list-name] "
_LEAD = re.compile(rf"(?:{_TAG.pattern})?{_PREFIX.pattern}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Node:
    """What threading needs of a mail."""

    id: str
    date: int
    links: tuple[str, ...]  # References and In-Reply-To
    gmail: str  # X-GM-THRID
    subject: str
    people: frozenset[str]  # addresses of sender, To and Cc, without the user's own


def normal_subject(subject: str) -> tuple[str, bool]:
    """(the subject without "Re:", "AW:", "Fwd:" and list tags, in small letters; whether it had such a prefix)."""
    rest, replied = subject, False
    while match := _PREFIX.match(rest):
        rest, replied = rest[match.end() :], True
        if tag := _TAG.match(rest):
            rest = rest[tag.end() :]
    if not replied and (tag := _TAG.match(rest)) and _PREFIX.match(rest, tag.end()):
        return normal_subject(rest[tag.end() :])
    return " ".join(rest.lower().split()), replied


def reply_subject(subject: str) -> str:
    """The subject of an answer: one "Re: " instead of every prefix ("AW: RE: x"); nothing if `subject` is empty."""
    rest = subject
    while match := _LEAD.match(rest):
        rest = rest[match.end() :]
    return f"Re: {' '.join(rest.split())}".rstrip() if subject.strip() else ""


def group(mails: Iterable[Node]) -> Mapping[str, str]:
    """Message id -> thread id, which is the id of the thread's oldest mail.

    Joined are mails that name each other in References or In-Reply-To, even through mails that are not here, and mails
    of one X-GM-THRID. A reply ("Re:") that has neither joins the newest earlier mail of its subject that shares a
    person besides the user, if it is at most 30 days older. An empty subject joins nothing.
    """
    nodes = sorted(mails, key=lambda n: (n.date, n.id))
    forest = _Forest()
    newest: dict[tuple[str, str], Node] = {}  # (subject, person) -> the last mail
    for node in nodes:
        for link in node.links:
            forest.join(node.id, link)
        if node.gmail:
            forest.join(node.id, f"gmail thread {node.gmail}")
        subject, replied = normal_subject(node.subject)
        if subject:
            if replied and not node.links and not node.gmail:
                earlier = [newest[subject, p] for p in node.people if (subject, p) in newest]
                parent = max(earlier, key=lambda n: (n.date, n.id), default=None)
                if parent and node.date - parent.date <= WINDOW:
                    forest.join(node.id, parent.id)
            newest.update(((subject, person), node) for person in node.people)
    oldest: dict[str, str] = {}  # root -> id; nodes come oldest first
    return {node.id: oldest.setdefault(forest.root(node.id), node.id) for node in nodes}


class _Forest:
    """Disjoint sets of ids."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, item: str) -> str:
        parent = self._parent
        while (above := parent.get(item, item)) != item:
            parent[item] = item = parent.get(above, above)  # halve the path on the way
        return item

    def join(self, a: str, b: str) -> None:
        self._parent[self.root(a)] = self.root(b)
