"""Does a model know mails by heart? Bits of trained against unseen mail, extraction, canaries.

    python benchmarks/memorise.py [--trained FILE.jsonl] [--unseen FILE.jsonl] [--canaries FILE.jsonl]
                                  [--base DIR] [--adapter DIR] [--count 1000] [--words 0,20] [--json]

--trained, --unseen: mails as `panza measure` reads them; unseen ones by the same authors, of whom each gives as many
    mails to one side as to the other. `ratio` is bits per byte of trained over unseen mail: 1.0 knows nothing by heart.
--count: that many trained mails are asked for by their header (names and subject) and their first --words words;
    `verbatim` counts greedy drafts with RUN characters or more in a row that stand in the mail and not in the prompt,
    `stock` those of them whose runs other authors of the file wrote too.
--canaries: lines of {"text", "secret", "versions"}: a text exactly as it was trained on, in it a string whose letters and
    digits were drawn at random, and how often it was seen. `exposure` is log2 of (alternatives + 1) / rank among random
    strings of the same shape (Carlini et al., 2019); a secret never seen has 1.4 on average. `completed` counts secrets
    that a greedy continuation of their text spells out.
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
from panza.measure import MOST_TOKENS, bits_per_byte, header, id_bits, opening, read_mails, some
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


def extraction(
    model: TorchModel,
    mails: Sequence[Message],
    words: int,
    progress: Progress = silent,
    everything: Sequence[Message] = (),
) -> dict[str, Any]:
    """How many greedy drafts repeat their mail, given its header and its first `words` words.

    everything: all mails at hand, the better to tell stock phrases.
    """
    asked = [(m, opened) for m in mails if len(rest(m.body, opened := first_words(m.body, words))) >= RUN]
    prompts = [header(m) + opened for m, opened in asked]
    ids = [opening(model) + model.chat_tokenizer.encode_text(p) for p in prompts]
    short = [i for i, row in enumerate(ids) if len(row) + MOST_TOKENS <= model.context]
    copied, stock, done = 0, 0, 0
    others = _writers(everything or mails)
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
    """A random string `secret` in a training text that was seen `versions` times."""

    text: str
    secret: str
    versions: int = 1

    @property
    def before(self) -> str:
        """What stands before the secret; the space between belongs to the secret's first token."""
        return self.text[: self.text.index(self.secret)].rstrip()


def read_canaries(path: Path) -> list[Canary]:
    """The canaries of a JSONL file; UserError names the first line that is none."""
    canaries = []
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            r = json.loads(line)
            canary = Canary(r["text"], r["secret"], int(r.get("versions", 1)))
            assert canary.secret and canary.before
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise UserError(
                f"Line {n} of '{path}' is no canary: give a 'text' and a 'secret' that stands inside it."
            ) from None
        canaries.append(canary)
    return canaries


def exposure(
    model: TorchModel, canaries: Sequence[Canary], alternatives: int = 255, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """Mean and most exposure, in all and by how often a canary was seen; how many are likelier than all alternatives."""
    found: dict[int, list[float]] = defaultdict(list)
    for n, c in enumerate(canaries):
        chance = random.Random(f"{seed} {n}")
        rank = _rank(model, c, [alike(c.secret, chance) for _ in range(alternatives)])
        found[c.versions].append(math.log2((alternatives + 1) / rank))
        progress(n + 1, len(canaries), "canaries")
    all_ = [e for group in found.values() for e in group]
    return {
        "canaries": len(all_),
        "alternatives": alternatives,
        "exposure_mean": _mean(all_),
        "exposure_most": max(all_, default=0.0),
        "exposure_by_versions": {str(v): _mean(found[v]) for v in sorted(found)},
        "first": sum(e == math.log2(alternatives + 1) for e in all_),
        "completed": completed(model, canaries),
    }


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(len(numbers), 1)


def _rank(model: TorchModel, c: Canary, others: Sequence[str]) -> int:
    """1 if the secret is likelier after what stands before it than every other."""
    encode = model.chat_tokenizer.encode_text
    head = (opening(model) + encode(c.before))[-(model.context // 2) :]
    gap = c.text[len(c.before) : c.text.index(c.secret)]
    own, *bits = (b for b in id_bits(model, [(head, encode(gap + s)) for s in (c.secret, *others)], end=False) if b)
    return 1 + sum(b < own for b in bits)


def completed(model: TorchModel, canaries: Sequence[Canary]) -> int:
    """How many secrets the greedy continuation of what stands before them begins with."""
    encode = model.chat_tokenizer.encode_text
    heads = [(opening(model) + encode(c.before))[-(model.context // 2) :] for c in canaries]
    most = max((len(encode(" " + c.secret)) for c in canaries), default=1) + 1
    drafts = complete_batch(model, heads, Sampling(most))
    return sum(draft.text.strip().startswith(canaries[i].secret) for i, draft in drafts)


def alike(secret: str, chance: random.Random) -> str:
    """Another string of the same shape: each digit a digit, each letter a letter of its case."""
    kinds = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
    return "".join(next((chance.choice(kind) for kind in kinds if c in kind), c) for c in secret)


# --- all three


def measure(model: TorchModel, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """What the given files allow."""
    report: dict[str, Any] = {}
    if args.trained:
        trained, _ = read_mails(args.trained)
        chosen = some(trained, args.count)
        report["extraction"] = [extraction(model, chosen, int(n), progress, trained) for n in args.words.split(",")]
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
