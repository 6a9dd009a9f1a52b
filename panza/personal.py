"""Find e-mail addresses, phone numbers and street addresses in a text. Knows surface forms; knows no mail, no model."""

from __future__ import annotations

import re
from collections.abc import Iterator

_STREET = (
    "street|st|avenue|ave|road|rd|drive|dr|lane|ln|blvd|boulevard|court|ct|way|place|pl|square|terrace|highway|hwy"
)

KINDS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+'-]+@[\w-]+(?:\.[\w-]+)+"),
    # North American and international forms; four digits at the end, so that no date or amount is one.
    "phone": re.compile(
        r"(?<![\w.$€£-])(?:\+\d{1,3}[-. /]?)?(?:1[-. ])?(?:\(\d{2,5}\)[-. ]?|\d{3}[-. /]{1,3})\d{3}[-. ]{1,2}\d{4}(?![\w-])"
        r"|(?<![\w.$€£-])\d{3}-\d{4}(?![\w-])"
        r"|(?<!\w)\+\d{1,3}(?:[-. /()]{0,2}\d{1,5}){2,5}\d(?!\w)"
    ),
    "street": re.compile(
        rf"(?<![\w-])\d{{1,5}} (?:[NSEW]\.? )?(?:[A-Z][a-z]+ ){{1,3}}(?:(?i:{_STREET})\b)|\bP\.? ?O\.? Box \d+",
    ),
}


def found(text: str, *kinds: str) -> Iterator[tuple[str, str]]:
    """(kind, as written) of the personal data in `text`, of all KINDS or of those named."""
    for kind in kinds or KINDS:
        for m in KINDS[kind].finditer(text):
            yield kind, m.group()


def invented(text: str, prompt: str, *kinds: str) -> list[tuple[str, str]]:
    """What `found` sees in `text` and `prompt` does not hold, however it is written there."""
    given = _bare(prompt)
    return [(kind, piece) for kind, piece in found(text, *kinds) if _bare(piece) not in given]


def _bare(text: str) -> str:
    """Letters, digits and @ alone, small: "(713) 853-1234" is "713.853.1234"."""
    return re.sub(r"[^\w@]|_", "", text).casefold()
