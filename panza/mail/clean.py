"""A mail's text to the words its author wrote. Knows lines and languages; knows no MIME, no store, no model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from panza.mail import quotes
from panza.mail.signature import without_signature
from panza.mail.wrap import unwrap

MAX_QUOTED = 8000  # characters kept of the mail answered


@dataclass(frozen=True, slots=True)
class Words:
    """`own`: what the author wrote, hard wraps undone. `quoted`: the mail answered or forwarded under it."""

    own: str
    quoted: str


def clean(text: str, author: str = "") -> Words:
    """The author's own words and the quoted remainder of `text`.

    author: the sender's display name; it tells a name under a letter from its last line.
    """
    text = _ARMOUR.sub("", text) if "-----BEGIN PGP" in text else text
    own, quoted = quotes.part(text.split("\n"))
    own = without_signature(_without_footers(own), author)
    return Words(_tidy(unwrap(own, author)), _tidy("\n".join(line.rstrip() for line in quoted))[:MAX_QUOTED])


_ARMOUR = re.compile(
    r"-----BEGIN PGP SIGNED MESSAGE-----\n(?:[A-Z][\w-]*:[^\n]*\n)*\n?"
    r"|-----BEGIN PGP (?:SIGNATURE|PUBLIC KEY BLOCK)-----.*?(?:-----END PGP (?:SIGNATURE|PUBLIC KEY BLOCK)-----|\Z)",
    re.DOTALL,
)

# Lines that no author wrote: dropped wherever they stand.
_LINES = re.compile(
    r"""^[ \t]*(?:
    [\[(*_-]{0,8}(?:
        Sent\ (?:from|via|using|with)\ (?:my\ |an?\ |the\ )?[A-Z]?[\w' .+/-]{2,40}?(?:\ on\ .{2,30}|\ powered\ by.*|\ for\ .{2,30})?
      | Get\ Outlook\ for\ \w+.*
      | (?:Diese\ Nachricht\ wurde\ )?(?:Von|Gesendet\ (?:von|mit))\ (?:meinem?r?\ )?[\w' .+-]{2,40}?(?:\ gesendet)?
      | Gesendet\ mit\ der\ .{3,40}
      | Envoyé\ (?:de|depuis|à\ partir\ de|avec)\ (?:mon\ |ma\ |l['’])?[\w' .+-]{2,40}
      | Enviado\ (?:desde|de|con)\ (?:mi\ |meu\ |el\ )?[\w' .+-]{2,40}
      | Inviato\ (?:da|dal|dallo|con)\ (?:mio\ |il\ mio\ )?[\w' .+-]{2,40}
      | Verzonden\ (?:vanaf|met)\ .{2,40} | Skickat\ från\ .{2,40} | Sendt\ fra\ .{2,40}
      )[.\])*_]*
    | <{1,2}\s*(?:File|Datei|Fichier):.{1,200}>{1,2}(?:\s*<{1,2}.{1,200}>{1,2})*
    | (?:<<[^<>\n]{1,120}>>\s*)+
    | \(See\ attached\ file:.{1,300}\)
    | \[(?:cid|image|inline\ image|Bild|Logo)\b[^\]]{0,200}\]
    | -\s[\w .,()&'+-]{1,80}\.(?:gif|jpe?g|png|bmp|vcf|docx?|xlsx?|pptx?|pdf|zip|txt|htm|html|mdb|exe|dat|wav|mpg|ics)
    | \[?\**(?:EXTERNAL|EXTERN|CAUTION|ACHTUNG)\b.{0,40}(?:E-?MAIL|SENDER|MAIL)\b.{0,200}
    )[ \t]*$""",
    re.VERBOSE | re.MULTILINE,
)
_DEVICE = re.compile(
    r"iPhone|iPad|BlackBerry|Samsung|Galaxy|Android|Handy|[Tt]elefon|[Pp]hone|Mobil|mobile|Outlook|Mail|Nokia|Yahoo|Huawei|"
    r"Xiaomi|Windows|Thunderbird|wireless|[Hh]andheld|Treo|tablet|Tablet|Mac\b|Watch|Pixel|Proton|GMX|WEB\.DE|móvil|"
    r"portable|cellulare|smartphone|Smartphone|device|dispositivo|appareil"
)

# From a line that matches to the end, nothing is the author's: list footers, advertisements, disclaimers.
_TAILS = re.compile(
    r"""^(?:[ \t*>_-]{0,20}(?:
      (?:To\ unsubscribe|To\ subscribe|You\ received\ this\ (?:message|e?-?mail)\ because|You\ are\ receiving\ this|
         Unsubscribe:|Um\ sich\ ab(?:zu)?melden|Pour\ vous\ désabonner|Para\ cancelar\ (?:la|su)\ suscripción|
         Per\ (?:cancellarsi|annullare\ l['’]iscrizione)|Mailing-?[Ll]ist(?:e)?:|List\ info:|
         Yahoo!\ Groups|Your\ use\ of\ Yahoo!\ Groups)
    | (?:Do\ You\ Yahoo|Get\ [Yy]our\ (?:[Pp]rivate,\ )?[Ff]ree\ [Ee]?-?[Mm]ail|Get\ your\ FREE\ download|MSN\ Photos\ is|
         Join\ the\ world['’]s\ largest\ e-mail|Chat\ with\ friends\ online|Send\ and\ receive\ Hotmail|
         Download\ MSN|Add\ photos\ to\ your\ (?:messages|e-mail)|FREE!?\ (?:The\ world's|e-?mail)|
         Virus-free|Virenfrei|This\ email\ has\ been\ checked\ for\ viruses|Diese\ E-Mail\ wurde\ von\ Avast|
         Please\ consider\ the\ environment|P\ Please\ consider|Bitte\ denken\ Sie\ an\ die\ Umwelt|
         Pensez\ à\ l['’]environnement|N['’]imprimez)
    | (?:This|The)\ (?:e-?mail|message|electronic|communication|information|transmission|document|content)[^.]{0,300}
         (?:confidential|privileged|property\ of|intended\ (?:only|solely|for)|proprietary)
    | (?:CONFIDENTIALITY|DISCLAIMER|PRIVILEGED|IMPORTANT\ NOTICE|LEGAL\ NOTICE|NOTICE:)[^.]{0,60}(?:NOTICE|:)
    | If\ you\ (?:are\ not\ the\ intended|have\ received\ this\ (?:e-?mail|message|communication))
    | Diese\ (?:E-?Mail|Nachricht)[^.]{0,200}(?:vertraulich|ausschließlich)
    | Der\ Inhalt\ dieser\ E-?Mail[^.]{0,100}vertraulich
    | (?:Ce\ (?:message|courriel|mail)|Les\ informations\ contenues)[^.]{0,200}(?:confidentiel|destinataire)
    | (?:Este\ (?:mensaje|correo)|La\ información\ contenida)[^.]{0,200}(?:confidencial|destinatari)
    | (?:Questo\ messaggio|Questa\ e-?mail|Le\ informazioni\ contenute)[^.]{0,200}(?:riservat|confidenzial|destinatari)
    | (?:AVISO\ LEGAL|AVVISO\ DI\ RISERVATEZZA|AVIS\ DE\ CONFIDENTIALITÉ|HAFTUNGSAUSSCHLUSS)
    ) | [-_=*][-_=* ]{3,120}\n[^\n]{1,120}\ (?:mailing[ -]list|Mailingliste)\b )""",
    re.VERBOSE | re.MULTILINE,
)
_RULE = re.compile(r"\s*(?:[-_=*~#+.]\s?){4,}\s*$")


def _without_footers(lines: list[str]) -> list[str]:
    text = "\n".join(lines)
    tail = _TAILS.search(text)
    text = text[: tail.start()] if tail else text
    if _LINES.search(text):
        text = "\n".join(line for line in text.split("\n") if not _is_machine_line(line))
    return _without_rules(text.split("\n"))


def _is_machine_line(line: str) -> bool:
    if len(line) > 300 or not _LINES.match(line):
        return False
    stripped = line.strip(" \t*_")
    return not stripped[:1].isalpha() or bool(_DEVICE.search(stripped)) or stripped.startswith("EXTERN")


def _without_rules(lines: list[str]) -> list[str]:
    """Without empty lines and drawn lines at the end."""
    end = len(lines)
    while end and (not lines[end - 1].strip() or _RULE.match(lines[end - 1])):
        end -= 1
    return lines[:end]


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip()
