"""Time hybrid search over a large mailbox: real store, real index, real query embedding; invented words and vectors.

    python -m benchmarks.retrieve [--mails 100000]

Checks the results, warms up, times; prints one JSON object. Embedding a mailbox of this size takes hours, so the mails'
vectors are drawn around cluster centres. Each timed query is embedded by the packaged model, and its time counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from panza.embed import MiniLM
from panza.mail.store import Entry, Store
from panza.retrieve import Retriever
from panza.types import Address, Message

D, CLUSTERS, VOCABULARY, K = 384, 1000, 30_000, 8
DAY = 86_400


class Clustered:
    """An Embed of random vectors around cluster centres; `model` first embeds the text, so that its time is spent."""

    identity = "clustered"

    def __init__(self, chance: np.random.Generator) -> None:
        self.chance = chance
        self.centres = chance.normal(size=(CLUSTERS, D))
        self.model: Callable | None = None

    def __call__(self, texts):
        if self.model:
            self.model(texts)
        vectors = self.centres[self.chance.integers(CLUSTERS, size=len(texts))]
        vectors = vectors + 0.7 * self.chance.normal(size=vectors.shape)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def words(chance: np.random.Generator, n: int) -> str:
    """`n` words with a natural (Zipf) share of frequent ones."""
    ranks = (VOCABULARY ** chance.random(n)).astype(int)
    return " ".join(f"{'aeiou'[r % 5]}{r:x}{'lmnrst'[r % 6]}" for r in ranks)


def fill(store: Store, mails: int, chance: np.random.Generator) -> None:
    people = [Address(f"Person {i}", f"p{i}@example.org") for i in range(500)]
    for start in range(0, mails, 5000):
        entries = []
        for i in range(start, min(mails, start + 5000)):
            sender, to = (people[j] for j in chance.integers(500, size=2))
            body = words(chance, int(chance.lognormal(4, 0.8)) + 3)
            m = Message(f"{i}@x", (i + 1) * DAY // 50, sender, (to,), (), words(chance, 5), body, source=f"box@{i}")
            entries.append(Entry(m, "", None, i.to_bytes(8)))
        store.write(entries, [])


def timed(retriever: Retriever, queries: list[str], **options) -> np.ndarray:
    """Milliseconds of each search: by the clock, and of processor time.  (N, 2)"""
    spent = []
    for query in queries:
        started = np.array([time.perf_counter(), time.process_time()])
        found = retriever.search(query, K, **options)
        spent.append(1e3 * (np.array([time.perf_counter(), time.process_time()]) - started))
        assert len(found) == K, f"{len(found)} mails found, {K} wanted"
        assert all(m.date < options.get("before", 1 << 62) for m in found), "a later mail was found"
    return np.array(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mails", type=int, default=100_000)
    mails, chance = parser.parse_args().mails, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "mail.db") as store:
        fill(store, mails, chance)
        embed = Clustered(chance)
        started = time.perf_counter()
        Retriever(store, Path(folder) / "vectors", embed).update()
        indexed = time.perf_counter() - started
        size = sum(p.stat().st_size for p in (Path(folder) / "vectors").iterdir())
        embed.model = MiniLM()
        embed(["load the model"])
        retriever = Retriever(store, Path(folder) / "vectors", embed)
        started = time.perf_counter()
        retriever.search("open the index", K)
        opened = time.perf_counter() - started
        queries = [words(chance, 10) for _ in range(60)]
        plain = timed(retriever, queries)[10:]
        dated = timed(retriever, queries, before=mails * DAY // 100, correspondent="p7@example.org")[10:]
    report = {"mails": mails, "k": K, "index_seconds": indexed, "open_seconds": opened, "megabytes": size / 1e6}
    for name, spent in (("search", plain), ("search_before", dated)):
        (wall, cpu), (slow, _) = np.percentile(spent, [50, 95], axis=0)
        report |= {f"{name}_ms_p50": float(wall), f"{name}_ms_p95": float(slow), f"{name}_cpu_ms_p50": float(cpu)}
    report["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3
    )
    print(json.dumps({key: round(value, 2) for key, value in report.items()}))


if __name__ == "__main__":
    main()
