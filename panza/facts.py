"""Find the facts in a text (names, places, dates, times, amounts, numbers) and ask whether another text keeps them.

Knows surface forms, English first; knows no mail, no model and no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

# Words that are never a name, however they are capitalised.
_STOP = frozenset(
    """a about above after again all also although always am an and another any anybody anyone anything anyway
    are as asap at attn b back be because been before below best both btw but by bye can cannot cc cheers
    co could dear did do does done down due each either else etc even ever every everybody everyone
    everything far fine for from fw fwd fyi gee good great guys had has have he hello hence her here hers
    hey hi him his how however i if in indeed instead is it its just kind later least less let lol love
    many may maybe me meanwhile might mine more most much must my n/a neither never next nice no nobody
    none nor not note nothing now of off ok okay on once one only oops or other otherwise our ours out
    over per perhaps please pls ps quite rather re really regards rsvp same see shall she should since
    sincerely so some somebody someone something soon sorry still such sure tbd than thank thanks that the
    their theirs them then there therefore these they thing this those though through thus thx to too
    under unless until up us very via was we well were what whatever when whenever where wherever whether
    which while who whoever whom whose why will with within without wow would yeah yep yes yet you your
    yours mr mrs ms miss dr prof sir madam am pm""".split()
)

# A capital at the start of a sentence says nothing, unless the word is a given name that is no other English word.
_GIVEN = frozenset(
    """aaron adam adrian agnes ahmed alan albert alejandro alex alexander alice alicia alison allen amanda amy
    ana andrea andreas andrew andy angela anita ann anna anne annie anthony antonio arthur barbara becky
    ben benjamin bernard beth betty bob bobby brad brandon brenda brian bruce bryan carl carla carlos
    carol caroline catherine charles charlie charlotte chloe chris christian christina christine
    christopher claire claudia colin connie craig cynthia dan daniel danny dave david deborah debra dennis
    derek diana diane diego don donald donna doris dorothy doug douglas ed edward eileen elena eleanor
    elizabeth ellen emily emma eric erica erik eva evelyn felix fernando fiona francis francisco fred gary
    george gerald gina giulia gordon greg gregory hannah hans harold harry heather heidi helen henry holly
    howard hugo ian ines irene isabel isabella jackie jacob jake james jamie jan jane janet janice jason
    jay jean jeff jeffrey jennifer jenny jeremy jerry jessica jill jim jimmy joan joanna joe joel john
    johnny jon jonathan jose joseph joshua joyce juan judith judy julia julian julie justin karen karl
    kate katherine kathleen kathy katie keith kelly ken kenneth kevin kim kirsten klaus kristen kristin
    kyle larry laura lauren leo leslie linda lisa liz lori louis louise lucas lucy luis luke lynn marcus
    margaret maria marie marilyn mario martha martin mary matt matthew maureen max megan melanie melissa
    michael michelle miguel mike monica nancy natalie nathan neil nick nicolas nicole nina nora oliver
    olivia oscar pablo pam pamela patricia patrick paul paula pedro peggy peter phil philip phillip pierre
    priya rachel ralph randy raymond rebecca richard rick rob robert roberto robin roger ron ronald roy
    russell ruth ryan sally sam samantha samuel sandra sara sarah scott sean sebastian sergio sharon shawn
    sheila shirley simon sofia sonia sophia sophie stacy stan stefan stephanie stephen steve steven stuart
    sue susan suzanne sylvia tamara tammy tanya tara ted teresa terry theresa thomas tim timothy tina todd
    tom tommy tony tracy valerie vanessa vera veronica vicki victor victoria vince vincent virginia walter
    wanda wayne wendy william yolanda yvonne zoe""".split()
)

# Names that are words too: they count as kept only where they are capitalised.
_ALSO_WORDS = frozenset("art bill chase drew faith frank grace grant hope jack joy mark may pat rich rose".split())

_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_TEENS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
_COUNTS = {word: n for n, word in enumerate(_TEENS)} | _TENS
_SCALES = {"k": 10**3, "m": 10**6, "mm": 10**6, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_CURRENCIES = {
    **dict.fromkeys(("$", "us$", "usd", "dollar", "dollars", "bucks"), "usd"),
    **dict.fromkeys(("€", "eur", "euro", "euros"), "eur"),
    **dict.fromkeys(("£", "gbp", "pound", "pounds"), "gbp"),
}

Keys = frozenset[str]  # the readings of a fact, such as {"t180", "t900"} of "at 3"; facts that share one agree


def facts(text: str) -> list[str]:
    """The facts of `text` as written, in order, each once.

    Facts are web and mail addresses, phone numbers, dates, weekdays, clock times, amounts of money, percentages,
    numbers ("two" to "ninety" too), codes ("Q3"), and capitalised names of people, places and organisations. A capital
    at the start of a sentence or line counts only if the word is a common given name, has a second capital, is a
    possessive, or is capitalised inside a sentence too. In a text that is all capitals no names are told apart.
    """
    found: list[tuple[int, str, Keys]] = []
    rest = text
    for pattern, keys in _KINDS:
        found += [(m.start(), m.group().strip(" .,"), keys(m)) for m in pattern.finditer(rest)]
        rest = pattern.sub(lambda m: "\0" * len(m.group()), rest)
    found += [(at, name, frozenset([name.casefold()])) for at, name in _names(rest) if len(name) > 1]
    first: dict[Keys, str] = {}
    for _, fact, keys in sorted(found, key=lambda f: f[0]):
        first.setdefault(keys, fact)
    return list(first.values())


def kept(fact: str, text: str) -> bool:
    """Whether `text` says `fact`, as written or in another usual form.

    3pm = 3 pm = 3:00 p.m. = 15:00 = "at 3"; May 12 = 12th of May = 5/12; Thu = thursday; 1,000 = 1000 = 1k;
    $5k = 5000 dollars; 2 = two. Case does not count, except for names that are also words ("Will").
    """
    return _stands(fact, text) or bool(_readings(fact, whole=True) & _readings(text))


def is_name(word: str, *, starts: bool = False) -> bool:
    """Whether `word` is capitalised as a name is. starts: it opens a sentence, where a capital alone is no evidence."""
    bare = _bare(word)
    if not bare[:1].isupper() or re.split(r"n['’]t|['’]", bare)[0].casefold() in _STOP:
        return False
    return not starts or bare != word or bare.casefold() in _GIVEN or any(c.isupper() for c in bare[1:])


def _readings(text: str, whole: bool = False) -> Keys:
    """The keys of every fact but names in `text`; whole: only if it is one fact from end to end."""
    if whole:
        return frozenset().union(*(keys(m) for pattern, keys in _KINDS if (m := pattern.fullmatch(text.strip()))))
    return frozenset().union(*(keys(m) for pattern, keys in _KINDS for m in pattern.finditer(text)))


def _stands(fact: str, text: str) -> bool:
    """`fact` stands in `text` as whole words, however they are spaced."""
    words = r"\s+".join(re.escape(word) for word in fact.split())
    flags = 0 if fact.casefold() in _STOP | _ALSO_WORDS else re.IGNORECASE
    return bool(words) and re.search(rf"(?<!\w)(?<!\d[.,:/-]){words}(?!\w|[.,:/-]\d)", text, flags) is not None


# --- names

_WORD = re.compile(r"(?:[A-Z]\.){2,}|[^\W\d_](?:[\w'’&-]*\w)?")
_OPENS = re.compile(r"(?:^|[.!?…\n•*>]|\s[-–])[\s\"“‘'(*-]*$")  # what stands before the first word of a sentence
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|(?-i:[A-Z]))\.\s*$", re.IGNORECASE)


def _names(text: str) -> Iterator[tuple[int, str]]:
    """(position, name) of the runs of capitalised words."""
    if _shouts(text):
        return
    words = [(m, _opens(text, m.start())) for m in _WORD.finditer(text)]
    inside = {m.group() for m, opens in words if not opens and is_name(m.group())}
    begin = end = -1  # of the run so far
    for m, opens in words:
        if not is_name(m.group(), starts=opens and m.group() not in inside):
            continue
        if begin >= 0 and not _joins(text, end, m.start()):
            yield begin, _bare(text[begin:end])
            begin = -1
        begin, end = (m.start() if begin < 0 else begin), m.end()
    if begin >= 0:
        yield begin, _bare(text[begin:end])


def _joins(text: str, end: int, start: int) -> bool:
    """The gap between two capitalised words does not part two names: "Anna Lee", "J. Lee", "AT & T"."""
    gap = text[end:start]
    return (gap in (" ", " & ") and text[end - 2] not in "'’") or (gap == ". " and text[max(0, end - 2)] in " J")


def _shouts(text: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return len(letters) > 12 and sum(c.isupper() for c in letters) > 0.7 * len(letters)


def _opens(text: str, at: int) -> bool:
    before = text[max(0, at - 12) : at]
    return _OPENS.search(before) is not None and not _ABBREVIATION.search(before)


def _bare(word: str) -> str:
    return re.sub(r"['’][sS]?$", "", word)


# --- figures

_FIGURE = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SCALE = r"(?:\s?(?:k|mm?|hundred|thousand|million|billion)\b)?"
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"(?P<day>[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?\b"
_YEAR = r"(?:(?:,\s*|\s+)(?:19|20)\d\d\b)?"
_COUNT = "|".join([*_TEENS[2:], *_TENS])  # "one" and "zero" are words more often than counts


def _same(m: re.Match[str]) -> Keys:
    return frozenset([m.group().casefold()])


def _digits(m: re.Match[str]) -> Keys:
    return frozenset(["tel" + re.sub(r"\D", "", m.group())])


def _weekday(m: re.Match[str]) -> Keys:
    return frozenset([m.group().casefold()[:3]])


def _month(m: re.Match[str]) -> Keys:
    return frozenset([m["month"].casefold()[:3]])


def _date(m: re.Match[str]) -> Keys:
    """Month and day; a year is not compared, for mails leave it out."""
    month = m["month"].casefold()[:3]
    return frozenset([f"d{int(month) if month.isdigit() else _MONTHS.index(month) + 1}-{int(m['day'])}"])


def _slashed(m: re.Match[str]) -> Keys:
    """5/6 is read both ways."""
    a, b = int(m["a"]), int(m["b"])
    return frozenset(f"d{month}-{day}" for month, day in ((a, b), (b, a)) if 1 <= month <= 12 and 1 <= day <= 31)


def _time(m: re.Match[str]) -> Keys:
    """Minutes since midnight, in both halves of the day where "am" or "pm" is missing."""
    part = m.groupdict()
    hour, minute, half = int(part["hour"]), int(part.get("minute") or 0), (part.get("half") or "").casefold()
    if hour == 0 or hour > 12:
        return frozenset([f"t{hour * 60 + minute}"])
    halves = {"a": [0], "p": [12], "": [0, 12]}[half]
    return frozenset(f"t{(hour % 12 + late) * 60 + minute}" for late in halves)


def _noon(m: re.Match[str]) -> Keys:
    return frozenset(["t720" if m.group().casefold() == "noon" else "t0"])


def _numeral(text: str) -> str:
    """ "1,000", "1k", "1.5 million" or "two" as a plain decimal."""
    m = re.fullmatch(rf"({_FIGURE}|[a-z]+)(?:st|nd|rd|th)?\s?([a-z]*)", text.casefold())
    assert m, "a pattern took for a number what is none"
    value = Decimal(m[1].replace(",", "")) if m[1][0].isdigit() else Decimal(_COUNTS[m[1]])
    return f"{(value * _SCALES.get(m[2], 1)).normalize():f}"


def _number(m: re.Match[str]) -> Keys:
    return frozenset(["n" + _numeral(m["n"])])


def _percent(m: re.Match[str]) -> Keys:
    return frozenset(["%" + _numeral(m["n"])])


def _money(m: re.Match[str]) -> Keys:
    return frozenset([_CURRENCIES[m["unit"].casefold()] + _numeral(m["n"])])


_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE), keys)
    for pattern, keys in (  # what an earlier row took, a later one does not see
        (r"(?:https?://|www\.)[^\s<>]*[\w/]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _same),
        (r"(?<![\w-])(?:\+?\d{1,3}[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}\b|\b\d{3}-\d{4}\b", _digits),
        (rf"(?<!\w){_MONTH}\s*{_DAY}(?![:\d]){_YEAR}", _date),
        (rf"(?<![\w:.]){_DAY}\s*(?:of\s+)?{_MONTH}{_YEAR}", _date),
        (r"\b\d{4}-(?P<month>0?[1-9]|1[0-2])-(?P<day>[12]\d|3[01]|0?[1-9])\b", _date),
        (
            r"(?<![\d/.])(?!24/7)(?P<a>[12]\d|3[01]|0?[1-9])/(?P<b>[12]\d|3[01]|0?[1-9])(?:/(?:\d\d){1,2})?(?![\d/])",
            _slashed,
        ),
        (r"(?<![\d.])(?P<a>[12]\d|3[01]|0?[1-9])\.(?P<b>1[0-2]|0?[1-9])\.(?:(?:19|20)?\d\d\b|(?!\d))", _slashed),
        (r"(?<![\w:.])(?P<hour>1\d|2[0-3]|0?\d)(?:[:.](?P<minute>[0-5]\d))?\s?(?P<half>[ap])(?:m\b|\.m\.)", _time),
        (r"(?<![\w:.])(?P<hour>1\d|2[0-3]|0?\d)[:h](?P<minute>[0-5]\d)(?![\d:])", _time),
        (r"\bat (?P<hour>1[0-2]|[1-9])(?![\w%]|[.,:/-]\d| ?(?:[%€£]|dollars|percent))", _time),
        (r"\b(?:noon|midnight)\b", _noon),
        (rf"(?P<unit>US\$|[$€£])\s?(?P<n>{_FIGURE}{_SCALE})", _money),
        (
            rf"(?<![\w.,])(?P<n>(?:{_FIGURE}|\b(?:{_COUNT}))\b{_SCALE})\s?(?P<unit>€|£|(?:usd|eur|gbp|dollars|bucks|euros?|pounds)\b)",
            _money,
        ),
        (rf"(?<![\w.,])(?P<n>{_FIGURE})\s?(?:%|per\s?cent\b)", _percent),
        (
            r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b"
            r"|\b(?-i:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun(?! [A-Z]))\b",
            _weekday,
        ),
        (r"\b(?:today|tonight|tomorrow|yesterday)\b", _same),
        (rf"\b(?<!-)(?-i:(?=[A-Z]))(?!may (?:i|we|you)\b){_MONTH}", _month),
        (
            rf"(?<![\w.,])(?P<n>{_FIGURE}(?:(?:st|nd|rd|th)\b|(?=\s?[ap]\.?m\b)|{_SCALE}(?!\w|[.,]\d))"
            rf"|\b(?:{_COUNT})\b(?:\s(?:hundred|thousand|million|billion)\b)?)",
            _number,
        ),
        (r"\b(?=[a-z-]*\d)(?=[\d-]*[a-z])[a-z\d]+(?:-[a-z\d]+)*\b", _same),
    )
)
