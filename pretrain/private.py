"""Personal data out of a text: addresses, numbers, streets and signatures, invented ones in their place. Knows text only."""

from __future__ import annotations

import random
import re

_SOUNDS = "ba be bo da de do fa ka ke ko la le lo ma me mo na ne no pa ra re ri ro sa se si so ta te ti to va ve vi za".split()
_DOMAINS = ("example.com", "example.org", "example.net", "mail.example", "post.example")
_STREETS = (
    "Oak Elm Maple Cedar Mill Park Lake Hill River Church Station Market Garden Bridge North South Green High".split()
)
_KINDS = ("Street", "Avenue", "Road", "Lane", "Drive")


def invented_word(rng: random.Random, syllables: int = 3) -> str:
    """A word that nobody is called."""
    return "".join(rng.choice(_SOUNDS) for _ in range(syllables))


def _email(m: re.Match[str], rng: random.Random) -> str:
    return f"{invented_word(rng)}.{invented_word(rng)}@{rng.choice(_DOMAINS)}"


def _link(m: re.Match[str], rng: random.Random) -> str:
    return f"http://www.{invented_word(rng)}.example"


def _digits(m: re.Match[str], rng: random.Random) -> str:
    """Every digit drawn anew."""
    return re.sub(r"\d", lambda _: str(rng.randint(1, 9)), m.group())


def _phone(m: re.Match[str], rng: random.Random) -> str:
    """In the 555 exchange, which nobody has."""
    return f"{rng.randint(201, 989)}-555-{rng.randint(0, 9999):04d}"


def _street(m: re.Match[str], rng: random.Random) -> str:
    return f"{rng.randint(1, 999)} {rng.choice(_STREETS)} {rng.choice(_KINDS)}"


_ADDRESS = re.compile(r"[\w.+'-]+@[\w-]+(?:\.[\w-]+)+|\S+@\S+")
_NUMBER = re.compile(
    r"(?<!\d)(?<!\d[-.])(?:\+?1[-. ]?)?(?:\(\d{3}\)[- ]{0,2}|\d{3}[-./ ]{1,3})\d{3}[-. ]{1,3}\d{4}(?!\d)"
    r"|(?<![\w-])\d{3}-\d{4}(?![\d-])|(?<!\w)\+\d{1,3}(?:(?: ?\(0\) ?|[-. ()]{1,2})\d{2,4}){2,5}\b"
    r"|(?<!\w)\+(?:\d{1,3}(?:[ -]\d{1,4}){3,5}|\d{9,14})\b"
)
PERSONAL = (
    (_ADDRESS, _email),
    (re.compile(r"(?:https?://|www\.)\S{40,}"), _link),
    (re.compile(r"\b\d{3}-\d{2}-\d{4}\b|\b(?:\d[ -]?){13,16}\b"), _digits),
    (_NUMBER, _phone),
    (re.compile(r"(?:\b(?:ext\.?|extension|x)|\bx[.-]) ?\d?[- ]?\d{4,5}\b|\bat \d-\d{4}\b", re.IGNORECASE), _digits),
    (re.compile(r"\bP\.? ?O\.? ?Box:? \d[\d-]*", re.IGNORECASE), _digits),
    (
        re.compile(
            r"\b\d{1,5} (?:[NSEW]\.? )?(?:[A-Z][a-z]+ ){1,3}"
            r"(?:Street|St|Avenue|Ave|Road|Rd|Drive|Dr|Lane|Ln|Blvd|Boulevard|Court|Ct|Way)\b\.?"
        ),
        _street,
    ),
)


def invent(text: str, rng: random.Random, wrapped: bool = False) -> str:
    """`text` with addresses, phone numbers, street addresses and card-like strings replaced by varied invented ones.

    wrapped: lines end where they were full, so what goes on in the next line or after a second space is found too.
    """
    for pattern, new in PERSONAL:
        line, place = _one_line(text) if wrapped else (text, range(len(text)))
        for m in reversed(list(pattern.finditer(line))):
            text = text[: place[m.start()]] + new(m, rng) + text[place[m.end() - 1] + 1 :]
    return text


def _one_line(text: str) -> tuple[str, list[int]]:
    """`text` with one space for each run of white space, a newline for empty lines; and where each character stands."""
    line, place = [], []
    for m in re.finditer(r"\S+|\s+", text):
        word = not m.group().isspace()
        line.append(m.group() if word else "\n" if m.group().count("\n") > 1 else " ")
        place.extend(range(*m.span()) if word else m.span()[:1])
    return "".join(line), place


def holds_personal(text: str) -> bool:
    """Whether an e-mail address or a phone number stands in `text`."""
    return bool(_ADDRESS.search(text) or _NUMBER.search(text))


def personal(text: str) -> list[str]:
    """The e-mail addresses and phone numbers in `text`."""
    return [m.group() for pattern in (_ADDRESS, _NUMBER) for m in pattern.finditer(text)]


_REACHED = re.compile(
    rf"[ ,]*(?:\b(?:at|on|is|to|via|by|number|phone|fax|cell)\b[ :]*)*[(<\[@-]? ?(?:{_ADDRESS.pattern}|{_NUMBER.pattern})[)>\]]?",
    re.IGNORECASE,
)


def without_personal(text: str) -> str:
    """`text` without e-mail addresses and phone numbers and the "at" before them: a model that never saw one invents none."""
    return _REACHED.sub("", text)


_SIGNATURE = re.compile(
    r"\d{3}[-. )]{1,2}\d{3}[-. ]\d{4}|\b\d{3}[-. ]\d{4}\b|\b[xX]?[ -]?\d{4,5}$|@|https?:|www\.|"
    r"\b(?:phone|fax|tel|cell|mobile|office|pager|ext|inc|corp|llc|l\.l\.p|company|group|services|department|university|"
    r"division|enron|manager|director|president|counsel|analyst|assistant|specialist|associate|engineer|coordinator|"
    r"administrator|trader|attorney|street|avenue|suite|floor|p\.o\. box)\b|,\s*(?:tx|texas|ca|ny)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[?!]$|\b(?!Inc|Corp|Ltd)\w{3,}\.$")
_BULLET = re.compile(r"^(?:[-*•>–]|\(?\d{1,2}[.)]|\(?[a-z][.)])\s")


def drop_signature(text: str) -> str:
    """Cut titles, firms, numbers and addresses from the short lines at the end; the name above them stays."""
    lines = text.rstrip().split("\n")
    start = len(lines)
    while start and len(lines) - start < 10 and len(lines[start - 1]) < 60 and not _SENTENCE.search(lines[start - 1]):
        start -= 1
    for i in range(max(start, 1), len(lines)):
        if _SIGNATURE.search(lines[i]) and not _BULLET.match(lines[i]):
            return "\n".join(lines[:i]).rstrip()
    return text
