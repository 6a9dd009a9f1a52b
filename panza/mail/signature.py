"""Find the block of name, title, phone and address under a letter. Keeps the closing words and the name: they are style."""

from __future__ import annotations

import re
from collections.abc import Sequence

REACH = 16  # lines looked at from the end

_CLOSINGS = (
    # English
    r"(?:many |best |kind(?:est)? |warm(?:est)? |my best |with (?:best|kind|warm) )?(?:regards|wishes|greetings)",
    r"(?:many |much )?thanks(?: (?:again|so much|a lot|very much|in advance|much|a million|and (?:best )?regards))?",
    r"thank you(?: (?:again|very much|so much|in advance))?|thx|tks|tx|ty|best|all (?:the|my) best|cheers|take care",
    r"(?:yours|very truly yours|yours (?:truly|sincerely|faithfully|ever))|sincerely(?: yours)?|respectfully|cordially",
    r"love(?: you)?|lots of love|later|talk (?:to you )?(?:soon|later)|see (?:you|ya)(?: (?:soon|later|then|there))?|bye|xoxo?",
    # German
    r"(?:mit )?(?:freundliche[nm]?|beste[nm]?|herzliche[nm]?|liebe[nm]?|sch[öo]ne[nm]?|viele[nm]?) "
    r"(?:gr(?:ü|ue)(?:ß|ss)en?|gru(?:ß|ss)|dank)(?: aus \w+)?",
    r"(?:viele |liebe |beste |herzliche |schöne )?gr(?:ü|ue)(?:ß|ss)e|gru(?:ß|ss)|lg|vg|bg|mfg|mit freundlichem gru(?:ß|ss)",
    r"danke(?: (?:schön|dir|ihnen|euch|sehr|vorab|im voraus))?|vielen dank|herzlichst?|bis (?:bald|dann|morgen|später)|tschüss",
    # French
    r"(?:bien |très )?(?:cordialement|amicalement|sincèrement)|bien à (?:vous|toi)|merci(?: (?:beaucoup|d['’]avance|encore))?",
    r"(?:meilleures|sincères|cordiales) salutations|salutations(?: distinguées)?|bises|bisous|à (?:bientôt|plus|demain)",
    # Spanish
    r"(?:un |muchos |cordiales )?(?:cordial )?saludos?(?: cordial(?:es)?)?|atentamente|cordialmente|(?:muchas |mil )?gracias",
    r"(?:un )?(?:fuerte )?abrazos?|besos|hasta (?:pronto|luego|mañana)",
    # Italian
    r"(?:cordiali|distinti|cari|tanti) saluti|saluti|(?:mille |molte )?grazie(?: mille)?|(?:un )?abbraccio|a presto|ciao|un caro saluto",
)
_SIGN_OFF = re.compile(rf"\W{{0,3}}(?:{'|'.join(_CLOSINGS)})[\s,.!;:~–-]*", re.IGNORECASE)


def is_sign_off(line: str) -> bool:
    """Whether the whole line closes a letter: "Thanks," "Mit freundlichen Grüßen"."""
    return len(line) < 60 and bool(_SIGN_OFF.fullmatch(line.strip()))


_PHONE = re.compile(r"(?:\+|\(|\b)\d[\d\s()/.–-]{5,}\d\b|\b[xX]-?\d{4,5}\b")
_LABEL = re.compile(
    r"\b(?:tél|tel|telephone|phone|ph|fax|facsimile|cell|cellular|mobile|mobil|mob|office|direct|desk|home|work|pager|voice|ext|"
    r"telefon|handy|durchwahl|téléphone|portable|teléfono|móvil|telefono|cellulare|e-?mail(?: address)?|mail|web|www|skype|"
    r"[tfmpoce])\b\.?\s*[:#]?|\(\s*[a-z]+\s*\)",
    re.IGNORECASE,
)
_NET = re.compile(r"<?(?:mailto:)?[\w.+-]+@[\w-]+(?:\.[\w-]+)+>?|(?:https?://|www\.)\S+")
_PLACE = re.compile(
    r"\b[A-Z]{2}\.?,?\s+\d{5}(?:-\d{4})?\b|\b(?:D-|F-|I-|CH-|A-)?\d{4,5}\s+[A-ZÄÖÜ][a-zäöüß]+|\bP\.?\s?O\.? Box\b"
    r"|\b\d{1,5}\s+(?:[NSEW]\.? )?[A-Z][\w. ]{2,30}\b(?:Street|St|Avenue|Ave|Road|Rd|Drive|Dr|Lane|Ln|Blvd|Suite|Floor|Plaza)\b"
    r"|(?:[Ss]traße|[Ss]trasse|[Ss]tr\.|[Pp]latz|[Ww]eg)\s+\d+|\b(?:rue|avenue|boulevard|via|viale|piazza|calle)\s+[A-Z]\w*"
)
_ROLE = re.compile(
    r"\b(?:director|manager|president|counsel|analyst|assistant|engineer|professor|associate|secretary|attorney|consultant|"
    r"officer|ceo|cto|cfo|department|dept|division|university|institute|inc|corp|corporation|company|llc|llp|l\.p|ltd|gmbh|"
    r"ag|s\.a|s\.r\.l|leiter|leiterin|geschäftsführer(?:in)?|abteilung|directeur|directrice|gerente|direttore|ufficio)\b",
    re.IGNORECASE,
)
_SMALL = frozenset("of and the for in at de der des du la le und et y e i del della van von & | / - – , • · to".split())


def without_signature(lines: Sequence[str], author: str = "") -> list[str]:
    """`lines` without the block of name, title, phone and address at their end; its closing and first name stay."""
    lines = _strip(list(lines))
    delimiter = next(
        (i for i, line in enumerate(lines) if _is_delimiter(lines, i, line) or _opens_card(lines, i, author)),
        len(lines),
    )
    lines = _strip(lines[:delimiter])
    start = _block_start(lines)
    block = lines[start:]
    if not any(_is_contact(line) or _ROLE.search(line) for line in block):
        return lines
    name = _name_at(block, author)
    if name >= 0:
        return _strip(lines[: start + name + 1]) if any(map(_is_evidence, block[name + 1 :])) else lines
    closed = start and is_sign_off(_above(lines, start))
    return _strip(lines[:start]) if closed else lines


def _is_delimiter(lines: Sequence[str], i: int, line: str) -> bool:
    """The line "-- " of RFC 3676; without its space it counts if little follows."""
    return line == "-- " or (line.strip() in ("--", "—", "- --") and len(lines) - i <= 12)


def _opens_card(lines: Sequence[str], i: int, author: str) -> bool:
    """Whether line i is drawn above a card of names and numbers that ends the mail. Under a heading it is no such line."""
    if len(lines) - i > REACH or not _RULE.fullmatch(lines[i].strip()):
        return False
    above, card = lines[i - 1].strip() if i else "", [line for line in lines[i + 1 :] if line.strip()]
    if above and not is_sign_off(above) and not _known(author) & _known(above):
        return False
    plain = all(_is_contact(line) or (_is_label(line) and not is_sign_off(line)) for line in card)
    return plain and any(map(_is_contact, card))


_RULE = re.compile(r"([=_*~#-])\1{4,}")


def _known(name: str) -> set[str]:
    return set(re.findall(r"\w{3,}", name.lower()))


def _block_start(lines: Sequence[str]) -> int:
    """Where the run of short, capitalised or contact lines at the end of the mail begins."""
    start = len(lines)
    for i in range(len(lines) - 1, max(len(lines) - REACH, 0) - 1, -1):
        line = lines[i]
        if line.strip():
            if is_sign_off(line) or not (_is_contact(line) or _is_label(line)):
                break
            start = i
    return start


def _is_evidence(line: str) -> bool:
    return _is_contact(line) or bool(_ROLE.search(line))


def _is_contact(line: str) -> bool:
    """Whether `line` is a phone number, an address or a link with hardly a word besides."""
    if len(line) > 120 or not (_PHONE.search(line) or _NET.search(line) or _PLACE.search(line)):
        return False
    rest = _LABEL.sub(" ", _PLACE.sub(" ", _NET.sub(" ", _PHONE.sub(" ", line))))
    return all(_is_capital(word) for word in re.findall(r"[^\W\d_]{2,}", rest))


def _is_label(line: str) -> bool:
    """Whether `line` is a name, a title or a company: short, capitalised, no sentence."""
    text = line.strip(" \t*_|")
    if not text or len(text) > 70 or text[-1] in "?!:;" or (text[-1] == "." and not _ROLE.search(text)):
        return False
    return all(map(_is_capital, re.findall(r"[^\W\d_][\w'’.-]*", text)))


def _is_capital(word: str) -> bool:
    return word[0].isupper() or word.lower() in _SMALL


def _name_at(block: Sequence[str], author: str) -> int:
    """The line of `block` that is the author's name; its first line if that looks like a name; else -1."""
    known = _known(author)
    named = [i for i, line in enumerate(block) if _is_name(line) and known & _known(line)]
    if named:
        return named[0]
    return 0 if block and not known and _is_name(block[0]) else -1


def _is_name(line: str) -> bool:
    words = line.strip(" \t,.*_-").split()
    return 0 < len(words) <= 4 and not re.search(r"[\d@:/]", line) and all(w[0].isupper() for w in words)


def _above(lines: Sequence[str], i: int) -> str:
    return next((line for line in reversed(lines[:i]) if line.strip()), "")


def _strip(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
