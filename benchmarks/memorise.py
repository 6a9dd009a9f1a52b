"""Does a model know mails by heart? Bits of trained against unseen mail, extraction, canaries.

    python benchmarks/memorise.py [--trained FILE.jsonl] [--unseen FILE.jsonl] [--canaries FILE.jsonl]
                                  [--base DIR] [--adapter DIR] [--count 1000] [--words 0,20] [--json]

--trained, --unseen: mails as `panza measure` reads them; unseen ones by the same authors, of whom each gives as many
    mails to one side as to the other. `ratio` is bits per byte of trained over unseen mail: 1.0 knows nothing by heart.
--count: that many trained mails are asked for by their header (names and subject) and their first --words words;
    `verbatim` counts greedy drafts with RUN characters or more in a row that stand in the mail and not in the prompt,
    `stock` those of them whose runs other authors of the file wrote too.
--canaries: lines of {"text", "canary"}: a text exactly as it was trained on, and in it a string of letters and digits that
    were drawn at random. `exposure` is log2 of (alternatives + 1) / rank among random strings of the same shape (Carlini
    et al., 2019); a canary that was never seen has 1.4 on average.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panza import models
from panza.measure import MOST_TOKENS, bits_per_byte, header, opening, read_mails, some, text_bits
from panza.models import Sampling, TorchModel, complete_batch
from panza.types import Message, Progress, UserError, silent

RUN = 50  # characters


# --- trained against unseen mail


def ratio(
    model: TorchModel, trained: Sequence[Message], unseen: Sequence[Message], progress: Progress = silent
) -> dict[str, Any]:
    """Bits per byte of both, and trained over unseen. UserError if no author is in both."""
    trained, unseen = paired(trained, unseen)
    if not trained:
        raise UserError("No author has mail in both --trained and --unseen.")
    known, mails = bits_per_byte(model, trained, progress)
    new, _ = bits_per_byte(model, unseen, progress)
    assert known is not None and new, "mails without a text are no mails"
    return {"trained": known, "unseen": new, "ratio": known / new, "mails": mails}


def paired(a: Sequence[Message], b: Sequence[Message], seed: int = 0) -> tuple[list[Message], list[Message]]:
    """As many mails of each author from `a` as from `b`, so that the two differ in nothing but the training."""
    by_author: dict[str, tuple[list[Message], list[Message]]] = defaultdict(lambda: ([], []))
    for side, mails in enumerate((a, b)):
        for m in mails:
            by_author[m.sender.email or m.sender.name][side].append(m)
    sides: tuple[list[Message], list[Message]] = ([], [])
    for both in by_author.values():
        n = min(map(len, both))
        for side, mails in zip(sides, both, strict=True):
            side += some(mails, n, seed)
    return sides


# --- extraction


def extraction(model: TorchModel, mails: Sequence[Message], words: int, progress: Progress = silent) -> dict[str, Any]:
    """How many greedy drafts repeat their mail, given its header and its first `words` words."""
    asked = [(m, opened) for m in mails if len(rest(m.body, opened := first_words(m.body, words))) >= RUN]
    prompts = [header(m) + opened for m, opened in asked]
    ids = [opening(model) + model.chat_tokenizer.encode_text(p) for p in prompts]
    short = [i for i, row in enumerate(ids) if len(row) + MOST_TOKENS <= model.context]
    copied, stock, done = 0, 0, 0
    others = _writers(mails)
    for at, draft in complete_batch(model, [ids[i] for i in short], Sampling(MOST_TOKENS)):
        mail, prompt = asked[short[at]][0], prompts[short[at]]
        runs = (_runs(draft.text) & _runs(mail.body)) - _runs(prompt)
        copied += bool(runs)
        stock += bool(runs) and all(others[r] - {mail.sender.label} for r in runs)
        done += 1
        progress(done, len(short), f"extraction, {words} words given")
    return {"words": words, "drafts": done, "verbatim": copied, "share": copied / max(done, 1), "stock": stock}


def first_words(text: str, count: int) -> str:
    """The beginning of `text` up to the end of its `count`-th word."""
    at = 0
    for _ in range(count):
        while at < len(text) and text[at].isspace():
            at += 1
        while at < len(text) and not text[at].isspace():
            at += 1
    return text[:at]


def rest(text: str, opened: str) -> str:
    return text[len(opened) :].strip()


def _runs(text: str) -> set[str]:
    """Every RUN characters in a row, white space as one space."""
    text = " ".join(text.split())
    return {text[i : i + RUN] for i in range(len(text) - RUN + 1)}


def _writers(mails: Sequence[Message]) -> dict[str, set[str]]:
    """Run -> who wrote it."""
    found: dict[str, set[str]] = defaultdict(set)
    for m in mails:
        for run in _runs(m.body):
            found[run].add(m.sender.label)
    return found


# --- canaries


@dataclass(frozen=True, slots=True)
class Canary:
    """A random string `canary` that stands in a training text."""

    text: str
    canary: str


def read_canaries(path: Path) -> list[Canary]:
    """The canaries of a JSONL file; UserError names the first line that is none."""
    canaries = []
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            r = json.loads(line)
            canary = Canary(r["text"], r["canary"])
            assert canary.canary and canary.canary in canary.text
        except (ValueError, KeyError, TypeError, AssertionError):
            raise UserError(
                f"Line {n} of '{path}' is no canary: give a 'text' and a 'canary' that stands in it."
            ) from None
        canaries.append(canary)
    return canaries


def exposure(
    model: TorchModel, canaries: Sequence[Canary], alternatives: int = 255, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """Mean and most exposure, and how many canaries are likelier than each alternative."""
    found, first = [], 0
    for n, c in enumerate(canaries):
        chance = random.Random(f"{seed} {n}")
        others = [alike(c.canary, chance) for _ in range(alternatives)]
        rank = _rank(model, c, others)
        found.append(math.log2((alternatives + 1) / rank))
        first += rank == 1
        progress(n + 1, len(canaries), "canaries")
    return {
        "canaries": len(found),
        "alternatives": alternatives,
        "exposure_mean": sum(found) / max(len(found), 1),
        "exposure_most": max(found, default=0.0),
        "first": first,
    }


def _rank(model: TorchModel, c: Canary, others: Sequence[str]) -> int:
    """1 if the canary is likelier after what stands before it than every other."""
    before = c.text[: c.text.index(c.canary)]
    given = before.rstrip()  # the space belongs to the canary's first token
    encode = model.chat_tokenizer.encode_text
    head = (opening(model) + encode(given))[-(model.context // 2) :]
    rows = [(head, encode(before[len(given) :] + canary)) for canary in (c.canary, *others)]
    own, *bits = (b for b in text_bits(model, rows, end=False) if b is not None)
    return 1 + sum(b < own for b in bits)


def alike(canary: str, chance: random.Random) -> str:
    """Another string of the same shape: each digit a digit, each letter a letter of its case."""
    kinds = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
    return "".join(next((chance.choice(kind) for kind in kinds if c in kind), c) for c in canary)


# --- all three


def measure(model: TorchModel, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """What the given files allow."""
    report: dict[str, Any] = {}
    if args.trained:
        trained, _ = read_mails(args.trained)
        chosen = some(trained, args.count)
        report["extraction"] = [extraction(model, chosen, int(n), progress) for n in args.words.split(",")]
        if args.unseen:
            report["bits_per_byte"] = ratio(model, trained, read_mails(args.unseen)[0], progress)
    if args.canaries:
        report["canaries"] = exposure(model, read_canaries(args.canaries), args.alternatives, progress=progress)
    return report


def _note(done: int, total: int, note: str = "") -> None:
    if done % 64 == 0 or done == total:
        print(f"{note} {done}/{total}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trained", "unseen", "canaries", "adapter"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--base", default="")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--words", default="0,20")
    parser.add_argument("--alternatives", type=int, default=255)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.trained or args.canaries):
        parser.error("give --trained, or --canaries")
    try:
        report = measure(models.load(args.base, args.adapter), args, _note)
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(report, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
