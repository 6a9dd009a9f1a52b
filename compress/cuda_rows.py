"""Rows of compressed embeddings on an NVIDIA GPU, by a kernel compiled at first use. Knows weights; knows no model, no file.

The kernel reads a weight as the file lays it out, so nothing is packed and nothing can go stale. The definition is
`compress.weight.QuantizedWeight.rows`, whose bits it gives.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from compress import cuda, nvrtc, ops
from compress.decode import Grid
from compress.errors import CompressError
from compress.tables import Real, Whole
from compress.weight import QuantizedWeight

BITS = range(1, 9)
THREADS = 256
FLOATS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}


@torch.compiler.assume_constant_result
def usable(index: int) -> bool:
    """Whether the kernel runs on that GPU."""
    return cuda.usable(torch.device("cuda", index))


def fits(weight: QuantizedWeight) -> bool:
    """Whether the kernel knows this kind: a grid without transforms whose scales lie there as fp16, as embeddings are written."""
    decode, scale, moves = weight.decode, weight.scale, weight.transform
    zero = getattr(decode, "zero", None)
    plain = moves.in_block == moves.out_block == 1 and moves.order is None and weight.low_rank is None
    tables = type(scale) in (Real, type(None)) and type(zero) in (Real, Whole, type(None))
    halves = all(p.dtype == torch.float16 for p in weight.parameters())  # tuning has them in fp32
    return type(decode) is Grid and decode.bits in BITS and decode.N == weight.shape[0] and plain and tables and halves


def takes(weight: QuantizedWeight, ids: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel gathers these rows: of a weight that `fits`, does not learn and lies beside the ids on a GPU."""
    if not ids.is_cuda or weight.decode.codes.device != ids.device or dtype not in FLOATS or not fits(weight):
        return False
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in weight.parameters())
    return not learns and usable(ids.device.index)


def gathered(weight: QuantizedWeight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """(…) integers on the GPU -> (…, D) of a weight that it `takes`: its rows, rounded once to `dtype`.

    A row for an id outside of [0, N) is NaN, and nothing outside of the tables is read: to refuse it, the host would have to wait
    for the GPU. (torch's own embedding raises IndexError on the CPU; on a GPU an assertion of its kernel ends all work there.)
    """
    made = rows(ids.reshape(-1).long(), *arguments(weight), dtype)
    return made.view(*ids.shape, weight.shape[1])


def arguments(weight: QuantizedWeight) -> tuple[list[Tensor], list[int]]:
    """tables and how of the operator `rows`."""
    decode, sparse = weight.decode, weight.sparse
    whole = isinstance(decode.zero, Whole)
    scale = None if weight.scale is None else weight.scale.values.detach()
    zero = None if decode.zero is None else decode.zero.codes if whole else decode.zero.values.detach()
    none = decode.codes.new_empty(0)
    tables = [decode.codes, *(none if table is None else table for table in (scale, zero))]
    if sparse is not None:
        tables += [sparse.starts, sparse.columns.view(torch.int16), sparse.values.detach()]
    zeros = 0 if decode.zero is None else decode.zero.groups if whole else decode.zero.values.shape[1]
    return tables, [*weight.shape, decode.D, decode.bits, zeros, decode.zero.bits if whole else 0]


@torch.library.custom_op("panza::rows", mutates_args=())
def rows(ids: Tensor, tables: list[Tensor], how: list[int], dtype: torch.dtype) -> Tensor:
    """(B,) int64 -> (B, D): see `gathered`. tables: codes, scales, zeros (each empty if there are none), then none or all
    of outliers' starts, columns (int16) and values. how: N, D, padded D, bits, zeros of a row, their bits (0: fp16)."""
    (N, D, padded, bits, zeros, zero_bits), (codes, scale, zero, *sparse) = how, tables
    device, groups = ids.device, scale.shape[1] if scale.numel() else 0
    zero_width = ops.packed_bytes(zeros, zero_bits)
    shapes = [(codes, (N, ops.packed_bytes(padded, bits)))]
    shapes += [(zero, (N, zero_width if zero_bits else zeros))] if zeros else []
    shapes += [(scale, (N, groups))] if groups else []
    shapes += [(sparse[0], (N + 1,)), (sparse[1], sparse[2].shape)] if sparse else []
    for table, shape in shapes:
        if table.shape != shape or table.device != device or not device.type == "cuda":
            raise CompressError(f"a table of {tuple(table.shape)} on {table.device} is not {tuple(shape)} on {device}")
    y = torch.empty(len(ids), D, dtype=dtype, device=device)
    lying = [t.contiguous() for t in (codes, scale, zero, *sparse)]
    pointers = [t.data_ptr() if t.numel() else 0 for t in lying] + [0] * (6 - len(lying))
    weight = struct.pack(
        "6QQ10i", *pointers, N, D, codes.shape[1], bits, groups, padded // (groups or 1), zeros, padded // (zeros or 1),
        zero_bits, zero_width, len(sparse[2]) if sparse else 0,
    )  # fmt: skip
    if len(ids):
        threads = min(THREADS, -(-D // 8 // 32) * 32)
        nvrtc.kernel("rows", device.index)(len(ids), threads, 0, weight, ids.contiguous(), y, FLOATS[dtype])
    return y


@rows.register_fake
def _(ids: Tensor, tables: list[Tensor], how: list[int], dtype: torch.dtype) -> Tensor:
    return ids.new_empty(len(ids), how[1], dtype=dtype)
