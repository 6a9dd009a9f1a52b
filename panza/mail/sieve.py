"""Why a mail is not used: a table of reasons, asked in order. Knows headers and types of parts; knows not who "me" is.

No reason depends on whose mail it is, so that a change of the user's addresses never asks for a second import.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from panza.mail.header import text
from panza.mail.mime import Mail

_GMAIL_LABELS = {
    "spam": {"spam", "pourriel"},
    "trash": {"trash", "bin", "papierkorb", "corbeille", "papelera", "cestino"},
    "draft": {"drafts", "draft", "entwürfe", "brouillons", "borradores", "bozze"},
    "chat": {"chat", "chats"},
}
_MOZILLA_DELETED = 0x0008

_AUTO_REPLY = re.compile(
    r"\s*(?:Out of (?:the )?Office|Automatic reply|Auto(?:matic)?[- ]?(?:reply|response)|Autoreply|Automatische Antwort|"
    r"Abwesenheits\w*|Réponse automatique|Absence du bureau|Respuesta automática|Fuera de la oficina|Risposta automatica|"
    r"Fuori ufficio|Undeliverable|Delivery Status Notification|Mail delivery failed|Returned mail|Unzustellbar)\b",
    re.IGNORECASE,
)
_CALENDAR = re.compile(
    r"\s*(?:CALENDAR ENTRY|TASK ASSIGNMENT|When: .{6,100}\(GMT|BEGIN:VCALENDAR|Task (?:Priority|Due On|Start Date):)"
)
_INVITATION = re.compile(
    r"(?:Accepted|Declined|Tentative|Zugesagt|Abgelehnt|Accepté|Refusé|Aceptado|Accettato): ", re.IGNORECASE
)
_ENCRYPTED = {"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime", "application/pgp-encrypted"}


def _labelled(kind: str) -> Callable[[Mail], bool]:
    return lambda mail: mail.raw.label == kind or bool(_GMAIL_LABELS[kind] & _gmail_labels(mail))


def _gmail_labels(mail: Mail) -> set[str]:
    raw = mail.headers.get("x-gmail-labels", "")
    return {label.strip(' "').lower() for label in text(raw).split(",")} if raw else set()


def _is_deleted(mail: Mail) -> bool:
    status = mail.headers.get("x-mozilla-status", "0").strip()
    return bool(re.fullmatch(r"[0-9A-Fa-f]{1,8}", status)) and bool(int(status, 16) & _MOZILLA_DELETED)


def _is_auto_reply(mail: Mail) -> bool:
    get = mail.headers.get
    return (
        get("auto-submitted", "no").strip().lower() not in ("no", "")
        or get("precedence", "").strip().lower() in ("auto_reply", "auto-reply")
        or "x-autoreply" in mail.headers
        or "x-autorespond" in mail.headers
        or bool(_AUTO_REPLY.match(mail.subject))
    )


def _is_delivery_report(mail: Mail) -> bool:
    sender = mail.sender.email if mail.sender else ""
    return "message/delivery-status" in mail.types or sender.startswith(("mailer-daemon@", "postmaster@"))


def _is_calendar(mail: Mail) -> bool:
    return (
        "text/calendar" in mail.types
        and (
            not mail.text.strip()
            or bool(_INVITATION.match(mail.subject))
            or "method=" in mail.headers.get("content-type", "")
        )
    ) or bool(_CALENDAR.match(mail.text))


REASONS: dict[str, Callable[[Mail], bool]] = {
    "no sender": lambda mail: mail.sender is None,
    "spam": _labelled("spam"),
    "trash": lambda mail: _labelled("trash")(mail) or _is_deleted(mail),
    "draft": _labelled("draft"),
    "chat": lambda mail: bool(_GMAIL_LABELS["chat"] & _gmail_labels(mail)),
    "delivery report": _is_delivery_report,
    "automatic reply": _is_auto_reply,
    "encrypted": lambda mail: bool(mail.types & _ENCRYPTED) or "-----BEGIN PGP MESSAGE-----" in mail.text,
    "calendar": _is_calendar,
    "no text": lambda mail: not mail.text.strip(),
}


def verdict(mail: Mail) -> str:
    """The first reason of `REASONS` not to use `mail`; empty if there is none."""
    return next((reason for reason, applies in REASONS.items() if applies(mail)), "")
