"""Tokens a second of a Llama 3 8B shape with random weights: `python kernels/bench_model.py`. Knows no text, loads no model.

Each decodes one token a sequence in a CUDA graph, with 512 tokens in a static cache: bf16 first, then compressed weights in
the same program, whose embedding and head stay bf16. What stands between the products is the same code for all, fused by
torch.compile.
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
from kernels.bench_gpu import copy_of, filled, kernels  # noqa: E402

HIDDEN, FFN, LAYERS, HEADS, KV, SIZE, VOCAB, CONTEXT = 4096, 14336, 32, 32, 8, 128, 128256, 512
SHAPES = {"qkv": (HIDDEN + 2 * KV * SIZE, HIDDEN), "out": (HIDDEN, HIDDEN), "gate_up": (2 * FFN, HIDDEN), "down": (HIDDEN, FFN)}  # fmt: skip
Products = dict[str, Callable[[Tensor], Tensor]]


@torch.compile(dynamic=False)
def added_norm(x: Tensor, more: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x + more
    return x, (F.rms_norm(x.float(), (HIDDEN,)) * weight).to(x.dtype)


@torch.compile(dynamic=False)
def rotated(qkv: Tensor, turn: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Queries (B KV, HEADS / KV, SIZE), turned; keys and values go into the cache."""
    q, k, v = qkv.split((HEADS * SIZE, KV * SIZE, KV * SIZE), -1)

    def turned(x: Tensor) -> Tensor:
        a, b = x.view(len(x), -1, 2, SIZE // 2).float().unbind(2)
        return torch.cat((a * turn[0] - b * turn[1], b * turn[0] + a * turn[1]), -1).to(x.dtype)

    keys.index_copy_(2, at, turned(k)[:, :, None])
    values.index_copy_(2, at, v.view(len(v), KV, 1, SIZE))
    return turned(q).view(-1, HEADS // KV, SIZE)


@torch.compile(dynamic=False)
def weighed(scores: Tensor, at: Tensor) -> Tensor:
    seen = torch.arange(CONTEXT, device=scores.device) <= at
    return torch.where(seen, scores.float() / SIZE**0.5, -torch.inf).softmax(-1).to(scores.dtype)


@torch.compile(dynamic=False)
def gated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    return F.silu(gate.float()).to(up.dtype) * up


class Model:
    """A decoder whose products are given; batch B."""

    def __init__(self, layers: list[Products], head: Callable[[Tensor], Tensor], embedding: Tensor, B: int) -> None:
        self.layers, self.head, self.embedding = layers, head, embedding
        self.norm = torch.ones(HIDDEN, device="cuda")
        self.turn = torch.randn(2, SIZE // 2, device="cuda").softmax(0)
        self.at = torch.tensor([CONTEXT - 1], device="cuda")
        cache = (LAYERS, 2, B, KV, CONTEXT, SIZE)
        self.cache = torch.randn(cache, dtype=torch.bfloat16, device="cuda")

    def step(self, ids: Tensor) -> Tensor:
        """(B,) token ids -> the next."""
        x, more = self.embedding[ids], torch.zeros(len(ids), HIDDEN, dtype=torch.bfloat16, device="cuda")
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            x, normed = added_norm(x, more, self.norm)
            q = rotated(layer["qkv"](normed), self.turn, keys, values, self.at)
            scores = weighed(torch.bmm(q, keys.flatten(0, 1).transpose(1, 2)), self.at)
            more = layer["out"](torch.bmm(scores, values.flatten(0, 1)).view(len(ids), -1))
            x, normed = added_norm(x, more, self.norm)
            more = layer["down"](gated(layer["gate_up"](normed)))
        return self.head(added_norm(x, more, self.norm)[1]).argmax(-1)


def milliseconds(model: Model, B: int) -> float:
    ids = torch.randint(VOCAB, (B,), device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            model.step(ids)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            ids.copy_(model.step(ids))
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


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="trellis 2-bit L7,additive 2x8 g8,grid 2-bit g128,grid 3-bit g128")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no NVIDIA GPU that torch can use.")
    torch._dynamo.config.cache_size_limit = 64
    embedding, head = torch.randn(VOCAB, HIDDEN, device="cuda").bfloat16(), dense(VOCAB, HIDDEN)
    plain: dict[int, float] = {}
    for name in ["bf16", *args.only.split(",")]:
        layers = products(name)
        torch.cuda.empty_cache()
        size = torch.cuda.memory_allocated() / 2**30
        for B in (1, 8, 32):
            ms = milliseconds(Model(layers, head, embedding, B), B)
            plain.setdefault(B, ms)
            print(f"{name:20s} B={B:2d} {1000 * B / ms:8.0f} tokens/s {ms:6.2f} ms x{plain[B] / ms:4.2f} weights {size:5.2f} GiB", flush=True)  # fmt: skip
        del layers


if __name__ == "__main__":
    main()
