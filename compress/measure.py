"""What a model is worth on a text: perplexity, bits per byte, divergence from a reference. Knows models; knows no method.

Windows of `context` tokens, each begun with the tokenizer's BOS if it has one; each scores the `stride` tokens at its
end, the first window all it has. So every token is scored once; without BOS the text's very first is not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.checkpoint import load_model
from compress.errors import CompressError
from compress.linear import holding
from compress.model import find_model
from compress.text import check_ids, load_tokenizer, read_text

POSITIONS = 512  # whose logits over the whole vocabulary are compared at once


@dataclass(frozen=True)
class Measure:
    """perplexity: of a token. bits_per_byte: of the scored text's UTF-8. tokens: scored. kl: mean KL(reference ‖ model) a
    token in nats, over the whole vocabulary; None without a reference. bos: whether windows begin with one."""

    perplexity: float
    bits_per_byte: float
    tokens: int
    context: int
    kl: float | None
    stride: int
    bos: bool


class Window(NamedTuple):
    """ids: what the model reads. scored: how many of the last ones count."""

    ids: list[int]
    scored: int


def measure(
    folder: str | Path,
    text: str,
    reference: str | Path | None = None,
    context: int = 1024,
    stride: int | None = None,
    bos: bool = True,
    batch: int = 4,
    device: str | None = None,
) -> Measure:
    """The model in a directory (any that load_model reads) on a text. stride: by default context − 1, each token read
    once. bos: False leaves the BOS out though the tokenizer has one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    places = [find_model(folder)] + ([find_model(reference)] if reference else [])
    tokenizer = load_tokenizer(places[0])
    models = [load_model(place, dtype, device) for place in places]
    if len({m.config.get_text_config().vocab_size for m in models}) > 1:
        raise CompressError(
            f"'{folder}' and '{reference}' have different vocabularies: their predictions cannot be compared"
        )
    with holding(models[0]), holding(models[-1]):
        return measure_model(models[0], tokenizer, text, models[1] if reference else None, context, stride, bos, batch)


def measure_model(
    model: nn.Module,
    tokenizer: Any,
    text: str,
    reference: nn.Module | None = None,
    context: int = 1024,
    stride: int | None = None,
    bos: bool = True,
    batch: int = 4,
) -> Measure:
    """As `measure`, of loaded models."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", context)
    if not 2 <= context <= longest:
        raise CompressError(f"context is {context} tokens: choose 2 to {longest}")
    if batch < 1:
        raise CompressError(f"batch is {batch} windows: give 1 or more")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    check_ids(ids, model)
    bos = tokenizer.bos_token_id if bos else None
    if len(ids) < (1 if bos is not None else 2):
        raise CompressError(f"the text has {len(ids)} tokens: nothing can be scored")
    stride = context - 1 if stride is None else stride
    cut = windows(ids, context, stride, bos)
    loss, divergence = totals(model, reference, cut, batch)
    tokens = sum(w.scored for w in cut)
    size = len(text[0 if bos is not None else ends[0] :].encode())
    kl = None if reference is None else divergence / tokens
    return Measure(math.exp(loss / tokens), loss / math.log(2) / size, tokens, context, kl, stride, bos is not None)


def windows(ids: Sequence[int], context: int, stride: int, bos: int | None) -> list[Window]:
    """The text cut so that every token is scored once; without BOS the very first has nothing before it."""
    head = [] if bos is None else [bos]
    room = context - len(head)
    if not 1 <= stride <= context - 1:
        raise CompressError(
            f"stride is {stride} tokens: choose 1 to {context - 1}, which leaves a token before the scored ones"
        )
    made, done = [], 0 if head else 1
    while done < len(ids):
        end = min(len(ids), done + (stride if made else context - 1))
        made.append(Window(head + list(ids[max(0, end - room) : end]), end - done))
        done = end
    return made


@torch.no_grad()
def totals(model: nn.Module, reference: nn.Module | None, cut: Sequence[Window], batch: int) -> tuple[float, float]:
    """Sums over all scored tokens: negative log likelihood and KL(reference ‖ model), in nats."""
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64)
    for ids, wanted in _batches(cut, batch):
        outs = [m(ids.to(device), use_cache=False).logits[:, :-1] for m in (model, reference) if m is not None]
        chosen = wanted.to(device)[:, 1:]  # (B, T - 1) bool: which predictions count
        flat, targets = [out[chosen] for out in outs], ids.to(device)[:, 1:][chosen]  # (n, V), (n,)
        for at in range(0, len(targets), POSITIONS):
            rows = slice(at, at + POSITIONS)
            found = flat[0][rows].float().log_softmax(-1)
            sums[0] -= found.gather(1, targets[rows, None]).sum().double().cpu()
            if reference is not None:
                true = flat[1][rows].float().log_softmax(-1)
                sums[1] += (true.exp() * (true - found)).sum().double().cpu()
    return sums[0].item(), sums[1].item()


def _batches(cut: Sequence[Window], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, T) ids, padded behind (which no token before sees), and (B, T) bool, which of them are scored."""
    for at in range(0, len(cut), batch):
        part = cut[at : at + batch]
        longest = max(len(w.ids) for w in part)
        ids = torch.tensor([w.ids + [0] * (longest - len(w.ids)) for w in part])
        scored = [[len(w.ids) - w.scored <= i < len(w.ids) for i in range(longest)] for w in part]
        yield ids, torch.tensor(scored)


def main(arguments: Sequence[str] | None = None) -> int:
    """python -m compress.measure MODEL --text FILE: 0, or 1 after one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m compress.measure", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model directory, compressed or not, or a hub name")
    parser.add_argument("--text", type=Path, required=True, help="a .txt, or a .jsonl with 'text' fields")
    parser.add_argument("--reference", help="the model whose predictions are compared with: adds the KL divergence")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window (default 1024)")
    parser.add_argument("--stride", type=int, help="tokens that a window scores (default: context - 1)")
    parser.add_argument("--no-bos", action="store_true", help="begin no window with the tokenizer's BOS")
    parser.add_argument("--batch", type=int, default=4, help="windows at once (default 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    a = parser.parse_args(arguments)
    try:
        text = read_text(a.text)
        found = measure(a.model, text, a.reference, a.context, a.stride, not a.no_bos, a.batch)
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(found)) if a.json else _sentence(found))
    return 0


def _sentence(found: Measure) -> str:
    kl = "" if found.kl is None else f", KL {found.kl:.4f} nats a token"
    how = f"{found.tokens} tokens, context {found.context}, stride {found.stride}, {'with' if found.bos else 'no'} BOS"
    return f"perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits a byte{kl} ({how})"


if __name__ == "__main__":
    sys.exit(main())
