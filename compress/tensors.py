"""The tensors of safetensors files as numpy arrays over the mapped file. Knows the format; loads no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from compress.errors import CompressError

LARGEST_HEADER = 100_000_000  # bytes, as in the format's own library
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read(file: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """(arrays by name, names of those that are bf16, whose bits are uint16). Read-only views of the file.

    Raises CompressError for a file that is missing, truncated or not what its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise ValueError("header")
            header = json.loads(stream.read(length))
        data = np.memmap(file, np.uint8, "r", 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        header.pop("__metadata__", None)
        arrays = {name: _array(data, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CompressError(f"'{file}' is damaged or missing: {type(error).__name__}") from error
    return arrays, {name for name, entry in header.items() if entry["dtype"] == "BF16"}


def _array(data: np.ndarray, entry: dict) -> np.ndarray:
    dtype, shape, (start, end) = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
    if not whole or end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("offsets")
    return data[start:end].view(dtype).reshape(shape)
