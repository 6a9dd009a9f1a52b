"""What the page shows, as HTML strings. Knows the nouns; every word of a mail goes through `plain` on its way."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable
from typing import Any

from panza.types import Draft, Message, Thread
from panza.web.desk import IMPORT
from panza.web.work import Step, Work

NEW_MAIL = ("A new mail\nto anyone", "")
KEYS = "Ctrl + Enter drafts · Esc stops"
LIMIT = 20_000  # characters of one mail that the page shows


def plain(text: str) -> str:
    """`text` as it stands, safe inside an element or a quoted attribute; `$` and braces mean nothing to Gradio."""
    safe = html.escape(text)
    for char in "${}`":
        safe = safe.replace(char, f"&#{ord(char)};")
    return safe


def day(date: int, now: float | None = None) -> str:
    """The date as a mail list shows it: the hour today, the day this year, otherwise the year too."""
    if not date:
        return "no date"
    then, today = time.localtime(date), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    year = "" if then.tm_year == today.tm_year else f" {then.tm_year}"
    return f"{then.tm_mday} {time.strftime('%b', then)}{year}"


def count(n: int, noun: str) -> str:
    """`1 mail`, `1,204 mails`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def span(seconds: float) -> str:
    """A length of time in words: `8 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---- the left pane


def header() -> str:
    """The name of the house and its one promise."""
    return (
        '<div class="brand"><h1>Panza</h1><p>Writes mail in your voice</p></div>'
        '<p class="promise"><span aria-hidden="true"></span>Nothing leaves this computer</p>'
    )


def status(s: Any) -> str:
    """Mailbox, voice and model in three lines."""
    if not s.mails:
        mailbox = ("No mail yet", "Import it under “Your mail”")
    else:
        indexed = f" · {s.indexed:,} searched by meaning" if s.indexed else ""
        mailbox = (count(s.mails, "mail"), f"{s.sent:,} written by you{indexed}")
    voice = (
        ("Your voice", s.adapter) if s.adapter else ("Not your voice yet", "Drafts sound neutral until you train it")
    )
    model = ", ".join(filter(None, (s.base, s.compressed, s.backend and f"on the {s.backend} backend")))
    rows = [("" if s.mails else "off", *mailbox), ("" if s.adapter else "off", *voice), ("", "Model", model)]
    return '<dl class="status">' + "".join(map(_row, rows)) + "</dl>"


def _row(row: tuple[str, str, str]) -> str:
    kind, title, detail = row
    return f'<div class="{kind}"><dt>{plain(title)}</dt><dd>{plain(detail)}</dd></div>'


def choice(m: Message) -> tuple[str, str]:
    """A mail in the picker: two lines and its id. Shown as text, never as HTML."""
    subject = " ".join(m.subject.split()) or "(no subject)"
    return f"{m.sender.label or '(no sender)'} · {day(m.date)}\n{subject}", m.id


# ---- the middle pane


def nothing_chosen(mails: int) -> str:
    """The middle pane before a mail is chosen: what to do next."""
    return CHOOSE if mails else BEGIN


BEGIN = """<div class="empty"><h2>Start with your mail</h2>
<p>Name a mailbox on this computer, and let Panza learn your voice from the mail you sent.</p>
<button class="go" type="button">Bring in your mail</button>
<p>You can also write at once: just say what your mail should tell.</p></div>"""

CHOOSE = """<div class="empty"><h2>Which mail do you want to answer?</h2>
<p>Choose one from the list and it opens here.</p>
<p>For a new mail, just say what it should tell.</p></div>"""


def letter(m: Message, thread: Thread) -> str:
    """The mail to answer, with what came before it folded away."""
    earlier = [x for x in thread.messages if x.id != m.id and x.date <= m.date]
    parts = [f'<article class="mail"><h2>{plain(m.subject) or "(no subject)"}</h2>', _head(m), _body(m.body)]
    if m.quoted.strip() and not earlier:
        parts.append(_folded("Quoted text", _body(m.quoted)))
    if earlier:
        inside = "".join(_head(x) + _body(x.body) for x in reversed(earlier))
        parts.append(_folded(f"{count(len(earlier), 'earlier mail')} in this conversation", inside))
    return "".join(parts) + "</article>"


def _head(m: Message) -> str:
    who = f'<strong>{plain(m.sender.label) or "(no sender)"}</strong> <span class="at">{plain(m.sender.email)}</span>'
    to = ", ".join(a.label for a in (*m.to, *m.cc)[:4]) + (" …" if len(m.to) + len(m.cc) > 4 else "")
    return f"<header>{who}<time>{day(m.date)}</time>{f'<div>to {plain(to)}</div>' if to else ''}</header>"


def _body(text: str) -> str:
    text = text.strip()
    cut = text if len(text) <= LIMIT else text[:LIMIT] + " …"
    return f'<div class="words">{plain(cut) or "(This mail holds no words.)"}</div>'


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{plain(title)}</summary>{inside}</details>"


# ---- the right pane


def notice(text: str, kind: str = "alert") -> str:
    """One sentence to the user; empty clears it. kind: `alert` for a mistake, `status` for good news."""
    return f'<p class="notice {kind}" role="{kind}">{plain(text)}</p>' if text else ""


def facts(draft: Draft | None, running: bool = False, stopped: bool = False) -> str:
    """The grey line under the draft."""
    if draft is None:
        return f'<p class="facts">{"reading …" if running else KEYS}</p>'
    parts = [
        count(draft.tokens, "token"),
        f"{draft.seconds:.1f} s",
        count(len(draft.sources), "source"),
        "on this computer",
    ]
    parts = ["writing …", *parts] if running else ["stopped"] * stopped + parts
    return f'<p class="facts">{" · ".join(parts)}</p>'


def sources(messages: Iterable[Message]) -> str:
    """The mails that the draft could draw on, each unfolding to its text."""
    folded = [_folded_source(m) for m in messages]
    if not folded:
        return ""
    return f'<section class="sources"><h3>Mails Panza looked at</h3>{"".join(folded)}</section>'


def _folded_source(m: Message) -> str:
    who = "You" if m.mine else m.sender.label or "(no sender)"
    title = f"<b>{plain(who)}</b><time>{day(m.date)}</time><span>{plain(m.subject) or '(no subject)'}</span>"
    return f"<details><summary>{title}</summary>{_body(m.body)}</details>"


# ---- your mail


def progress(work: Work) -> str:
    """How far `work` has come: a bar, the rate, the time left."""
    step: Step = work.latest or Step()
    amounts = megabytes if work.name == IMPORT else number
    share = step.done / step.total if step.total else 0.0
    bar = f'aria-valuenow="{share * 100:.0f}" aria-valuemin="0" aria-valuemax="100"' if step.total else ""
    width = f'style="width:{share * 100:.1f}%"' if share else 'class="unknown"'  # alive before the first step is done
    note = "stopping …" if work.stopped.is_set() else step.note or "starting …"
    title = f"{work.name[:1].upper()}{work.name[1:]}: {note}"
    return (
        f'<div class="progress"><p class="phase">{plain(title)}</p>'
        f'<div class="bar" role="progressbar" aria-label="{plain(work.name)}" {bar}><i {width}></i></div>'
        f'<p class="pace">{plain(_pace(step, amounts))}</p></div>'
    )


def number(n: float) -> str:
    """A number of steps."""
    return f"{n:,.0f}" if n >= 10 or n == int(n) else f"{n:.2g}"


def megabytes(n: float) -> str:
    """A number of bytes."""
    return f"{n / 1e6:,.1f} MB"


def _pace(step: Step, amount: Callable[[float], str]) -> str:
    parts = [f"{amount(step.done)} of {amount(step.total)}" if step.total else f"{amount(step.done)} so far"]
    if step.rate:
        parts.append(f"{amount(step.rate)} a second")
    if step.left:
        parts.append(f"about {span(step.left)} left")
    return " · ".join(parts)


def imported(report: Any) -> str:
    """What an import brought, with every mail that was not used counted by its reason."""
    told = f"{count(report.added, 'new mail')} of {report.seen:,} read; {report.sent_by_me:,} written by you."
    if report.candidates:
        told += f" None is by your address; most are by {plain(', '.join(report.candidates))}. Import again with yours."
    reasons = "".join(f"<li><b>{n:,}</b> {plain(reason)}</li>" for reason, n in report.dropped.items() if n)
    dropped = (
        _folded(f"{count(sum(report.dropped.values()), 'mail')} not used", f"<ul>{reasons}</ul>") if reasons else ""
    )
    return f'<div class="report"><p role="status">{told}</p>{dropped}</div>'


def learnt(report: dict[str, Any]) -> str:
    """What training brought: the loss on mails that it never saw, before and after."""
    learnt = f"Learnt from {count(report['pairs'], 'mail')} of yours in {span(report['seconds'])}."
    return f'<div class="report"><p role="status">{learnt} {_proof(report)}</p></div>'


def _proof(report: dict[str, Any]) -> str:
    if not report["heldout"]:
        return "There were too few mails to keep some aside and check on them."
    before, after = report["loss_before"], report["loss_after"]
    better = "closer to how you write" if after < before else "no closer to how you write: more sent mail would help"
    return f"On {count(report['heldout'], 'mail')} it never saw: loss {before:.2f} → {after:.2f}, {better}."
