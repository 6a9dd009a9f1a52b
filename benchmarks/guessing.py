"""Do guesses pay? Drafts of the sample's mails with and without them, in turns: the same tokens, how much sooner.

    python -m benchmarks.guessing DIR... [--adapter DIR] [--threads 1,2] [--prompts 40] [--seed N]

A line a model and number of threads: tokens of all drafts, tokens a pass, the share of guesses that were right, and how much
faster the tokens behind the first came: the median of all drafts, and the quartiles. Times are compared within a draft.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST = 300  # tokens of a draft, as `panza draft` writes them


class Counted:
    """A session that counts its passes over guesses."""

    def __init__(self, session: Any) -> None:
        self._session, self.passes, self.guesses, self.tokens = session, 0, 0, 0

    def follow(self, tokens: list[int], choice: Any) -> list[int]:
        made = self._session.follow(tokens, choice)
        self.passes, self.guesses, self.tokens = (
            self.passes + 1,
            self.guesses + len(tokens) - 1,
            self.tokens + len(made),
        )
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def timed(runtime: Any, prompt: Sequence[int], how: Any, ends: frozenset[int], guess: bool) -> tuple[list[int], float]:
    """(the draft, seconds from its first token to its end)."""
    first, tokens = 0.0, []
    for token in runtime.generate(prompt, how, MOST, ends, guess=guess):
        first = first or time.perf_counter()
        tokens.append(token)
    return tokens, time.perf_counter() - first


def measure(folder: Path, adapter: Path | None, threads: int, count: int, seed: int | None) -> dict[str, Any]:
    """One line of the report."""
    from benchmarks.sample import drafting_prompts
    from compress.runtime import Sampling, load
    from panza.models.chat import ChatTokenizer, open_tokenizer

    runtime = load(folder, adapter, threads=threads)
    ends = ChatTokenizer(open_tokenizer(folder)).stop_ids
    how = Sampling() if seed is None else Sampling(temperature=0.7, top_p=0.9, seed=seed)
    every = drafting_prompts(0, folder)
    plain, counted = runtime.session, Counted(runtime.session)
    faster, total = [], 0
    for prompt in every[:: max(1, len(every) // count)]:
        seconds, drafts = {}, {}
        for guess in (False, True):
            runtime.session = counted if guess else plain
            drafts[guess], seconds[guess] = timed(runtime, prompt, how, ends, guess)
        assert drafts[False] == drafts[True], "guesses change when a token comes, never which"
        if len(drafts[True]) > 1:
            faster.append(seconds[False] / seconds[True])
            total += len(drafts[True])
    low, middle, high = statistics.quantiles(faster, n=4)
    return {
        "model": str(folder), "threads": threads, "drafts": len(faster), "tokens": total,
        "tokens_a_pass": round(counted.tokens / counted.passes, 2),
        "right": round((counted.tokens - counted.passes) / max(counted.guesses, 1), 2),
        "faster": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--adapter", type=Path, default=None)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=None, help="draw tokens; without it drafts are greedy")
    args = parser.parse_args()
    for folder in args.folders:
        for threads in map(int, args.threads.split(",")):
            print(json.dumps(measure(folder, args.adapter, threads, args.prompts, args.seed)), flush=True)


if __name__ == "__main__":
    main()
