"""What stands between the products of a Llama layer that reads one token a sequence, as three Triton kernels with their plain
definition at the end. Knows no weights.

Where the card can (Hopper on), a kernel begins before the one ahead of it ends (programmatic dependent launch): what it reads
before `gdc_wait` is constant during a step, but for the cache, whose place of the new token it does not use.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

EPSILON = 1e-5
LEAST = tl.constexpr(-1e30)  # a score of what is not to be seen; finite, so that a tile of nothing else has no NaN


@cache
def _early() -> dict[str, bool]:
    """Options of each launch."""
    early = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@triton.jit
def _previous_kernel(EARLY: tl.constexpr):
    """Has ended, after this. The next kernel may begin before that: it waits for this one, and this one for all before it."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _added_norm(x, more, weight, y, normed, EPS: tl.constexpr, D: tl.constexpr, EARLY: tl.constexpr):
    d = tl.arange(0, D)
    place, w = tl.program_id(0) * D + d, tl.load(weight + d)
    _previous_kernel(EARLY)
    total = (tl.load(x + place).to(tl.float32) + tl.load(more + place).to(tl.float32)).to(y.dtype.element_ty)
    tl.store(y + place, total)
    total = total.to(tl.float32)
    tl.store(normed + place, total * tl.rsqrt(tl.sum(total * total) / D + EPS) * w)


def added_norm(x: Tensor, more: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x + more, and its RMS norm. x, more: (B, D); weight: (D,) fp32; D: a power of two."""
    y, normed = torch.empty_like(x), torch.empty_like(x)
    _added_norm[(len(x),)](x, more, weight, y, normed, EPSILON, x.shape[1], **_early(), num_warps=8)
    return y, normed


@triton.jit
def _gated(both, y, D: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    row, d = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _previous_kernel(EARLY)
    gate = tl.load(both + row * 2 * D + d, d < D).to(tl.float32)
    up = tl.load(both + row * 2 * D + D + d, d < D)
    tl.store(y + row * D + d, (gate * tl.sigmoid(gate)).to(up.dtype) * up, d < D)


def gated(both: Tensor, block: int = 512) -> Tensor:
    """(B, 2 D) -> (B, D): silu of the first half, times the second."""
    B, D = len(both), both.shape[1] // 2
    y = both.new_empty(B, D)
    _gated[(triton.cdiv(D, block), B)](both, y, D, block, **_early())
    return y


@triton.jit
def _turned(x, place, cos, sin, SIZE: tl.constexpr):
    """x[place] is turned by angles; place: (n, SIZE)."""
    d = tl.arange(0, SIZE)
    other = place - d + (d + SIZE // 2) % SIZE
    return (tl.load(x + place).to(tl.float32) * cos + tl.load(x + other).to(tl.float32) * sin).to(x.dtype.element_ty)


@triton.jit
def _attended(
    qkv, turn, keys, values, at, sums, marks, done, y,
    KV: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A program has TILE tokens of a sequence and the GROUP heads that share a key; the last of the programs to end adds up."""
    GROUP: tl.constexpr = HEADS // KV
    TILES: tl.constexpr = TOKENS // TILE
    tile, row = tl.program_id(0), tl.program_id(1)
    b, kv = row // KV, row % KV
    d, token, head = tl.arange(0, SIZE), tile * TILE + tl.arange(0, TILE), tl.arange(0, 16)  # 16: what tl.dot wants
    last = tl.load(at)
    place = (row * TOKENS + token)[:, None] * SIZE + d
    k, v = tl.load(keys + place), tl.load(values + place)
    angle = turn + last * SIZE + d % (SIZE // 2)
    cos, sin = tl.load(angle), tl.load(angle + SIZE // 2) * tl.where(d < SIZE // 2, -1, 1)
    _previous_kernel(EARLY)

    read = qkv + b * (HEADS + 2 * KV) * SIZE
    q = _turned(read, (kv * GROUP + head % GROUP)[:, None] * SIZE + d, cos, sin, SIZE)
    new_k = _turned(read, (HEADS + kv) * SIZE + d, cos, sin, SIZE)
    new_v = tl.load(read + (HEADS + KV + kv) * SIZE + d)
    here = (token == last)[:, None]
    k, v = tl.where(here, new_k[None], k), tl.where(here, new_v[None], v)
    if tile == last // TILE:
        tl.store(keys + (row * TOKENS + last) * SIZE + d, new_k)
        tl.store(values + (row * TOKENS + last) * SIZE + d, new_v)

    scores = tl.dot(q, tl.trans(k)) * (1.4426950408889634 / SIZE**0.5)  # of base 2
    scores = tl.where(token <= last, scores, LEAST)
    top = tl.max(scores, 1)
    weight = tl.exp2(scores - top[:, None])
    part, total = tl.dot(weight.to(v.dtype), v), tl.sum(weight, 1)

    mine, ours = (row * TILES + tile) * GROUP + head, head < GROUP
    tl.store(sums + mine[:, None] * SIZE + d, part, ours[:, None])
    tl.store(marks + 2 * mine, top, ours)
    tl.store(marks + 2 * mine + 1, total, ours)
    tl.debug_barrier()  # all threads have written before one tells
    if tl.atomic_add(done + row, 1) == TILES - 1:
        tl.debug_barrier()
        tl.store(done + row, 0)
        g = tl.arange(0, GROUP)  # what others wrote is read past the L1 cache: .cg
        tops = tl.full((GROUP,), LEAST, tl.float32)
        for i in tl.static_range(TILES):
            one = (row * TILES + i) * GROUP + g
            tops = tl.maximum(tops, tl.load(marks + 2 * one, cache_modifier=".cg"))
        parts, totals = tl.zeros((GROUP, SIZE), tl.float32), tl.zeros((GROUP,), tl.float32)
        for i in tl.static_range(TILES):
            one = (row * TILES + i) * GROUP + g
            share = tl.exp2(tl.load(marks + 2 * one, cache_modifier=".cg") - tops)
            totals += share * tl.load(marks + 2 * one + 1, cache_modifier=".cg")
            parts += share[:, None] * tl.load(sums + one[:, None] * SIZE + d, cache_modifier=".cg")
        tl.store(y + (row * GROUP + g)[:, None] * SIZE + d, parts / totals[:, None])


class Attention:
    """Rotation, cache and attention of one new token a sequence, with room for what its programs tell each other."""

    def __init__(self, B: int, HEADS: int, KV: int, SIZE: int, TOKENS: int, tile: int = 64, warps: int = 8) -> None:
        self.sizes, self.grid, self.warps = (KV, HEADS, SIZE, TOKENS, tile), (TOKENS // tile, B * KV), warps
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Triton's interpreter
        self.sums = torch.empty(B * HEADS * (TOKENS // tile), SIZE, device=device)
        self.marks = torch.empty(len(self.sums), 2, device=device)
        self.done = torch.zeros(B * KV, dtype=torch.int32, device=device)

    def __call__(self, qkv: Tensor, turn: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        """(B, HEADS SIZE). Writes keys and values (B, KV, TOKENS, SIZE) at the place `at`; turn: as `turns` makes it."""
        KV, HEADS, SIZE, *_ = self.sizes
        y = qkv.new_empty(len(qkv), HEADS * SIZE)
        room = self.sums, self.marks, self.done
        _attended[self.grid](qkv, turn, keys, values, at, *room, y, *self.sizes, **_early(), num_warps=self.warps)
        return y


def turns(tokens: int, size: int, base: float = 500_000.0) -> Tensor:
    """(tokens, 2, size / 2): cosines and sines of the rotation at each place."""
    angle = torch.arange(tokens)[:, None] / base ** (torch.arange(size // 2) / (size // 2))
    return torch.stack((angle.cos(), angle.sin()), 1)


# --- the definition ------------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), EPSILON)


def plain_gate(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def plain_attention(qkv: Tensor, turn: Tensor, keys: Tensor, values: Tensor, at: int) -> Tensor:
    B, KV, _, SIZE = keys.shape
    qk, v = qkv.view(B, -1, SIZE).tensor_split((-KV,), 1)
    cos, sin = turn[at].to(qkv.dtype)
    a, b = qk.chunk(2, -1)
    q, k = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).tensor_split((-KV,), 1)
    keys[:, :, at], values[:, :, at] = k, v
    seen = keys[:, :, : at + 1], values[:, :, : at + 1]
    return F.scaled_dot_product_attention(q[:, :, None], *seen, enable_gqa=True).reshape(B, -1)
