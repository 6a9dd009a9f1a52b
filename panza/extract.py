"""An instruction drawn from a mail by rules alone: headline English, requests turned into orders.

The fallback of data playback, always available, and the source of the embedded model's training pairs.
Knows English best; other languages get keywords. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from panza.facts import facts
from panza.letter import greeting, sign_off
from panza.orders import Pick, Reader, first, order
from panza.types import Address, Message

MOST_SENTENCES = 3
MOST_WORDS = 20  # of one sentence's order
MOST_KEYWORDS = 9
MOST_IN_A_ROW = 5  # words that stand as in the mail before a dull one is left out

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?\w)|\n+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|No|vs|etc|e\.g|i\.e|a\.m|p\.m|Inc|Co|Corp|[A-Z])\.$")

_ARTICLES = frozenset(("the", "a", "an"))
_DULL = frozenset(
    "that is are was were am be been being have has had would should so then and it there also of".split()
)

_STOP = frozenset(
    """a about after again all also am an and any are as ask at back be because been before being but by can could did do does
    doing done for from get give go going good got had has have having he her here him his how i if in into is it its just know let
    like look make may me more much my need no not now of ok on one only or other our out over please put re say see send she should
    so some take tell than thank thanks that the their them then there these they thing things think this those to too try up us
    very want was we well were what when where which while who why will with would yes yet you your i'm i'll i've don't it's we'll
    we're that's can't let's you're doesn't didn't isn't won't hope still sure via per both each such""".split()
)


def extract(message: Message, style: str = "sentence") -> str:
    """The instruction for `message`; style "sentence" or "keywords" (prompt.INSTRUCTION_STYLES).

    Never empty for a mail that has a word. Deterministic.
    """
    chosen = choose(sentences(message))
    if style == "keywords" or not _english(message.body):
        return keywords(chosen) or " ".join(message.body.split()[:MOST_KEYWORDS])
    reader = Reader(first_name(message.to[0])) if message.to else Reader()
    return ". ".join(o[0].upper() + o[1:] for o in orders(chosen, reader)) or keywords(chosen)


def orders(chosen: Sequence[str], reader: Reader, pick: Pick = first, terse: bool = True) -> list[str]:
    """An order for each sentence that gives one; only the first names the reader. terse: in headline English."""
    made: list[str] = []
    for sentence in chosen:
        if text := order(sentence, reader, pick, again=bool(made)):
            made.append(_headline(text, sentence, terse))
    return made


def sentences(message: Message) -> list[str]:
    """What the mail says between greeting and sign-off; its subject or words where it says nothing there."""
    found = _sentences(middle(message.body)) or _sentences(message.body)
    return found or [message.subject or message.body.strip()]


def first_name(who: Address) -> str:
    """What to call somebody; "" where an address such as jlee@ does not tell."""
    words = who.label.split()
    told = bool(words) and (bool(who.name) or len(words) > 1) and len(words[0]) > 1 and words[0].isalpha()
    return words[0] if told else ""


def middle(text: str) -> str:
    """The mail without its greeting and sign-off; all of it if nothing else is left."""
    opened = re.match(r"\s*" + _loose(greeting(text)), text)
    rest = text[opened.end() :] if opened else text
    closed = re.search(_loose(sign_off(rest)) + r"\s*$", rest)
    return (rest[: closed.start()] if closed else rest).strip() or text.strip()


def _loose(text: str) -> str:
    """A pattern for `text` with any white space between its words and marks."""
    return r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", text)))


def _sentences(text: str) -> list[str]:
    """Sentences of two words or more; list items and lines count as sentences."""
    pieces: list[str] = []
    for piece in _SENTENCE_END.split(text):
        if pieces and _ABBREVIATION.search(pieces[-1]):
            pieces[-1] += " " + piece
        else:
            pieces.append(piece)
    clean = (re.sub(r"^[\s>*•\-–\d.)]{1,4}(?=\D)", "", " ".join(p.split())).strip() for p in pieces if p)
    return [s for s in clean if len(s.split()) > 1 or facts(s)]


def choose(sentences: Sequence[str], most: int = MOST_SENTENCES) -> list[str]:
    """The most telling sentences, in the mail's order: those with facts and requests, and the first."""

    def weight(i: int) -> float:
        s = sentences[i]
        asks = s.endswith("?") or bool(re.match(r"(?i)please|can you|could you|let me know", s))
        return min(len(facts(s)), 4) + 2 * asks + 2 * (i == 0) + min(len(s.split()), 12) / 12 - 0.1 * i

    best = sorted(range(len(sentences)), key=weight, reverse=True)[:most]
    return [sentences[i] for i in sorted(best)]


def _headline(text: str, sentence: str, terse: bool) -> str:
    """`text` cut to MOST_WORDS with the facts of the rest; terse: in headline English."""
    words = _telegram(text.split()) if terse else text.split()
    head = words[:MOST_WORDS]
    while len(words) > MOST_WORDS and len(head) > MOST_WORDS - 4 and head[-1].lower().strip(",") in _STOP:
        head.pop()
    shown = " ".join(head).strip(" ,;:-")
    left_out = [f for f in facts(sentence) if f not in shown][:3] if len(words) > MOST_WORDS else []
    return ", ".join([shown, *left_out])


def _telegram(words: list[str]) -> list[str]:
    """`words` without articles, and without a dull word wherever MOST_IN_A_ROW would stand as in the mail."""
    short: list[str] = []
    in_a_row = 0
    for word in words:
        if word.lower() in _ARTICLES or (in_a_row >= MOST_IN_A_ROW and word.lower() in _DULL):
            in_a_row = 0
        else:
            short.append(word)
            in_a_row += 1
    return short


def keywords(sentences: Sequence[str]) -> str:
    """Runs of telling words, at most four words a run, in order and without repeats."""
    runs: list[str] = []
    for s in sentences:
        words = [w for w in (w.strip(".,;:!?()\"'<>*_-") for w in s.split()) if w]
        for dull, group in groupby(words, key=lambda w: w.lower() in _STOP):
            if not dull:
                run = list(group)
                runs += [" ".join(run[i : i + 4]) for i in range(0, len(run), 4)]
    unique = list(dict.fromkeys(runs))
    ranked = sorted(unique, key=lambda r: -(2 * len(facts("x " + r)) + min(len(r.split()), 3)))[:MOST_KEYWORDS]
    return ", ".join(r for r in unique if r in ranked)


def _english(text: str) -> bool:
    words = [w.lower() for w in re.findall(r"[^\W\d_']+", text)]
    return not words or sum(w in _STOP for w in words) >= 0.2 * len(words)
