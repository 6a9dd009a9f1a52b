"""The texts: where each lies, its share, and mail made clean of personal data. Knows text; knows no tokens.

One JSON object a line, xz: `text`, and for mail `from`, `to`, `subject`, `ts`, `quoted`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAIL = ("enron_mail", "enron_other", "hrc")
PROSE = ("wiki_a", "wiki_b", "wiki_c", "wiki_d", "wiki_2018", "textbooks", "workplace", "dialogues", "novels")

VALIDATION_SHARE = 0.01  # of the mails of training authors
VALIDATION_AUTHORS = 0.02  # of the authors, with all their mail


@dataclass(frozen=True)
class Person:
    """Names as words; `last` may be empty."""

    first: str
    last: str

    @property
    def full(self) -> str:
        return f"{self.first} {self.last}".strip()


@dataclass(frozen=True)
class Mail:
    """One cleaned mail of a corpus. `quoted` is the newest mail that stood under it, by `quoted_from`."""

    key: str
    author: str
    sender: Person
    to: tuple[Person, ...]
    subject: str
    body: str
    quoted: str = ""
    quoted_from: str = ""


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of one corpus file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def part_of(key: str, author: str) -> str:
    """ "train", "authors" (validation: an author never trained on) or "mails" (validation: a known author's mail)."""
    if stable_share(author) < VALIDATION_AUTHORS:
        return "authors"
    return "mails" if stable_share(key) < VALIDATION_SHARE else "train"


def stable_share(key: str) -> float:
    """A stable number in 0..1."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def person(who: str) -> Person:
    """ "eric.bass@enron.com" -> Eric Bass; "Mills, Cheryl D" -> Cheryl Mills; an odd address -> its first word."""
    if "@" not in who:
        last, _, first = who.partition(",")
        words = [*first.split()[:1], last.strip()] if first.strip() else [*who.split(), "", ""]
        return Person(words[0].strip(" .\"'"), words[1].strip(" .\"'"))
    words = [w for w in re.split(r"[._\d-]+", who.split("@")[0]) if len(w) > 1 and w.isalpha()]
    return Person(*([w.capitalize() for w in (words + ["", ""])][:2]))


def addresses(field: str | list[str] | None) -> tuple[Person, ...]:
    """Everyone in a `to` field that holds addresses."""
    listed = field if isinstance(field, list) else re.split(r",\s*(?=\S+@)|;", field or "")
    return tuple(p for p in (person(a.strip()) for a in listed if a.strip()) if p.first)


def mails(path: Path, seed: int = 0) -> Iterator[Mail]:
    """The mails of a corpus file, cleaned; those with nothing left are skipped."""
    for n, r in enumerate(records(path)):
        rng = random.Random(f"{seed} {path.name} {n}")
        body = clean(r["text"], rng)
        if len(body.split()) < 3 or not r.get("from"):
            continue
        head, quoted = newest_quoted(r.get("quoted", ""))
        yield Mail(
            key=f"{path.name} {n}",
            author=r["from"],
            sender=person(r["from"]),
            to=addresses(r.get("to")),
            subject=invent(_line(r.get("subject", "")), rng),
            body=body,
            quoted=clean(quoted, rng),
            quoted_from=head,
        )


def _line(text: str) -> str:
    return " ".join(text.split())


# --- clean ----------------------------------------------------------------------------------------------------------

_CUT = re.compile(
    r"^(?:[ \t]*-{3,}.*(?:Original Message|Forwarded).*|[ \t]*(?:From|To|Sent):[ \t].*|.{2,70} on \d\d?/\d\d?/\d{2,4}\b.*|"
    r"[ \t]*_{10,}.*|[ \t]*\*{8,}.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[-*•>–]|\(?\d{1,2}[.)]|\(?[a-z][.)])\s")


def clean(text: str, rng: random.Random) -> str:
    """The author's words: no quotes, signature or personal data; hard wraps undone; marks of the template broken."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text.replace("\r\n", "\n").replace("\u0001", "'"))
    text = re.sub(r"\n +(?=\S)", "\n", text.replace("<|", "< |").expandtabs(4))
    cut = _CUT.search(text)
    text = text[: cut.start()] if cut else text
    text = "\n".join(line.rstrip() for line in text.split("\n") if not line.startswith(">"))
    text = drop_signature(unwrap(text))
    text = re.sub(r"[ ]{2,}", " ", re.sub(r"\n{3,}", "\n\n", text))
    return invent(text, rng).strip()


def sample(folder: Path, share: float, seed: int = 0) -> Iterator[str]:
    """About `share` of the prose and four times as much of the mail: what the tokenizer is trained on."""
    rng = random.Random(seed)
    for name in MAIL:
        yield from (m.body for m in mails(folder / f"{name}.jsonl.xz") if rng.random() < 4 * share)
    for name in PROSE:
        yield from (r["text"] for r in records(folder / f"{name}.jsonl.xz") if rng.random() < share)


def unwrap(text: str) -> str:
    """Join a line to the one before where the break was made by a width and not by the author."""
    lines = text.split("\n")
    width = max((len(line) for line in lines), default=0)
    if not 55 <= width <= 90:
        return text
    out: list[str] = []
    for before, line in zip([""] + lines, lines, strict=False):
        first = line.split(" ", 1)[0]
        full = len(before) + 1 + len(first) > width - 4
        if out and full and line.strip() and not line.startswith(" ") and not _BULLET.match(line):
            out[-1] += " " + line
        else:
            out.append(line)
    return "\n".join(out)


_SIGNATURE = re.compile(
    r"\d{3}[-. ]\d{4}\b|\d{4,5}$|@|https?:|www\.|\b(?:phone|fax|tel|cell|mobile|office|pager|ext)\b|"
    r"\b(?:inc|corp|llc|l\.l\.p|company|group|services|department|university|division|enron|manager|director|president|"
    r"counsel|analyst|assistant|specialist|associate|engineer|coordinator|administrator|trader|attorney|street|avenue|suite|"
    r"floor|p\.o\. box)\b|,\s*(?:tx|texas|ca|ny)\b",
    re.IGNORECASE,
)


_SENTENCE = re.compile(r"[?!]$|\b(?!Inc|Corp|Ltd)\w{3,}\.$")


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


# --- personal data --------------------------------------------------------------------------------------------------

_SOUNDS = "ba be bo da de do fa ka ke ko la le lo ma me mo na ne no pa ra re ri ro sa se si so ta te ti to va ve vi za".split()
_DOMAINS = ("example.com", "example.org", "example.net", "mail.example", "post.example")
_STREETS = (
    "Oak Elm Maple Cedar Mill Park Lake Hill River Church Station Market Garden Bridge North South Green High".split()
)
_KINDS = ("Street", "Avenue", "Road", "Lane", "Drive")


def invented_word(rng: random.Random) -> str:
    """A word that nobody is called: three syllables."""
    return "".join(rng.choice(_SOUNDS) for _ in range(3))


def _email(m: re.Match[str], rng: random.Random) -> str:
    return f"{invented_word(rng)}.{invented_word(rng)}@{rng.choice(_DOMAINS)}"


def _digits(m: re.Match[str], rng: random.Random) -> str:
    """Every digit drawn anew."""
    return re.sub(r"\d", lambda _: str(rng.randint(1, 9)), m.group())


def _phone(m: re.Match[str], rng: random.Random) -> str:
    """In the 555 exchange, which nobody has."""
    return f"{rng.randint(201, 989)}-555-{rng.randint(0, 9999):04d}"


def _street(m: re.Match[str], rng: random.Random) -> str:
    return f"{rng.randint(1, 999)} {rng.choice(_STREETS)} {rng.choice(_KINDS)}"


PERSONAL = (
    (re.compile(r"[\w.+'-]+@[\w-]+(?:\.[\w-]+)+|\S+@\S+"), _email),
    (re.compile(r"(?:https?://|www\.)\S{40,}"), lambda m, rng: f"http://www.{invented_word(rng)}.example"),
    (re.compile(r"\b\d{3}-\d{2}-\d{4}\b|\b(?:\d[ -]?){13,16}\b"), _digits),
    (
        re.compile(
            r"(?<![\w-])(?:\+?1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-./ ]{1,3})\d{3}[-. ]{1,2}\d{4}\b|(?<![\w-])\d{3}-\d{4}\b"
        ),
        _phone,
    ),
    (re.compile(r"\b(?:ext\.?|extension|x) ?\d?[- ]?\d{4,5}\b", re.IGNORECASE), _digits),
    (
        re.compile(
            r"\b\d{1,5} (?:[NSEW]\.? )?(?:[A-Z][a-z]+ ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Drive|Dr|Lane|Ln|Blvd|Boulevard|Court|Ct|Way)\b\.?"
        ),
        _street,
    ),
)


def invent(text: str, rng: random.Random) -> str:
    """`text` with addresses, phone numbers, street addresses and card-like strings replaced by varied invented ones."""
    for pattern, new in PERSONAL:
        text = pattern.sub(lambda m, new=new: new(m, rng), text)
    return text


def holds_personal(text: str) -> bool:
    """Whether an e-mail address or a phone number stands in `text`."""
    return any(pattern.search(text) for pattern, _ in (PERSONAL[0], PERSONAL[3]))


_QUOTED_FROM = re.compile(r"^[ \t]*(?:From|De|Von):[ \t]*\"?([^<\"\n@\[]{2,50})", re.MULTILINE)
_QUOTED_HEAD = re.compile(
    r"^[ \t]*(?:From|Sent|To|Cc|Bcc|Subject|Date|Importance|Reply-to)[ \t]*:.*(?:\n[ \t]{2,}\S.*)*\n?", re.M | re.I
)
_QUOTED_FIRST = re.compile(
    r"^[ \t\n]*\"?([A-Z][\w.,' -]{2,40}?)\"?(?: <\S+>)?(?: on)?[ \t\n]+\d\d?/\d\d?/\d{2,4}.*$", re.M
)


def newest_quoted(quoted: str) -> tuple[str, str]:
    """(who wrote it, its words) of the newest mail in what stood under an author's words; "" where unreadable."""
    text = re.sub(r"^[> \t]*-{3,}[^\n]*(?:\n[^\n]*-{3,}[ \t]*$)?", "", quoted.strip(), count=1, flags=re.M)
    found = _QUOTED_FROM.search(text[:400]) or _QUOTED_FIRST.search(text[:200])
    who = _name_in(found.group(1)) if found else ""
    subject = re.search(r"^[ \t]*Subject:.*\n", text[:1200], re.M | re.I)
    if not subject:
        return who, ""
    body = _QUOTED_HEAD.sub("", text[subject.end() :]).strip()
    return who, body


def _name_in(text: str) -> str:
    """ "Hayden, Frank" or "Anne Labbe/ENRON" -> "Frank Hayden", "Anne Labbe"."""
    text = text.split("/")[0].strip(" \"'")
    last, comma, first = text.partition(",")
    words = f"{first.strip()} {last.strip()}".split() if comma else text.split()
    return " ".join(w for w in words if w.isalpha() and len(w) > 1)
