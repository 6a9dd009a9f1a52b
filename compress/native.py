"""Compressed weights for the native kernels. Knows the extension `compress._kernels` and numpy; loads no torch.

The definition of everything here is `compress.weight.QuantizedWeight.dense` and a product with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

if find_spec("compress._kernels") is None:
    _kernels = None  # installed without a compiler; one that is there and does not load is an error
else:
    from compress import _kernels

MOST_SETS = 128  # of states with the same successors, that `viterbi` takes
Arrays = Mapping[str, np.ndarray]


def available() -> bool:
    """Whether this installation has the native kernels."""
    return _kernels is not None


def cores() -> int:
    """Physical cores that this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, len({_siblings(cpu) for cpu in allowed}))


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


def round_group(now: Any, gain: Any, scale: Any, finer: Any, zero: Any, top: int, reach: Any) -> None:
    """`compress.feedback.round_group` in place: fp32 tensors as they lie, now (g, N), gain (g, g), reach (g,)."""
    numbers = [tensor.numpy() for tensor in (gain, scale, finer, zero)]
    _kernels.round_group(now.numpy(), *numbers, float(top), reach.numpy())


def viterbi(target: Any, weight: Any, start: Any, lut: Any, step: int) -> Any:
    """`compress.viterbi.Viterbi.paths` of tensors on the CPU, on as many threads as torch uses."""
    import torch

    numbers = [None if t is None else t.contiguous().numpy() for t in (target, weight, start, lut)]
    return torch.from_numpy(_kernels.viterbi(*numbers, step, pool(torch.get_num_threads())))


def linear(weight: Any, bias: Any = None, isa: str = "", exact: bool = True) -> Any:
    """A native copy of a QuantizedWeight: `.multiply(x, pool)` is `x @ weight.dense().T + bias`. isa: "" for the best.

    Not `exact`: where levels have 4 bits or fewer, products may round inputs and the weight's table to 8 bits, an error
    of about a hundredth of |x| |row| where the weight is a tenth or more from what it was made of.
    """
    arrays = {name: array(tensor) for name, tensor in weight.state_dict().items()}
    return from_spec(weight.spec(), arrays, None if bias is None else bias.detach().float().cpu().numpy(), isa, exact)


def from_spec(
    spec: dict[str, Any], arrays: Arrays, bias: np.ndarray | None = None, isa: str = "", exact: bool = True
) -> Any:
    """As `linear`, of a weight as it lies in a file: QuantizedWeight.spec() and the tensors of its state by name."""
    N, D = spec["decode"]["padded"]
    if (
        not all(type(n) is int and 0 < n < 1 << 31 for n in (*spec["shape"], N, D))
        or N * D > 4096 * arrays["decode.codes"].size
    ):
        raise ValueError("its sizes are not those of its codes")
    kind, numbers, values = _codes(spec["decode"], arrays)
    exact = exact or (kind in ("grid", "lut") and spec["decode"]["bits"] > 4)
    scale = _table(spec["scale"], "scale", N, D, arrays) if "scale" in spec else None
    zero = _table(spec["decode"]["zero"], "decode.zero", N, D, arrays) if "zero" in spec["decode"] else None
    made = _kernels.Linear(
        *spec["shape"], kind, N, D, numbers, _whole(arrays["decode.codes"]), scale, zero, values, isa,
        _parts(spec.get("scale"), "scale", arrays), _parts(spec["decode"].get("zero"), "decode.zero", arrays), exact,
    )  # fmt: skip
    transform = spec["transform"]
    if transform["in_block"] > 1 or transform["out_block"] > 1 or transform["permuted"]:
        signs = [
            _signs(arrays[f"transform.{side}_signs"], n) if transform[f"{side}_block"] > 1 else None
            for side, n in (("in", D), ("out", N))
        ]
        order = _whole(arrays["transform.order"]) if transform["permuted"] else None
        made.set_transform(transform["in_block"], signs[0], transform["out_block"], signs[1], order)
    if "sparse" in spec:
        values = _floats(arrays["sparse.values"]).astype(np.float16).view(np.uint16)
        made.set_sparse(_whole(arrays["sparse.starts"]), _whole(arrays["sparse.columns"]), values)
    if "low_rank" in spec:
        made.add_low_rank(_floats(arrays["low_rank.A"]), _floats(arrays["low_rank.B"]))
    if bias is not None:
        made.set_bias(_floats(bias))
    return made


def rows8(codes: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None, isa: str = "") -> Any:
    """int8 rows (N, D) with one scale each (N,): see compress.rows8."""
    N, D = codes.shape
    unsigned = (codes.view(np.uint8) ^ 128).reshape(N, D)  # code + 128, whose zero is 128
    made = _kernels.Linear(N, D, "grid", N, D, [8], unsigned, _floats(scale).reshape(N, 1), None, None, isa)
    if bias is not None:
        made.set_bias(_floats(bias))
    return made


def dense(weight: np.ndarray, bias: np.ndarray | None = None, isa: str = "") -> Any:
    """A plain (N, D) weight: fp16, or bf16 as its bits (uint16); fp32 becomes fp16."""
    half = weight if weight.dtype == np.uint16 else weight.astype(np.float16)
    kind = "bfloat16" if weight.dtype == np.uint16 else "float16"
    made = _kernels.Linear(*weight.shape, kind, *weight.shape, [], _whole(half).view(np.uint8), None, None, None, isa)
    if bias is not None:
        made.set_bias(_floats(bias))
    return made


def array(tensor: Any) -> np.ndarray:
    """A torch tensor as an array; bf16 as its bits (uint16)."""
    tensor = tensor.detach().cpu().contiguous()
    if str(tensor.dtype) != "torch.bfloat16":
        return tensor.numpy()
    import torch

    return tensor.view(torch.int16).numpy().view(np.uint16)


def _codes(decode: dict[str, Any], arrays: Arrays) -> tuple[str, list[int], np.ndarray | None]:
    """(kind, its numbers, its table) as the extension takes them."""
    kind = decode["kind"]
    match kind:
        case "grid":
            return kind, [decode["bits"]], None
        case "lut":
            return kind, [decode["bits"], decode["rows"]], _floats(arrays["decode.levels"]).ravel()
        case "additive":
            words = _floats(arrays["decode.codebooks"])
            words = words * _floats(arrays["decode.step"]) if decode["int8"] else words
            return kind, [decode["books"], decode["bits"], decode["group"]], words.ravel()
        case "trellis":
            return kind, [decode["step"], decode["window"]], _floats(arrays["decode.lut"])
    raise ValueError(f"unknown kind '{kind}'")


def _table(spec: dict[str, Any], name: str, N: int, D: int, arrays: Arrays) -> np.ndarray:
    """(N, groups) fp32: the tables of compress.tables."""
    groups = spec["groups"]
    if type(groups) is not int or not 0 < groups <= D or D % groups:
        raise ValueError(f"{groups} groups do not divide {D} inputs")
    match spec["kind"]:
        case "real":
            return _floats(arrays[f"{name}.values"])
        case "whole":
            return unpack(arrays[f"{name}.codes"], groups, spec["bits"]).astype(np.float32)
        case "two_level":
            codes = unpack(arrays[f"{name}.codes"], groups, spec["bits"]).astype(np.float32)
            rows = min(spec["rows"], N)
            parts = [_floats(arrays[f"{name}.{part}"]) for part in ("scale", "zero")]
            if rows < 1 or any(part.shape != (-(-N // rows), groups) for part in parts):
                raise ValueError("its second level does not fit its size")
            scale, zero = (part.repeat(rows, 0)[:N] for part in parts)
            return _whole(scale * (codes - zero))
    raise ValueError(f"unknown table '{spec['kind']}'")


def _parts(
    spec: dict[str, Any] | None, name: str, arrays: Arrays
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int] | None:
    """What a two-level table is made of, so that a product reads its small codes rather than their values."""
    if spec is None or spec["kind"] != "two_level" or spec["bits"] > 8:
        return None
    codes = _whole(unpack(arrays[f"{name}.codes"], spec["groups"], spec["bits"]).astype(np.uint8))
    return codes, _floats(arrays[f"{name}.scale"]), _floats(arrays[f"{name}.zero"]), min(spec["rows"], 1 << 30)


def unpack(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """(..., bytes) uint8 -> (..., count) int32: compress.ops.unpack. Raises ValueError if they hold fewer."""
    if not 1 <= bits <= 16 or count * bits > 8 * packed.shape[-1]:
        raise ValueError(f"its {packed.shape[-1]} bytes hold no {count} codes of {bits} bits")
    at = np.arange(count) * bits
    stream = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, 2)]).astype(np.int32)
    byte = at >> 3
    value = stream[..., byte] | stream[..., byte + 1] << 8 | stream[..., byte + 2] << 16
    return value >> (at & 7) & (1 << bits) - 1


def _signs(packed: np.ndarray, n: int) -> np.ndarray:
    return (1.0 - 2 * unpack(packed, n, 1)).astype(np.float32)


def _floats(array: np.ndarray) -> np.ndarray:
    """fp32; an array of uint16 is bf16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


def _whole(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)
