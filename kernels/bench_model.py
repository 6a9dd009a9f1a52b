"""Tokens a second of a Llama 3 8B shape with random weights: `python kernels/bench_model.py`. Knows no text, loads no model.

Each decodes one token a sequence in a CUDA graph, with 512 tokens in a static cache: bf16 first, then compressed weights in
the same program, whose embedding and head stay bf16. What stands between the products is the same for all (glue.py). Before
it is timed, two layers of each are compared with their definition in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from compress import cuda  # noqa: E402
from kernels.bench_gpu import copy_of, filled, kernels, relative  # noqa: E402

try:
    from kernels import glue
except ImportError:  # Triton comes with torch where it has CUDA, but for Windows
    glue = None

HIDDEN, FFN, LAYERS, HEADS, KV, SIZE, VOCAB, CONTEXT = 4096, 14336, 32, 32, 8, 128, 128256, 512
SHAPES = {"qkv": (HIDDEN + 2 * KV * SIZE, HIDDEN), "out": (HIDDEN, HIDDEN), "gate_up": (2 * FFN, HIDDEN), "down": (HIDDEN, FFN)}  # fmt: skip
BATCHES = (1, 8, 32)
Products = dict[str, Callable[[Tensor], Tensor]]


class Model:
    """A decoder of given products, for B sequences whose next token has the place `at`, in a cache of random numbers."""

    def __init__(self, layers: list[Products], embedding: Tensor, B: int, at: int = CONTEXT - 1) -> None:
        self.layers, self.embedding = layers, embedding
        self.norm = 0.5 + torch.rand(HIDDEN, device="cuda")
        self.turn = glue.turns(CONTEXT, SIZE).cuda()
        self.at = torch.tensor([at], device="cuda")
        self.nothing = torch.zeros(B, HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.cache = torch.randn(len(layers), 2, B, KV, CONTEXT, SIZE, dtype=torch.bfloat16, device="cuda")
        self.attention = glue.Attention(B, HEADS, KV, SIZE, CONTEXT)

    def read(self, ids: Tensor) -> Tensor:
        """(B,) token ids -> (B, HIDDEN), what the head multiplies."""
        x, more = self.embedding[ids], self.nothing
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            x, normed = glue.added_norm(x, more, self.norm)
            more = layer["out"](self.attention(layer["qkv"](normed), self.turn, keys, values, self.at))
            x, normed = glue.added_norm(x, more, self.norm)
            more = layer["down"](glue.gated(layer["gate_up"](normed)))
        return glue.added_norm(x, more, self.norm)[1]


def plain(model: Model, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The definition of Model.read with numbers of that type: (what it gives, the cache after it)."""
    x, cache = model.embedding[ids].to(dtype), model.cache.to(dtype, copy=True)
    for layer, (keys, values) in zip(model.layers, cache, strict=True):
        weight = {part: weight_of(product).to(dtype) for part, product in layer.items()}
        qkv = F.linear(glue.plain_norm(x, model.norm), weight["qkv"])
        x = x + F.linear(glue.plain_attention(qkv, model.turn, keys, values, model.at.item()), weight["out"])
        both = F.linear(glue.plain_norm(x, model.norm), weight["gate_up"])
        x = x + F.linear(glue.plain_gate(both), weight["down"])
    return glue.plain_norm(x, model.norm), cache


def weight_of(product: nn.Module) -> Tensor:
    """(N, D) fp32."""
    if isinstance(product, cuda.PackedLinear):
        return cuda.decoded(product.packed.parts, product.packed.how, torch.float16).float()
    return product.weight.float()


def check(layers: list[Products], B: int, at: int) -> None:
    """AssertionError if the error against fp32 is more than twice that of the definition in bf16."""
    embedding = torch.randn(B, HIDDEN, device="cuda").bfloat16() / 32  # small, so that it hides no part of a layer
    model = Model(layers[:2], embedding, B, at)
    ids = torch.randperm(B, device="cuda")
    exact, rough = plain(model, ids, torch.float32), plain(model, ids, torch.bfloat16)
    torch.cuda._sleep(50_000_000)  # launches queue up behind it, so that they overlap as in a graph
    made = model.read(ids), model.cache
    for what, mine, bf16, true in zip(("output", "cache"), made, rough, exact, strict=True):
        error, allowed = relative(mine, true.double()), 2 * relative(bf16, true.double())
        where = f"the {what} of a batch of {B} at place {at}"
        assert error <= allowed, f"{where} is off by {error:.1e}, bf16 by {allowed / 2:.1e}"


def milliseconds(model: Model, head: Callable[[Tensor], Tensor], B: int) -> float:
    """The median time of a step, from ids to the next ids."""
    ids = torch.randint(VOCAB, (B,), device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            head(model.read(ids))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            ids.copy_(head(model.read(ids)).argmax(-1))
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[5:])


def dense(N: int, D: int) -> nn.Module:
    linear = nn.Linear(D, N, bias=False, device="cuda", dtype=torch.bfloat16)
    return linear.requires_grad_(False)


def products(name: str) -> list[Products]:
    """Of all layers. A compressed weight's numbers are drawn once a shape; every layer has its own copy."""
    if name == "bf16":
        return [{part: dense(*shape) for part, shape in SHAPES.items()} for _ in range(LAYERS)]
    first = {part: cuda.pack(filled(kernels(*shape)[name]())) for part, shape in SHAPES.items()}
    return [{part: cuda.PackedLinear(copy_of(packed), None) for part, packed in first.items()} for _ in range(LAYERS)]


def bench(names: list[str]) -> list[dict]:
    rows, plain_ms = [], {}
    embedding, head = torch.randn(VOCAB, HIDDEN, device="cuda").bfloat16(), dense(VOCAB, HIDDEN)
    for name in names:
        layers = products(name)
        torch.cuda.empty_cache()
        size = torch.cuda.memory_allocated() / 2**30
        for B in BATCHES:
            for at in (0, 1, int(torch.randint(CONTEXT, ())), CONTEXT - 1):  # attention shows most where it is to few
                check(layers, B, at)
            ms = milliseconds(Model(layers, embedding, B), head, B)
            ratio = plain_ms.setdefault(B, ms) / ms
            rows.append({"weights": name, "batch": B, "ms": ms, "tokens": 1000 * B / ms, "ratio": ratio, "gib": size})
            print("{weights:20s} B={batch:2d} {tokens:8.0f} tokens/s {ms:6.2f} ms x{ratio:4.2f} weights {gib:5.2f} GiB".format(**rows[-1]), flush=True)  # fmt: skip
        del layers
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: tokens a second of each batch, and the ratio to the first kind of weights."""
    lines = [f"| weights | batch {' | '.join(map(str, BATCHES))} | GiB |", "|---" * (2 + len(BATCHES)) + "|"]
    for at in range(0, len(rows), len(BATCHES)):
        same = rows[at : at + len(BATCHES)]
        cells = [f"{row['tokens']:.0f}" + (f" ({row['ratio']:.1f})" if at else "") for row in same]
        name = same[0]["weights"].replace(" L", ", window ")
        lines.append(f"| {name} | {' | '.join(cells)} | {same[0]['gib']:.2f} |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="trellis 2-bit L7,additive 2x8 g8,grid 2-bit g128,grid 3-bit g128")
    parser.add_argument("--table", action="store_true", help="Markdown, at the end")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no NVIDIA GPU that torch can use.")
    if glue is None:
        sys.exit("There is no Triton, which this benchmark needs beside torch.")
    rows = bench(["bf16", *args.only.split(",")])
    if args.table:
        print("\n" + table(rows))


if __name__ == "__main__":
    main()
