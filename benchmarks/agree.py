"""Does the native runtime write what torch writes? Greedy drafts of the sample's mails, token by token.

    python -m benchmarks.agree DIR... [--prompts 200] [--tokens 64] [--cache-bits 16] [--rounded]

Each DIR is a compressed model (or data/base); torch multiplies with the same weights decoded to fp32. Native writes; torch
reads what it wrote and says what it would have written at each place. A line a model: how many tokens agree, the most by which
torch preferred another token, the mean and the greatest KL(torch || native) of a token. 1 if any model breaks the promise:
another token only where torch finds it worse by less than GAP, and a mean KL below KL. With --rounded, native multiplies as drafts
do, in 8 bits where weights have 4 or fewer, which promises nothing: the line says what it costs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GAP, KL = 1e-3, 1e-4  # logits; nats a token


def written(runtime: Any, prompt: Sequence[int], tokens: int) -> tuple[list[int], np.ndarray]:
    """(tokens after the prompt, the logits that chose them (T, V))."""
    rows, answer = [], []
    for token in runtime.generate(prompt, most=tokens, guess=False):
        answer.append(token)
        rows.append(runtime.session.logits[0])
    return answer, np.stack(rows)


def compared(net: Any, runtime: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[tuple[Any, Any]]:
    """For each prompt (by how much torch prefers its own token to the written one (T,), KL of each token (T,))."""
    import torch

    for prompt in prompts:
        answer, rows = written(runtime, prompt, tokens)
        with torch.inference_mode():
            true = net(torch.tensor([[*prompt, *answer[:-1]]]), logits_to_keep=len(answer)).logits[0].double()  # (T, V)
        gap = true.max(-1).values - true.gather(1, torch.tensor(answer)[:, None])[:, 0]
        log, found = true.log_softmax(-1), torch.from_numpy(rows).double().log_softmax(-1)
        yield gap.numpy(), (log.exp() * (log - found)).sum(-1).numpy()


def agreement(
    folder: Path, prompts: Sequence[Sequence[int]], tokens: int, cache_bits: int, exact: bool = True
) -> dict[str, Any]:
    """One line of the report."""
    import torch

    from compress.checkpoint import load_model
    from compress.linear import holding
    from compress.runtime import load

    net, runtime = load_model(folder, torch.float32, "cpu").eval(), load(folder, cache_bits=cache_bits, exact=exact)
    with holding(net):
        gaps, kl = (np.concatenate(x) for x in zip(*compared(net, runtime, prompts, tokens), strict=True))
    return {
        "model": str(folder),
        "tokens": len(gaps),
        "differ": int((gaps > 0).sum()),
        "differ_by_more": int((gaps >= GAP).sum()),
        "greatest_gap": float(gaps.max()),
        "mean_kl": float(kl.mean()),
        "greatest_kl": float(kl.max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cache-bits", type=int, default=16, help="of a key's or value's number: 32, 16, 8")
    parser.add_argument("--rounded", action="store_true", help="inputs in 8 bits, as drafts have them")
    args = parser.parse_args()
    from benchmarks.sample import drafting_prompts

    kept = True
    for folder in args.folders:
        found = agreement(
            folder, drafting_prompts(args.prompts, folder), args.tokens, args.cache_bits, not args.rounded
        )
        kept = args.rounded or kept and found["differ_by_more"] == 0 and found["mean_kl"] < KL
        print(json.dumps(found), flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
