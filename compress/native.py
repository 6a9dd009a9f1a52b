"""Compressed weights for the native kernels. Knows the extension `compress._kernels`; without it, torch does the work.

The definition of everything here is `QuantizedWeight.dense` and a product with it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress import ops
from compress.decode import Additive, Grid, Lut, Trellis
from compress.weight import QuantizedWeight

try:
    from compress import _kernels
except ImportError:  # built without a compiler
    _kernels = None


def available() -> bool:
    """Whether this installation has the native kernels."""
    return _kernels is not None


def cores() -> int:
    """Cores that this process may use: one thread each, hyper-threads counted once where the system tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_siblings(cpu) for cpu in allowed}
    return max(1, len(siblings))


def _siblings(cpu: int) -> str:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
            return file.read().strip()
    except OSError:
        return str(cpu)


@lru_cache(maxsize=8)
def pool(threads: int = 0) -> Any:
    """The threads that products share. 0: one a physical core."""
    return _kernels.Pool(threads or cores())


def linear(weight: QuantizedWeight, bias: Tensor | None = None, isa: str = "") -> Any:
    """A native copy of a weight: `.multiply(x, pool)` is `x @ weight.dense().T + bias`. isa: "" for the best."""
    kind, numbers, values = _codes(weight.decode)
    decode, zero = weight.decode, getattr(weight.decode, "zero", None)
    made = _kernels.Linear(
        *weight.shape, kind, decode.N, decode.D, numbers, _array(decode.codes),
        None if weight.scale is None else _array(weight.scale()), None if zero is None else _array(zero()),
        None if values is None else _array(values.flatten()), isa,
    )  # fmt: skip
    t = weight.transform
    if t.in_signs is not None or t.out_signs is not None or t.order is not None:
        signs = [
            None if s is None else _array(1.0 - 2 * ops.unpack(s, n, 1))
            for s, n in ((t.in_signs, t.D), (t.out_signs, t.N))
        ]
        made.set_transform(t.in_block, signs[0], t.out_block, signs[1], None if t.order is None else _array(t.order))
    if weight.sparse is not None:
        made.set_sparse(
            *(_array(p) for p in (weight.sparse.starts, weight.sparse.columns, weight.sparse.values.float()))
        )
    if weight.low_rank is not None:
        made.add_low_rank(_array(weight.low_rank.A.float()), _array(weight.low_rank.B.float()))
    if bias is not None:
        made.set_bias(_array(bias.float()))
    return made


def dense(weight: Tensor, bias: Tensor | None = None, isa: str = "") -> Any:
    """As `linear`, of a plain (N, D) weight, kept as fp16 or bf16 (an fp32 one as fp16)."""
    half = weight if weight.dtype == torch.bfloat16 else weight.half()
    bits = half.detach().contiguous().view(torch.int16).numpy()
    kind = "bfloat16" if half.dtype == torch.bfloat16 else "float16"
    made = _kernels.Linear(*weight.shape, kind, *weight.shape, [], bits, None, None, None, isa)
    if bias is not None:
        made.set_bias(_array(bias.float()))
    return made


def _codes(decode: torch.nn.Module) -> tuple[str, list[int], Tensor | None]:
    """(kind, its numbers, its table) as the extension takes them."""
    match decode:
        case Grid():
            return "grid", [decode.bits], None
        case Lut():
            return "lut", [decode.bits, decode.rows], decode.levels.float()
        case Additive():
            return "additive", [decode.books, decode.bits, decode.group], decode.words()
        case Trellis():
            return "trellis", [decode.step, decode.window], decode.lut.float()
    raise TypeError(type(decode).__name__)


def _array(t: Tensor) -> np.ndarray:
    return np.ascontiguousarray(t.detach().cpu().numpy())
