"""Words of a mail header: encoded words, raw 8-bit text, addresses, names, dates. Knows nothing of bodies."""

from __future__ import annotations

import base64
import binascii
import re
from email.utils import mktime_tz, parsedate_tz

from panza.mail.charset import decode
from panza.types import Address

MAX_NAME = 1000  # characters looked at of one name; what is longer is an attack
LATEST = 1 << 33  # the year 2242: a date beyond it is a mistake

_ENCODED = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?]*)\?=")
_BETWEEN = re.compile(r"(\?=)\s+(=\?[^?\s]+\?[bBqQ]\?)")
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")
_FOLD = re.compile(r"\s*[\r\n\x85\u2028\u2029]+\s*")  # line ends, those of Unicode too
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def text(raw: str) -> str:
    """One line of readable text from a header's value: unfolded, raw bytes decoded, RFC 2047 words decoded."""
    if not raw.isascii():
        raw = decode(raw.encode("utf-8", "surrogateescape"), "")
    if "=?" in raw:
        raw = encoded_words(_FOLD.sub(" ", raw))
    return _CONTROL.sub("", _FOLD.sub(" ", raw)).strip()


def encoded_words(value: str) -> str:
    """`value` with its RFC 2047 words decoded. Neighbours are joined first: a letter may be split between two."""
    value = _BETWEEN.sub(r"\1\2", value)
    out, pending, charset, end = [], b"", "", 0
    for word in _ENCODED.finditer(value):
        name = word[1].split("*")[0].lower()
        if word.start() != end or name != charset:
            out.append(decode(pending, charset) if pending else "")
            out.append(value[end : word.start()])
            pending, charset = b"", name
        pending += _word_bytes(word[2], word[3])
        end = word.end()
    out.append(decode(pending, charset) if pending else "")
    return "".join(out) + value[end:]


def _word_bytes(encoding: str, payload: str) -> bytes:
    raw = payload.encode("utf-8", "surrogateescape")
    if encoding in "qQ":
        return _HEX.sub(lambda m: bytes([int(m[1], 16)]), raw.replace(b"_", b" "))
    raw = re.sub(rb"[^A-Za-z0-9+/]", b"", raw)
    try:
        return base64.b64decode(raw[: len(raw) - (len(raw) % 4 == 1)] + b"===")
    except binascii.Error:
        return payload.encode()


_ADDRESS = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"?)      # a quoted name
      | <(?P<angle>[^<>]*)>                 # an address in angle brackets
      | (?P<comment>\((?:[^()\\]|\\.|\([^()]*\))*\)?)
      | (?P<stop>[,;])
      | (?P<word>[^",;<>()]+|[<>)])""",
    re.VERBOSE,
)
_STRUCTURED = re.compile(r"[\"<>()':]")
_ONE = re.compile(r"""\s*(?:"([^"\\]*)"|([^",;:<>()@]*?))\s*<([^<>\s,'"]+@[^<>\s,'"]+)>\s*""")
_BARE = re.compile(r"[^\s@,;:<>()\"']{1,128}@[^\s@,;:<>()\"']{1,255}")


def addresses(raw: str) -> tuple[Address, ...]:
    """Every address of a From, To or Cc header. What is no address (a group's name, a lone word) is left out."""
    if not raw.isascii():
        raw = decode(raw.encode("utf-8", "surrogateescape"), "")
    if not _STRUCTURED.search(raw):  # only bare addresses
        return tuple(Address("", email.lower()) for email in _BARE.findall(raw))
    if one := _ONE.fullmatch(raw):
        return (_address(one[1] or one[2] or "", one[3].lower()),)
    found, name, note = [], [], ""
    raw = _FOLD.sub(" ", raw)
    for token in _ADDRESS.finditer(raw):
        kind = token.lastgroup
        if kind == "angle":
            email = re.sub(r"\s+", "", token["angle"]).strip("'\"").lower()
            if "@" in email:
                found.append(_address(" ".join(name) or note, email))
            name, note = [], ""
        elif kind == "quoted":
            name.append(re.sub(r"\\(.)", r"\1", token["quoted"].strip('"')))
        elif kind == "comment":
            note = token["comment"].strip("()")
        elif kind == "word" and token["word"].strip():
            name.append(token["word"].strip().rpartition(":")[2] if "@" not in token["word"] else token["word"].strip())
        elif kind == "stop":
            bare = _bare(name, note)
            found += bare
            name = [] if bare or token["stop"] == ";" else [*name, ","]
    return tuple(found + _bare(name, note))


def _bare(name: list[str], note: str) -> list[Address]:
    """The address that stands in `name` without angle brackets: "anna@b.org (Anna Lee)"."""
    match = _BARE.search(" ".join(name)[:MAX_NAME])
    return [_address(note, match[0].strip("'").lower())] if match else []


def _address(name: str, email: str) -> Address:
    return Address(human_name(text(name[:MAX_NAME].replace(" , ", ", ")), email), email)


_SUFFIX = re.compile(r"[,\s]+(?:Jr|Sr|II|III|IV|Ph\.?D|M\.?D|Esq|MBA|CPA|P\.?E)\.?(?=$|,|\s)", re.IGNORECASE)
_COMPANY = re.compile(r",\s*(?:Inc|LLC|Ltd|Limited|Corp|Co|GmbH|AG|S\.?A|S\.?p\.?A|L\.?P|LLP|PLC)\.?$", re.IGNORECASE)
_NOTE = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\])\s*$")


def human_name(name: str, email: str = "") -> str:
    """A display name in the order one says it: "Lee, Anna (Sales)" -> "Anna Lee". Empty if it only repeats `email`."""
    name = _NOTE.sub("", " ".join(name[:MAX_NAME].replace('"', "").split()).strip(" ',;"))
    if "@" in name or name.lower() == email:
        return ""
    if "," in name and not _COMPANY.search(name):
        last, _, first = _SUFFIX.sub("", name).partition(",")
        name = f"{first.strip()} {last.strip()}" if "," not in first and len(first.split()) <= 4 else name
    words = name.split()
    half = len(words) // 2
    if half and words[:half] == words[half:]:  # "Anna Lee Anna Lee", as some directories export it
        words = words[:half]
    return " ".join(words)


def message_ids(raw: str) -> tuple[str, ...]:
    """The ids of a Message-ID, In-Reply-To or References header, without angle brackets, each once, in order."""
    found = [re.sub(r"\s+", "", i) for i in re.findall(r"<([^<>]+)>", raw)]
    found = found or [token for token in raw.split() if "@" in token]
    return tuple(dict.fromkeys(i.encode("utf-8", "replace").decode() for i in found if i))


def seconds(raw: str) -> int:
    """A Date header as seconds since 1970, UTC; 0 if it cannot be read or is out of reach."""
    try:
        parts = parsedate_tz(raw)
        when = mktime_tz(parts) if parts else 0
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0
    return int(when) if 0 < when < LATEST else 0
