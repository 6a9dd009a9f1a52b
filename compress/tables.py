"""Tables of one number a row and group: scales and zeros, plain or themselves quantised. Knows no weight.

`forward(rows)` gives (N, G) fp32; with rows, (R,) int64 in [0, N), these alone: (R, G).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress import ops


class Real(nn.Module):
    """fp16 numbers: one a row and group."""

    def __init__(self, N: int, G: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(N, G, dtype=torch.float16))

    @classmethod
    def of(cls, values: Tensor) -> Real:
        """values: (N, G), rounded to fp16."""
        made = cls(*values.shape)
        made.values.data = values.detach().half()
        return made

    def spec(self) -> dict[str, Any]:
        return {"groups": self.values.shape[1]}

    def forward(self, rows: Tensor | None = None) -> Tensor:
        return ops.taken(self.values, rows).float()


class Whole(nn.Module):
    """Integers of `bits` bits: the zeros of a GPTQ grid."""

    def __init__(self, N: int, G: int, bits: int) -> None:
        super().__init__()
        assert 1 <= bits <= ops.MAX_BITS, "bits of a code"
        self.groups, self.bits = G, bits
        self.register_buffer("codes", torch.zeros(N, ops.packed_bytes(G, bits), dtype=torch.uint8))

    @classmethod
    def of(cls, values: Tensor, bits: int) -> Whole:
        """values: (N, G) integers in [0, 2^bits)."""
        made = cls(*values.shape, bits)
        made.codes = ops.pack(values, bits)
        return made

    def spec(self) -> dict[str, Any]:
        return {"groups": self.groups, "bits": self.bits}

    def forward(self, rows: Tensor | None = None) -> Tensor:
        return ops.unpack(ops.taken(self.codes, rows), self.groups, self.bits).float()


class TwoLevel(nn.Module):
    """SpQR's second level (arXiv:2306.03078, section 4): codes of `bits` bits, a scale and a zero for `rows` rows each.

    value[n, g] = scale[n // rows, g] · (code[n, g] − zero[n // rows, g]).
    """

    def __init__(self, N: int, G: int, bits: int, rows: int) -> None:
        super().__init__()
        assert 1 <= bits <= ops.MAX_BITS and rows > 0, "bits of a code"
        self.N, self.groups, self.bits, self.rows = N, G, bits, rows
        blocks = -(-N // rows)
        self.register_buffer("codes", torch.zeros(N, ops.packed_bytes(G, bits), dtype=torch.uint8))
        self.scale = nn.Parameter(torch.zeros(blocks, G, dtype=torch.float16))
        self.zero = nn.Parameter(torch.zeros(blocks, G, dtype=torch.float16))

    def spec(self) -> dict[str, Any]:
        return {"groups": self.groups, "bits": self.bits, "rows": self.rows}

    def forward(self, rows: Tensor | None = None) -> Tensor:
        codes = ops.unpack(ops.taken(self.codes, rows), self.groups, self.bits).float()
        scale, zero = (self._spread(t.float(), rows) for t in (self.scale, self.zero))
        return scale * (codes - zero)

    def _spread(self, level: Tensor, rows: Tensor | None) -> Tensor:
        """(blocks, G) -> (N, G), or of those rows."""
        block = min(self.rows, self.N)
        return level.repeat_interleave(block, 0)[: self.N] if rows is None else level[rows // block]


TABLES: dict[str, type[nn.Module]] = {"real": Real, "whole": Whole, "two_level": TwoLevel}
