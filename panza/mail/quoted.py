"""The mail that stands quoted under another one, as a message. Knows what a quote's header says; knows no store."""

from __future__ import annotations

import re
from collections.abc import Sequence

from panza.mail import quotes
from panza.mail.clean import clean
from panza.mail.header import MAX_NAME, human_name
from panza.types import Address, Message


def quoted_message(message: Message) -> Message | None:
    """The mail that `message.quoted` starts with; None if nothing readable is quoted.

    Its sender is taken from the quote's header, else it is the first recipient of `message`. Deeper quotes are left out.
    """
    lines, name = message.quoted.strip().split("\n"), ""
    n = quotes.header_at(lines, 0) or _attribution(lines)
    while n:  # a mail may consist of another one that it forwards
        name = _writer(lines[:n]) or name
        lines = "\n".join(lines[n:]).strip("\n").split("\n")
        n = quotes.header_at(lines, 0)
    body = clean("\n".join(_unquoted(lines))).own
    to = message.to[0] if message.to else Address("", "")
    sender = Address(name, "") if name else to
    return Message("", 0, sender, (message.sender,), (), message.subject, body) if re.search(r"\w", body) else None


def _attribution(lines: Sequence[str]) -> int:
    """How many lines "Anna wrote:" takes. It shows itself by the `>` below it, which the import takes off."""
    return next((n for n in range(1, 5) if quotes.attribution([*lines[:n], "> "], 0) == n), 0)


def _unquoted(lines: Sequence[str]) -> Sequence[str]:
    """`lines` without their first `>` if all have one: else it marks a deeper quote."""
    marks = [re.match(r"[ \t]*> ?", line) for line in lines]
    if not all(mark or not line.strip() for mark, line in zip(marks, lines, strict=True)):
        return lines
    return [line[mark.end() :] if mark else line for mark, line in zip(marks, lines, strict=True)]


def _writer(header: Sequence[str]) -> str:
    """The name of the mail's writer; nothing if the header does not say."""
    header = [line[:MAX_NAME] for line in header]
    named = next((line for line in header if quotes.field_kind(line) == "from"), "")
    if named:
        return _name(re.split("[:：]", named, maxsplit=1)[1])
    if quotes.MARK.match(header[0]):  # "Forwarded by": not the writer
        header = header[1:]
    dated = next((i for i, line in enumerate(header) if _DATED.search(line) and not line.endswith("--")), None)
    if dated is not None and not quotes.VERB.search(" ".join(header)):
        before = _DATED.split(header[dated])[0].strip(" \t>")
        return _name(before or (header[dated - 1] if dated else ""))
    return _attributed(" ".join(header)[:MAX_NAME])


_DATED = re.compile(rf"(?:\bon\s+)?{quotes.DATE}")
_AT = re.compile(r"[(\[<]*(?:mailto:)?[^\s<>\[\]()\"]+@[^\s<>\[\]()\"]+[)\]>]*")
_PIECES = re.compile(rf"\S*\d\S*(?:\s+(?:[AP]M|[ap]\.?m\.|Uhr|h|[A-Z]{{3,4}})(?=[\s,]))?|[,;:：]|{quotes.VERB.pattern}")


def _attributed(text: str) -> str:
    """The name in "On Monday at 9:00, Anna Lee <anna@example.org> wrote:"; beside the verb if no address follows it."""
    addresses = list(_AT.finditer(text))
    verb = quotes.VERB.search(text)
    if addresses:
        before = text[: addresses[-1].start()].rstrip()
        if full := re.search(r"\"([^\"]+)\"$", before):
            return _name(full[1])
        pieces = [before] if before.count(",") == 1 and not re.search(r"\d", before) else _PIECES.split(before)
        return _name(pieces[-1]) or _name(addresses[-1][0])
    if not verb:
        return ""
    after = text[verb.end() :].strip(" :：")
    return _name(after if after and not re.search(r"\d", after) else _PIECES.split(text[: verb.start()])[-1])


def _name(written: str) -> str:
    """`"Lee, Anna" <anna@x>`, `Anna Lee/HOU/ACME@ACME` -> Anna Lee; an address alone -> its local part as words."""
    written = _DATED.split(re.split(r"(?i)\bon behalf of\b", written)[-1])[0]
    words = re.sub(r"(?<=\w)[^\w\n]*[<\[].*", "", written).strip(" \t*_,;:：'\"<>()|–-").removeprefix("mailto:")
    if "/" not in words and _AT.fullmatch(words):
        return Address("", words).label
    name = re.sub(r"[/@].*|[\"*]", "", words)
    return human_name(name.strip()) if re.search(r"[^\W\d_]", name) else ""
