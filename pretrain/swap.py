"""Put other names, days, dates, times, amounts and places into a mail and everything that belongs to it, consistently.

So the model learns to copy them from its prompt, and learns no person by heart. Knows words; knows no mail format.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from panza.mail.wrap import NARROWEST
from pretrain.corpus import Person
from pretrain.names import PLACES, Names, new_firm
from pretrain.private import invented_word

_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_MONTHS = "january february march april may june july august september october november december".split()

_PATTERN = re.compile(
    r"(?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)|(?P<phone>(?<![\w-])(?:\(\d{3}\) ?|\d{3}[-. ])?\d{3}-\d{4}(?![\d-]))"
    r"|(?P<keep>\S+@\S+|https?://\S+|^[ \t]*\(?\d{1,2}[.)](?=\s))"
    r"|(?P<weekday>\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|(?:Mon|Tues?|Wed|Thurs?|Thu|Fri|Sat|Sun)\b\.?))"
    r"|(?P<month>\b(?:January|February|April|June|July|August|September|October|November|December|Jan|Feb|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b"
    r"|\b(?:March|May)\b(?= ?\d))"
    r"|(?P<date>\b\d{1,2}/\d{1,2}(?:/\d{2,4})?\b)"
    r"|(?P<time>\b\d{1,2}(?::[0-5]\d)? ?(?:[ap]\.?m\b)|\b\d{1,2}:[0-5]\d\b)"
    r"|(?P<year>\b(?:19|20)\d\d\b)"
    r"|(?P<ordinal>\b\d{1,2}(?:st|nd|rd|th)\b)"
    r"|(?P<number>\b\d[\d,]*(?:\.\d+)?)"
    r"|(?P<firm>\b(?:Enron|ENRON|enron)(?=[A-Z]|\b))"
    r"|(?P<word>\b[A-ZÀ-Þ][\w]*[a-zà-ÿ]\b|\b[A-Z]{3,}\b)",
    re.MULTILINE | re.IGNORECASE,
)
# IGNORECASE serves weekdays and "PM"; the cases that need a capital check it themselves.


RENAMED = 0.2  # of items: some other capitalised words (projects, products, firms) get new names too


class Swap:
    """One item's swaps: the same word always becomes the same other word. Call it on each of the item's texts."""

    def __init__(self, rng: random.Random, names: Names, people: tuple[Person, ...] = ()):
        self.rng, self.names = rng, names
        self.seen: dict[tuple[str, str], str] = {}
        self.days = rng.sample(_WEEKDAYS, 7)
        self.months = rng.sample(_MONTHS, 12)
        self.years = rng.randint(-6, 34)
        self.people = {w.lower() for p in people for w in (p.first,) if len(w) > 2}
        self.lasts = {w.lower() for p in people for w in (p.last,) if len(w) > 2}
        self.rename = rng.random() < RENAMED

    def person(self, p: Person) -> Person:
        """The person who stands in the place of `p`."""
        return Person(self._first(p.first), self._last(p.last) if p.last else "")

    def __call__(self, text: str) -> str:
        self.after_name = -1
        return _PATTERN.sub(self._replace, text)

    def _replace(self, m: re.Match[str]) -> str:
        kind = m.lastgroup
        assert kind
        return _RULES[kind](self, m)

    def _once(self, kind: str, key: str, make: Callable[[], str]) -> str:
        if (kind, key) not in self.seen:
            self.seen[kind, key] = make()
        return self.seen[kind, key]

    def _first(self, word: str) -> str:
        return self._once("first", word.lower(), lambda: self.names.new_first(self.rng))

    def _last(self, word: str) -> str:
        return self._once("last", word.lower(), lambda: self.names.new_last(self.rng))

    def _word(self, m: re.Match[str]) -> str:
        """A name, a place, or the word itself. A last name counts after a first name, or if a person here bears it."""
        word = m.group()
        title, low = word.capitalize(), word.lower()
        shout = word.isupper() and len(word) > 1
        follows = self.after_name >= 0 and _follows(m.string, self.after_name, m.start())
        new = ""
        if low in self.people and (word[0].isupper() or len(low) > 3):
            new, self.after_name = self._first(low), m.end()
        elif low in self.lasts and word[0].isupper():
            new = self._last(low)
        elif word[0].isupper() and title in self.names.known_first and not follows:
            new, self.after_name = self._first(low), m.end()
        elif (
            follows
            and word[0].isupper()
            and len(word) > 2
            and m.string[m.start() - 1] in " \n"
            and self.names.may_follow(title)
        ):
            new = self._last(low)
        elif title in _PLACES and word[0].isupper():
            new = self._once("place", low, lambda: self.rng.choice(PLACES))
        elif ("thing", low) in self.seen or (self.rename and _names_a_thing(m)):
            new = self._once("thing", low, lambda: self.names.new_last(self.rng) if self.rng.random() < 0.3 else word)
        if not new:
            return word
        return new.upper() if shout else new if word[0].isupper() else new.lower()

    def _weekday(self, m: re.Match[str]) -> str:
        word = m.group()
        stem = word.rstrip(".").lower()
        full = next(d for d in _WEEKDAYS if d.startswith(stem[:3]))
        new = self.days[_WEEKDAYS.index(full)]
        if not stem.startswith(full):
            if word[0].islower():
                return word  # "sat", "sun", "wed" are words
            return new[:3].capitalize() + ("." if word.endswith(".") else "")
        return _cased(new + stem[len(full) :], word)

    def _month(self, m: re.Match[str]) -> str:
        word = m.group()
        if word[0].islower():
            return word
        full = next(n for n in _MONTHS if n.startswith(word.lower()[:3]))
        new = self.months[_MONTHS.index(full)]
        return _cased(new if word.lower() == full else new[:3], word)

    def _date(self, m: re.Match[str]) -> str:
        a, b, *year = m.group().split("/")

        def make() -> str:
            both = sorted((self.rng.randint(1, 12), self.rng.randint(1, 28)), key=lambda n: n > 12)
            return "/".join(
                [*(f"{n:0{2 if a.startswith('0') else 1}d}" for n in both), *(self._other_year(y) for y in year)]
            )

        return self._once("date", m.group(), make)

    def _other_year(self, year: str) -> str:
        return str(int(year) + self.years) if len(year) == 4 else f"{(int(year) + self.years) % 100:02d}"

    def _year(self, m: re.Match[str]) -> str:
        return self._other_year(m.group())

    def _time(self, m: re.Match[str]) -> str:
        hour = re.match(r"\d+", m.group())
        assert hour

        def make() -> str:
            minute = self.rng.choice(("00", "15", "30", "45", f"{self.rng.randint(0, 11) * 5:02d}"))
            rest = re.sub(r"^:\d\d", f":{minute}", m.group()[hour.end() :])
            return f"{self.rng.randint(1, 12)}{rest}"

        return self._once("time", m.group().lower().replace(" ", ""), make)

    def _ordinal(self, m: re.Match[str]) -> str:
        def make() -> str:
            n = self.rng.randint(1, 28)
            return f"{n}{'th' if 10 < n < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"

        return self._once("ordinal", m.group(), make)

    def _number(self, m: re.Match[str]) -> str:
        text = m.group().rstrip(",")
        after = m.group()[len(text) :]
        if text in ("0", "1"):
            return m.group()
        if len(text) < 3 and _AFTER_MONTH.search(m.string, max(0, m.start() - 12), m.start()):
            return self._once("day", text, lambda: str(self.rng.randint(1, 28))) + after

        def make() -> str:
            if len(text) == 1:
                return str(self.rng.randint(2, 9))
            return str(self.rng.randint(1, 9)) + re.sub(r"\d", lambda _: str(self.rng.randint(0, 9)), text[1:])

        return self._once("number", text, make) + after

    def _phone(self, m: re.Match[str]) -> str:
        """Another number in one of the usual forms, in the 555 exchange, which nobody has."""

        def make() -> str:
            area, line = self.rng.randint(201, 989), f"{self.rng.randint(0, 9999):04d}"
            return self.rng.choice((f"{area}-555-{line}", f"({area}) 555-{line}", f"{area}.555.{line}", f"555-{line}"))

        return self._once("phone", m.group(), make)

    def _mail(self, m: re.Match[str]) -> str:
        def make() -> str:
            who, where = (invented_word(self.rng, self.rng.choice((2, 3))) for _ in range(2))
            start = self.rng.choice((who, f"{who}.{invented_word(self.rng)}", f"{who[0]}{invented_word(self.rng)}"))
            return f"{start}@{where}.{self.rng.choice(('com', 'org', 'net', 'example', 'co.uk', 'edu'))}"

        return self._once("mail", m.group().lower(), make)

    def _firm(self, m: re.Match[str]) -> str:
        return _cased(self._once("firm", "enron", lambda: new_firm(self.rng)), m.group())


class Unswapped(Swap):
    """Leaves everything as it stands, for measuring on mail as it was written."""

    def person(self, p: Person) -> Person:
        return p

    def __call__(self, text: str) -> str:
        return text


_AFTER_MONTH = re.compile(r"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.? $")
_PLACES = frozenset(PLACES)
_RULES: dict[str, Callable[[Swap, re.Match[str]], str]] = {
    "keep": lambda _, m: m.group(),
    "mail": Swap._mail,
    "phone": Swap._phone,
    "weekday": Swap._weekday,
    "month": Swap._month,
    "date": Swap._date,
    "time": Swap._time,
    "year": Swap._year,
    "ordinal": Swap._ordinal,
    "number": Swap._number,
    "firm": Swap._firm,
    "word": Swap._word,
}


def _follows(text: str, end: int, start: int) -> bool:
    """Whether the word at `start` goes on from what ends at `end`: no line ends between them, but by a wrap."""
    gap = text[end:start]
    wrapped = gap.strip(" ") == "\n" and end - text.rfind("\n", 0, end) > NARROWEST
    return wrapped or (len(gap) < 2 and gap != "\n")


def _names_a_thing(m: re.Match[str]) -> bool:
    """A capitalised word within a sentence, no abbreviation."""
    word, before = m.group(), m.string[max(m.start() - 2, 0) : m.start()]
    return len(word) > 3 and word[0].isupper() and word[1:].islower() and before[:1].islower() and before[1:] == " "


def _cased(new: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return new.upper()
    return new.capitalize() if like[0].isupper() else new.lower()
