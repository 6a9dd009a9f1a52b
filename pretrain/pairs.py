"""Instruction items from real mail: write or reply, play back, title, all through the product's one template.

Names, days, dates, times and amounts are swapped before the instruction is derived. Knows mail; knows no tokens.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from panza import prompt
from panza.extract import extract
from panza.facts import facts, kept
from panza.letter import greeting, sign_off
from panza.types import Address, Message
from pretrain.corpus import Mail, Person, holds_personal, stable_share
from pretrain.names import Names
from pretrain.swap import Swap
from pretrain.tokenizer import chat_text


@dataclass(frozen=True)
class Rates:
    """How often an item has what. Shares of items, unless said otherwise."""

    play_back: float = 0.16
    title: float = 0.06
    keywords: float = 0.4  # of instructions; the others are sentences
    dictated: float = 0.12  # instructions that are the mail's own words, telegraphed
    length: float = 0.5
    thread: float = 0.85  # of mails that answer another
    retrieved: float = 0.45
    needed: float = 0.12  # a fact stands in a retrieved mail and not in the instruction
    no_recipient: float = 0.08
    letter: float = 0.45  # of mails with neither greeting nor sign-off: both are added
    subject: float = 0.5
    most_words: int = 160
    lower_start: float = 0.15  # of the mails that begin in lower case
    unsupported: float = 0.34  # most facts of a mail that its prompt may lack


@dataclass(frozen=True)
class Item:
    """`prompt` ends with the mark after which the answer starts."""

    task: str
    prompt: str
    answer: str
    instruction: str = ""


def items(
    mails: Iterable[Mail],
    names: Names,
    seed: str,
    rates: Rates = Rates(),  # noqa: B008
    swap: Callable[[random.Random, Names, tuple[Person, ...]], Swap] = Swap,
) -> Iterator[Item]:
    """One item for each usable mail; another seed gives other swaps, instructions and company."""
    by_author: dict[str, list[Mail]] = defaultdict(list)
    listed = list(mails)
    for m in listed:
        by_author[m.author].append(m)
    for m in listed:
        rng = random.Random(f"{seed} {m.key}")
        if usable(m, rates) and (item := _item(m, by_author[m.author], names, rng, rates, swap)):
            yield item


# Mass mail, broken transfer encodings, abuse.
_UNFIT = re.compile(
    r"(?i)\b(?:unsubscribe|click here|confidentiality notice|viagra|fuck\w*|rap(?:e|ist)\w*)\b|= ?20|=\n"
)


def usable(m: Mail, rates: Rates) -> bool:
    """Mails of ordinary length that are words, not tables, lists of people, or shouting."""
    words = m.body.split()
    letters = sum(c.isalpha() or c.isspace() for c in m.body)
    small = sum(c.islower() for c in m.body)
    return (
        4 <= len(words) <= rates.most_words
        and letters > 0.86 * len(m.body)
        and small > 0.6 * letters * 0.8
        and not holds_personal(m.body)
        and (m.body.lstrip("\"'(*-$0123456789 ")[:1].isupper() or stable_share(m.key) < rates.lower_start)
        and m.body.count("\n") < 16
        and not _UNFIT.search(m.body)
    )


def _item(
    m: Mail,
    others: list[Mail],
    names: Names,
    rng: random.Random,
    rates: Rates,
    make_swap: Callable[[random.Random, Names, tuple[Person, ...]], Swap],
) -> Item | None:
    swap = make_swap(rng, names, (m.sender, *m.to[:6], _as_person(m.quoted_from)))
    sender = _signed_sender(m)
    message = Message(
        id=m.key,
        date=0,
        sender=_address(swap.person(sender)),
        to=tuple(_address(swap.person(p)) for p in m.to[:6]),
        cc=(),
        subject=swap(m.subject),
        body=_letter(swap(m.body), swap.person(sender), [swap.person(p) for p in m.to], rng, rates),
    )
    draw = rng.random()
    if draw < rates.play_back:
        return _play_back(message, rng, rates)
    if draw < rates.play_back + rates.title:
        return _title(message)
    return _write(m, message, others, swap, rng, rates)


def _write(m: Mail, message: Message, others: list[Mail], swap: Swap, rng: random.Random, rates: Rates) -> Item | None:
    thread = []
    forward = re.match(r"(?i)\s*fwd?:", m.subject)
    if m.quoted and not forward and rng.random() < rates.thread:
        who = swap.person(_as_person(m.quoted_from)) if m.quoted_from else Person("", "")
        subject = re.sub(r"(?i)^\s*(?:re|fw|fwd):\s*", "", message.subject)
        thread = [Message(m.key, 0, _address(who), (), (), subject, swap(m.quoted)[:1500])]
    retrieved = [replace(r, sender=message.sender) for r in _retrieved(m, others, swap, rng, rates)]
    basis = message
    if rng.random() < rates.needed and (moved := _move_fact(message, retrieved, rng)):
        basis, retrieved = moved
    instruction = instruct(basis, rng, rates)
    named = bool(message.to) and bool(message.to[0].label) and message.to[0].label.split()[0] in message.body
    recipient = (
        _recipient(message, rng) if named or (len(message.to) <= 3 and rng.random() >= rates.no_recipient) else ""
    )
    long = len(message.body.split()) >= prompt.LENGTHS["long"]  # so that a mail of unnamed length is a short one
    has_subject = message.subject and (thread or rng.random() < rates.subject)
    chat = prompt.write(
        instruction,
        sender=message.sender.label,
        recipient=recipient,
        subject=message.subject if has_subject else "",
        length=prompt.length_class(message.body) if rng.random() < rates.length or long else "",
        thread=thread,
        retrieved=retrieved,
    )
    text = chat_text(chat)
    told = facts(message.body)
    unsupported = sum(not kept(f, text) for f in told)
    if not instruction or unsupported > rates.unsupported * max(len(told), 1) + (rng.random() < 0.25):
        return None
    return Item("write", text, message.body, instruction)


def _play_back(message: Message, rng: random.Random, rates: Rates) -> Item | None:
    style = "keywords" if rng.random() < rates.keywords else "sentence"
    answer = extract(message, style)
    words = len(message.body.split())
    if not answer or (words > 8 and len(answer.split()) > words):
        return None
    return Item("play_back", chat_text(prompt.play_back(message, style)), answer)


def _title(message: Message) -> Item | None:
    subject = re.sub(r"(?i)^\s*(?:(?:re|fw|fwd|aw):\s*)+", "", message.subject).strip()
    if not 1 <= len(subject.split()) <= 8 or len(subject) < 4 or not re.search(r"[a-z]", subject):
        return None
    return Item("title", chat_text(prompt.title(replace(message, subject=""))), subject)


def _recipient(message: Message, rng: random.Random) -> str:
    """As a user gives it: the full name, the first name, or two people."""
    labels = [a.label for a in message.to[:2] if a.label]
    if not labels:
        return ""
    return ", ".join(labels) if len(message.to) == 2 else labels[0].split()[0] if rng.random() < 0.25 else labels[0]


def _address(p: Person) -> Address:
    return Address(p.full, "")


def _as_person(name: str) -> Person:
    words = name.split()
    return Person(words[0], words[-1] if len(words) > 1 else "") if words else Person("", "")


# --- letters --------------------------------------------------------------------------------------------------------

_SIGNED = re.compile(r"(?:^|\n|[.!?,] )[-– ]*(?P<name>[A-Za-z][\w.'-]*(?: [A-Z][\w.'-]*){0,2})[ .,]*$")


def _signed_sender(m: Mail) -> Person:
    """The sender, with the first name that the mail is signed with where the address shows only one word."""
    signed = sign_off(m.body)
    word = signed.replace("\n", " ").split()[-1].strip(".,-") if signed else ""
    if (
        not m.sender.last
        and word.isalpha()
        and word.istitle()
        and len(word) > 2
        and word.lower() != m.sender.first.lower()
    ):
        return Person(word, m.sender.first)
    return m.sender


def _letter(body: str, sender: Person, to: list[Person], rng: random.Random, rates: Rates) -> str:
    """`body` signed with its sender's name as given, or with nothing; some bare mails get a greeting and a sign-off."""
    body = _greeted(body, to)
    found = _SIGNED.search(body)
    last = body.rsplit("\n", 1)[-1].strip(" -–.,")
    if found and (last == found["name"] or body[found.start("name") - 2 : found.start("name") - 1] in ".!?,"):
        body = _resigned(body, found, sender)
    if not sign_off(body) and not greeting(body) and rng.random() < rates.letter and not _ends_with(body, sender):
        return _as_letter(body, sender, to, rng)
    return body


def _ends_with(body: str, sender: Person) -> bool:
    last = body.rstrip(" .-").rsplit(None, 1)[-1].lower()
    return last in (sender.first.lower(), sender.last.lower())


def _greeted(body: str, to: list[Person]) -> str:
    """A greeting of somebody who is not among the readers greets the one reader instead."""
    name = _GREETED.match(body)
    readers = {w.lower() for p in to for w in (p.first, p.last)}
    if len(to) != 1 or not name or name["who"].lower() in readers or name["who"].lower() in _NOT_NAMES:
        return body
    return body[: name.start("who")] + to[0].first + body[name.end("who") :]


_GREETED = re.compile(r"(?:(?:Hi|Hello|Hey|Dear),? )?(?P<who>[A-Z][a-z]+)(?=(?: ?[,:;!-]|--)(?: |\n|$)|\n)")
_NOT_NAMES = frozenset(
    """all hi hello hey thanks team guys folks everyone yes no ok okay sure well so also great sorry fyi good please however
    congratulations attached today tomorrow yesterday agreed done hope here there just unfortunately dear monday tuesday wednesday
    thursday friday saturday sunday nope yep yeah yea absolutely sir gentlemen ladies oh wow first finally actually perfect""".split()
)


def _resigned(body: str, found: re.Match[str], sender: Person) -> str:
    """A sign-off that is not the sender's name becomes it; initials stay initials."""
    name = found["name"]
    words = name.split()
    own = {sender.first.lower(), sender.last.lower(), sender.full.lower()}
    short_line = body[: found.start("name")].rstrip(" -–").endswith("\n") or found.start("name") == 0
    if name.lower() in own or name.lower() in _CLOSING_WORDS or words[0].lower() in _CLOSING_WORDS:
        return body
    initials = re.fullmatch(r"[A-Z]\.?[A-Z]?\.?[A-Z]?\.?|[a-z]{2,3}", name)
    if initials and sender.last:
        new = sender.first[0] + sender.last[0] if len(name.replace(".", "")) > 1 else sender.first[0]
        return body[: found.start("name")] + (new.lower() if name.islower() else new)
    if short_line and len(words) <= 2 and (words[0].istitle() or len(words) == 1):
        return body[: found.start("name")] + (sender.full if len(words) > 1 else sender.first)
    return body


_CLOSING_WORDS = frozenset(
    """thanks thank thx regards best cheers sincerely love later bye yes no ok okay please you soon today tomorrow it that
    this there thanx hope talk see have let call good great agreed sure fine lol""".split()
)

_HELLOS = ("Hi {0},", "{0},", "Hello {0},", "Hi {0},", "{0} -", "Dear {0},", "Hey {0},", "{0},")
_BYES = (
    "Thanks,",
    "Best,",
    "Regards,",
    "Best regards,",
    "Thank you,",
    "Thanks!",
    "Cheers,",
    "Kind regards,",
    "Thanks,",
)


def _as_letter(body: str, sender: Person, to: list[Person], rng: random.Random) -> str:
    hello = rng.choice(_HELLOS).format(to[0].first if to else "all")
    bye = rng.choice(_BYES)
    name = sender.full if rng.random() < 0.2 else sender.first
    named = name if rng.random() < 0.3 else f"{bye}\n{name}"
    if body.rstrip().lower().endswith(("thanks.", "thanks", "thank you.", "thanks!")):
        named = name
    return f"{hello}\n\n{body}\n\n{named}"


# --- retrieved mails ------------------------------------------------------------------------------------------------


def _retrieved(m: Mail, others: list[Mail], swap: Swap, rng: random.Random, rates: Rates) -> list[Message]:
    """One to three other mails of the author, mostly of no use, as search would bring them."""
    if rng.random() >= rates.retrieved:
        return []
    picked = [
        o
        for o in rng.sample(others, min(len(others), rng.choice((1, 2, 2, 2, 3))))
        if o.key != m.key and o.body != m.body
    ]
    return [Message(o.key, 0, Address("", ""), (), (), swap(o.subject), swap(o.body)[:900]) for o in picked]


def _move_fact(message: Message, retrieved: list[Message], rng: random.Random) -> tuple[Message, list[Message]] | None:
    """Take a telling sentence out of what the instruction sees and let a retrieved mail say it."""
    sentences = re.split(r"(?<=[.!?])\s+", message.body)
    telling = [s for s in sentences[1:] if 4 <= len(s.split()) <= 30 and any(c.isdigit() for f in facts(s) for c in f)]
    if not retrieved or not telling:
        return None
    sentence = rng.choice(telling)
    fact = rng.choice([f for f in facts(sentence) if any(c.isdigit() for c in f)])
    hint = sentence.replace(fact, rng.choice(("…", "(look it up)", "as agreed", ""))).strip(" .")
    at = rng.randrange(len(retrieved))
    holder = replace(retrieved[at], body=_insert(retrieved[at].body[:250], sentence, rng))
    told = replace(message, body=message.body.replace(sentence, hint + "."))
    return told, [*retrieved[:at], holder, *retrieved[at + 1 :]]


def _insert(text: str, sentence: str, rng: random.Random) -> str:
    parts = re.split(r"(?<=[.!?])\s+", text)
    at = rng.randint(0, len(parts))
    return " ".join([*parts[:at], sentence, *parts[at:]])


# --- instructions ---------------------------------------------------------------------------------------------------


def instruct(message: Message, rng: random.Random, rates: Rates = Rates()) -> str:  # noqa: B008
    """An instruction for `message` in one of the many forms that people type."""
    middle = _middle(message.body)
    if rng.random() < rates.dictated and 3 <= len(middle.split()) <= 45:
        text = _dictated(middle, message, rng)
    else:
        text = extract(message, "keywords" if rng.random() < rates.keywords else "sentence")
    for rate, change in _NOISE:
        if rng.random() < rate:
            text = change(text, rng)
    return text.strip(" ,;")


def _middle(body: str) -> str:
    """The mail between greeting and sign-off."""
    hello, bye = greeting(body), sign_off(body)
    text = body.strip()
    if hello and text.startswith(hello):
        text = text[len(hello) :]
    if bye and text.rstrip().endswith(bye):
        text = text.rstrip()[: -len(bye)]
    return " ".join(text.split())


def _dictated(middle: str, message: Message, rng: random.Random) -> str:
    """The mail's own words: as they are, or after "tell Anna that" and the like."""
    who = message.to[0].label.split()[0] if message.to and message.to[0].label else "them"
    text = middle.rstrip(".")
    if rng.random() < 0.5:
        return text
    opening = rng.choice(
        (
            "tell {0} that ",
            "tell {0} ",
            "let {0} know that ",
            "email {0}: ",
            "write to {0}: ",
            "say ",
            "reply: ",
            "{0}: ",
        )
    )
    lowered = text[:1].lower() + text[1:] if not re.match(r"I\b|I'", text) else text
    return opening.format(who) + lowered


def _lower(text: str, rng: random.Random) -> str:
    return text.lower()


def _bullets(text: str, rng: random.Random) -> str:
    pieces = [p.strip(" .") for p in re.split(r"(?<=[a-z)])[.;] |, (?=\w+ \w)", text) if p.strip(" .")]
    return "\n".join(f"- {p}" for p in pieces) if len(pieces) > 1 else text


def _drop(text: str, rng: random.Random) -> str:
    """Without one piece that holds no fact."""
    pieces = text.split(", ")
    dull = [i for i, p in enumerate(pieces) if not facts("x " + p)]
    if len(pieces) < 3 or not dull:
        return text
    gone = rng.choice(dull)
    return ", ".join(p for i, p in enumerate(pieces) if i != gone)


def _typo(text: str, rng: random.Random) -> str:
    """One plain word with two letters exchanged or one missing."""
    words = text.split(" ")
    plain = [i for i, w in enumerate(words) if w.isalpha() and w.islower() and len(w) > 4]
    if not plain:
        return text
    i = rng.choice(plain)
    at = rng.randrange(1, len(words[i]) - 1)
    w = words[i]
    words[i] = w[:at] + w[at + 1] + w[at] + w[at + 2 :] if rng.random() < 0.6 else w[:at] + w[at + 1 :]
    return " ".join(words)


def _prefix(text: str, rng: random.Random) -> str:
    opening = rng.choice(
        ("pls ", "please ", "email: ", "quick note: ", "reply: ", "write: ", "short mail: ", "mail saying ", "draft: ")
    )
    return opening + (text[:1].lower() + text[1:] if text[1:2].islower() else text)


def _no_stop(text: str, rng: random.Random) -> str:
    return re.sub(r"\. ", rng.choice(("; ", ", ", " / ", " + ", ". ")), text.rstrip("."))


def _reorder(text: str, rng: random.Random) -> str:
    pieces = text.split(", ")
    if len(pieces) < 3 or ". " in text or len(text) > 200:
        return text
    rng.shuffle(pieces)
    return ", ".join(pieces)


_SHORTHAND = (("tomorrow", "tmrw"), ("please", "pls"), ("thanks", "thx"), ("meeting", "mtg"), ("you", "u"), ("regarding", "re"), ("and", "&"), ("with", "w/"), ("about", "abt"), ("message", "msg"))  # fmt: skip


def _shorthand(text: str, rng: random.Random) -> str:
    for long, short in _SHORTHAND:
        if rng.random() < 0.5:
            text = re.sub(rf"\b{long}\b", short, text)
    return text


_NOISE: tuple[tuple[float, Callable[[str, random.Random], str]], ...] = (
    (0.12, _drop),
    (0.08, _reorder),
    (0.35, _no_stop),
    (0.07, _bullets),
    (0.10, _typo),
    (0.08, _shorthand),
    (0.14, _prefix),
    (0.33, _lower),
)
