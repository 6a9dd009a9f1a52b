"""All mail in one SQLite file: the only truth about the user's mail. Knows SQL; knows no MIME, no model."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from panza.mail import threads
from panza.mail.stopwords import STOP_WORDS
from panza.types import Address, Message, Thread, UserError

VERSION = 1  # of the schema; kept in the file as user_version

_SCHEMA = """
CREATE TABLE message (
    rowid INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    date INTEGER NOT NULL,
    mine INTEGER NOT NULL,
    thread TEXT NOT NULL,
    sender TEXT NOT NULL,           -- address, lower case
    sender_name TEXT NOT NULL,
    recipients TEXT NOT NULL,       -- JSON [[name, address], ...]
    copies TEXT NOT NULL,           -- the same for Cc
    subject TEXT NOT NULL,
    people TEXT NOT NULL,           -- names of sender and recipients, for the search
    in_reply_to TEXT NOT NULL,
    refs TEXT NOT NULL,             -- ids, separated by spaces
    gmail TEXT NOT NULL,            -- X-GM-THRID
    source TEXT NOT NULL,
    digest BLOB,                    -- of sender, date, subject and body: the same mail under another id
    body TEXT NOT NULL,
    quoted TEXT NOT NULL
);
CREATE INDEX message_date ON message (date, id);
CREATE INDEX message_mine ON message (mine, date, id);
CREATE INDEX message_name ON message (mine, sender_name);
CREATE INDEX message_thread ON message (thread, date);
CREATE UNIQUE INDEX message_digest ON message (digest) WHERE digest IS NOT NULL;
CREATE TABLE me (address TEXT PRIMARY KEY) WITHOUT ROWID;
-- one row for every mail that was read, wherever it lay; `reason` is empty if it is in the store
CREATE TABLE seen (
    source TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, reason TEXT NOT NULL, item TEXT NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX seen_reason ON seen (reason) WHERE reason != '';
CREATE VIRTUAL TABLE words USING fts5 (
    subject, body, people, content='message', content_rowid='rowid', tokenize='unicode61 remove_diacritics 2'
);
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row');
CREATE TRIGGER words_insert AFTER INSERT ON message BEGIN
    INSERT INTO words (rowid, subject, body, people) VALUES (new.rowid, new.subject, new.body, new.people);
END;
CREATE TRIGGER words_delete AFTER DELETE ON message BEGIN
    INSERT INTO words (words, rowid, subject, body, people)
    VALUES ('delete', old.rowid, old.subject, old.body, old.people);
END;
CREATE TRIGGER words_update AFTER UPDATE OF subject, body, people ON message BEGIN
    INSERT INTO words (words, rowid, subject, body, people)
    VALUES ('delete', old.rowid, old.subject, old.body, old.people);
    INSERT INTO words (rowid, subject, body, people) VALUES (new.rowid, new.subject, new.body, new.people);
END;
"""

# Of a later Panza than the schema: made in older stores too.
_INDEX = "CREATE INDEX IF NOT EXISTS message_sender ON message (sender, sender_name)"

_PRAGMAS = """
PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=FAST;
PRAGMA temp_store=MEMORY; -- no mail in the folder for temporary files
"""

_COLUMNS = "rowid, id, date, sender_name, sender, recipients, copies, subject, body, quoted, in_reply_to, refs, source, thread, mine"
_BM25 = "bm25(words, 2.0, 1.0, 1.5)"  # weights of subject, body, people
_ALL_ROWS = (0, (1 << 63) - 1)
MAX_LOOK_UPS = 32  # words of a query whose frequency is looked up
MAX_TERMS = 12  # words that are searched: the rarest
MAX_AND = 4  # words that a mail must hold all of, to come first
MAX_MATCHES = 8_000  # mails that one query may rank
MAX_NAMED = 5_000  # sent mails that are looked through for a recipient's name


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one mail that was read. `reason` is empty if it is in the store."""

    source: str
    fingerprint: bytes
    reason: str
    item: str  # Message-ID; `source` where there is none
    detail: str  # never mail text


@dataclass(frozen=True, slots=True)
class Entry:
    """A message on its way into the store."""

    message: Message
    gmail: str  # X-GM-THRID, or nothing
    digest: bytes | None
    fingerprint: bytes


class Store:
    """The mail of one user. Safe to use from several threads: each has a connection, taken over when it has ended."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`, or make it (0600). UserError if the file is no store or a newer one."""
        self.path = Path(path)
        self._local = threading.local()
        self._open: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        os.chmod(self.path, 0o600)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(f"{self.path} is not a mail store ({error}); name another file.") from None

    def _prepare(self) -> None:
        with self.writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _statements(_SCHEMA):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise UserError(
                    f"{self.path} has schema {version}, this Panza knows {VERSION}; import into a new file."
                )
            db.execute(_INDEX)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every thread's connection; the store cannot be used after."""
        with self._lock:
            for db in self._open.values():
                db.close()
            self._open.clear()
        self._local = threading.local()

    @property
    def _db(self) -> sqlite3.Connection:
        db = getattr(self._local, "db", None)
        if db is None:
            with self._lock:
                db = self._local.db = self._open[threading.current_thread()] = self._free() or self._connect()
        return db

    def _free(self) -> sqlite3.Connection | None:
        """The connection of a thread that has ended. Closing it would not do: SQLite keeps its file open for the locks."""
        ended = next((thread for thread in self._open if not thread.is_alive()), None)
        return self._open.pop(ended) if ended else None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        db.executescript(_PRAGMAS)
        return db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    # Who the user is

    @property
    def me(self) -> frozenset[str]:
        """The user's own addresses, lower case."""
        return frozenset(address for (address,) in self._db.execute("SELECT address FROM me"))

    @property
    def my_name(self) -> str:
        """The display name most often used in the user's sent mail, as "First Last"; else made from an address."""
        query = "SELECT sender_name FROM message WHERE mine = 1 AND sender_name != '' GROUP BY sender_name ORDER BY count(*) DESC, sender_name"
        row = self._db.execute(query + " LIMIT 1").fetchone()
        if row:
            return row[0]
        query = "SELECT address FROM me LEFT JOIN message ON sender = address GROUP BY address ORDER BY count(message.rowid) DESC"
        row = self._db.execute(query + " LIMIT 1").fetchone()
        return Address("", row[0]).label if row else ""

    def add_me(self, addresses: Iterable[str]) -> None:
        """Add to the user's own addresses, and mark the stored mails that they sent. UserError if one is no address."""
        wanted = [address.strip().lower() for address in addresses]
        for address in wanted:
            if not re.fullmatch(r"[^\s@<>,;]+@[^\s@<>,;]+", address):
                raise UserError(f"{address!r} is not a mail address; give it as name@example.org.")
        with self.writing() as db:
            before = db.total_changes
            db.executemany("INSERT OR IGNORE INTO me VALUES (?)", [(address,) for address in wanted])
            if db.total_changes == before:
                return
            db.execute("UPDATE message SET mine = 1 WHERE mine = 0 AND sender IN (SELECT address FROM me)")
        self.group()

    def drop_me(self, addresses: Iterable[str]) -> None:
        """Take back `add_me`: mails from these addresses are received mail again. UserError if one is not the user's."""
        wanted, me = [address.strip().lower() for address in addresses], self.me
        for address in wanted:
            if address not in me:
                raise UserError(f"{address!r} is none of your addresses: {', '.join(sorted(me)) or 'none is known'}.")
        with self.writing() as db:
            db.executemany("DELETE FROM me WHERE address = ?", [(address,) for address in wanted])
            db.execute("UPDATE message SET mine = 0 WHERE mine = 1 AND sender NOT IN (SELECT address FROM me)")
        self.group()

    def senders(self, limit: int) -> tuple[str, ...]:
        """The addresses that most mails here come from, the most frequent first."""
        query = "SELECT sender FROM message GROUP BY sender ORDER BY count(*) DESC, sender LIMIT ?"
        return tuple(sender for (sender,) in self._db.execute(query, (limit,)))

    def name_of(self, address: str) -> str:
        """The display name most often seen with `address`: as a sender, else as a recipient of the user's; or nothing."""
        address = address.strip().lower()
        query = "SELECT sender_name FROM message WHERE sender = ? AND sender_name != '' GROUP BY 1 ORDER BY count(*) DESC, 1"
        row = self._db.execute(query + " LIMIT 1", (address,)).fetchone()
        return row[0] if row else self._recipient_name(address)

    def _recipient_name(self, address: str) -> str:
        newest = "SELECT recipients, copies FROM message WHERE mine = 1 ORDER BY date DESC, id DESC LIMIT ?"
        query = f"SELECT recipients, copies FROM ({newest}) WHERE instr(recipients || copies, ?)"
        rows = self._db.execute(query, (MAX_NAMED, json.dumps(address, ensure_ascii=False)))
        people = [pair for to, cc in rows for pair in json.loads(to) + json.loads(cc)]
        names = Counter(name for name, email in people if name and email == address)
        return names.most_common(1)[0][0] if names else ""

    # Reading

    def get(self, message_id: str) -> Message:
        """The mail of that Message-ID; KeyError if it is not here."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM message WHERE id = ?", (message_id.strip("<> "),)).fetchone()
        if row is None:
            raise KeyError(message_id)
        return _message(row)

    def messages(
        self, mine: bool | None = None, newest_first: bool = False, limit: int | None = None
    ) -> Iterator[Message]:
        """Mails by date; `mine`: only those the user sent (True) or received (False)."""
        where = "" if mine is None else f"WHERE mine = {int(mine)}"
        way = "DESC" if newest_first else "ASC"
        query = f"SELECT {_COLUMNS} FROM message {where} ORDER BY date {way}, id {way} LIMIT ?"
        return map(_message, self._db.execute(query, (-1 if limit is None else limit,)))

    def rows(self, after: int = 0) -> Iterator[tuple[int, Message]]:
        """(rowid, mail) for every rowid above `after`, in order: what an index has not seen yet."""
        query = f"SELECT {_COLUMNS} FROM message WHERE rowid > ? ORDER BY rowid"
        return ((row[0], _message(row)) for row in self._db.execute(query, (after,)))

    def by_rows(self, rowids: Sequence[int]) -> list[Message]:
        """The mails of `rowids`, in that order; one that is gone is left out."""
        marks = ",".join("?" * len(rowids))
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM message WHERE rowid IN ({marks})", tuple(rowids))
        found = {row[0]: _message(row) for row in rows}
        return [found[rowid] for rowid in rowids if rowid in found]

    def thread(self, thread_id: str) -> Thread:
        """The mails of a thread, oldest first; KeyError if there is none."""
        query = f"SELECT {_COLUMNS} FROM message WHERE thread = ? ORDER BY date, id"
        mails = tuple(map(_message, self._db.execute(query, (thread_id,))))
        if not mails:
            raise KeyError(thread_id)
        return Thread(thread_id, mails)

    def count(self, mine: bool | None = None) -> int:
        where = "" if mine is None else f"WHERE mine = {int(mine)}"
        return self._db.execute(f"SELECT count(*) FROM message {where}").fetchone()[0]

    def dropped(self) -> dict[str, int]:
        """Reason -> number of mails that were read and not used, over all imports."""
        return dict(
            self._db.execute("SELECT reason, count(*) FROM seen WHERE reason != '' GROUP BY reason ORDER BY reason")
        )

    def dropped_items(self, reason: str) -> Iterator[tuple[str, str]]:
        """(Message-ID or "path@offset", detail) of each mail not used for that reason."""
        yield from self._db.execute("SELECT item, detail FROM seen WHERE reason = ? ORDER BY source", (reason,))

    # Searching

    def search(self, query: str, limit: int, before: int | None = None, not_thread: str = "") -> list[int]:
        """Rowids of the mails that match free text best. Mails with all its words come first, then with any of them.

        before: only mails dated earlier (seconds). not_thread: no mail of that thread. Words that more than MAX_MATCHES
        mails hold are ranked among the newest mails.
        """
        terms = self._terms(query)
        found: list[int] = []
        for match, matches in _matches(terms):
            if len(found) < limit:
                hits = self._ranked(match, matches, limit, before, not_thread)
                found += [rowid for rowid in hits if rowid not in found]
        return found[:limit]

    def _terms(self, query: str) -> list[tuple[int, str]]:
        """(number of mails, word) for the words of `query` that are in the index and worth a search, rarest first."""
        words = dict.fromkeys(word for word in re.findall(r"[^\W_]+", _folded(query)[:2000]) if word not in STOP_WORDS)
        return sorted((n, word) for word in list(words)[:MAX_LOOK_UPS] if (n := self._frequency(word)))[:MAX_TERMS]

    def _frequency(self, word: str) -> int:
        row = self._db.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone()
        return row[0] if row else 0

    def _ranked(self, match: str, matches: int, limit: int, before: int | None, not_thread: str) -> list[int]:
        """Ranked first and filtered after: the filter then reads a few rows instead of every match."""
        query = f"SELECT rowid FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ? ORDER BY {_BM25} LIMIT ?"
        first, last = self._newest(MAX_MATCHES / matches, before) if matches > MAX_MATCHES else _ALL_ROWS
        fetched = 4 * limit
        while True:
            rowids = [rowid for (rowid,) in self._db.execute(query, (match, first, last, fetched))]
            kept = self._allowed(rowids, before, not_thread)
            if len(kept) >= limit or (len(rowids) < fetched and (first, last) == _ALL_ROWS):
                return kept[:limit]
            if len(rowids) < fetched:
                first, last = _ALL_ROWS
            else:
                fetched *= 8

    def _newest(self, share: float, before: int | None) -> tuple[int, int]:
        """First and last rowid of about that share of all mails, the newest ones (dated before `before`)."""
        wanted = int(share * (self._db.execute("SELECT max(rowid) FROM message").fetchone()[0] or 0)) + 1
        query = "SELECT rowid FROM message WHERE date < ? ORDER BY date DESC, id DESC LIMIT ?"
        rows = f"SELECT min(rowid), max(rowid) FROM ({query})"
        first, last = self._db.execute(rows, (_ALL_ROWS[1] if before is None else before, wanted)).fetchone()
        return max(first or 0, (last or 0) - wanted), last or 0

    def _allowed(self, rowids: list[int], before: int | None, not_thread: str) -> list[int]:
        if before is None and not not_thread:
            return rowids
        query = "SELECT rowid FROM message WHERE rowid IN (SELECT value FROM json_each(?)) AND date < ? AND thread != ?"
        latest = _ALL_ROWS[1] if before is None else before
        allowed = {rowid for (rowid,) in self._db.execute(query, (json.dumps(rowids), latest, not_thread))}
        return [rowid for rowid in rowids if rowid in allowed]

    # Writing: what the import needs

    def known(self, sources: Sequence[str]) -> dict[str, Seen]:
        """What became of the mails at `sources`, for those that were read before."""
        query = "SELECT source, fingerprint, reason, item, detail FROM seen WHERE source IN (SELECT value FROM json_each(?))"
        return {row[0]: Seen(*row) for row in self._db.execute(query, (json.dumps(sources),))}

    def mine_at(self, sources: Sequence[str]) -> int:
        """How many of the mails read at `sources` are in the store and were sent by the user."""
        query = (
            "SELECT count(*) FROM seen JOIN message ON message.id = seen.item"
            " WHERE reason = '' AND mine = 1 AND seen.source IN (SELECT value FROM json_each(?))"
        )
        return self._db.execute(query, (json.dumps(sources),)).fetchone()[0]

    def write(self, entries: Sequence[Entry], unused: Sequence[Seen]) -> tuple[int, list[Seen]]:
        """Store a batch in one transaction: (number of mails added, every mail not used, duplicates included)."""
        with self.writing() as db:
            me = {address for (address,) in db.execute("SELECT address FROM me")}
            before = db.execute("SELECT max(rowid) FROM message").fetchone()[0] or 0
            outcomes = [self._insert(db, entry, me) for entry in entries]
            added = db.execute("SELECT count(*) FROM message WHERE rowid > ?", (before,)).fetchone()[0]
            rows = [(s.source, s.fingerprint, s.reason, s.item, s.detail) for s in (*outcomes, *unused)]
            db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", rows)
        return added, [*unused, *(seen for seen in outcomes if seen.reason)]

    def _insert(self, db: sqlite3.Connection, entry: Entry, me: set[str]) -> Seen:
        m = entry.message
        people = " ".join(dict.fromkeys(a.label for a in (m.sender, *m.to, *m.cc)))
        cursor = db.execute(
            "INSERT OR IGNORE INTO message (id, date, mine, thread, sender, sender_name, recipients, copies, subject, people,"
            " in_reply_to, refs, gmail, source, digest, body, quoted) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                *(m.id, m.date, m.sender.email in me, m.id, m.sender.email, m.sender.name, _pairs(m.to), _pairs(m.cc)),
                *(m.subject, people, m.in_reply_to, " ".join(m.references), entry.gmail, m.source, entry.digest),
                *(m.body, m.quoted),
            ),
        )
        if cursor.rowcount:
            return Seen(m.source, entry.fingerprint, "", m.id, "")
        same = db.execute("SELECT source FROM message WHERE id = ? OR digest = ?", (m.id, entry.digest)).fetchone()
        reason = "" if same[0] == m.source else "duplicate"  # read before at this place, under another label
        return Seen(m.source, entry.fingerprint, reason, m.id, f"same as {same[0]}" if reason else "")

    def group(self) -> None:
        """Put every mail into its thread. A thread's id is the id of its oldest mail."""
        me = self.me
        query = "SELECT id, date, refs, in_reply_to, gmail, subject, sender, recipients, copies, thread FROM message"
        nodes, current = [], {}
        for id, date, refs, parent, gmail, subject, sender, to, cc, thread in self._db.execute(query):
            people = frozenset(email for _, email in json.loads(to) + json.loads(cc)) | {sender}
            links = tuple(refs.split()) + ((parent,) if parent else ())
            nodes.append(threads.Node(id, date, links, gmail, subject, people - me))
            current[id] = thread
        moved = [(new, id) for id, new in threads.group(nodes).items() if current[id] != new]
        with self.writing() as db:
            db.executemany("UPDATE message SET thread = ? WHERE id = ?", moved)


def _statements(script: str) -> Iterator[str]:
    """The statements of `script`, one by one: `executescript` would end the transaction around them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _matches(terms: Sequence[tuple[int, str]]) -> Iterator[tuple[str, int]]:
    """(FTS5 query, how many mails it matches at most): the rarest words together, then any of them while few match."""
    if len(terms) > 1:
        yield " AND ".join(f'"{word}"' for _, word in terms[:MAX_AND]), terms[0][0]
    sums = list(accumulate(n for n, _ in terms))
    kept = max(1, sum(total <= MAX_MATCHES for total in sums))
    if terms:
        yield " OR ".join(f'"{word}"' for _, word in terms[:kept]), sums[kept - 1]


def _folded(text: str) -> str:
    """`text` as the tokenizer of the index sees it: small letters without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))


def _pairs(addresses: tuple[Address, ...]) -> str:
    return json.dumps([(a.name, a.email) for a in addresses], ensure_ascii=False)


def _addresses(pairs: str) -> tuple[Address, ...]:
    return tuple(Address(name, email) for name, email in json.loads(pairs))


def _message(row: tuple) -> Message:
    _, id, date, name, email, to, cc, subject, body, quoted, in_reply_to, refs, source, thread, mine = row
    sender, people = Address(name, email), (_addresses(to), _addresses(cc))
    links = (in_reply_to, tuple(refs.split()))
    return Message(id, date, sender, *people, subject, body, quoted, *links, source, thread, bool(mine))
