"""The texts: where each lies, and mail made clean of quotes, repeats and personal data. Knows text; knows no tokens.

One JSON object a line, xz: `text`, and for mail `from`, `to`, `subject`, `ts`, `quoted`. `clean` makes of the mail files
one file, MAILS, that every later step reads.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zlib import crc32

from panza.mail.clean import clean as own_words
from panza.mail.quoted import quoted_message
from panza.types import Address, Message
from pretrain.private import drop_signature, invent

MAIL = ("enron_mail", "enron_other", "hrc")
PROSE = ("wiki_a", "wiki_b", "wiki_c", "wiki_d", "wiki_2018", "textbooks", "workplace", "dialogues", "novels")
MAILS = "mails.jsonl.xz"

VALIDATION_SHARE = 0.01  # of the mails of training authors
VALIDATION_AUTHORS = 0.02  # of the authors, with all their mail
CUT_OFF = 1400  # characters: a longer quote was cut by the corpus and has no end


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
    """One cleaned mail of a corpus. `quoted` is the newest mail that stood under it, by `quoted_from`.

    written: the words of `body` with the wraps, spaces and tabs of their author; "" if these are the body's.
    part: "train", "authors" (validation: an author never trained on) or "mails" (validation: a known author's mail).
    """

    key: str
    author: str
    sender: Person
    to: tuple[Person, ...]
    subject: str
    body: str
    quoted: str = ""
    quoted_from: str = ""
    part: str = "train"
    written: str = ""

    @property
    def as_written(self) -> str:
        """The text in its author's form."""
        return self.written or self.body


# Mass mail, broken transfer encodings, abuse.
UNFIT = re.compile(
    r"(?i)\b(?:unsubscribe|click here|confidentiality notice|viagra|fuck\w*|rap(?:e|ist)\w*|future mailings?)\b|= ?20|=\n"
)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of one corpus file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def part_of(key: str, author: str) -> str:
    """The part of a mail: whole authors and a share of the others' mail are kept aside, the same ones in every run."""
    if stable_share(author) < VALIDATION_AUTHORS:
        return "authors"
    return "mails" if stable_share(key) < VALIDATION_SHARE else "train"


def stable_share(key: str) -> float:
    """A stable number in 0..1."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def person(who: str) -> Person:
    """ "eric.bass@enron.com" -> Eric Bass; "Mills, Cheryl D" -> Cheryl Mills; an odd address -> its first word."""
    if "@" not in who:
        who = re.sub(r"\(.*?\)?$|[/\"'].*", "", who)
        last, _, first = who.partition(",")
        words = [*first.split()[:1], last.strip()] if first.strip() else [*who.split()[:1], *who.split()[1:][-1:]]
        return Person(*([w.strip(" .\"'") for w in words] + ["", ""])[:2])
    words = [w for w in re.split(r"[._\d-]+", who.split("@")[0]) if len(w) > 1 and w.isalpha()]
    return Person(*([w.capitalize() for w in (words + ["", ""])][:2]))


def addresses(field: str | list[str] | None) -> tuple[Person, ...]:
    """Everyone in a `to` field that holds addresses."""
    listed = field if isinstance(field, list) else re.split(r",\s*(?=\S+@)|;", field or "")
    return tuple(p for p in (person(a.strip()) for a in listed if a.strip()) if p.first)


# --- one mail -------------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"(?m)^<Embedded (?:Picture|Image).*>$|[\x00-\x08\x0b-\x1f\x7f\xad\u200b\ufeff]")


def clean(text: str, author: Person, rng: random.Random) -> str:
    """The author's words: no quotes, signature or personal data; hard wraps undone; marks of the template broken."""
    return _private(drop_signature(own_words(_plain(text).expandtabs(4), author.full).own), rng)


def _plain(text: str) -> str:
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\u0001", "'").replace("<|", "< |"))


def stretch(text: str, words: Sequence[str]) -> str:
    """The part of `text` that has exactly these words, white space as it was; "" if they stand nowhere in a row."""
    places = [m.span() for m in re.finditer(r"\S+", text)]
    said = [text[a:b] for a, b in places]
    for i in range(len(said) - len(words) + 1) if words else ():
        if said[i] == words[0] and said[i : i + len(words)] == words:
            return text[places[i][0] : places[i + len(words) - 1][1]]
    return ""


def _private(text: str, rng: random.Random) -> str:
    text = re.sub(r"(?m)^ +(?=\S)", "", text)
    text = re.sub(r"(?<=\S) {2,}(?=\S)", " ", re.sub(r"\n{3,}", "\n\n", text))
    return invent(text, rng).strip()


def mail_of(r: dict[str, Any], key: str, seed: int = 0) -> Mail:
    """A record of a corpus as a clean mail; its body may be empty."""
    rng, sender = random.Random(f"{seed} {key}"), person(r.get("from") or "")
    raw = _plain(r["text"])
    words = own_words(raw.expandtabs(4), sender.full)
    own = drop_signature(words.own)
    to, subject = addresses(r.get("to")), invent(" ".join((r.get("subject") or "").split()), rng)
    quoted = _plain(r.get("quoted") or "").expandtabs(4) or words.quoted
    receiver = Address(to[0].full if to else "", "")
    parent = quoted_message(Message(key, 0, Address(sender.full, ""), (receiver,), (), subject, words.own, quoted))
    author = r.get("from") or ""
    body = _private(own, random.Random(f"{key} body"))
    written = invent(stretch(raw, own.split()), random.Random(f"{key} body"), wrapped=True)
    return Mail(
        key=key,
        author=author,
        sender=sender,
        to=to,
        subject=subject,
        body=body,
        quoted=_private(drop_signature(parent.body), rng) if parent else "",
        quoted_from=person(parent.sender.name).full if parent and "@" not in parent.sender.name else "",
        part=part_of(key, author),
        written=written if written != body else "",
    )


# --- all of them ----------------------------------------------------------------------------------------------------


def clean_all(corpora: Path, out: Path, processes: int) -> dict[str, int]:
    """Write MAILS into `out`: every mail once, and the mails they quote. Returns how many, by part and reason."""
    jobs = [(n, chunk) for n in MAIL if (corpora / f"{n}.jsonl.xz").is_file() for chunk in _chunks(corpora, n)]
    with get_context("spawn").Pool(processes) as pool:
        mails = [m for made in pool.imap(_clean_chunk, jobs, chunksize=1) for m in made]
    known = {m.sender.full.lower() for m in mails if m.part == "authors"}
    mails += [q for m in mails if (q := quoted_mail(m)) and q.sender.full.lower() not in known]
    mails.sort(key=lambda m: m.part == "train")  # what is kept aside first: a repeat of it is no training text
    seen, count = Seen(), Counter[str]()
    out.mkdir(parents=True, exist_ok=True)
    temp = out / f"{MAILS}.part"
    with lzma.open(temp, "wt", encoding="utf-8", preset=2) as f:
        for m in mails:
            reason = (
                "empty" if len(m.body.split()) < 3 or not m.author
                else "mass mail" if UNFIT.search(m.body)
                else "repeated" if seen.repeats(m.body)
                else ""
            )  # fmt: skip
            count[reason or m.part] += 1
            if not reason:
                f.write(json.dumps(astuple(m), ensure_ascii=False) + "\n")
    temp.replace(out / MAILS)
    return dict(count)


def read_mails(folder: Path) -> Iterator[Mail]:
    """The mails that `clean_all` left in `folder`."""
    with lzma.open(folder / MAILS, "rt", encoding="utf-8") as lines:
        for line in lines:
            key, author, sender, to, *rest = json.loads(line)
            yield Mail(key, author, Person(*sender), tuple(Person(*p) for p in to), *rest)


def quoted_mail(m: Mail) -> Mail | None:
    """The mail under a training mail as one of its own, where the quote is whole and says who wrote it."""
    if m.part != "train" or not m.quoted_from or not 20 <= len(m.quoted) < CUT_OFF:
        return None
    subject = re.sub(r"(?i)^\s*re:\s*", "", m.subject)
    who = person(m.quoted_from)
    return replace(
        m, key=f"{m.key} quoted", author=who.full, sender=who, to=(m.sender,), subject=subject, body=m.quoted,
        quoted="", quoted_from="", written="",
    )  # fmt: skip


class Seen:
    """Near-repeats: forwarded newsletters, automatic mail, the same note sent twice. Digits do not count."""

    SPAN = 8  # words
    SHARE = 0.4  # of a mail's spans that may have been seen

    def __init__(self) -> None:
        self.spans: set[int] = set()

    def repeats(self, text: str) -> bool:
        """Whether `text` mostly repeats earlier ones; remembers it otherwise."""
        words = re.findall(r"\w+", re.sub(r"\d+", "0", text.lower()))
        if len(words) < self.SPAN:
            words = [*words, *[""] * (self.SPAN - len(words))]
        every = 1 if len(words) < 40 else 3  # one span in three tells enough of a longer mail
        hashes = (crc32(" ".join(words[i : i + self.SPAN]).encode()) for i in range(len(words) - self.SPAN + 1))
        spans = {h for h in hashes if h % every == 0}
        if len(spans & self.spans) > self.SHARE * len(spans):
            return True
        self.spans |= spans
        return False


def _chunks(corpora: Path, name: str, size: int = 4000) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    chunk: list[dict[str, Any]] = []
    for n, r in enumerate(records(corpora / f"{name}.jsonl.xz")):
        chunk.append(r)
        if len(chunk) == size:
            yield n + 1 - size, chunk
            chunk = []
    if chunk:
        yield n + 1 - len(chunk), chunk


def _clean_chunk(job: tuple[str, tuple[int, list[dict[str, Any]]]]) -> list[Mail]:
    name, (first, chunk) = job
    return [mail_of(r, f"{name} {first + i}") for i, r in enumerate(chunk)]


def sample(corpora: Path, data: Path, share: float, seed: int = 0) -> Iterator[str]:
    """About `share` of the prose and six times as much of the mail, in both forms: what the tokenizer is trained on."""
    rng = random.Random(seed)
    mails = (m for m in read_mails(data) if m.part == "train" and rng.random() < 6 * share)
    yield from (m.as_written if rng.random() < 0.5 else m.body for m in mails)
    for name in PROSE:
        if (path := corpora / f"{name}.jsonl.xz").is_file():
            yield from (r["text"] for r in records(path) if rng.random() < share)


def people(mails: Iterable[Mail]) -> Iterator[Person]:
    """Everyone who wrote or was written to."""
    return (p for m in mails for p in (m.sender, *m.to))
