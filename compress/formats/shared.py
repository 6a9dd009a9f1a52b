"""What the layouts have in common: 32-bit words, and saying what a weight must not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.weight import QuantizedWeight


def to_words(packed: Tensor) -> Tensor:
    """(..., bytes divisible by 4) uint8 -> (..., words) int32, the first byte lowest."""
    return packed.reshape(-1).view(torch.int32).view(*packed.shape[:-1], -1)


def to_bytes(words: Tensor) -> Tensor:
    """The inverse of `to_words`."""
    return words.reshape(-1).view(torch.uint8).view(*words.shape[:-1], -1)


def require(
    weight: QuantizedWeight, kind: type[nn.Module], scale: type[nn.Module], order: bool = False, sparse: bool = False
) -> None:
    """Raise CompressError unless a weight has this kind of codes and scale, and nothing else but what is allowed."""
    transform = weight.transform
    wrong = {
        f"its codes are {type(weight.decode).__name__.lower()}": not isinstance(weight.decode, kind),
        "its scales are of another kind": not isinstance(weight.scale, scale),
        "it is rotated": transform.in_block > 1 or transform.out_block > 1,
        "its inputs are permuted": transform.order is not None and not order,
        "it has outliers": weight.sparse is not None and not sparse,
        "it has a low-rank part": weight.low_rank is not None,
    }
    for reason, holds in wrong.items():
        if holds:
            raise CompressError(reason)


def same(values: dict[str, Any], what: str) -> Any:
    """The one value that all layers share."""
    if len(set(values.values())) > 1:
        first, other = list(dict.fromkeys(values.values()))[:2]
        raise CompressError(f"the format has one {what} for all layers, not both {first} and {other}")
    return next(iter(values.values()))
