"""Instruction items from real mail: write or reply, play back, title, all through the product's one template.

Names, days, dates, times and amounts are swapped before the instruction is derived. Knows mail; knows no tokens.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from panza import prompt
from panza.extract import choose, extract, sentences
from panza.facts import facts, kept
from panza.letter import greeting, sign_off
from panza.orders import Reader
from panza.playback import reject
from panza.types import Address, Message
from pretrain.corpus import UNFIT, Mail, Person, stable_share
from pretrain.instruct import careless, instruct, join
from pretrain.intents import told
from pretrain.names import Names
from pretrain.private import personal
from pretrain.swap import Swap
from pretrain.tokenizer import chat_text


@dataclass(frozen=True)
class Rates:
    """How often an item has what. Shares of items, unless said otherwise."""

    play_back: float = 0.14
    title: float = 0.05
    intents: float = 0.12  # put together from tables (pretrain.intents) in the place of a mail's own item
    careless: float = 0.5  # of instructions
    cut: float = 0.45  # of mails of three sentences and more: only some are kept, and all of these are asked for
    named: float = 0.75  # of readers whom a mail may greet: the instruction calls them by name
    length: float = 0.5
    thread: float = 0.85  # of mails that answer another
    retrieved: float = 0.45
    needed: float = 0.12  # a fact stands in a retrieved mail and not in the instruction
    no_recipient: float = 0.08
    letter: float = 0.5  # of mails with neither greeting nor sign-off: both are added
    subject: float = 0.5
    most_words: int = 160
    lower_start: float = 0.10  # of the mails that begin in lower case
    unsupported: float = 0.25  # most facts of a mail that its prompt may lack


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


def usable(m: Mail, rates: Rates) -> bool:
    """Mails of ordinary length that are words, not tables, lists of people, or shouting."""
    words = m.body.split()
    small = sum(map(str.islower, m.body))
    letters = sum(map(str.isalpha, m.body)) + sum(map(str.isspace, m.body))
    return (
        4 <= len(words) <= rates.most_words
        and letters > 0.82 * len(m.body)
        and small > 0.6 * letters * 0.8
        and (m.body.lstrip("\"'(*-$0123456789 ")[:1].isupper() or stable_share(m.key) < rates.lower_start)
        and m.body.count("\n") < 16
        and not UNFIT.search(m.body)
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
    me, to = swap.person(sender), [swap.person(p) for p in m.to]
    if rng.random() < rates.intents:
        return _intents(me, to, names, rng, rates)
    message = Message(
        id=m.key,
        date=0,
        sender=_address(me),
        to=tuple(map(_address, to[:6])),
        cc=(),
        subject=swap(m.subject),
        body=_letter(swap(m.body), me, to, rng, rates),
    )
    draw = rng.random()
    if draw < rates.play_back:
        return _play_back(message, rng)
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
    said = sentences(message)
    if len(said) > 2 and rng.random() < rates.cut:
        said = choose(said, rng.choice((1, 2, 2, 3, 3, 4)))
        message = replace(message, body=_with_middle(message.body, said))
    reader, message = _reader(message, rng, rates)
    asked = choose(said, 3 if rng.random() < 0.6 else 4)
    if rng.random() < rates.needed and (moved := _move_fact(asked, retrieved, rng)):
        asked, retrieved = moved
    instruction = instruct(asked, reader, rng)
    hidden = " ".join(r.body for r in retrieved)
    if not instruction or not all(_says(message.body, f) for f in facts(instruction)):
        return None
    item = _written(message, instruction, reader, rng, rates, thread=thread, retrieved=retrieved)
    text = item.prompt
    told = facts(message.body)
    unsaid = [f for f in told if not _says(text, f)]
    figures = any(c.isdigit() for f in unsaid for c in f)
    if any(p not in text for p in personal(message.body)):
        return None
    if len(unsaid) > rates.unsupported * len(told) + (rng.random() < 0.15) or (figures and rng.random() < 0.8):
        return None
    return item if not hidden or message.body not in hidden else None


def _says(text: str, fact: str) -> bool:
    return (len(fact) > 3 and fact.isalpha() and fact in text) or kept(fact, text)


def _written(
    message: Message,
    instruction: str,
    reader: Reader,
    rng: random.Random,
    rates: Rates,
    thread: Sequence[Message] = (),
    retrieved: Sequence[Message] = (),
) -> Item:
    """The item that asks for `message` with `instruction`, typed in haste now and then."""
    if rng.random() < rates.careless:
        instruction = careless(instruction, rng)
    named = bool(message.to) and bool(message.to[0].label) and message.to[0].label.split()[0] in message.body
    show = (named and not (reader.name and rng.random() < 0.15)) or (
        len(message.to) <= 3 and rng.random() >= rates.no_recipient
    )
    long = len(message.body.split()) >= prompt.LENGTHS["long"]  # so that a mail of unnamed length is a short one
    chat = prompt.write(
        instruction,
        sender=message.sender.label,
        recipient=_recipient(message, rng) if show else "",
        subject=message.subject if message.subject and (thread or rng.random() < rates.subject) else "",
        length=prompt.length_class(message.body) if rng.random() < rates.length or long else "",
        thread=thread,
        retrieved=retrieved,
    )
    return Item("write", chat_text(chat), message.body, instruction)


def _reader(message: Message, rng: random.Random, rates: Rates) -> tuple[Reader, Message]:
    """How the instruction speaks of the reader; who is called by name there is greeted by it in the mail."""
    they = rng.choice(("they", "he", "she"))
    first = message.to[0].label.split()[0] if message.to and message.to[0].label else ""
    if not first or len(message.to) > 2 or rng.random() >= rates.named:
        return Reader("", they), message
    if not re.search(rf"\b{re.escape(first)}\b", message.body):
        if greeting(message.body):
            return Reader("", they), message
        hello = rng.choice(_HELLOS).format(first)
        message = replace(message, body=f"{hello}\n\n{message.body}")
    return Reader(first, they), message


def _with_middle(body: str, said: Sequence[str]) -> str:
    """`body` with nothing but the sentences `said` between its greeting and its sign-off."""
    return "\n\n".join(filter(None, (greeting(body), " ".join(said), sign_off(body))))


def _intents(me: Person, to: list[Person], names: Names, rng: random.Random, rates: Rates) -> Item:
    """A short mail from the tables of what people ask for."""
    reader = Reader(to[0].first if to and rng.random() < rates.named else "", rng.choice(("they", "he", "she")))
    points = told(rng, names, reader.name, reader.they)
    listed = len(points) > 1 and rng.random() < 0.2
    asked = [p.instruction for p in points]
    instruction = "\n".join(f"- {a}" for a in asked) if listed else join(asked, rng)
    hello = rng.choice(_HELLOS).format(to[0].first) if to and (reader.name or rng.random() < 0.8) else ""
    bye = _closing(me, rng) if rng.random() < 0.9 else ""
    gap = "\n\n" if len(points) > 2 and rng.random() < 0.3 else " "
    body = "\n\n".join(filter(None, (hello, gap.join(p.mail for p in points), bye)))
    message = Message("", 0, _address(me), tuple(map(_address, to[:1])), (), "", body)
    return _written(message, instruction, reader, rng, rates)


def _play_back(message: Message, rng: random.Random) -> Item | None:
    """The product's own instruction for the mail, if its checks would pass it."""
    style = rng.choices(("keywords", "sentence"), (0.4, 0.6))[0]
    answer = extract(message, style)
    if not answer or reject(answer, message):
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
    thanked = body.rstrip().lower().endswith(("thanks.", "thanks", "thank you.", "thanks!"))
    return f"{hello}\n\n{body}\n\n{sender.first if thanked else _closing(sender, rng)}"


def _closing(sender: Person, rng: random.Random) -> str:
    name = sender.full if rng.random() < 0.2 else sender.first
    return name if rng.random() < 0.3 else f"{rng.choice(_BYES)}\n{name}"


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


def _move_fact(
    asked: Sequence[str], retrieved: list[Message], rng: random.Random
) -> tuple[list[str], list[Message]] | None:
    """Take a telling sentence out of what the instruction sees and let a retrieved mail say it."""
    telling = [s for s in asked[1:] if 4 <= len(s.split()) <= 30 and any(c.isdigit() for f in facts(s) for c in f)]
    if not retrieved or not telling:
        return None
    sentence = rng.choice(telling)
    fact = rng.choice([f for f in facts(sentence) if any(c.isdigit() for c in f)])
    hint = sentence.replace(fact, rng.choice(("…", "(look it up)", "as agreed", ""))).strip(" .") + "."
    at = rng.randrange(len(retrieved))
    holder = replace(retrieved[at], body=_insert(retrieved[at].body[:250], sentence, rng))
    return [hint if s == sentence else s for s in asked], [*retrieved[:at], holder, *retrieved[at + 1 :]]


def _insert(text: str, sentence: str, rng: random.Random) -> str:
    parts = re.split(r"(?<=[.!?])\s+", text)
    at = rng.randint(0, len(parts))
    return " ".join([*parts[:at], sentence, *parts[at:]])
