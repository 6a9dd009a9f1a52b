"""An instruction drawn from a mail by rules alone: headline English, requests turned into orders.

The fallback of data playback, always available, and the source of the embedded model's training pairs.
Knows English best; other languages get keywords. Knows no model.
"""

from __future__ import annotations

import re
from itertools import groupby

from panza.facts import facts
from panza.letter import greeting, sign_off
from panza.types import Address, Message

MOST_SENTENCES = 3
MOST_WORDS = 16  # of one sentence's headline
MOST_KEYWORDS = 9
MOST_IN_A_ROW = 5  # words that stand as in the mail before a dull one is left out

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?\w)|\n+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|No|vs|etc|e\.g|i\.e|a\.m|p\.m|Inc|Co|Corp|[A-Z])\.$")

# What a headline leaves out: articles, softeners, throat-clearing.
_FILLER = re.compile(
    r"\b(?:just|really|very|quite|actually|basically|simply|also|still|certainly|definitely|probably|perhaps|maybe|"
    r"as you (?:may )?know|as (?:we )?discussed|i (?:just )?wanted to (?:let you know(?: that)?|say)|"
    r"i am writing to|this is to (?:let you know|confirm)(?: that)?|i (?:think|believe|guess|hope|assume)(?: that)?|"
    r"it (?:looks|seems|appears) (?:like|that)|please (?:note|be advised)(?: that)?|fyi|by the way|btw|in order|"
    r"(?:at|for) (?:the|this) (?:moment|time)|if (?:at all )?possible|so that|the fact that|there (?:is|are|was|were))\b[,:]?\s*",
    re.IGNORECASE,
)
_ARTICLES = frozenset(("the", "a", "an"))
_DULL = frozenset(
    "that is are was were am be been being have has had would should so then and it there also of".split()
)

_IMPERATIVE = (
    "keep|call|send|use|check|give|forward|make|take|get|see|look|bring|print|sign|review|contact|ask|tell|add|put|come|try|"
    "fax|email|e-mail|mail|set|schedule|go|have|find|remember|read|respond|reply|advise|confirm|fill|fix|change|update|talk|stop"
)

# (pattern on the sentence, what the instruction says). The first match wins; {to} is the recipient or "them",
# {tell} "tell Anna" or "say".
_TURNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), form)
    for pattern, form in (
        (
            r"^(?:many |much )?(?:thanks|thank you|thx)(?: (?:so|very) much| a lot)?(?: again)?(?: for|,| to)? (?P<x>.+)$",
            "thank {to} for {x}",
        ),
        (r"^i (?:really )?appreciate (?P<x>.+)$", "thank {to} for {x}"),
        (r"^(?:i(?:'m| am) )?(?:so |very )?sorry(?: (?:for|about|that))? (?P<x>.+)$", "apologise for {x}"),
        (r"^(?:please )?let me know (?P<x>.+)$", "ask {to} to let me know {x}"),
        (r"^(?:can|could|would|will) you (?:please |kindly )?(?P<x>.+)$", "ask {to} to {x}"),
        (r"^(?:please|pls|kindly) (?P<x>.+)$", "ask {to} to {x}"),
        (r"^(?:can|could|shall|should|may|might) (?:i|we) (?P<x>.+)\?$", "ask if I can {x}"),
        (r"^(?:do|did) you (?:know (?:if|whether)|think|have) (?P<x>.+)\?$", "ask {to} about {x}"),
        (r"^(?:do|did|are|were|have|will) you (?P<x>.+)\?$", "ask if {they} {x}"),
        (r"^(?P<x>(?:who|what|when|where|why|how|which)\b.+)\?$", "ask {x}"),
        (r"^any (?P<x>.+)\?$", "ask about {x}"),
        (r"^(?P<x>.+)\?$", "ask: {x}"),
        (r"^(?:attached|enclosed|here|below) (?:is|are|please find|you will find) (?P<x>.+)$", "send {x}"),
        (r"^(?:i have |i've )?attached (?P<x>.+)$", "send {x}"),
        (r"^(?:congratulations|congrats) (?P<x>.+)$", "congratulate {to} {x}"),
        (r"^(?:yes|yeah|sure|ok|okay|no problem)\b[,. ]*(?P<x>.*)$", "agree, {x}"),
        (r"^(?:no|nope)\b[,. ]+(?P<x>.*)$", "say no, {x}"),
        (rf"^(?P<x>(?:don't |do not |feel free to )?(?:{_IMPERATIVE})\b.+)$", "ask {to} to {x}"),
        (r"^(?P<x>.+)$", "{tell} {x}"),
    )
)

# "you" is the reader of the mail, a third person in an instruction.
_THEM: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), word)
    for pattern, word in (
        (r"\byou (?:guys|all)\b", "they"),
        (r"(?<=\bdo )you\b|(?<=\b(?:are|did|can) )you\b|(?<=\b(?:will|have|were) )you\b", "they"),
        (
            r"\byou(?='(?:re|ve|ll|d)\b)|\byou(?= (?:are|were|have|had|will|would|can|could|should|may|might|need|want|do|did|get|know|think|see)\b)",
            "they",
        ),
        (r"\byourself\b", "themselves"),
        (r"\byours\b", "theirs"),
        (r"\byour\b", "their"),
        (r"\byou\b", "them"),
    )
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
    sentences = (
        _sentences(middle(message.body)) or _sentences(message.body) or [message.subject or message.body.strip()]
    )
    chosen = _choose(sentences)
    if style == "keywords" or not _english(message.body):
        return _keywords(chosen) or " ".join(message.body.split()[:MOST_KEYWORDS])
    to = _first_name(message.to[0]) if message.to else "them"
    orders = [_order(s, to if i == 0 else "them") for i, s in enumerate(chosen)]
    return ". ".join(o[0].upper() + o[1:] for o in orders if o) or _keywords(chosen)


def _first_name(who: Address) -> str:
    """What to call somebody; "them" where an address such as jlee@ does not tell."""
    words = who.label.split()
    told = bool(words) and (bool(who.name) or len(words) > 1) and len(words[0]) > 1 and words[0].isalpha()
    return words[0] if told else "them"


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


def _choose(sentences: list[str]) -> list[str]:
    """The most telling sentences, in the mail's order: those with facts and requests, and the first."""

    def weight(i: int) -> float:
        s = sentences[i]
        asks = s.endswith("?") or bool(re.match(r"(?i)please|can you|could you|let me know", s))
        return min(len(facts(s)), 4) + 2 * asks + 2 * (i == 0) + min(len(s.split()), 12) / 12 - 0.1 * i

    best = sorted(range(len(sentences)), key=weight, reverse=True)[:MOST_SENTENCES]
    return [sentences[i] for i in sorted(best)]


def _order(sentence: str, to: str) -> str:
    """One sentence as an instruction: `Can you send me the file?` -> `ask Anna to send me file`."""
    s = _FILLER.sub("", re.sub(r"\s*\([^)]*\)", "", sentence)).strip(" .!,;:-")
    s = (s + "?") if sentence.rstrip("\"')").endswith("?") else s
    for pattern, form in _TURNS:
        if found := pattern.match(s):
            x = _headline(found["x"], sentence)
            they = "they" if to == "them" else to
            tell = "say" if to == "them" else f"tell {to}"
            return form.format(to=to, they=they, tell=tell, x=x).strip(" ,:") if x else ""
    return ""


def _headline(text: str, sentence: str) -> str:
    """`text` in headline English, `you` turned into `them`, cut to MOST_WORDS with the facts of the rest."""
    for pattern, word in _THEM:
        text = pattern.sub(word, text)
    words = _telegram(text.strip(" .!?,;:-").split())
    if (
        words
        and words[0].istitle()
        and not words[0].startswith("I'")
        and words[0] != "I"
        and not facts(f"{words[0]} x")
    ):
        words[0] = words[0].lower()
    head = words[:MOST_WORDS]
    while len(words) > MOST_WORDS and len(head) > MOST_WORDS - 4 and head[-1].lower().strip(",") in _STOP:
        head.pop()
    shown = " ".join(head)
    left_out = [f for f in facts(sentence) if f not in shown][:3] if len(words) > MOST_WORDS else []
    return ", ".join([shown.strip(" ,;:-"), *left_out])


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


def _keywords(sentences: list[str]) -> str:
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
