"""The mail that stands quoted under another one, as a message. Knows quote headers; knows no store."""

from __future__ import annotations

import re

from panza.types import Address, Message

_SENDER = re.compile(
    r"^(?:from|von|de|da|expéditeur)\s*:\s*(?P<from>.+)$"
    r"|^(?:on|am|le|el|il)\b.{6,120}?[,:]?\s(?P<wrote>[^\d,<>:]{2,60}?)\s*(?:<[^>]*>)?\s*(?:wrote|a écrit|escribió|ha scritto)\s*:\s*$"
    r"|^am\b.{6,120}?\bschrieb\s+(?P<schrieb>[^<>:]{2,60}?)\s*(?:<[^>]*>)?\s*:\s*$"
    r"|^(?P<notes>[A-Z][\w.'-]+(?: [A-Z][\w.'-]*){1,3})(?:/[^\n]*|@[^\n]*|\s*<[^>\n]*>)?(?:\s+on)?\s*\n?\s*\d\d?/\d\d?/\d{2,4}",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER = re.compile(
    r"^(?:from|sent|date|to|cc|bcc|subject|von|gesendet|datum|an|betreff|de|envoyé|à|objet|enviado|para|asunto|da|inviato|a|oggetto)\s*:.*$"
    r"|^[-_=\s]{5,}(?:original|forwarded|urspr|weiter|message|mensaje|messaggio).*$|^-{3,}.*-{3,}$"
    r"|^\d\d?/\d\d?/\d{2,4} \d\d?:\d\d(?::\d\d)?(?: [AP]M)?$|^please respond to\b.*$",
    re.IGNORECASE,
)


def quoted_message(message: Message) -> Message | None:
    """The mail that `message.quoted` starts with; None if nothing readable is quoted.

    Its sender is taken from the quote's header, else it is the first recipient of `message`. Deeper quotes are left out.
    """
    from panza.mail.clean import clean

    text = re.sub(r"(?m)^[ \t]*> ?", "", message.quoted).strip()
    if not text:
        return None
    found = _SENDER.search(text[:600])
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if not _is_head(line.strip(), found)), len(lines))
    body = clean("\n".join(lines[start:])).own
    name = next((g for g in found.groups() if g), "") if found else ""
    sender = Address(_name(name), "") if name else (message.to[0] if message.to else Address("", ""))
    return Message("", 0, sender, (message.sender,), (), message.subject, body) if body.strip() else None


def _is_head(line: str, found: re.Match[str] | None) -> bool:
    return not line or bool(_HEADER.match(line)) or (found is not None and line in found.group())


def _name(written: str) -> str:
    """`"Lee, Anna" <anna@x>` -> Anna Lee."""
    name = re.sub(r"<[^>]*>|\[[^\]]*\]|\"|/.*|@.*|^(?:AM|PM)\b", "", written).strip()
    last, comma, first = name.partition(",")
    return f"{first.strip()} {last.strip()}" if comma else name
