"""The definition of every operation on compressed weights, in plain torch. Knows tensors; knows no file, no method.

Letters: N outputs, D inputs, G groups along the inputs, K new bits a weight, L bits of a trellis window.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MAX_BITS = 16  # of one code: three bytes hold any window of 16 bits at any bit offset


def windows(packed: Tensor, count: int, step: int, width: int) -> Tensor:
    """The windows of `width` bits that start every `step` bits of a bit stream, the least significant bit first.

    packed: (..., bytes) uint8. Returns (..., count) int32 in [0, 2^width).
    """
    at = torch.arange(count, device=packed.device) * step
    byte, shift = at >> 3, (at & 7).int()
    stream = torch.nn.functional.pad(packed, (0, 2)).int()  # the last window may reach two bytes further
    value = stream[..., byte] | stream[..., byte + 1] << 8 | stream[..., byte + 2] << 16
    return value >> shift & (1 << width) - 1


def unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """`count` codes of `bits` bits each. packed: (..., packed_bytes(count, bits)) uint8; returns (..., count) int32."""
    return windows(packed, count, bits, bits)


def pack(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack`. codes: (..., count) integers in [0, 2^bits); returns (..., bytes) uint8."""
    count = codes.shape[-1]
    at = torch.arange(count, device=codes.device) * bits
    value = codes.int() << (at & 7).int()
    stream = codes.new_zeros(*codes.shape[:-1], packed_bytes(count, bits) + 2, dtype=torch.int32)
    for byte in range(3):  # no two codes share a bit, so adding is or-ing
        stream.index_add_(-1, (at >> 3) + byte, value >> 8 * byte & 255)
    return stream[..., :-2].to(torch.uint8, memory_format=torch.contiguous_format)


def taken(table: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows of a table, or the whole of it for None."""
    return table if rows is None else table[rows]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


@lru_cache(maxsize=64)
def _sylvester(block: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float32)
    while len(matrix) < block:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (matrix / block**0.5).to(device, dtype)


def hadamard(x: Tensor, block: int) -> Tensor:
    """The orthonormal Walsh–Hadamard transform (Sylvester's order, its own inverse) of each `block` of the last axis.

    x: (..., D) with D divisible by `block`, a power of two; 1 changes nothing.
    """
    if block == 1:
        return x
    if block <= 128:
        return (x.unflatten(-1, (-1, block)) @ _sylvester(block, x.device, x.dtype)).flatten(-2)
    x = hadamard(x, 128).unflatten(-1, (-1, block // 128, 128))  # H_block = H_(block/128) ⊗ H_128
    return hadamard(x.transpose(-1, -2), block // 128).transpose(-1, -2).flatten(-3)


def power_of_two_in(n: int, at_most: int = 1024) -> int:
    """The largest power of two that divides n: the block of its Hadamard transform."""
    return min(n & -n, at_most)


def weighted_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """tr(E Hᵀ Eᵀ) summed over output groups: what a layer's outputs lose, up to the number of tokens.

    difference: (N, D). hessian: (Q, D, D), as methods get it. Returns a scalar.
    """
    parts = output_groups(difference, hessian)
    return sum((rows @ matrix * rows).sum() for rows, matrix in parts)


def output_groups(rows: Tensor, hessian: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows of each of the Q output groups (views, as equal as N allows) with their Hessian (D, D)."""
    return list(zip(rows.tensor_split(len(hessian)), hessian, strict=True))
