"""Bytes of a mail to its headers and its readable text. Knows MIME; knows neither quotes nor whose mail it is."""

from __future__ import annotations

import email.message
import email.parser
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from panza.mail import header, html
from panza.mail.charset import decode
from panza.mail.raw import RawMail
from panza.types import Address

Part = email.message.Message

MAX_DEPTH = 40  # of parts in parts
MAX_TEXT = 1 << 20  # characters of one mail; a person writes less


@dataclass(frozen=True, slots=True)
class Mail:
    """A parsed mail, not yet judged and not yet cleaned."""

    raw: RawMail
    id: str
    date: int
    sender: Address | None
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    subject: str
    in_reply_to: str
    references: tuple[str, ...]
    text: str  # of every part that is shown as the mail itself
    types: frozenset[str]  # content types of all parts, "attachment" parts included
    headers: Mapping[str, str] = field(repr=False)  # lower-case name -> first raw value


def parse(raw: RawMail) -> Mail:
    """The mail in `raw`, whatever state it is in. Broken structure is read as far as it goes."""
    message, headers = _structure(raw.data)
    get = headers.get
    references = header.message_ids(get("references", ""))
    replied = header.message_ids(get("in-reply-to", ""))
    senders = header.addresses(get("from", "")) or header.addresses(get("sender", ""))
    return Mail(
        raw=raw,
        id=_id(headers, raw.data),
        date=_date(headers),
        sender=senders[0] if senders else None,
        to=header.addresses(get("to", "")),
        cc=header.addresses(get("cc", "")),
        subject=header.text(get("subject", "")),
        in_reply_to=replied[0] if replied else "",
        references=references,
        text=_tidy(_text(message))[:MAX_TEXT],
        types=frozenset(part.get_content_type() for part in _walk(message)),
        headers=headers,
    )


_FIELD = re.compile(rb"^([!-9;-~]{1,200})[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)", re.MULTILINE)


def _structure(data: bytes) -> tuple[Part, dict[str, str]]:
    """The tree of parts, and the first value of each header.

    A mail of one part with a sound header, as most are, is spared the parser's search for boundaries, line by line.
    """
    head, _, body = data.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = _FIELD.findall(head)
    kind = next((value for name, value in fields if name.lower() == b"content-type"), b"").lower()
    if not fields or _FIELD.sub(b"", head) or kind.startswith((b"multipart", b"message")):
        message = email.parser.BytesParser().parsebytes(data)
        return message, _headers(message.raw_items())
    headers = _headers((name.decode("ascii"), value.decode("utf-8", "surrogateescape")) for name, value in fields)
    message = Part()
    for name in ("content-type", "content-transfer-encoding", "content-disposition"):
        if name in headers:
            message[name] = headers[name]
    message.set_payload(body.decode("ascii", "surrogateescape"))
    return message, headers


def _headers(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        headers.setdefault(name.lower(), value)
        if name.lower() == "received":
            headers["received"] = value  # the last one is nearest to the sender
    return headers


def _id(headers: Mapping[str, str], data: bytes) -> str:
    """The Message-ID, or one made from what copies of the same mail share."""
    ids = header.message_ids(headers.get("message-id", ""))
    if ids:
        return ids[0]
    body = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[-1].replace(b"\r\n", b"\n").strip()
    known = "\n".join(headers.get(name, "") for name in ("from", "to", "date", "subject"))
    digest = hashlib.blake2b(known.encode("utf-8", "surrogateescape") + body, digest_size=12).hexdigest()
    return f"{digest}@no-message-id"


def _date(headers: Mapping[str, str]) -> int:
    """The Date header; where it is missing or unreadable, the time of the first Received header."""
    received = headers.get("received", "").rpartition(";")[2]
    return header.seconds(headers.get("date", "")) or header.seconds(received)


def _walk(part: Part, depth: int = 0) -> Iterator[Part]:
    yield part
    if part.is_multipart() and depth < MAX_DEPTH and part.get_content_type() != "message/rfc822":
        for child in _children(part):
            yield from _walk(child, depth + 1)


def _children(part: Part) -> list[Part]:
    payload = part.get_payload()
    return [child for child in payload if isinstance(child, Part)] if isinstance(payload, list) else []


def _text(part: Part, depth: int = 0) -> str:
    """What a mail program shows of `part` as the mail itself: never an attachment, never an attached mail."""
    kind = part.get_content_type()
    if depth > MAX_DEPTH or (depth and _is_attachment(part)):
        return ""
    if kind in _READERS:
        return _READERS[kind](part)
    if part.get_content_maintype() != "multipart":
        return ""
    if not part.is_multipart():
        return _text(_repaired(part), depth + 1)
    children = sorted(_children(part), key=_dislike) if kind == "multipart/alternative" else _children(part)
    texts = (text for child in children if (text := _text(child, depth + 1)).strip())
    return next(texts, "") if kind in _SHOWS_ONE else "\n".join(texts)


# Of these, a reader sees one part: the alternative it likes best, the root, the signed text, the note to people.
_SHOWS_ONE = {"multipart/alternative", "multipart/related", "multipart/signed", "multipart/report"}

_NO_PLAIN = re.compile(r"\A.{0,160}\bHTML\b.{0,160}\Z", re.DOTALL | re.IGNORECASE)  # "your reader cannot show HTML"


def _dislike(part: Part) -> int:
    """Sorts the plain alternative first; last, if it only says that there is nothing to read in it."""
    if part.get_content_type() != "text/plain":
        return 1
    return 2 if _NO_PLAIN.match(_plain(part).strip()) else 0


def _is_attachment(part: Part) -> bool:
    return part.get_content_disposition() == "attachment" or bool(part.get_filename())


def _plain(part: Part) -> str:
    text = _decoded(part).replace("\r\n", "\n")
    if re.match(r"\s*<(?:!doctype html|html)\b", text, re.IGNORECASE):
        return html.to_text(text)
    if "flowed" in str(part.get("content-type", "")).lower():
        return unflow(text, delete_space=_parameter(part, "delsp").lower() == "yes")
    return text


def _html(part: Part) -> str:
    return html.to_text(_decoded(part))


_READERS = {"text/plain": _plain, "text/markdown": _plain, "text/html": _html, "application/xhtml+xml": _html}

_META_CHARSET = re.compile(rb"<meta[^>]{1,200}charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)


def _decoded(part: Part) -> str:
    data = _bytes(part)[: 4 * MAX_TEXT]
    declared = _parameter(part, "charset")
    if not declared and (meta := _META_CHARSET.search(data[:2048])):
        declared = meta[1].decode("ascii")
    return decode(data, declared)


def _bytes(part: Part) -> bytes:
    """The part without its transfer encoding, whose name may be followed by rubbish."""
    name = str(part.get("content-transfer-encoding", ""))
    token = re.match(r"\s*([\w-]*)", name)[1].lower()
    if name and token != name.lower():
        part.replace_header("content-transfer-encoding", token)
    return part.get_payload(decode=True) or b""


def _parameter(part: Part, name: str) -> str:
    """A parameter of the Content-Type, or nothing."""
    value = part.get_param(name, "")
    return str(value[2] if isinstance(value, tuple) else value).strip().strip("\"'")


def _repaired(part: Part) -> Part:
    """A multipart whose boundary is missing or wrong, read again with the first boundary that its body shows."""
    data = _bytes(part)
    boundary = re.search(rb"^--([^\s-][^\r\n]{0,69}?)[ \t]*\r?\nContent-", data, re.MULTILINE | re.IGNORECASE)
    kind = b'multipart/mixed; boundary="%s"' % boundary[1] if boundary else b"text/plain"
    return email.parser.BytesParser().parsebytes(b"Content-Type: " + kind + b"\n\n" + data)


def unflow(text: str, delete_space: bool = False) -> str:
    """RFC 3676: a line that ends in a space goes on in the next one of the same quote depth."""
    lines: list[str] = []
    flowing = -1  # quote depth of an unfinished line
    for line in text.split("\n"):
        words = line.lstrip(">")
        depth = len(line) - len(words)
        words = words.removeprefix(" ")
        if flowing == depth and words != "-- ":
            lines[-1] += words
        else:
            lines.append(">" * depth + " " * bool(depth) + words)
        flowing = depth if words.endswith(" ") and words != "-- " else -1
        if flowing >= 0 and delete_space:
            lines[-1] = lines[-1][:-1]
    return "\n".join(lines)


_INVISIBLE = dict.fromkeys(map(ord, "\x00\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c"))
_INVISIBLE |= {0xA0: " ", 0x202F: " ", 0x2007: " "}
_INVISIBLE |= dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x85\u2028"), "\n") | {0x2029: "\n\n"}
_ODD = re.compile(r"[^\x01-\x0a\x0d-\x1b\x1f-\x7f]")
_UUENCODED = re.compile(r"^begin(?:-base64)? [0-7]{3} [^\n]+\n(?:[ -`]{1,61}\n)*(?:end|====)[ \t]*$", re.MULTILINE)


def _tidy(text: str) -> str:
    """LF line ends, ordinary spaces, no invisible characters, no uuencoded files."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _ODD.search(text):
        text = text.translate(_INVISIBLE).encode("utf-8", "replace").decode()
    return _UUENCODED.sub("", text) if "begin" in text else text
