"""Find the mails that bear on an instruction: by meaning (vectors) and by words (FTS5), fused by rank.

The folder of vectors is a cache of the mail store: it may be deleted at any time and holds no words. Knows mails and
vectors; knows no model beyond `embed`, and no prompt.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panza.embed import Embed, MiniLM
from panza.home import write_json
from panza.types import Message, Progress, silent

if TYPE_CHECKING:
    import faiss

    from panza.mail.store import Store

DEPTH = 64  # candidates of each of the two searches
RRF = 60  # reciprocal rank fusion, Cormack et al. 2009: score = sum of 1 / (RRF + rank)
SHARD = 512  # mails to a file: half a minute of embedding on one core is the most that a kill loses
BATCH = 32
SAMPLE = 8  # mails of each shard whose words are compared with the store's when the folder is opened
CHARS = 2000  # of a mail that are embedded; more than the embedder's tokens ever need
SAME_PERSON, RECENT, HALF_LIFE = 0.5, 0.3, 60 * 86400  # priors; the share that they add to a score at most, seconds
SAME = 0.8  # two mails whose three-word runs overlap by this much (Jaccard) are one


class Retriever:
    """Hybrid search over a store. folder: where the vectors lie. embed: MiniLM unless given; loaded at first use."""

    def __init__(self, store: Store, folder: Path, embed: Embed | None = None) -> None:
        self.store = store
        self._embed = embed or MiniLM()
        self._vectors = Vectors(folder, self._sample)
        self._updating = threading.Lock()

    def count(self) -> int:
        """How many mails have a vector, as the folder says; loads nothing."""
        return sum(shard.count for shard in self._vectors.listed())

    def update(self, progress: Progress = silent) -> int:
        """Embed the mails that have no vector yet, and again those whose vectors are lost or of another model or store.

        Returns how many. What is done when it is killed stays done.
        """
        with self._updating:
            shards = self._vectors.usable(self._identity)
            total, done = max(0, self.store.count() - sum(s.count for s in shards)), 0
            while chunk := list(islice(self.store.rows(shards[-1].last if shards else 0), SHARD)):
                records = self._records(chunk, lambda n, done=done: progress(done + n, total, "embedding mails"))
                shards = self._vectors.append(shards, records, self._identity)
                done += len(chunk)
            self._vectors.sweep()
            return done

    def search(
        self, query: str, k: int = 4, *, before: int | None = None, not_thread: str = "", correspondent: str = ""
    ) -> list[Message]:
        """The `k` mails that bear most on `query`, best first; by words alone as long as there are no vectors.

        before: only mails dated earlier, and none without a date. not_thread: none of this thread. correspondent: an
        address; mails from or to it come earlier, as recent ones do.
        """
        if not query.strip() or k < 1:
            return []
        rankings = [self._near(query, before), self.store.search(query, DEPTH, before, not_thread)]
        found = self._fetch(fuse(rankings))
        allowed = [
            (m, score)
            for m, score in found
            if m.body and (not not_thread or m.thread != not_thread) and (before is None or 0 < m.date < before)
        ]
        now = before or max((m.date for m, _ in allowed), default=0)
        ranked = sorted(allowed, key=lambda pair: -pair[1] * _prior(pair[0], correspondent, now))
        return list(islice(distinct(m for m, _ in ranked), k))

    @property
    def _identity(self) -> str:
        return getattr(self._embed, "identity", None) or getattr(
            self._embed, "__qualname__", type(self._embed).__name__
        )

    def _near(self, query: str, before: int | None) -> list[int]:
        index = self._vectors.index(lambda: self._identity)
        return index.search(self._embed([query[:CHARS]])[0], DEPTH, before) if index else []

    def _fetch(self, scores: dict[int, float]) -> list[tuple[Message, float]]:
        """The mails of `scores`; a vector may have outlived its mail."""
        messages = self.store.by_rows(list(scores))
        if len(messages) != len(scores):
            pairs = [(self.store.by_rows([row]), score) for row, score in scores.items()]
            return [(m, score) for ms, score in pairs for m in ms]
        return list(zip(messages, scores.values(), strict=True))

    def _records(self, chunk: Sequence[tuple[int, Message]], progress: Callable[[int], None]) -> np.ndarray:
        """Rows, dates and vectors of some mails; texts of like length share a batch, so that little is padded."""
        texts = [_text(m) for _, m in chunk]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            for i, vector in zip(some, self._embed([texts[i] for i in some]), strict=True):
                vectors[i] = vector
            progress(at + len(some))
        records = np.empty(len(chunk), _dtype(len(vectors[0])))
        records["row"], records["date"] = [row for row, _ in chunk], [m.date for _, m in chunk]
        records["vector"] = np.stack(vectors)
        return records

    def _sample(self, rows: Sequence[int]) -> str:
        """A hash of what the store says at `rows`: another store, or a store made again, answers differently."""
        texts = (f"{m.id}\0{m.date}\0{_text(m)}\0" for m in self.store.by_rows(list(rows)))
        return hashlib.sha256("".join(texts).encode("utf-8", "replace")).hexdigest()


def fuse(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Reciprocal rank fusion: row -> score, best first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0.0) + 1 / (RRF + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def distinct(messages: Iterable[Message]) -> Iterator[Message]:
    """`messages` without those that nearly repeat an earlier one."""
    seen: list[frozenset[str]] = []
    for m in messages:
        runs = _runs(m.body)
        if all(len(runs & other) < SAME * len(runs | other) for other in seen):
            seen.append(runs)
            yield m


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of vectors, as the manifest describes it."""

    file: str
    count: int
    last: int  # the highest row in it
    crc: int  # of the file's bytes
    sampled: list[int]  # rows
    sample: str  # what the store said at these rows


class Vectors:
    """Vectors on disk: shards of (row, date, vector) in row order, and a manifest that names the model.

    sample: rows -> a hash of what the store holds there. Whatever does not fit is left out, never an error.
    """

    def __init__(self, folder: Path, sample: Callable[[Sequence[int]], str]) -> None:
        self.folder = folder
        self._sample = sample
        self._indexing = threading.Lock()
        self._index: Index | None = None
        self._stamp: tuple[int, int] | None = None  # of the manifest that `_index` was made from

    def listed(self, identity: str | None = None) -> list[Shard]:
        """What the manifest lists; nothing if it is missing, damaged, or names another model than `identity`."""
        try:
            manifest = json.loads(self._manifest.read_text(encoding="utf-8"))
            shards = [Shard(**entry) for entry in manifest["shards"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return shards if identity in (None, manifest.get("model")) else []

    def usable(self, identity: str) -> list[Shard]:
        """The shards before the first that is damaged or does not fit the store."""

        def fits(shard: Shard) -> bool:
            return self._read(shard) is not None and self._sample(shard.sampled) == shard.sample

        return list(takewhile(fits, self.listed(identity)))

    def append(self, shards: Sequence[Shard], records: np.ndarray, identity: str) -> list[Shard]:
        """Keep `shards` and, behind them, `records`; joined with the last shard if both fit into one file."""
        shards = list(shards)
        if shards and shards[-1].count + len(records) <= SHARD and (last := self._read(shards[-1])) is not None:
            records = np.concatenate([last, records])
            shards.pop()
        shards.append(self._write(records))
        write_json(self._manifest, {"model": identity, "shards": [asdict(s) for s in shards]})
        return shards

    def sweep(self) -> None:
        """Delete the files that the manifest does not list."""
        known = {shard.file for shard in self.listed()}
        for path in self.folder.glob("*.npy*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def index(self, identity: Callable[[], str]) -> Index | None:
        """What can be searched, made anew when the manifest has changed; None if there is nothing."""
        with self._indexing:
            try:
                stat = self._manifest.stat()
            except OSError:
                self._index = self._stamp = None
                return None
            if self._stamp != (stat.st_mtime_ns, stat.st_ino):
                parts = [records for s in self.usable(identity()) if (records := self._read(s)) is not None]
                self._index = Index(np.concatenate(parts)) if parts else None
                self._stamp = (stat.st_mtime_ns, stat.st_ino)
            return self._index

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    def _write(self, records: np.ndarray) -> Shard:
        data = io.BytesIO()
        np.save(data, records, allow_pickle=False)
        crc, last = zlib.crc32(data.getvalue()), int(records["row"][-1])
        name = f"{last:09d}-{crc:08x}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.part").write_bytes(data.getvalue())
        (self.folder / f"{name}.part").replace(self.folder / name)
        sampled = records["row"][np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).astype(int)].tolist()
        return Shard(name, len(records), last, crc, sampled, self._sample(sampled))

    def _read(self, shard: Shard) -> np.ndarray | None:
        try:
            data = (self.folder / shard.file).read_bytes()
        except OSError:
            return None
        return np.load(io.BytesIO(data), allow_pickle=False) if zlib.crc32(data) == shard.crc else None


class Index:
    """Exact search over 8-bit vectors: 100,000 of 384 numbers take 38 MB and about 10 ms."""

    def __init__(self, records: np.ndarray) -> None:
        import faiss

        vectors = np.ascontiguousarray(records["vector"], np.float32)  # (N, D)
        self._rows, self._dates = records["row"].copy(), records["date"].copy()  # (N,)
        kind = faiss.ScalarQuantizer.QT_8bit
        self._faiss: faiss.Index = faiss.IndexScalarQuantizer(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        self._faiss.train(vectors)
        self._faiss.add(vectors)

    def search(self, vector: np.ndarray, k: int, before: int | None = None) -> list[int]:
        """The rows nearest to `vector` (D,), best first; before: only those dated earlier."""
        import faiss

        params = None
        if before is not None:
            bits = np.packbits((self._dates > 0) & (self._dates < before), bitorder="little")
            params = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        _, found = self._faiss.search(vector[None].astype(np.float32), min(k, len(self._rows)), params=params)
        return self._rows[found[0][found[0] >= 0]].tolist()


def _text(m: Message) -> str:
    return f"{m.subject}\n{m.body}"[:CHARS]


def _runs(text: str) -> frozenset[str]:
    words = re.findall(r"\w+", text.casefold())[:400]
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _prior(m: Message, correspondent: str, now: int) -> float:
    """What speaks for a mail before it is read: it is with the same person; it is recent."""
    with_them = correspondent.casefold() in {m.sender.email, *(a.email for a in (*m.to, *m.cc))}
    return (1 + SAME_PERSON * with_them) * (1 + RECENT * 0.5 ** (max(0, now - m.date) / HALF_LIFE))


def _dtype(dimensions: int) -> np.dtype:
    return np.dtype([("row", "<i8"), ("date", "<i8"), ("vector", "<f2", (dimensions,))])
