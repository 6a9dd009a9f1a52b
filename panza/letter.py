"""Find a mail's greeting and sign-off. Knows the forms of letters in five languages; knows no model and no store."""

from __future__ import annotations

import re
from typing import NamedTuple

from panza.facts import is_name

_SALUTES = (
    r"hi|hello|hey|hiya|howdy|dear|greetings|good (?:morning|afternoon|evening|day)"
    r"|hallo|guten (?:morgen|tag|abend)|liebe[rs]?|sehr geehrte[rs]?|moin|servus"
    r"|bonjour|bonsoir|salut|chère?s?|hola|buenos días|buenas tardes|estimad[oa]s?|querid[oa]s?"
    r"|ciao|buongiorno|buonasera|gentile|car[oai]"
)
_GROUPS = "all|everyone|everybody|team|folks|guys|gang|there|both|sir|madam|sirs|friends|colleagues|ladies|gentlemen"
_TITLED = r"(?:(?:mr|mrs|ms|dr|prof|herr|frau|mme|sra?|dott)\.?\s)*"
_WHO = rf"(?:{_TITLED}[^\W\d_](?:['’-]?\w|\.(?=\w))*)"
_MARK = r"(?:\s?[-–—]+(?!\w)|\s?[,:;!.]+)"
_SALUTED = re.compile(
    rf"(?P<salute>{_SALUTES})\b(?:(?P<who>(?:[ ,]+(?:and |or |& )?{_WHO}){{1,5}}?)(?P<mark>{_MARK}|$)|(?P<bare>{_MARK}?))",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"(?P<who>{_WHO}(?:(?:,? and |,? & | ?/ ?|, | ){_WHO}){{0,3}}?)(?P<mark>{_MARK})(?=\s|$)", re.IGNORECASE
)
_NOT_GREETED = frozenset(
    """attached first second third finally lastly today tonight tomorrow yesterday congratulations congrats
    agreed done understood monday tuesday wednesday thursday friday saturday sunday""".split()
)

# Closings that stand alone, and closings that go on for some words ("Thanks for your help").
_SHORT = (
    r"(?:(?:with )?(?:best|kind|kindest|warm|warmest|my best|many) )?(?:regards|wishes)|(?:all (?:the|my) )?best|cheers|rgds"
    r"|(?:lots of |much )?love|(?:yours )?(?:sincerely|truly|faithfully)(?: yours)?|yours|respectfully|cordially|take care"
    r"|later|so long|bye|hugs|xo+(?:xo*)*|ciao|mfg|lg|vg|(?:(?:viele|liebe|beste|herzliche|schöne) |mit freundlichen )?grü(?:ß|ss)en?"
    r"|gru(?:ß|ss)|(?:bien )?cordialement|bien à (?:vous|toi)|amicalement|amitiés|bises|bisous|(?:un )?saludos?(?: cordial(?:es)?)?"
    r"|(?:un )?abrazo|atentamente|(?:cordiali |distinti )?saluti|un abbraccio|a presto|à bientôt|bis bald"
)
_LONG = (
    r"(?:many )?thanks|thank you|thx|tks|thanx|danke|vielen dank|merci|gracias|grazie"
    r"|have an? (?:great|good|nice|wonderful|safe)|see you|talk to you|speak to you|looking forward|hope (?:this|that) helps"
)
_CLOSING = re.compile(
    rf"(?:^|(?<=[.!?])[ \t]+|(?<=\n))[ \t]*(?P<closing>(?:{_SHORT}|(?:{_LONG})(?:[ \t]+[\w'’/]+){{0,6}}?)[ \t]*[,.!;:…–-]*)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_OWN_LINE = re.compile(r"(?:^|\n)[ \t]*[-–]*[ \t]*(?P<name>[^\W\d_][\w.'’-]*(?:[ \t]+[^\W\d_][\w.'’-]*){0,2})$")
_INLINE = re.compile(r"(?<=[.!?,])[ \t]+(?P<name>[A-Z][\w'’-]*(?:[ \t]+[A-Z][\w'’-]*)?)\.?$")


CARD_LINES = 5  # lines that may follow a closing


class _Greeting(NamedTuple):
    salute: str  # "Hi", or "" where the mail opens with a name
    who: str  # "Anna", "all" or ""
    mark: str  # the punctuation after it


def greeting(text: str) -> str:
    """The greeting as written ("Hi Anna,", "Bob -", "All,"), on its own line or before the first sentence; or ""."""
    salute, who, mark = _greeting(text)
    return " ".join(filter(None, [salute, who])) + mark


def greeting_form(text: str) -> str:
    """The greeting with the people's names masked: "Hi NAME,", "NAME -", "Hi all,"; or ""."""
    salute, who, mark = _greeting(text)
    named = who if re.fullmatch(_GROUPS, who, re.IGNORECASE) else "NAME" * bool(who)
    return " ".join(filter(None, [salute, named])) + mark


def sign_off(text: str) -> str:
    """The closing words and the name under them, as written but for spaces: "Thanks,\\nKevin", "Thank you. Jim"; or ""."""
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", text.strip()))
    text = _without_card(text)
    name = _signed(text)
    start = name.start("name") if name else len(text)
    closing = _last(_CLOSING, text[:start].rstrip(" \n"))
    if closing and (closing.start("closing") or name):  # a mail that only says "Thank you." has a body, no closing
        start = closing.start("closing")
    return text[start:].strip()


def _without_card(text: str) -> str:
    """`text` up to the name that follows a closing line: drops the title, company and number under it."""
    lines = text.split("\n")
    for i in range(max(1, len(lines) - CARD_LINES - 1), len(lines) - 2):
        below = lines[i + 1 :]
        if _CLOSING.fullmatch(lines[i]) and all(len(line.split()) <= 5 and line[-1] not in "?!" for line in below):
            return "\n".join(lines[: i + 2])
    return text


def _greeting(text: str) -> _Greeting:
    line = text.strip().split("\n", 1)[0].strip()
    if m := _SALUTED.match(line):
        who = (m["who"] or "").strip(" ,")
        if who and (m["mark"] or m.end() == len(line)) and _addressed(who):
            return _Greeting(m["salute"], who, m["mark"].strip())
        return _Greeting(m["salute"], "", (m["bare"] or "").strip())
    if (m := _NAMED.match(line)) and _names_people(m["who"], m["mark"], alone=m.end() == len(line)):
        return _Greeting("", m["who"], m["mark"].strip())
    return _Greeting("", "", "")


def _addressed(who: str) -> bool:
    """ "Hi bob," greets bob; "Hey do you want to go," greets nobody."""
    words = re.findall(r"[^\W\d_][\w'’-]*", who)
    return len(words) <= 2 or all(w[0].isupper() or w.lower() in ("and", "or") for w in words)


def _names_people(who: str, mark: str, alone: bool) -> bool:
    if re.fullmatch(_GROUPS, who, re.IGNORECASE):
        return True
    words = [w for w in re.findall(r"[^\W\d_][\w'’.-]*", who) if w.lower() not in ("and", "mr.", "mrs.", "ms.", "dr.")]
    if not words or not all(is_name(w) and w.lower() not in _NOT_GREETED and not w.endswith("ly") for w in words):
        return False
    strong = all(is_name(w, starts=True) for w in words[:1])
    return strong or (mark.strip()[0] in ",-–—" and (alone or len(words) == 1) and len(words) <= 4)


def _signed(text: str) -> re.Match[str] | None:
    """The name at the very end: on a line of its own, or after the last full stop."""
    if (m := _OWN_LINE.search(text)) and m.start("name") > 0:
        words = m["name"].split()
        capitals = all(w[0].isupper() for w in words) and is_name(words[0])
        small = words[0].islower() and words[0].isalpha() and len(words) == 1 and 2 <= len(words[0]) <= 10
        closed = _last(_CLOSING, text[: m.start()].rstrip()) is not None
        if not _CLOSING.search("\n" + m["name"]) and (capitals or (small and (closed or len(words[0]) <= 3)) or closed):
            return m
    m = _INLINE.search(text)
    return m if m and is_name(m["name"].split()[0]) else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The match of `pattern` that ends where `text` ends."""
    return next((m for m in pattern.finditer(text, max(0, text.rfind("\n", 0, -1))) if m.end() == len(text)), None)
