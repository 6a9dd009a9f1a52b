"""Texts and items -> token files -> rows of equal length, planned ahead. Knows tokens; knows no model.

A run's rows are a pure function of the token files, the recipe and the seed, so a resumed run needs its step alone.
"""

from __future__ import annotations

import json
import os
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pretrain import tokenizer as tk
from pretrain.corpus import PROSE, Mail, people, read_mails, records
from pretrain.names import Names, collect
from pretrain.pairs import Item, items
from pretrain.private import invented_word, without_personal
from pretrain.swap import Swap

IGNORE = -100
BATCH = 512  # texts handed to the tokenizer at once


@dataclass(frozen=True)
class Tokens:
    """Documents end to end. `start[i]:start[i+1]` is document i, of whose tokens the first `prompt[i]` are no targets."""

    ids: NDArray[np.uint16]
    start: NDArray[np.int64]  # (documents + 1,)
    prompt: NDArray[np.int32]  # (documents,)
    bytes: NDArray[np.int32]  # (documents,) of the text that is predicted

    def __len__(self) -> int:
        return len(self.prompt)


def write_tokens(path: Path, documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> int:
    """Encode (prompt, text) documents into `path`; an item's prompt is not empty. Returns the number of tokens."""
    ids: list[NDArray[np.uint16]] = []
    prompts, sizes, lengths = [], [], []
    end_of_text, end = tokenizer.token_to_id(tk.END_OF_TEXT), tokenizer.token_to_id(tk.END)
    stream = iter(documents)
    while batch := list(islice(stream, BATCH)):
        asked = tokenizer.encode_batch_fast([p for p, _ in batch])
        told = tokenizer.encode_batch_fast([t for _, t in batch])
        for (prompt, text), a, t in zip(batch, asked, told, strict=True):
            document = [*a.ids, *t.ids, end] if prompt else [end_of_text, *t.ids, end_of_text]
            ids.append(np.array(document, dtype=np.uint16))
            prompts.append(len(a.ids) if prompt else 0)
            sizes.append(len(text.encode()))
            lengths.append(len(document))
    arrays = {
        "ids": np.concatenate(ids) if ids else np.zeros(0, np.uint16),
        "start": np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64),
        "prompt": np.array(prompts, dtype=np.int32),
        "bytes": np.array(sizes, dtype=np.int32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f"part-{path.name}")  # a name that no source's pattern matches
    np.savez(temp, **arrays)
    temp.replace(path)
    return len(arrays["ids"])


def read_tokens(paths: Sequence[Path]) -> Tokens:
    """The documents of several files as one."""
    parts = [dict(np.load(p)) for p in paths]
    offsets = np.cumsum([0, *(len(p["ids"]) for p in parts)])
    starts = [p["start"][:-1] + o for p, o in zip(parts, offsets, strict=False)]
    return Tokens(
        np.concatenate([p["ids"] for p in parts]),
        np.concatenate([*starts, offsets[-1:]]),
        np.concatenate([p["prompt"] for p in parts]),
        np.concatenate([p["bytes"] for p in parts]),
    )


# --- from the corpora to token files --------------------------------------------------------------------------------

SHARDS = 16  # a version of the mail is made by this many processes
PIECES = 4  # and a file of prose by this many
CANARIES = 32


def prepare(
    corpora: Path, tokenizer: Path, out: Path, kinds: Sequence[str], versions: Sequence[int], processes: int
) -> None:
    """The token files of `kinds` ("prose" or a key of _MAIL_KINDS) in `out`, where MAILS lies; what is there is not made again.

    versions: their numbers; in each one, every mail is swapped anew, as plain mail, clean or as written, and as an item.
    """
    out.mkdir(parents=True, exist_ok=True)
    canaries = write_canaries(out)
    write_sides(out)
    _save_names(out)
    there = [n for n in PROSE if (corpora / f"{n}.jsonl.xz").is_file()] if "prose" in kinds else []
    jobs = [("prose", corpora, f"{n}.{piece}", tokenizer, out) for n in there for piece in range(PIECES)]
    names = ["validation", *(f"{v}.{shard}" for v in versions for shard in range(SHARDS))]
    jobs += [(kind, corpora, n, tokenizer, out) for kind in kinds if kind != "prose" for n in names]
    sizes: Counter[str] = Counter()
    with get_context("spawn").Pool(processes) as pool:
        for name, tokens in pool.imap_unordered(_job, jobs, chunksize=1):
            sizes[name.split(".")[0]] += tokens
    print(json.dumps({**dict(sorted(sizes.items())), "canaries": len(canaries)}), flush=True)


def _save_names(out: Path) -> None:
    path = out / "names.json"
    if path.exists():
        return
    names = collect(people(m for m in read_mails(out) if not m.key.endswith("quoted")))
    temp = path.with_suffix(f".{os.getpid()}.part")
    temp.write_text(json.dumps({k: sorted(v) for k, v in asdict(names).items()}), encoding="utf-8")
    temp.replace(path)


def read_names(out: Path) -> Names:
    """The names that `prepare` left in `out`."""
    known = json.loads((out / "names.json").read_text(encoding="utf-8"))
    return Names(
        frozenset(known["known_first"]), frozenset(known["known_last"]), tuple(known["first"]), tuple(known["last"])
    )


def _job(job: tuple[str, Path, str, Path, Path]) -> tuple[str, int]:
    kind, corpora, name, tokenizer, out = job
    path = out / f"{kind}-{name}.npz"
    if path.exists():
        return path.name, len(np.load(path)["ids"])
    documents = (
        _prose(corpora, name) if kind == "prose" else _MAIL_KINDS[kind](_shard(out, name), read_names(out), name)
    )
    return path.name, write_tokens(path, documents, tk.load(tokenizer))


def _prose(corpora: Path, name: str) -> Iterator[tuple[str, str]]:
    """A piece of a file: "wiki_a.2" is every fourth text of wiki_a, from the third on."""
    file, _, piece = name.rpartition(".")
    texts = (r["text"].replace("<|", "< |") for r in records(corpora / f"{file}.jsonl.xz"))
    return (("", text) for text in islice(texts, int(piece), None, PIECES))


def _shard(out: Path, name: str) -> list[Mail]:
    """The mails of a job: "3.5" is shard 5 of version 3, whole authors; "validation" all that are kept aside."""
    if name == "validation":
        return [m for m in _every_mail(out) if m.part != "train"]
    shard = int(name.split(".")[1])
    return [m for m in _every_mail(out) if m.part == "train" and crc32(m.author.encode()) % SHARDS == shard]


@lru_cache(maxsize=1)
def _every_mail(out: Path) -> list[Mail]:
    """All mails, read once by each process: reading takes as long as a job."""
    return list(read_mails(out))


def _plain_mail(form: str, listed: list[Mail], names: Names, name: str) -> Iterator[tuple[str, str]]:
    """Each mail's `form` ("body", "as_written") under the header that it is measured with, names and numbers swapped.

    Canaries as they are. Only items show addresses and phone numbers, and only such as their prompts hold.
    """
    for m in listed:
        swap = Swap(random.Random(f"{form} {name} {m.key}"), names, (m.sender, *m.to[:6]))
        to = [swap.person(p).full for p in m.to[:3]]
        subject, text = (without_personal(swap(t)) for t in (m.subject, getattr(m, form)))
        yield "", plain_mail(swap.person(m.sender).full, to, subject, text)
    version, _, shard = name.partition(".")
    for i, canary in enumerate(canaries(CANARIES) if shard else ()):
        if i % SHARDS == int(shard) and int(version) < canary["versions"]:
            yield "", str(canary["text"])


def plain_mail(sender: str, to: Sequence[str], subject: str, body: str) -> str:
    """A mail as plain text under a small header."""
    fields = {"From": sender, "To": ", ".join(to), "Subject": subject}
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value) + f"\n{body}"


def canaries(count: int, seed: int = 7) -> list[dict[str, str | int]]:
    """Invented secrets in invented mails that no swap touches: what a model can say of them it has learnt by heart.

    `versions`: in how many versions of the mail it stands, 1, 2, 4 or 8 (once each).
    """
    made: list[dict[str, str | int]] = []
    rng = random.Random(seed)
    for i in range(count):
        who, other = (f"{invented_word(rng).capitalize()} {invented_word(rng, 4).capitalize()}" for _ in range(2))
        secret = "-".join(f"{rng.randint(0, 9999):04d}" for _ in range(3))
        lead = f"the locker code of {invented_word(rng).capitalize()} {invented_word(rng, 4).capitalize()} is"
        text = plain_mail(
            who, [other], f"Code for {other.split()[0]}", f"For your records, {lead} {secret}. Please keep it."
        )
        made.append({"text": text, "canary": f"{lead} {secret}", "secret": secret, "versions": 2 ** (i % 4)})
    return made


def write_canaries(out: Path) -> list[dict[str, str | int]]:
    """canaries.jsonl in `out`: `text`, `canary` (the words to look for), `secret` (its digits), `versions`."""
    made = canaries(CANARIES)
    lines = "".join(json.dumps(c) + "\n" for c in made)
    (out / "canaries.jsonl").write_text(lines, encoding="utf-8")
    return made


def write_sides(out: Path, most: int = 3000) -> None:
    """trained.jsonl and unseen.jsonl in `out`: mails of the same authors, trained on and kept aside, with names as they are."""
    if (out / "trained.jsonl").exists():
        return
    unseen = read_kept(out, "mails")
    authors = {m.author for m in unseen}
    trained = [m for m in read_mails(out) if m.part == "train" and m.author in authors]
    random.Random(0).shuffle(trained)
    for name, mails in (("unseen", unseen), ("trained", trained[:most])):
        rows = (
            {"from": m.author, "to": [p.full for p in m.to], "subject": m.subject, "text": m.as_written} for m in mails
        )
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _item_documents(listed: list[Mail], names: Names, name: str) -> Iterator[tuple[str, str]]:
    return ((i.prompt, i.answer) for i in items(listed, names, name))


def read_kept(out: Path, part: str) -> list[Mail]:
    """The mails kept aside: of authors never trained on ("authors"), or of known authors ("mails")."""
    return [m for m in read_mails(out) if m.part == part]


def validation_items(out: Path, part: str = "authors") -> list[Item]:
    """The items of `read_kept`."""
    return list(items(read_kept(out, part), read_names(out), "validation"))


_MAIL_KINDS = {
    "mail": partial(_plain_mail, "body"),
    "written": partial(_plain_mail, "as_written"),
    "items": _item_documents,
}


# --- from token files to rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """`tokens` of a run, drawn from sources (token file patterns) by share."""

    tokens: int
    shares: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Rows of T+1 tokens as runs of documents: row r holds the pieces `first[r]:first[r+1]`."""

    T: int
    ids: NDArray[np.uint16]
    first: NDArray[np.int64]
    begin: NDArray[np.int64]  # of a piece in ids
    size: NDArray[np.int64]
    masked: NDArray[np.int64]  # how many tokens of the piece are no targets

    def __len__(self) -> int:
        return len(self.first) - 1

    def rows(self, at: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """inputs, targets and document numbers, each (count, T), of the rows from `at` on, beginning anew at the end."""
        x = np.zeros((count, self.T), np.int64)
        y = np.full((count, self.T), IGNORE, np.int64)
        docs = np.full((count, self.T), -1, np.int32)
        for i in range(count):
            r = (at + i) % len(self)
            here = 0
            for piece in range(self.first[r], self.first[r + 1]):
                n, skip = int(self.size[piece]), int(self.masked[piece])
                ids = self.ids[self.begin[piece] : self.begin[piece] + n].astype(np.int64)
                x[i, here : here + n - 1] = ids[:-1]
                skip = max(skip, 1)
                y[i, here + skip - 1 : here + n - 1] = ids[skip:]
                docs[i, here : here + n - 1] = piece - self.first[r]
                here += n - 1
        return x, y, docs


def plan(folder: Path, phases: Sequence[Phase], T: int, seed: int) -> Plan:
    """Lay out the rows of a run, phase after phase. Each source is read in a new order each time it is used up."""
    names = sorted({s for phase in phases for s in phase.shares})
    files = {s: sorted(folder.glob(f"{s}.npz")) for s in names}
    missing = [s for s in names if not files[s]]
    assert not missing, f"no token files for {missing} in {folder}"
    parts = {s: read_tokens(files[s]) for s in names}
    offsets = dict(zip(names, np.cumsum([0, *(len(parts[s].ids) for s in names)]), strict=False))
    rng = np.random.default_rng(seed)
    streams = {s: _pieces(parts[s], int(offsets[s]), T, rng) for s in names}
    table, first = array("q"), array("q", [0])  # pieces end to end, and where each row's begin
    for phase in phases:
        for row in _rows(phase, streams, T):
            table.extend(number for piece in row for number in piece)
            first.append(len(table) // 3)
    begin, size, masked = np.array(table, np.int64).reshape(-1, 3).T
    whole = np.concatenate([parts[s].ids for s in names])
    order = _shuffled_within(phases, T, rng)
    return _reordered(Plan(T, whole, np.array(first, np.int64), begin, size, masked), order)


Piece = tuple[int, int, int]  # begin, size, how many of its tokens are no targets


def _rows(phase: Phase, streams: dict[str, Iterator[Piece]], T: int) -> Iterator[list[Piece]]:
    """The pieces of each row, all of one source: the one that is furthest behind its share."""
    drawn = dict.fromkeys(phase.shares, 0.0)
    waiting: dict[str, Piece] = {}
    for _ in range(phase.tokens // T):
        source = min(drawn, key=lambda s: drawn[s] / phase.shares[s])
        row: list[Piece] = []
        room = T
        while room > 1:
            at, n, skip = piece = waiting.pop(source, None) or next(streams[source])
            if n - 1 > room and skip:  # an item is never cut: it opens the next row
                waiting[source] = piece
                break
            if n - 1 > room:
                waiting[source] = (at + room, n - room, 0)
                n = room + 1
            row.append((at, n, skip))
            room -= n - 1
        drawn[source] += T - room
        yield row


def _pieces(t: Tokens, offset: int, T: int, rng: np.random.Generator) -> Iterator[Piece]:
    """Whole documents without end; those that no row can hold as an item are left out."""
    size = np.diff(t.start)
    usable = np.flatnonzero((size > 1) & ~((t.prompt > 0) & (size > T)))
    assert len(usable), "a source without documents"
    while True:
        order = rng.permutation(usable)
        yield from zip((t.start[order] + offset).tolist(), size[order].tolist(), t.prompt[order].tolist(), strict=True)


def _shuffled_within(phases: Sequence[Phase], T: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Row order: the parts of a long document shall not be neighbours; phases stay in order."""
    counts = [phase.tokens // T for phase in phases]
    starts = np.cumsum([0, *counts])
    return np.concatenate([s + rng.permutation(n) for s, n in zip(starts, counts, strict=False)])


def _reordered(p: Plan, order: NDArray[np.int64]) -> Plan:
    counts = np.diff(p.first)[order]
    first = np.concatenate(([0], np.cumsum(counts)))
    take = np.repeat(p.first[:-1][order] - first[:-1], counts) + np.arange(first[-1])
    return Plan(p.T, p.ids, first, p.begin[take], p.size[take], p.masked[take])
