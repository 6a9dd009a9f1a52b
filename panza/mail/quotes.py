"""Where a mail's own words end and the mail it answers or forwards begins. Knows lines; knows no MIME, no store.

Every detector of `DETECTORS` has the form ``(lines, i) -> n``: n lines from line i on are the header of a quoted mail
(0: they are not). A new mail program's habit is one more detector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

Lines = Sequence[str]

MAX_QUOTED = 400  # lines kept of the mail answered
LOOK_AHEAD = 60  # lines that a header block may span: some name a hundred recipients

# Language: (how an attribution begins, its verb). "On Tue, 3 May 2022 at 10:00, Anna Lee <anna@example.org> wrote:"
_ATTRIBUTIONS = {
    "en": ("On", r"wrote|writes|said"),
    "de": ("Am", r"schrieb|geschrieben"),
    "fr": ("Le", r"a écrit|écrivait|écrit"),
    "es": ("El", r"escribió|escribía"),
    "it": ("Il|In data", r"ha scritto|scrive"),
    "pt": ("Em|No dia", r"escreveu"),
    "nl": ("Op", r"schreef|geschreven"),
    "sv, da, no": ("Den|Fra|På", r"skrev"),
    "pl": ("W dniu|Dnia", r"napisał(?:\(a\)|a)?|pisze"),
    "fi": ("", r"kirjoitti"),
    "cs": ("Dne|", r"napsal(?:\(a\)|a)?"),
    "ru": ("", r"пишет|написал(?:\(а\)|а)?"),
    "ja": ("", r"のメール|wrote"),
}
_START = re.compile(
    rf"[ \t]*(?:{'|'.join(s for pair in _ATTRIBUTIONS.values() for s in pair[0].split('|') if s)})(?=[ \t]+\S)"
)
VERB = re.compile(rf"(?:^|[\s>)]|\b)(?:{'|'.join(verb for _, verb in _ATTRIBUTIONS.values())})\b")
_WHEN = re.compile(r"\d{1,2}[:.h]\d\d|\b(?:19|20)\d\d\b|[^\s@<]+@[^\s@>]+\.\w+")
_DATED = re.compile(r"\b(?:19|20)\d\d\b|@")
_ADDRESS = re.compile(r"<[^\s<>@]+@[^\s<>@]+>")


def attribution(lines: Lines, i: int) -> int:
    """ "On …, Anna wrote:" in many languages, on one to four lines; "Anna wrote:" right above a `>` line."""
    if not _START.match(lines[i]) and not any(line.rstrip().endswith((":", "：")) for line in lines[i : i + 2]):
        return 0
    text = ""
    for n, line in enumerate(lines[i : i + 4], 1):
        if not line.strip():
            return 0
        text = f"{text} {line.strip()}".lstrip()
        if text.endswith((":", "：")) and len(text) < 400:
            return n if _attributes(text, _quote_follows(lines, i + n)) else 0
        if not _START.match(text) and not _DATED.search(line):
            return 0  # a line of the author's above "Anna wrote:"
    return 0


def _attributes(text: str, quote_follows: bool) -> bool:
    if not VERB.search(text):
        return False
    named = bool(_ADDRESS.search(text)) and text.count(".") < 12
    if _START.match(text):
        return quote_follows and bool(re.search(r"\d", text)) or bool(_WHEN.search(text) and re.search(r"\d", text))
    return named or (quote_follows and len(text) < 120)


def _quote_follows(lines: Lines, i: int) -> bool:
    return next((line.lstrip().startswith((">", "|")) for line in lines[i : i + 3] if line.strip()), False)


# Header fields as mail programs print them above a quoted mail.
_FIELDS = {
    "from": "From|Von|De|Da|Expéditeur|Remitente|Mittente|Absender|Van|Från|Fra|Od|Lähettäjä|От|发件人|差出人",
    "sent": "Sent|Date|Gesendet|Datum|Envoyé|Envoyé le|Enviado|Enviado el|Fecha|Inviato|Data|Verzonden|Skickat|Sendt|"
    "Wysłano|Lähetetty|Received|Reçu|Дата|发送时间|送信日時",
    "to": "To|An|À|A|Para|Destinataire|Destinatario|Aan|Till|Til|Do|Komu|Vastaanottaja|Кому|收件人|宛先",
    "cc": "Cc|Bcc|Kopie|Copie|CC à|Copia|Kopi|Kopia|抄送",
    "subject": "Subject|Betreff|Objet|Asunto|Oggetto|Assunto|Onderwerp|Ämne|Emne|Temat|Předmět|Aihe|Тема|主题|件名",
    "other": "Importance|Sensitivity|Reply-To|Attachments|Priority|Wichtigkeit|Antwort an|Organization|Newsgroups|Anlagen",
}
_KIND = {name.lower(): kind for kind, names in _FIELDS.items() for name in names.split("|")}


def field_kind(line: str) -> str:
    """The kind of header field that `line` begins with, or nothing."""
    name, colon, _ = line[:40].replace("：", ":").partition(":")
    return _KIND.get(name.strip(" \t>|*_").lower(), "") if colon else ""


def header_block(lines: Lines, i: int, need: int = 3) -> int:
    """ "From: … Sent: … To: … Subject: …", in any order that begins with the sender, the date or the subject."""
    first = field_kind(lines[i])
    return _block(lines, i, {first}, need) if first in ("from", "sent", "subject") else 0


def _block(lines: Lines, i: int, kinds: set[str], need: int) -> int:
    """Lines of the header block at i if it shows `need` kinds of field (Cc and the like do not count), else 0."""
    end = i
    for j in range(i + 1, min(i + LOOK_AHEAD, len(lines))):
        kind = field_kind(lines[j])
        if kind:
            kinds, end = kinds | {kind}, j
        elif j - end > (1 if "subject" in kinds else 3) and not _is_recipients(lines[j]):
            break
        elif "subject" in kinds and not lines[j].strip():
            break
        elif _is_recipients(lines[j]) and "subject" not in kinds:
            end = j
    return end - i + 1 if len(kinds - {"cc", "other"}) >= need else 0


def _is_recipients(line: str) -> bool:
    """Whether `line` goes on with a list of names or addresses."""
    return line.rstrip().endswith((";", ",")) or line.count("@") > 1 or line.count(";") > 1


DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{2,4},?\s+\d{1,2}[:.]\d\d(?:[:.]\d\d)?(?:\s*[AP]M)?"
_DATE_LINE = re.compile(rf"\s*{DATE}(?:\s+(?:[A-Z]{{2,4}}|[+-]\d{{4}}))?\s*$")
_ON_DATE = re.compile(rf".*\S\s+(?:on\s+)?{DATE}(?:\s+[A-Z]{{2,4}})?\s*$")
_TIME = re.compile(r"\d[:.]\d\d")
_BETWEEN = re.compile(r"\s*$|\s*(?:[AP]M|Sent by:.*|Please respond to.*|To:|Enron .{3,40}|\S+@\S+)\s*$", re.I)


def lotus(lines: Lines, i: int) -> int:
    """Lotus Notes: a name, a date and time below it or beside it ("X on 01/22/2001 09:18 AM"), then To, cc, Subject."""
    if _DATE_LINE.match(lines[i]) or (_TIME.search(lines[i]) and _ON_DATE.match(lines[i])):
        date = i
    elif i + 1 < len(lines) and _DATE_LINE.match(lines[i + 1]) and lines[i].strip():
        date = i + 1
    else:
        return 0
    for j in range(date + 1, min(date + 6, len(lines))):
        if field_kind(lines[j]) in ("to", "cc", "subject"):
            return j - i + _block(lines, j, {field_kind(lines[j])}, need=1)
        if not _BETWEEN.match(lines[j]):
            return 0
    return 0


def bare_header(lines: Lines, i: int) -> int:
    """Lotus Notes without name and date: To, cc and Subject at the start of lines."""
    return _block(lines, i, {"to"}, need=2) if lines[i].startswith(("To:\t", "\tTo:\t", "To: \t")) else 0


_MARKS = (
    r"Original Message|Original Appointment|Original E-?mail|Ursprüngliche Nachricht|Original-?Nachricht|"
    r"Message d['’]origine|Message original|E-?mail d['’]origine|Mensaje original|Messaggio originale|"
    r"Mensagem original|Oorspronkelijk bericht|Ursprungligt meddelande|Oprindelig meddelelse|"
    r"Forwarded (?:message|by|e-?mail|with)|Weitergeleitete? (?:Nachricht|von)|Message transf[ée]r[ée]|Transf[ée]r[ée] par|"
    r"Message transmis|Mensaje reenviado|Reenviado por|Messaggio inoltrato|Inoltrato da|Mensagem encaminhada|"
    r"Doorgestuurd bericht|Vidarebefordrat|Videresendt|Reply Separator|Inline attachment follows|Antwort-Trennzeichen|Fwd:"
)
MARK = re.compile(rf"[ \t>*]*[-_=*]{{2,}}[ \t]*(?:{_MARKS})", re.I)
_BEGIN = re.compile(
    r"[ \t>*]*(?:Begin forwarded message|Anfang der weitergeleiteten (?:E-?Mail|Nachricht)|D[ée]but du (?:message|mail) "
    r"(?:transf[ée]r[ée]|r[ée]exp[ée]di[ée])|Inicio del mensaje reenviado|Inizio (?:del )?messaggio inoltrato)\s*:?\s*$",
    re.I,
)
GROUPWISE = re.compile(r"\s*>>>? .{2,120}\d{1,2}[:.]\d\d.{0,20}>>>\s*$")
_RULE = re.compile(r"[ \t]*[_-]{10,}[ \t]*$")


def mark(lines: Lines, i: int) -> int:
    """ "-----Original Message-----", "---- Forwarded by … ----" and their like, with the header below them."""
    line = lines[i]
    if _RULE.match(line):  # the line that Outlook draws above a header
        below = _next_words(lines, i + 1)
        n = header_block(lines, below) if below - i <= 3 and below < len(lines) else 0
        return below - i + n if n else 0
    if not (MARK.match(line) or _BEGIN.match(line) or GROUPWISE.match(line)):
        return 0
    end = i + 1
    if "by" in line.lower() and not line.rstrip().endswith("-"):  # wrapped: "… on 01/22/2001" / "04:09 PM -----"
        end += next((n for n, more in enumerate(lines[end : end + 2], 1) if more.rstrip().endswith("---")), 0)
    below = _next_words(lines, end)
    n = max(header_block(lines, below, 2), lotus(lines, below), bare_header(lines, below)) if below < len(lines) else 0
    return (below if n else end) + n - i


def _next_words(lines: Lines, i: int) -> int:
    return next((j for j in range(i, len(lines)) if lines[j].strip()), len(lines))


DETECTORS: tuple[Callable[[Lines, int], int], ...] = (mark, attribution, header_block, lotus, bare_header)
_PLAIN_LINE = re.compile(rf"(?!{_START.pattern})[ \t]*(?:$|[^-_=*\s:：]{{1,40}}[^:：]*$)")


def header_at(lines: Lines, i: int) -> int:
    """How many lines from i on are the header of a quoted mail; 0 if none begins here."""
    return next((n for detect in DETECTORS if (n := detect(lines, i))), 0)


def _suspects(lines: Lines) -> list[bool]:
    """For each line whether a header may begin there: most lines have no colon, no drawn line, and none below them."""
    odd = [not _PLAIN_LINE.match(line) for line in lines] + [False]
    return [here or below for here, below in pairwise(odd)]


def part(lines: Lines) -> tuple[list[str], list[str]]:
    """(own lines, quoted lines without their `>` but with their headers). Answers between quotes stay own."""
    own: list[str] = []
    quoted: list[str] = []
    suspects = _suspects(lines)
    i = 0
    while i < len(lines):
        line = lines[i]
        is_quote = line.startswith(">") and not (line.startswith(">>>") and GROUPWISE.match(line))
        n = header_at(lines, i) if suspects[i] and not is_quote else 0
        if n and not _quote_follows(lines, i + n):
            return own, quoted + [_unquoted(line) for line in lines[i : i + MAX_QUOTED]]
        if n:
            quoted += lines[i : i + n]
        elif is_quote or (quoted and (line.lstrip().startswith(">") or _is_wrap_rest(lines, i))):
            quoted.append(_unquoted(line))
        else:
            own.append(line)
        i += n or 1
    return own, quoted


def _unquoted(line: str) -> str:
    text = line.lstrip()
    return text[1:].removeprefix(" ") if text.startswith(">") else line


def _is_wrap_rest(lines: Lines, i: int) -> bool:
    """The end of a quoted line that a mail program wrapped without repeating the `>`."""
    if not 0 < i < len(lines) - 1 or not lines[i].strip() or not lines[i + 1].startswith(">"):
        return False
    above = lines[i - 1].rstrip()
    return above.startswith(">") and len(above) >= 60 and above[-1] not in ".?!:" and len(lines[i].split()) <= 3
