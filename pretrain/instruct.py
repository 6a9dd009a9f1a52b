"""An instruction for a mail in one of the many forms that people type, careless ones included. Knows mail; knows no template.

The orders themselves come from the product (panza.extract, panza.orders), so that what is trained is what is asked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from panza.extract import keywords, orders
from panza.facts import facts
from panza.orders import Reader, first


def instruct(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    """An instruction that asks for `sentences`, before any carelessness; may be empty."""
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    return form(sentences, reader, rng).strip(" ,;:")


def careless(text: str, rng: random.Random) -> str:
    """`text` as typed in haste: small letters, shorthand, letters exchanged, stops missing."""
    for rate, change in _NOISE:
        if rng.random() < rate:
            text = change(text, rng)
    return text.strip(" ,;")


# --- forms ----------------------------------------------------------------------------------------------------------


def _plain_orders(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    """As the product's rules have it."""
    return ". ".join(o[0].upper() + o[1:] for o in orders(sentences, reader))


def _orders(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    made = orders(sentences, reader, rng.choice, terse=rng.random() < 0.25)
    return join(made, rng)


def join(made: Sequence[str], rng: random.Random) -> str:
    """Orders in one line, joined in the ways people join them."""
    style = rng.random()
    if not made:
        return ""
    if style < 0.3:
        return ". ".join(o[0].upper() + o[1:] for o in made)
    if style < 0.5:
        return rng.choice((", ", "; ", " / ")).join(made)
    linked = [made[0], *(rng.choice((" and ", ", ", ", and ", ". also ", ", then ", "; ")) + o for o in made[1:])]
    return "".join(linked)


def _request(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    """A polite request in whole sentences."""
    made = orders(sentences, reader, rng.choice, terse=False)
    opening = rng.choice(
        (
            "Please write a mail to {0}: ", "Please {1}", "Could you write to {0} and {1}", "I need a mail to {0}. ", "Please draft a message: ",
            "Write {0} a short note: ", "Please write an email and {1}", "Can you {1}", "I want to ", "Write an email to {0}. ", "please ",
        )
    )  # fmt: skip
    if not (text := join(made, rng)):
        return ""
    who = reader.name or reader.them
    return opening.format(who, "") + (text[:1].lower() + text[1:])


def _keywords(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    text = keywords(sentences)
    if rng.random() < 0.35:
        text = _reorder(_drop(text, rng), rng)
    return text


def _list(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    """A point a line: orders, bare sentences or keywords."""
    draw = rng.random()
    if draw < 0.5:
        points = orders(sentences, reader, rng.choice if draw < 0.35 else first, terse=draw < 0.25)
    elif draw < 0.75:
        points = [s.rstrip(".") for s in sentences]
    else:
        points = [keywords([s]) for s in sentences]
    mark = rng.choice(("- ", "- ", "* ", "• ", ""))
    return "\n".join(mark + p for p in points if p)


def _dictated(sentences: Sequence[str], reader: Reader, rng: random.Random) -> str:
    """The mail's own words: as they are, or after "tell Anna that" and the like."""
    text = " ".join(sentences).rstrip(".")
    if rng.random() < 0.4:
        return text
    who = reader.name or reader.them
    opening = rng.choice(("tell {0}: ", "email {0}: ", "write to {0}: ", "say: ", "reply: ", "{0}: ", "answer: "))
    return opening.format(who) + (text[:1].lower() + text[1:] if not re.match(r"I\b|I'", text) else text)


Form = Callable[[Sequence[str], Reader, random.Random], str]
FORMS: dict[Form, float] = {
    _plain_orders: 0.24,
    _orders: 0.26,
    _request: 0.07,
    _keywords: 0.24,
    _list: 0.09,
    _dictated: 0.10,
}


# --- carelessness ---------------------------------------------------------------------------------------------------


def _lower(text: str, rng: random.Random) -> str:
    return text.lower()


def _drop(text: str, rng: random.Random) -> str:
    """Without one piece that holds no fact."""
    pieces = text.split(", ")
    dull = [i for i, p in enumerate(pieces) if not facts("x " + p)]
    if len(pieces) < 3 or not dull:
        return text
    gone = rng.choice(dull)
    return ", ".join(p for i, p in enumerate(pieces) if i != gone)


def _reorder(text: str, rng: random.Random) -> str:
    pieces = text.split(", ")
    if len(pieces) < 3 or ". " in text or len(text) > 200:
        return text
    rng.shuffle(pieces)
    return ", ".join(pieces)


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


_SHORTHAND = (("tomorrow", "tmrw"), ("please", "pls"), ("thanks", "thx"), ("meeting", "mtg"), ("you", "u"), ("regarding", "re"), ("and", "&"), ("with", "w/"), ("about", "abt"), ("message", "msg"))  # fmt: skip


def _shorthand(text: str, rng: random.Random) -> str:
    for long, short in _SHORTHAND:
        if rng.random() < 0.5:
            text = re.sub(rf"\b{long}\b", short, text)
    return text


_NOISE: tuple[tuple[float, Callable[[str, random.Random], str]], ...] = (
    (0.20, _no_stop),
    (0.06, _typo),
    (0.06, _shorthand),
    (0.08, _prefix),
    (0.28, _lower),
)
