"""Mailboxes into the store: read, parse, sieve, clean, write in batches. Knows the order of work; leaves each step to its room."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from panza.mail import mime, sieve
from panza.mail.clean import clean
from panza.mail.header import addresses
from panza.mail.raw import RawMail
from panza.mail.sources import Found, find
from panza.mail.store import Entry, Seen, Store
from panza.types import Message, Progress, UserError, silent

BATCH = 1000  # mails of one transaction
BATCH_BYTES = 32 << 20  # or fewer, if they are large
CANDIDATES = 5  # senders named when nobody said who the user is
_PROBE = 20_000  # mails looked at to find them


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did: seen = added + known + all dropped."""

    seen: int
    added: int
    sent_by_me: int  # among the mails seen that are in the store
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> mails
    known: int = 0  # in the store since an earlier import, from the same place
    candidates: tuple[str, ...] = ()  # if no mail is the user's: who sent most, one of them may be the user


def import_mail(store: Store, paths: Sequence[Path], me: Sequence[str], progress: Progress = silent) -> ImportReport:
    """Put every mail at or below `paths` into `store`. Again adds nothing; after a kill it goes on where it was.

    me: the user's own addresses, added to those that the store knows. `progress` counts bytes.
    UserError: a path that is not there or holds no mail; nobody said who the user is.
    """
    found = find(paths)
    store.add_me(me) if me else _require_me(store, found)
    total, done, counts = sum(f.size for f in found), 0, Counter()
    for batch in _batches(chain.from_iterable(f.read() for f in found)):
        counts += _import_batch(store, batch)
        done += sum(len(raw.data) for raw in batch)
        progress(min(done, total), total, f"{counts['seen']:,} mails")
    if not counts["seen"]:
        raise UserError(
            f"No mail in {', '.join(map(str, paths))}; give an mbox file, a Maildir, or a file or folder of .eml."
        )
    store.group()
    progress(total, total, f"{counts['seen']:,} mails")
    dropped = {
        reason.removeprefix("dropped "): n for reason, n in sorted(counts.items()) if reason.startswith("dropped ")
    }
    candidates = () if counts["mine"] or store.count(mine=True) else store.senders(CANDIDATES)
    return ImportReport(counts["seen"], counts["added"], counts["mine"], dropped, counts["known"], candidates)


def _batches(mails: Iterator[RawMail]) -> Iterator[list[RawMail]]:
    batch, size = [], 0
    for raw in mails:
        batch.append(raw)
        size += len(raw.data)
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _import_batch(store: Store, batch: Sequence[RawMail]) -> Counter[str]:
    """Store one batch, and count: "seen", "added", "known", "mine" and "dropped <reason>"."""
    sources = [raw.source for raw in batch]
    before = store.known(sources)
    new = {raw.source: raw for raw in batch if not _is_known(raw, before.get(raw.source))}
    outcomes = [outcome(raw) for raw in new.values()]
    entries = [o for o in outcomes if isinstance(o, Entry)]
    added, dropped = store.write(entries, [o for o in outcomes if isinstance(o, Seen)])
    dropped += [seen for source, seen in before.items() if source not in new and seen.reason]
    counts = Counter(f"dropped {seen.reason}" for seen in dropped)
    counts.update(seen=len(batch), added=added, mine=store.mine_at(sources))
    counts["known"] = len(batch) - added - len(dropped)
    return counts


def _is_known(raw: RawMail, before: Seen | None) -> bool:
    return before is not None and not raw.error and before.fingerprint == raw.fingerprint


def outcome(raw: RawMail) -> Entry | Seen:
    """What becomes of one mail: an entry for the store, or the reason why not. Never raises; never quotes the mail."""
    try:
        return _outcome(raw)
    except Exception as error:  # one malformed mail never stops a run: it is counted, and named by its place
        return Seen(raw.source, raw.fingerprint, "malformed", raw.source, type(error).__name__)


def _outcome(raw: RawMail) -> Entry | Seen:
    if raw.error:
        return Seen(raw.source, raw.fingerprint, "unreadable file", raw.source, raw.error)
    mail = mime.parse(raw)
    reason = sieve.verdict(mail)
    if not reason:
        words = clean(mail.text, mail.sender.name)
        if re.search(r"\w|[^\x00-\x7f]", words.own):
            message = _message(mail, words.own, words.quoted)
            return Entry(message, mail.headers.get("x-gm-thrid", "").strip(), _digest(message), raw.fingerprint)
        reason = "only quoted or forwarded text" if words.quoted else "no own words"
    item = raw.source if mail.id.endswith("@no-message-id") else mail.id
    return Seen(raw.source, raw.fingerprint, reason, item, raw.source)


def _message(mail: mime.Mail, body: str, quoted: str) -> Message:
    return Message(
        id=mail.id,
        date=mail.date,
        sender=mail.sender,
        to=mail.to,
        cc=mail.cc,
        subject=mail.subject,
        body=body,
        quoted=quoted,
        in_reply_to=mail.in_reply_to,
        references=mail.references,
        source=mail.raw.source,
    )


def _digest(m: Message) -> bytes | None:
    """Equal for copies of a mail that got different Message-IDs; None where the date cannot tell copies apart."""
    if not m.date:
        return None
    body = "".join(m.body.split())
    return hashlib.blake2b(f"{m.sender.email}\n{m.date}\n{m.subject}\n{body}".encode(), digest_size=16).digest()


def _require_me(store: Store, found: Sequence[Found]) -> None:
    """UserError with the most frequent senders, unless the store knows the user's addresses already."""
    if store.me:
        return
    raws = islice(chain.from_iterable(f.read() for f in found), _PROBE)
    senders = Counter(a.email for raw in raws for a in addresses(_from(raw.data))[:1])
    names = ", ".join(email for email, _ in senders.most_common(CANDIDATES)) or "none"
    raise UserError(f"Whose mail is it? Name your own addresses (me); the most frequent senders here are: {names}.")


def _from(data: bytes) -> str:
    head = data[:65536].replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    match = re.search(rb"^From:((?:.*)(?:\n[ \t].*)*)", head, re.IGNORECASE | re.MULTILINE)
    return match[1].decode("utf-8", "surrogateescape") if match else ""
