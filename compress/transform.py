"""Orthogonal transforms around the codes: permutation, random signs, block Hadamard. Knows tensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import ops
from compress.errors import CompressError


class Transform(nn.Module):
    """y = D_out H_out Ŵ (H_in D_in P x): W' lives between the two sides.

    in_block, out_block: Hadamard blocks, 1 for none. signs: whether D is random signs or the identity, each side
    with a block above 1. permuted: whether P reorders the inputs (act order). Sizes are the padded ones.
    """

    def __init__(self, N: int, D: int, in_block: int = 1, out_block: int = 1, permuted: bool = False) -> None:
        super().__init__()
        self.N, self.D, self.in_block, self.out_block = N, D, in_block, out_block
        assert D % in_block == 0 and N % out_block == 0, "a block divides its side"
        assert in_block & in_block - 1 == 0 == out_block & out_block - 1, "Hadamard's blocks are powers of two"
        self._signs("in_signs", D, in_block)
        self._signs("out_signs", N, out_block)
        self.register_buffer("order", torch.arange(D, dtype=torch.int32) if permuted else None)

    def _signs(self, name: str, n: int, block: int) -> None:
        self.register_buffer(name, torch.zeros(ops.packed_bytes(n, 1), dtype=torch.uint8) if block > 1 else None)

    @classmethod
    def random(cls, N: int, D: int, in_block: int, out_block: int, seed: int) -> Transform:
        """Hadamard on the given sides with random signs."""
        made, chance = cls(N, D, in_block, out_block), torch.Generator().manual_seed(seed)
        for signs in (made.in_signs, made.out_signs):
            if signs is not None:
                signs.copy_(torch.randint(0, 256, signs.shape, generator=chance, dtype=torch.uint8))
        return made

    def spec(self) -> dict[str, Any]:
        """What rebuilds the shape: Transform(N, D, **spec)."""
        return {"in_block": self.in_block, "out_block": self.out_block, "permuted": self.order is not None}

    def check(self) -> None:
        """Raises CompressError for an order that is no permutation."""
        if self.order is not None and not torch.equal(self.order.sort().values, torch.arange(self.D).to(self.order)):
            raise CompressError("its order of inputs is no permutation")

    def inputs(self, x: Tensor) -> Tensor:
        """(..., d ≤ D) → (..., D): x in the space of the codes; differentiable."""
        x = F.pad(x, (0, self.D - x.shape[-1]))
        x = x if self.order is None else x[..., self.order.long()]
        return ops.hadamard(x * self._sign(self.in_signs, self.D, x), self.in_block)

    def outputs(self, y: Tensor) -> Tensor:
        """(..., N) → (..., N): y back from the space of the codes."""
        return ops.hadamard(y, self.out_block) * self._sign(self.out_signs, self.N, y)

    def weight(self, w: Tensor) -> Tensor:
        """(n ≤ N, d ≤ D) → (N, D): a weight into the space of the codes, zeros where it is padded."""
        w = F.pad(self.inputs(w), (0, 0, 0, self.N - w.shape[0])).T
        return ops.hadamard(w * self._sign(self.out_signs, self.N, w), self.out_block).T

    def back(self, w: Tensor) -> Tensor:
        """(N, D) → (N, D): the inverse of `weight`; differentiable."""
        w = self.outputs(w.T).T
        w = ops.hadamard(w, self.in_block) * self._sign(self.in_signs, self.D, w)
        return w if self.order is None else w[:, self.order.long().argsort()]

    def hessian(self, matrix: Tensor) -> Tensor:
        """(..., d, d) → (..., D, D): the Hessian of `inputs(x)` from that of x."""
        return self.inputs(self.inputs(matrix).transpose(-1, -2)).transpose(-1, -2)

    @staticmethod
    def _sign(packed: Tensor | None, n: int, like: Tensor) -> Tensor | int:
        return 1 if packed is None else 1 - 2 * ops.unpack(packed, n, 1).to(like)
