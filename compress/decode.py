"""The four kinds of codes and what each decodes to, in plain torch. Knows codes and tables; knows no layer, no method.

A kind is a module of buffers (codes, packed as in the file) and parameters (what tuning may move). Its `forward()`
is the definition of decoding: (N, D) fp32, before the scale, differentiable with respect to its parameters. Kinds that
are `apart`, whose rows have codes of their own, take `forward(rows)`, (R,) int64 in [0, N), for these alone: (R, D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress import ops

BAND = 16  # outputs whose weights form one trellis chain; an input tile is as wide
QUAD = 4  # inputs that a dot-product instruction takes at once


def codes_of(rows: int, count: int, bits: int) -> Tensor:
    """An empty buffer for `rows` streams of `count` codes."""
    assert 1 <= bits <= ops.MAX_BITS, "bits of a code"
    return torch.zeros(rows, ops.packed_bytes(count, bits), dtype=torch.uint8)


def half(*shape: int) -> nn.Parameter:
    """A real table as it lies in the file: fp16."""
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float16))


class Grid(nn.Module):
    """Uniform levels: code − zero. zero: see `compress.tables`, one a scale group; None for the symmetric 2^(bits−1)."""

    apart = True

    def __init__(self, N: int, D: int, bits: int, zero: nn.Module | None = None) -> None:
        super().__init__()
        self.N, self.D, self.bits, self.zero = N, D, bits, zero
        self.register_buffer("codes", codes_of(N, D, bits))

    def spec(self) -> dict[str, Any]:
        return {"bits": self.bits}

    def forward(self, rows: Tensor | None = None) -> Tensor:
        q = ops.unpack(ops.taken(self.codes, rows), self.D, self.bits).float()  # (N, D)
        if self.zero is None:
            return q - 2 ** (self.bits - 1)
        zero = self.zero(rows)  # (N, G)
        return (q.unflatten(1, (zero.shape[1], -1)) - zero[..., None]).flatten(1)


class Lut(nn.Module):
    """Free levels: each row (rows = N) or the whole tensor (rows = 1) has 2^bits of its own."""

    apart = True

    def __init__(self, N: int, D: int, bits: int, rows: int) -> None:
        super().__init__()
        assert rows in (1, N), "a table for all rows or one for each"
        self.N, self.D, self.bits, self.rows = N, D, bits, rows
        self.register_buffer("codes", codes_of(N, D, bits))
        self.levels = half(rows, 2**bits)

    def spec(self) -> dict[str, Any]:
        return {"bits": self.bits, "rows": self.rows}

    def forward(self, rows: Tensor | None = None) -> Tensor:
        index = ops.unpack(ops.taken(self.codes, rows), self.D, self.bits).long()  # (N, D)
        levels = ops.taken(self.levels.expand(self.N, -1), rows).float()
        return levels.gather(1, index)


class Additive(nn.Module):
    """Sums of codewords (AQLM, arXiv:2401.06118): each `group` neighbouring inputs are Σ_m codebooks[m, code_m].

    codebooks: (M, 2^bits, group); `codes` holds, row by row, (D/group, M). Tensors that read the same input may
    share one `codebooks` parameter. int8: the codebooks are whole numbers, −127 to 127, times one fp16 `step` a codebook;
    tuning learns real words and rounds them (`int8_grid`).
    """

    apart = True

    def __init__(self, N: int, D: int, books: int, bits: int, group: int, int8: bool = False) -> None:
        super().__init__()
        assert D % group == 0, "the group divides the inputs"
        self.N, self.D, self.books, self.bits, self.group, self.int8 = N, D, books, bits, group, int8
        self.register_buffer("codes", codes_of(N, D // group * books, bits))
        whole = torch.zeros(books, 2**bits, group, dtype=torch.int8) if int8 else None
        self.codebooks = nn.Parameter(whole, requires_grad=False) if int8 else half(books, 2**bits, group)
        self.step = half(books, 1, 1) if int8 else None  # a parameter as the codebooks are: sharing outlives a move

    def words(self) -> Tensor:
        """(M, 2^bits, group) fp32."""
        return self.codebooks.float() if self.step is None else self.codebooks.float() * self.step.float()

    def spec(self) -> dict[str, Any]:
        return {"books": self.books, "bits": self.bits, "group": self.group, "int8": self.int8}

    def indices(self, rows: Tensor | None = None) -> Tensor:
        """(N, D/group, M) int32."""
        codes = ops.taken(self.codes, rows)
        return ops.unpack(codes, self.D // self.group * self.books, self.bits).unflatten(1, (-1, self.books))

    def forward(self, rows: Tensor | None = None) -> Tensor:
        index = self.indices(rows).long()
        words = (book[index[..., m]] for m, book in enumerate(self.words()))
        return sum(words).flatten(1)  # (N, D/group, group) -> (N, D)


def int8_grid(words: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K, group) -> int8 codebooks and the fp16 step (M, 1, 1) of each: the nearest of −127 to 127 steps."""
    step = (words.abs().amax((1, 2), keepdim=True) / 127).half().clamp(min=2**-24)  # fp16's least: of zeros too
    return (words / step.float()).round().clamp(-127, 127).to(torch.int8), step


class Trellis(nn.Module):
    """A sliding window over a bit stream (QTIP, arXiv:2406.11235) with a learned table: weight = lut[window].

    BAND outputs form a chain of BAND · D weights, `step` new bits each, window 2^`window` states; the order of a chain
    is `chain_order`. Needs N and D divisible by BAND. A chain's first window is free: (window − step) bits more.
    """

    apart = False

    def __init__(self, N: int, D: int, step: int, window: int) -> None:
        super().__init__()
        assert N % BAND == 0 and D % BAND == 0, "tiles fill the weight"
        assert 1 <= step <= window <= ops.MAX_BITS, "a window holds its new bits"
        self.N, self.D, self.step, self.window = N, D, step, window
        self.register_buffer("codes", torch.zeros(N // BAND, self.chain_bytes(D, step, window), dtype=torch.uint8))
        self.lut = half(2**window)

    @staticmethod
    def chain_bytes(D: int, step: int, window: int) -> int:
        return ops.packed_bytes(BAND * D * step + window - step, 1)

    def spec(self) -> dict[str, Any]:
        return {"step": self.step, "window": self.window}

    def states(self) -> Tensor:
        """(N/BAND, BAND · D) int32: the window at each weight, in the order of the chain."""
        return ops.windows(self.codes, BAND * self.D, self.step, self.window)

    def forward(self) -> Tensor:
        return from_chains(self.lut.float()[self.states().long()], self.D)


def from_chains(chains: Tensor, D: int) -> Tensor:
    """(N/BAND, BAND · D) -> (N, D). Order: tile of BAND inputs, quad of inputs, output, input within the quad."""
    tiles = chains.view(-1, D // BAND, BAND // QUAD, BAND, QUAD)
    return tiles.permute(0, 3, 1, 2, 4).reshape(-1, D)


def to_chains(w: Tensor) -> Tensor:
    """(N, D) -> (N/BAND, BAND · D): the inverse of `from_chains`."""
    tiles = w.view(-1, BAND, w.shape[1] // BAND, BAND // QUAD, QUAD)
    return tiles.permute(0, 2, 3, 1, 4).reshape(len(w) // BAND, -1)


KINDS: dict[str, type[nn.Module]] = {"grid": Grid, "lut": Lut, "additive": Additive, "trellis": Trellis}
